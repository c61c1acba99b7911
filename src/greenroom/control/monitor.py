"""Moves the alerts of rules over signals: see `core.signals` and `core.alerts`.

What stands in the store is taken up, so that a restart neither begins nor ends an alert. What cannot be read is
unknown, and changes nothing; where the store takes no changes, they are found again from what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.control.readings import Gauge, Look, Readings
from greenroom.core import alerts
from greenroom.core.alerts import ACTIVE, NOTHING, OF_RULES, Condition, Known, State
from greenroom.core.signals import OF_NODE, Rule, Signal
from greenroom.store import database
from greenroom.store.alerts import Pending, Raised, Resolved
from greenroom.store.store import Store

LOOK_EVERY_S = 15.0

Change = Raised | Pending | Resolved
Moved = dict[str, tuple[Known, Change]]  # by id: what is known then, and what says so


class Monitor:
    """*gauges* read the signals of the node; one that is not among them is unknown."""

    name = "monitor"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        rules: Sequence[Rule],
        *,
        gauges: Mapping[Signal, Gauge],
    ) -> None:
        self._store, self._clock, self._facts, self._rules = store, clock, facts, rules
        self._readings = Readings(store, clock, gauges)
        self.wakeup = asyncio.Event()
        self._known: dict[str, Known] | None = None  # by id; None: the store is to be asked

    async def step(self) -> float:
        known = await self._take_up()
        agents = sorted(await self._store.directory.refresh())
        look = await self._readings.look(self._rules)
        now_us = database.microseconds(self._clock.now())
        moved: Moved = {}
        gone = set(known)  # but for those that a rule is still about
        for rule in self._rules:
            for agent in _subjects(rule, agents):
                id = _id(rule, agent)
                gone.discard(id)
                self._judge(id, rule, agent, look, known=known, moved=moved, now_us=now_us)
            await asyncio.sleep(0)  # with a thousand agents and a hundred rules this takes a while
        moved |= {id: (NOTHING, Resolved(id)) for id in gone}
        await self._apply(known, moved)
        return LOOK_EVERY_S

    def _judge(
        self, id: str, rule: Rule, agent: str | None, look: Look, *, known: dict[str, Known], moved: Moved, now_us: int
    ) -> None:
        reading, before = look.read(rule, agent), known.get(id, NOTHING)
        condition = rule.condition(reading)
        if before is NOTHING and condition is not Condition.HOLDS:
            return
        after = alerts.after(before, condition, for_s=rule.for_s, keep_s=rule.keep_s, now_us=now_us)
        if after.state is before.state:
            known[id] = after
        elif after.state is State.RESOLVED or reading is None:
            moved[id] = after, Resolved(id)
        else:
            kind = Pending if after.state is State.PENDING else Raised
            moved[id] = after, kind(id, rule.name, agent, rule.severity, rule.reason(agent, reading))

    async def _take_up(self) -> dict[str, Known]:
        if self._known is None:
            rows = [row for row in await self._store.alerts.open() if row.id.startswith(OF_RULES)]
            self._known = {row.id: Known(State(row.state), row.first_at) for row in rows}
        return self._known

    async def _apply(self, known: dict[str, Known], moved: Moved) -> None:
        if not moved:
            return
        try:
            await self._store.alerts.tell_all([change for _, change in moved.values()])
        except BaseException:
            self._known = None  # they may be stored, or not
            raise
        for id, (after, change) in moved.items():
            before = known.pop(id, NOTHING)
            if after.state is not State.RESOLVED:
                known[id] = after
            self._tell(before, change)

    def _tell(self, before: Known, change: Change) -> None:
        match change:
            case Pending():
                pass  # nobody has to do anything yet
            case Raised(id=id, severity=severity, reason=reason):
                self._facts.emit(telemetry.AlertChanged(id, State.FIRING, severity, reason))
            case Resolved(id=id) if before.state in ACTIVE:
                self._facts.emit(telemetry.AlertChanged(id, State.RESOLVED))


def _subjects(rule: Rule, agents: Sequence[str]) -> Iterator[str | None]:
    """Yield those whom *rule* is about: agents, or, as None, the node."""
    if rule.signal in OF_NODE:
        yield None
    else:
        yield from filter(rule.is_about, agents)


def _id(rule: Rule, agent: str | None) -> str:
    return f"{OF_RULES}{rule.name}" if agent is None else f"{OF_RULES}{rule.name}:{agent}"
