"""An engine without processes: replicas are names, and tests say what they do. For the tests of the loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from greenroom import errors
from greenroom.engine import contract, protocol


@dataclass
class FakeReplica:
    """A replica that was started: *sent* is what it was told, oldest first."""

    id: str
    revision: contract.Revision
    sent: list[protocol.ToReplica] = field(default_factory=list)  # but for probes and trials
    trials: list[protocol.Check | protocol.Migrate] = field(default_factory=list)
    is_ready: bool = False
    is_hung: bool = False  # probes find no answer

    @property
    def invocations(self) -> list[protocol.Invoke]:
        return [message for message in self.sent if isinstance(message, protocol.Invoke)]


class FakeEngine:
    """A `contract.Engine` whose replicas are moved by hand: `ready`, `say`, `succeed`, `die`.

    Probes are answered at once by all but those that are hung, and so are checks and migrations that are tried: with
    success, or with *check_failure* and *migration_failure* while these are set. With *holds_trials*, only by `say`.

    With *is_eager*, replicas are ready as soon as they are started. *refusal*, while set, is what `start` raises.
    """

    def __init__(self, *, is_eager: bool = False) -> None:
        self.is_eager = is_eager
        self.refusal = self.check_failure = self.migration_failure = ""
        self.holds_trials = False
        self.replicas: dict[str, FakeReplica] = {}  # those that live, in the order of their start
        self.started: list[FakeReplica] = []
        self.starts = 0  # also those that were refused
        self.killed: dict[str, str] = {}  # and why
        self.is_closed = False
        self.warm: list[contract.Revision] = []  # what was to be kept warm, last
        self._listeners: list[contract.Listener] = []

    # --- contract.Engine

    def subscribe(self, listener: contract.Listener) -> None:
        self._listeners.append(listener)

    async def start(self, replica: str, revision: contract.Revision) -> None:
        self.starts += 1
        if self.refusal:
            raise errors.AgentInvalid(self.refusal)
        self.replicas[replica] = FakeReplica(replica, revision)
        self.started.append(self.replicas[replica])
        if self.is_eager:
            self.ready(replica)

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        if replica not in self.replicas:
            return False
        fake = self.replicas[replica]
        match message:
            case protocol.Probe(number):
                if not fake.is_hung:
                    self.alive(replica, number)
            case protocol.Check() | protocol.Migrate():
                fake.trials.append(message)
                if not fake.is_hung and not self.holds_trials:
                    self._answer_trial(replica, message)
            case _:
                fake.sent.append(message)
        return True

    async def stop(self, replica: str, *, grace_s: float) -> None:
        del grace_s  # a fake leaves at once
        if replica in self.replicas:
            self.die(replica, "stopped")

    def kill(self, replica: str, reason: str, detail: str = "") -> None:
        if replica in self.replicas:
            self.killed[replica] = reason
            self.die(replica, reason, detail)

    def observe(self) -> list[contract.Observation]:
        return [
            contract.Observation(replica.id, 1000 + place, replica.is_ready, 10.0, 0.0)
            for place, replica in enumerate(self.replicas.values())
        ]

    async def keep_warm(self, revisions: Sequence[contract.Revision]) -> None:
        self.warm = list(revisions)

    async def close(self) -> None:
        self.is_closed = True
        for replica in list(self.replicas):
            self.die(replica, "stopped")

    def _answer_trial(self, replica: str, message: protocol.Check | protocol.Migrate) -> None:
        failure, type = self.check_failure, "check_failed"
        if isinstance(message, protocol.Migrate):
            failure, type = self.migration_failure, "state_not_migratable"
        if failure:
            ended = protocol.Ended(message.task, message.epoch, error_type=type, error_message=failure)
        else:
            ended = protocol.Ended(message.task, message.epoch, output=b"true")
        self.say(replica, ended)

    # --- for tests

    def ready(self, replica: str) -> None:
        self.replicas[replica].is_ready = True
        for listener in self._listeners:
            listener.on_ready(replica, protocol.Ready("fake", "a fake"))

    def alive(self, replica: str, number: int = 0) -> None:
        """Answer a probe, or beat."""
        for listener in self._listeners:
            listener.on_alive(replica, number)

    def say(self, replica: str, message: protocol.OfAttempt) -> None:
        for listener in self._listeners:
            listener.on_message(replica, message)

    def succeed(self, replica: str, output: bytes = b"null", *, place: int = -1) -> None:
        """End the invocation at *place* of *replica* with *output*."""
        invoke = self.replicas[replica].invocations[place]
        self.say(replica, protocol.Ended(invoke.task, invoke.epoch, output=output))

    def die(self, replica: str, reason: str = "killed", detail: str = "") -> None:
        del self.replicas[replica]
        for listener in self._listeners:
            listener.on_exit(replica, contract.Exit(reason, detail))
