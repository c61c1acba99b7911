"""Replicas that behave as the seed says, in the loops' simulation: an engine that keeps a ledger of what it ran."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from greenroom.engine import contract, protocol
from greenroom.testing.fake_engine import FakeEngine
from greenroom.testing.simulation import agents
from greenroom.testing.simulation.faults import Fault

POISON, CALLER = "poison", "caller"  # what an input may begin with: see `ScriptedEngine`


@dataclass(slots=True)
class Entry:
    """One invocation in the ledger. Times are the loop's."""

    replica: str
    invoke: protocol.Invoke
    begun_s: float
    ended_s: float | None = None
    is_stubborn: bool = False  # it does not stop when asked to


@dataclass
class Script:
    """What the world decides for every engine that it starts."""

    seed: int
    inject: Callable[[Fault, object], None]
    note: Callable[..., None]
    is_calm: Callable[[], bool]
    is_crashing: Callable[[str], bool]
    began: Callable[[Entry, list[tuple[str, int]]], None]
    stopped: Callable[[Entry], None]
    killed: Callable[[Entry, str], None]
    started: Callable[[contract.Revision], None]
    died_early: Callable[[contract.Revision, float], None]
    succeeded: Callable[[contract.Revision], None]


@dataclass
class ScriptedEngine(FakeEngine):
    """How an attempt goes is drawn from the seed, its task's label and its epoch: not from what happened before."""

    script: Script
    ledger: dict[tuple[str, int], Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._hung: set[str] = set()
        self._is_dead = False
        self._starts = 0
        self._started_s: dict[str, float] = {}

    # --- contract.Engine

    async def start(self, replica: str, revision: contract.Revision) -> None:
        await super().start(replica, revision)
        self._starts += 1
        self._started_s[replica] = asyncio.get_running_loop().time()
        rng = random.Random(f"{self.script.seed} start {revision.agent} {self._starts}")
        self.script.started(revision)
        self.script.note("  %s starts", replica)
        self._in(rng.uniform(0.05, 0.5), self._come_up, replica, revision)

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        is_sent = super().invoke(replica, message)
        if is_sent:
            match message:
                case protocol.Invoke(is_check=True):
                    output = agents.work(message.task, message.epoch, None).output
                    self._answer_trial_in(replica, protocol.Ended(message.task, message.epoch, output=output))
                case protocol.Invoke():
                    self._work(replica, message)
                case protocol.CallEnded():
                    self._go_on(message)
                case protocol.Cancel():
                    self._interrupt(message)
        return is_sent

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """SIGTERM: what runs says that it was cancelled, and the process leaves; a hung one is killed after a time."""
        await asyncio.sleep(grace_s if replica in self._hung else 0.05)
        for key in [key for key, entry in self.ledger.items() if entry.replica == replica and entry.ended_s is None]:
            if replica in self.replicas:
                self.say(replica, protocol.Ended(*key, cancelled=True))
        if replica in self.replicas:
            self.die(replica, "stopped")

    def kill(self, replica: str, reason: str, detail: str = "") -> None:
        for entry in self.ledger.values():
            if entry.replica == replica and entry.ended_s is None:
                self.script.killed(entry, reason)
        super().kill(replica, reason, detail)

    def die(self, replica: str, reason: str = "killed", detail: str = "") -> None:
        gone = self.replicas[replica]
        self.script.note("  %s dies: %s", replica, reason)
        for entry in self.ledger.values():
            if entry.replica == replica:
                self._end(entry)
        if not gone.is_ready and reason != "stopped":
            self.script.died_early(gone.revision, self._started_s[replica])
        super().die(replica, reason, detail)

    # --- for the world

    def vanish(self) -> None:
        """The node is dead, and all of its replicas with it; nobody hears of it."""
        self._is_dead = True
        for entry in self.ledger.values():
            self._end(entry)
        self.replicas.clear()

    def hang(self, replica: str) -> None:
        self._hung.add(replica)
        self.replicas[replica].is_hung = True

    # --- what replicas do

    def _in(self, delay_s: float, act: Callable[..., None], *arguments: object) -> None:
        asyncio.get_running_loop().call_later(delay_s, self._do, act, *arguments)

    def _do(self, act: Callable[..., None], *arguments: object) -> None:
        if not self._is_dead:
            act(*arguments)

    def _come_up(self, replica: str, revision: contract.Revision) -> None:
        if replica not in self.replicas:
            return
        if self.script.is_crashing(revision.agent):
            self.script.inject(Fault.REPLICA_CRASHES, replica)
            self.die(replica, "crashed")
        else:
            self.ready(replica)

    def _work(self, replica: str, invoke: protocol.Invoke) -> None:
        neighbours = [key for key, other in self.ledger.items() if other.replica == replica and other.ended_s is None]
        entry = self.ledger[invoke.task, invoke.epoch] = Entry(replica, invoke, asyncio.get_running_loop().time())
        rng = self._rng(invoke)
        entry.is_stubborn = rng.random() < 0.1
        self.script.note("  %s begins %s#%d", replica, invoke.task, invoke.epoch)
        self.script.began(entry, neighbours)
        duration_s = rng.uniform(0.05, 2.0) if self.script.is_calm() or rng.random() < 0.7 else rng.uniform(2.0, 12.0)
        label = _label(invoke)
        if label.startswith(POISON):
            self.script.inject(Fault.POISON, invoke.task)
            self._in(duration_s / 2, self._crash, entry)
        elif label.startswith(CALLER):
            called = protocol.Called(invoke.task, invoke.epoch, 0, "b", b'"child"')
            self._in(duration_s / 2, self._say, entry, called)
        else:
            self._answer_in(entry, duration_s, rng)

    def _answer_trial(self, replica: str, message: protocol.Check | protocol.Migrate) -> None:
        self._answer_trial_in(replica, protocol.Ended(message.task, message.epoch, output=b"true"))

    def _answer_trial_in(self, replica: str, ended: protocol.Ended) -> None:
        rng = random.Random(f"{self.script.seed} trial {ended.task} {ended.epoch}")
        self._in(rng.uniform(0.05, 1.0), self._say_of_trial, replica, ended)

    def _say_of_trial(self, replica: str, ended: protocol.Ended) -> None:
        if replica in self.replicas and replica not in self._hung:
            self.say(replica, ended)

    def _go_on(self, message: protocol.CallEnded) -> None:
        entry = self.ledger[message.task, message.epoch]
        self._answer_in(entry, 0.1, self._rng(entry.invoke))

    def _answer_in(self, entry: Entry, delay_s: float, rng: random.Random) -> None:
        invoke, is_calm = entry.invoke, self.script.is_calm()
        if not is_calm and rng.random() < 0.1:
            self.script.inject(Fault.ANSWER_LATE, invoke.task)
            delay_s += rng.uniform(5.0, 30.0)
        result = agents.work(invoke.task, invoke.epoch, invoke.state)
        message = protocol.Ended(invoke.task, invoke.epoch, output=result.output, state=result.state)
        if not is_calm and rng.random() < 0.12:
            self.script.inject(Fault.AGENT_FAILS, invoke.task)
            message = protocol.Ended(
                invoke.task, invoke.epoch, error_type="ValueError", error_message="no", retryable=rng.random() < 0.5
            )
        self._in(delay_s, self._say, entry, message)
        if not is_calm and rng.random() < 0.1:
            self.script.inject(Fault.ANSWER_TWICE, invoke.task)
            self._in(delay_s + rng.uniform(0.0, 3.0), self._say, entry, message)

    def _say(self, entry: Entry, message: protocol.Ended | protocol.Called) -> None:
        replica = self.replicas.get(entry.replica)
        if replica is None or entry.replica in self._hung:
            return
        if isinstance(message, protocol.Ended):
            self._end(entry)
            if message.output is not None:
                self.script.succeeded(replica.revision)
        self.say(entry.replica, message)

    def _interrupt(self, message: protocol.Cancel) -> None:
        entry = self.ledger.get((message.task, message.epoch))
        if entry is not None and not entry.is_stubborn:  # none: a trial, which is soon over
            self._in(0.2, self._say, entry, protocol.Ended(message.task, message.epoch, cancelled=True))

    def _crash(self, entry: Entry) -> None:
        if entry.replica in self.replicas and entry.ended_s is None:
            self.die(entry.replica, "crashed")

    def _end(self, entry: Entry) -> None:
        if entry.ended_s is None:
            entry.ended_s = asyncio.get_running_loop().time()
            self.script.stopped(entry)

    def _rng(self, invoke: protocol.Invoke) -> random.Random:
        return random.Random(f"{self.script.seed} {_label(invoke)} {invoke.epoch}")


def _label(invoke: protocol.Invoke) -> str:
    return invoke.input.decode().strip('"')
