"""Replicas of revisions that are good, or bad in one way, in the simulation of rollouts; and what they have shown."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from greenroom import errors
from greenroom.engine import contract, protocol
from greenroom.testing.fake_engine import FakeEngine, FakeReplica
from greenroom.testing.simulation import agents
from greenroom.testing.simulation.scenarios import Plot

READY_S = 0.3  # after its start
TRIAL_S = 0.05
WORK_S = 0.1
STOP_S = 0.05


@dataclass
class Evidence:
    """What replicas have answered, over all incarnations of the node, by revision."""

    probed: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))  # with success
    checked: Counter[int] = field(default_factory=Counter)  # with success
    worked: Counter[int] = field(default_factory=Counter)  # tasks, with success
    revision_of: dict[str, int] = field(default_factory=dict)  # of each replica that was ever started


class Watcher(Protocol):
    """Who looks on."""

    def began(self, replica: FakeReplica, invoke: protocol.Invoke, neighbours: list[tuple[str, int]]) -> None: ...

    def stopped(self, invoke: protocol.Invoke) -> None: ...

    def counted(self) -> None:
        """A replica has become ready, or has gone."""


class RolloutEngine(FakeEngine):
    """*bad* says what is wrong with a revision's replicas."""

    def __init__(
        self, bad: Mapping[int, Plot], evidence: Evidence, watcher: Watcher, note: Callable[..., None]
    ) -> None:
        super().__init__()
        self._bad, self._evidence, self._watcher, self._note = bad, evidence, watcher, note
        self._running: dict[tuple[str, int], tuple[str, protocol.Invoke]] = {}
        self._stopping: set[str] = set()
        self._is_dead = False

    def serving(self, revision: int) -> set[str]:
        """Return the replicas of *revision* that are ready and were not told to stop."""
        return {
            id
            for id, replica in self.replicas.items()
            if replica.is_ready and replica.revision.number == revision and id not in self._stopping
        }

    # --- contract.Engine

    async def start(self, replica: str, revision: contract.Revision) -> None:
        bad = self._bad.get(revision.number)
        if bad is Plot.REFUSED:
            raise errors.AgentInvalid("it cannot be imported")
        await super().start(replica, revision)
        self._evidence.revision_of[replica] = revision.number
        self._note("  %s of revision %d starts", replica, revision.number)
        if bad is Plot.CRASHES:
            self._in(READY_S, self._crash, replica)
        elif bad is not Plot.NEVER_READY:
            self._in(READY_S, self._come_up, replica)

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        is_sent = super().invoke(replica, message)
        if is_sent and isinstance(message, protocol.Invoke):
            neighbours = [key for key, (at, _) in self._running.items() if at == replica]
            self._running[message.task, message.epoch] = replica, message
            self._note("  %s begins %s#%d", replica, message.task, message.epoch)
            self._watcher.began(self.replicas[replica], message, neighbours)
            self._in(WORK_S, self._end, replica, message)
        return is_sent

    async def stop(self, replica: str, *, grace_s: float) -> None:
        del grace_s  # its tasks end at once
        self._stopping.add(replica)
        await asyncio.sleep(STOP_S)
        if replica in self.replicas:
            self.die(replica, "stopped")

    def die(self, replica: str, reason: str = "killed", detail: str = "") -> None:
        self._note("  %s dies: %s", replica, reason)
        for key, (at, invoke) in list(self._running.items()):
            if at == replica:
                del self._running[key]
                self._watcher.stopped(invoke)
        super().die(replica, reason, detail)
        self._watcher.counted()

    # --- for the world

    def vanish(self) -> None:
        """The node is dead, and all of its replicas with it; nobody hears of it."""
        self._is_dead = True
        for _, invoke in self._running.values():
            self._watcher.stopped(invoke)
        self._running.clear()
        self.replicas.clear()

    # --- what replicas do

    def _in(self, delay_s: float, act: Callable[..., None], replica: str, *arguments: object) -> None:
        def do() -> None:
            if not self._is_dead and replica in self.replicas:
                act(replica, *arguments)

        asyncio.get_running_loop().call_later(delay_s, do)

    def _come_up(self, replica: str) -> None:
        self.ready(replica)
        self._watcher.counted()

    def _crash(self, replica: str) -> None:
        self.die(replica, "crashed", "it broke at its start")

    def _answer_trial(self, replica: str, message: protocol.Check | protocol.Migrate) -> None:
        self._in(TRIAL_S, self._say_of_trial, replica, message)

    def _say_of_trial(self, replica: str, message: protocol.Check | protocol.Migrate) -> None:
        revision = self.replicas[replica].revision.number
        is_probe = isinstance(message, protocol.Check) and message.function is None
        if self._bad.get(revision) is (Plot.PROBE_FAILS if is_probe else Plot.CHECK_FAILS):
            self.say(replica, protocol.Ended(message.task, message.epoch, error_type="no", error_message="it is bad"))
            return
        if is_probe:
            self._evidence.probed[revision].add(replica)
        else:
            self._evidence.checked[revision] += 1
        self.say(replica, protocol.Ended(message.task, message.epoch, output=b"true"))

    def _end(self, replica: str, invoke: protocol.Invoke) -> None:
        if self._running.pop((invoke.task, invoke.epoch), None) is None:
            return
        self._watcher.stopped(invoke)
        revision = self.replicas[replica].revision.number
        if self._bad.get(revision) is Plot.ERRORS:
            ended = protocol.Ended(invoke.task, invoke.epoch, error_type="ValueError", error_message="it is bad")
        else:
            self._evidence.worked[revision] += 1
            result = agents.work(invoke.task, invoke.epoch, invoke.state)
            ended = protocol.Ended(invoke.task, invoke.epoch, output=result.output, state=result.state)
        self.say(replica, ended)
