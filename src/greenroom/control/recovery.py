"""Recovery, as a node's host keeps it: each agent's record, what is still to be written of it, and its alert.

`control.host` tells of deaths, readiness and successes, and asks what may be started; `core.recovery` decides. What is
noted is written in the host's next step, a failure together with its consequence and its alert.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping

import msgspec
from msgspec import field
from msgspec.structs import replace

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.core import recovery
from greenroom.core.recovery import Record
from greenroom.store import database
from greenroom.store.alerts import Raised, Resolved
from greenroom.store.directory import Entry
from greenroom.store.recovery import NewFailure, Noted, Recovered
from greenroom.store.store import Store

BY = "recovery"  # who has begun a rollout that the ladder has led to

_decode = msgspec.json.Decoder(Record).decode


class Case(msgspec.Struct):
    """An agent's record, that of its serving revision, and what has happened since it was last written.

    *others* are the records of revisions that stand beside it: of what becomes of those a rollout decides.
    """

    record: Record
    others: dict[int, Record] = {}
    alarm: recovery.Alarm | None = None  # what the store was told
    bereaved: deque[tuple[str, int]] = field(default_factory=deque)  # dead replicas that none is started for yet
    failures: list[NewFailure] = []
    recovered: list[Recovered] = []
    proven: set[int] = set()
    written: Record | None = None

    def take_up(self, revision: int, *, generation: int, fallback: int | None) -> None:
        """Judge the agent anew; where another revision serves now, both keep what they have shown."""
        gone, came = self.record, self.others.get(revision)
        self.record = recovery.judged_anew(gone, revision, generation=generation, fallback=fallback)
        if came is not None:
            is_proven = self.record.is_proven or came.is_proven
            self.record = replace(self.record, is_proven=is_proven, interpreter=came.interpreter)
        if gone.revision != revision:
            self.others[gone.revision] = Record(gone.revision, is_proven=gone.is_proven, interpreter=gone.interpreter)


class Recovery:
    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._clock, self._facts, self._jitter = store, clock, facts, jitter
        self._cases: dict[str, Case] = {}
        self._is_loaded = False

    def record(self, agent: str, revision: int | None = None) -> Record:
        """Return the record of the agent's serving revision, or of *revision*."""
        case = self._cases.get(agent)
        if case is None:
            return Record()
        return case.record if revision is None else case.others.get(revision, case.record)

    def next_start_s(self) -> float:
        """Return after how many seconds a start is due that waits; infinity where none does."""
        now_s = self._clock.monotonic_s()
        records = [record for case in self._cases.values() for record in (case.record, *case.others.values())]
        waits_s = [record.start_not_before_s - now_s for record in records if not record.is_halted]
        return min((wait_s for wait_s in waits_s if wait_s > 0), default=math.inf)

    async def judge(self, entries: Mapping[str, Entry]) -> None:
        """Take up what the store remembers, begin anew with what was deployed, scaled or released, forget the rest."""
        if not self._is_loaded:
            await self._load(entries)
        for name, entry in entries.items():
            case, agent = self._cases.get(name), entry.agent
            if case is None:
                case = self._cases[name] = Case(Record())
            if case.record.generation != agent.generation or case.record.revision != agent.revision:
                before = entry.rollout.from_revision if entry.rollout is not None else None
                fallback = await self._store.agents.fallback(name, agent.revision, before=before)
                case.take_up(agent.revision, generation=agent.generation, fallback=fallback)
            beside = entry.capacity.keys() - {agent.revision}
            case.others = {number: case.others.get(number, Record(number)) for number in beside}
        for gone in self._cases.keys() - entries.keys():
            await self._write(Noted(gone, None, alert=Resolved(_alert_id(gone))))
            del self._cases[gone]

    # --- what happens

    def on_death(self, death: recovery.Death, failure: NewFailure, *, is_missed: bool) -> None:
        """Note how a replica ended; *is_missed* where another is to take its place."""
        case = self._cases.setdefault(failure.agent, Case(Record()))
        other = case.others.get(death.revision)
        before = case.record if other is None else other
        counts = recovery.weight(before, death) > 0
        record = recovery.after_death(before, death, now_s=self._clock.monotonic_s(), jitter=self._jitter())
        if other is None:
            case.record = record
        else:
            case.others[death.revision] = record
        rung = record.rung if counts else None
        action = rung or (recovery.Rung.RESTART if is_missed else "none")
        case.failures.append(msgspec.structs.replace(failure, rung=action))
        if is_missed:
            case.bereaved.append((failure.replica, failure.revision))
        if counts:
            self._facts.emit(telemetry.AgentFailing(failure.agent, record.reason))

    def successor_of(self, agent: str, revision: int) -> str | None:
        """Return the dead replica whose place the one of *revision* takes that is started now."""
        bereaved = self._cases[agent].bereaved if agent in self._cases else deque()
        for each in bereaved:
            if each[1] == revision:
                bereaved.remove(each)
                return each[0]
        return None

    def on_ready(self, agent: str, replica: str, *, replaces: str | None) -> None:
        if replaces is not None and (case := self._cases.get(agent)) is not None:
            case.recovered.append(Recovered(replaces, replica))

    def on_success(self, agent: str, revision: int, *, started_s: float) -> None:
        case = self._cases.get(agent)
        # Where there is nothing to learn, nothing is asked: each task comes by here.
        if case is None or (case.record.is_proven and not case.record.deaths and case.record.revision == revision):
            return
        if (other := case.others.get(revision)) is not None:
            case.others[revision] = recovery.after_success(other, revision, started_s=started_s)
            if not other.is_proven:
                case.proven.add(revision)
        record = recovery.after_success(case.record, revision, started_s=started_s)
        if record is not case.record:
            if not case.record.is_proven or revision != record.revision:
                case.proven.add(revision)
            case.record = record

    def on_settled(self, agent: str) -> None:
        case = self._cases[agent]
        case.record = recovery.after_settling(case.record)

    async def roll_back(self, agent: str) -> bool:
        """Serve the revision before again, where the ladder has come to that; False where somebody was faster."""
        record = self.record(agent)
        assert record.fallback is not None
        is_back = await self._store.rollouts.switch(
            agent, generation=record.generation, to=record.fallback, reason=record.reason, by=BY
        )
        if is_back is not None:
            self._facts.emit(telemetry.AgentRolledBack(agent, record.revision, record.fallback, record.reason))
        return is_back is not None

    # --- telling the store

    async def write(self) -> None:
        """Write what has happened."""
        now_s = self._clock.monotonic_s()
        for agent, case in list(self._cases.items()):
            alarm = recovery.alarm(case.record, agent, now_s=now_s)
            is_told = (alarm and alarm.kind) == (case.alarm and case.alarm.kind)
            is_quiet = not (case.failures or case.recovered or case.proven)
            if is_told and case.record is case.written and is_quiet:
                continue
            failures, case.failures = case.failures, []
            recovered, case.recovered = case.recovered, []
            proven, case.proven = case.proven, set()
            record = case.record
            noted = Noted(
                agent,
                msgspec.json.encode(recovery.moved(record, -now_s)),
                tuple(failures),
                tuple(recovered),
                tuple(sorted(proven)),
                None if is_told else _alert(agent, alarm),
            )
            try:
                await self._write(noted)
            except errors.StoreUnavailable:
                case.failures[:0], case.recovered[:0] = failures, recovered
                case.proven |= proven
                raise
            case.written, case.alarm = record, alarm

    async def leave(self) -> None:
        """Put what is quarantined on probation, for the node is stopped in order."""
        for case in self._cases.values():
            case.record = recovery.on_probation(case.record)
        await self.write()

    async def _write(self, noted: Noted) -> None:
        await self._store.recovery.note(noted)
        match noted.alert:
            case Raised(id, _, _, severity, reason):
                self._facts.emit(telemetry.AlertChanged(id, "firing", severity, reason))
            case Resolved(id) if noted.record is not None:
                self._facts.emit(telemetry.AlertChanged(id, "resolved"))
            case _:
                pass

    async def _load(self, entries: Mapping[str, Entry]) -> None:
        now_s, now_us = self._clock.monotonic_s(), database.microseconds(self._clock.now())
        for agent, (record, written_us) in (await self._store.recovery.records()).items():
            elapsed_s = max(0.0, (now_us - written_us) / 1e6)
            try:
                known = recovery.moved(_decode(record), now_s - elapsed_s)
            except msgspec.MsgspecError:  # damaged: its agent is judged anew, as one that was never seen
                continue
            wanted = entries[agent].agent.replicas if agent in entries else 0
            self._cases[agent] = Case(known, written=known, bereaved=deque(maxlen=wanted))
        for alert in await self._store.alerts.open():
            if alert.is_firing and alert.agent in self._cases and alert.id == _alert_id(alert.agent):
                self._cases[alert.agent].alarm = recovery.Alarm(alert.kind, alert.severity, alert.reason)
        since_us = now_us - int(recovery.RECURRING_PERIOD_S * 1e6)
        for failure in await self._store.recovery.open_failures(after_us=since_us):
            if failure.agent in self._cases:
                self._cases[failure.agent].bereaved.append((failure.replica, failure.revision))
        for case in self._cases.values():
            case.bereaved = deque(case.bereaved)  # the latest; of those before, the rung has led to none
        self._is_loaded = True


def _alert_id(agent: str) -> str:
    return f"agent-{agent}"


def _alert(agent: str, alarm: recovery.Alarm | None) -> Raised | Resolved:
    if alarm is None:
        return Resolved(_alert_id(agent))
    return Raised(_alert_id(agent), alarm.kind, agent, alarm.severity, alarm.reason)
