"""The optimizer's loop: measures, asks the rules, writes down what they advise, and acts on it where it is told to.

Advice is rows that nothing but this loop writes. What it does about it goes through `Actions`, which the node fills:
each act is bounded, one at a time for an agent, and followed by a look at what it has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

import msgspec

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.control.alerts import Alerts
from greenroom.control.measurements import Collector
from greenroom.control.user_rules import UserRule, plain
from greenroom.core import failures, measurements, optimizer, optimizer_rules
from greenroom.core.optimizer import Act, Found, Key
from greenroom.core.scaling import Rule
from greenroom.store.advice import Move
from greenroom.store.alerts import Raised
from greenroom.store.deployments import Limits
from greenroom.store.scaling import Scale
from greenroom.store.store import Store

BROKEN = "rule_broken"  # the kind of their alerts


class Actions(msgspec.Struct, frozen=True, kw_only=True):
    """What can be done here; None: nobody can, and it stays advice. Each says whether it did it."""

    restart: Callable[[str, str], bool] | None = None  # a replica, and why
    scale: Callable[[str, int], Awaitable[bool]] | None = None
    lower_spares: Callable[[], bool] | None = None
    limit_admission: Callable[[float], None] | None = None


class Optimizer:
    """*is_applying* as in the settings; *rules_of_users* are asked after our own."""

    name = "optimizer"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        collector: Collector,
        actions: Actions,
        is_applying: bool,
        rules_of_users: Sequence[UserRule] = (),
    ) -> None:
        self._store, self._clock, self._facts, self._collector = store, clock, facts, collector
        self._actions, self._is_applying, self._own = actions, is_applying, rules_of_users
        self.wakeup = asyncio.Event()
        self._memory: dict[Key, optimizer.Standing] = {}
        self._ids: dict[Key, int] = {}
        self._alerts = Alerts(store, facts, BROKEN)  # of rules of users
        self._is_loaded = False

    async def step(self) -> float:
        try:
            return await self._step()
        except errors.StoreUnavailable:
            self._is_loaded = False  # what was being written may be stored, or not
            raise

    async def _step(self) -> float:
        if not self._is_loaded:
            await self._load()
        seen = await self._collector.look()
        own = await self._ask_own(seen)
        now_s = self._clock.monotonic_s()
        moves, memory = optimizer.advise(seen, self._memory, now_s, rules=optimizer_rules.RULES, own=own)
        for move in moves:
            await self._write(move)
        self._memory = memory
        if self._is_applying:
            strictly = [found for rule in optimizer_rules.RULES for found in rule.find(seen, 1.0)]
            await self._apply({found.key: found for found in strictly}, now_s)
        return optimizer.LOOK_EVERY_S

    async def _load(self) -> None:
        """Take up what was open when the node was last stopped; what was done then is done no more, or settled."""
        now_s = self._clock.monotonic_s()
        rows, self._ids = await self._store.advice.standing(), {}
        for row in rows:
            key = row.rule, row.agent or ""
            known = self._memory.get(key)
            if known is not None and known.phase == row.state and key not in self._ids:
                self._ids[key] = row.id
                continue
            if known is not None and known.phase is optimizer.Phase.APPLIED and key not in self._ids:
                await self._store.advice.move(Move(row.id, "applied"))  # it was done, and not written
                self._ids[key] = row.id
                continue
            if row.state == "applied" or key in self._ids:
                await self._store.advice.move(Move(row.id, "withdrawn", None, "not known: the node was started again"))
                continue
            self._memory[key] = optimizer.reopened(row.metric, row.value_before, now_s)
            self._ids[key] = row.id
            self._tell(key, "open", row.what)
        own = {_alert_id(rule.name) for rule in self._own}
        for id in [id for id in await self._alerts.firing() if id not in own]:  # its package was uninstalled
            await self._alerts.resolve(id)
        self._is_loaded = True

    # --- rows

    async def _write(self, move: optimizer.Move) -> None:
        match move:
            case optimizer.Opened(found):
                self._ids[found.key] = await self._store.advice.open(found)
                self._tell(found.key, "open", found.what)
            case optimizer.Withdrawn(key, after):
                await self._end(key, "withdrawn", after, "")
            case optimizer.Measured(key, after, outcome, is_undone):
                if is_undone and self._actions.limit_admission is not None:
                    self._actions.limit_admission(100.0)
                await self._end(key, "measured", after, outcome)
            case _:
                assert_never(move)

    async def _end(self, key: Key, state: str, after: float | None, outcome: str) -> None:
        id = self._ids.get(key)
        if id is not None:
            await self._store.advice.move(Move(id, state, after, outcome))
            del self._ids[key]
            self._tell(key, state, "", outcome)

    def _tell(self, key: Key, state: str, what: str, outcome: str = "") -> None:
        self._facts.emit(telemetry.AdviceChanged(key[0], key[1], state, what, outcome, len(self._ids)))

    # --- acting

    async def _apply(self, found: dict[Key, Found], now_s: float) -> None:
        for key, standing in list(self._memory.items()):
            if standing.phase is not optimizer.Phase.OPEN or key not in found or key not in self._ids:
                continue
            act = found[key].act  # as it is now: the fattest may be another one
            if act is None or not optimizer.may_apply(self._memory, act) or not await self._do(act, found[key].why):
                continue
            self._memory = optimizer.applied(self._memory, key, found[key], now_s)
            await self._store.advice.move(Move(self._ids[key], "applied", found=found[key]))
            self._tell(key, "applied", found[key].what)

    async def _do(self, act: Act, why: str) -> bool:
        actions = self._actions
        match act:
            case optimizer.Restart(replica, _):
                return actions.restart is not None and actions.restart(replica, why)
            case optimizer.Scale(agent, replicas):
                return actions.scale is not None and await actions.scale(agent, replicas)
            case optimizer.TrimCache():
                return await self._store.cache.trim() > 0
            case optimizer.LowerSpares():
                return actions.lower_spares is not None and actions.lower_spares()
            case optimizer.LimitAdmission(pct):
                if actions.limit_admission is None:
                    return False
                actions.limit_admission(pct)
                return True
            case _:
                assert_never(act)

    # --- rules of users

    async def _ask_own(self, seen: measurements.Measurements) -> list[Found]:
        found: list[Found] = []
        for rule in self._own:
            advices, trouble = await rule.ask(plain(seen))
            found += advices
            await self._note_trouble(rule.name, trouble)
        return found

    async def _note_trouble(self, rule: str, trouble: str | None) -> None:
        """Have one alert for each rule that does not work, for as long as it does not; it tells of the last failure."""
        if trouble is None:
            await self._alerts.resolve(_alert_id(rule))
            return
        reason = f"the optimizer's rule {rule} is skipped: {trouble}; repair it, or uninstall its package"
        await self._alerts.tell(Raised(_alert_id(rule), BROKEN, None, "warning", failures.told(reason)))


def _alert_id(rule: str) -> str:
    return f"optimizer-rule-{rule}"[:200]


async def scaled(store: Store, agent: str, replicas: int, *, room: Limits) -> bool:
    """Have *replicas* of *agent*, if it is well, on no rollout's way, and there may be and is room for so many."""
    entry = store.directory.entries.get(agent)
    if entry is None or entry.agent.state != "ready" or (entry.rollout is not None and entry.rollout.state.is_open):
        return False
    if replicas < 1:
        return False
    item = Scale(
        agent=agent,
        replicas=replicas,
        room=room,
        rule=Rule.SET,
        by="optimizer",
        before=entry.agent.replicas,
        within_bounds=True,
    )
    (answer,) = await store.scaling.decide([item])
    return answer is True
