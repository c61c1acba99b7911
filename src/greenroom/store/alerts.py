"""Alerts and silences in the store: `core.alerts` says what they are.

An alert's row is moved by `note` alone, whoever asks: loops by `tell`, people by `acknowledge`, and operations whose
news it is within their own transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import msgspec

from greenroom import errors, random_bits
from greenroom.core import alerts
from greenroom.core.alerts import Silence, State
from greenroom.core.notifications import Event
from greenroom.store import agent_patterns, database, notifications
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

KEEP_US = 30 * 86_400 * 1_000_000  # alerts that are resolved
MAX_REASON = 2_000  # characters
MAX_PAGE = 200
MAX_OPEN = 10_000  # that loops take up


class Raised(msgspec.Struct, frozen=True):
    """An alert that fires; raised again it is the same one."""

    id: str
    kind: str
    agent: str | None
    severity: str
    reason: str


class Pending(Raised, frozen=True):
    """One that will fire if it goes on like that. Of one that fires it says nothing."""


class Resolved(msgspec.Struct, frozen=True):
    """What it tells of is over. One that was pending leaves no trace."""

    id: str


class Acknowledgement(msgspec.Struct, frozen=True):
    id: str
    by: str


Change = Raised | Pending | Resolved | Acknowledgement


class Alert(msgspec.Struct, frozen=True):
    """An alert's row. Instants in microseconds."""

    id: str
    kind: str
    agent: str | None
    severity: str
    state: str
    reason: str
    count: int
    first_at: int
    last_at: int
    acknowledged_at: int | None
    acknowledged_by: str | None
    resolved_at: int | None

    @property
    def is_firing(self) -> bool:
        """Whether somebody has to look after it, also where somebody does."""
        return self.state in alerts.ACTIVE


class NewSilence(msgspec.Struct, frozen=True):
    """What `core.alerts.Silence` has, for *for_s* from now on."""

    alert: str | None
    kind: str | None
    agent: str | None
    severity: str | None
    comment: str
    created_by: str
    for_s: float


class End(msgspec.Struct, frozen=True):
    silence: str


_COLUMNS = ", ".join(Alert.__struct_fields__)
_NEW = "insert into alert (id, kind, agent, severity, state, reason, count, first_at, last_at) values"
_ACTIVE = "alert.state in ('firing', 'acknowledged')"
_RAISE = f"""
{_NEW} (:id, :kind, :agent, :severity, 'firing', :reason, 1, :now, :now)
on conflict (id) do update set kind = :kind, severity = :severity, reason = :reason, last_at = :now,
    state = case when {_ACTIVE} then alert.state else 'firing' end,
    count = case when {_ACTIVE} then alert.count + 1 else 1 end,
    first_at = case when {_ACTIVE} then alert.first_at else :now end,
    acknowledged_at = case when {_ACTIVE} then alert.acknowledged_at end,
    acknowledged_by = case when {_ACTIVE} then alert.acknowledged_by end, resolved_at = null"""
_HOLD = f"""
{_NEW} (:id, :kind, :agent, :severity, 'pending', :reason, 0, :now, :now)
on conflict (id) do update set kind = :kind, severity = :severity, reason = :reason, last_at = :now, state = 'pending',
    count = 0, first_at = :now, acknowledged_at = null, acknowledged_by = null
where alert.state = 'resolved'"""
_RESOLVE = f"update alert set state = 'resolved', resolved_at = :now where id = :id and {_ACTIVE}"
_DROP = "delete from alert where id = :id and state = 'pending' and resolved_at is null"
_LEAVE = "update alert set state = 'resolved' where id = :id and state = 'pending'"
_FORGET = "delete from alert where state = 'resolved' and resolved_at < :before"
_ACKNOWLEDGE = """
update alert set state = 'acknowledged', acknowledged_at = :now, acknowledged_by = :by
where id = :id and state = 'firing'"""
_RANK = "case state when 'firing' then 0 when 'acknowledged' then 1 when 'pending' then 2 else 3 end"
_LIST = f"select {_COLUMNS} from alert {{where}} order by {_RANK}, last_at desc, id limit {MAX_PAGE}"
_OPEN = f"select {_COLUMNS} from alert where state <> 'resolved' order by id limit {MAX_OPEN}"
_FIND = f"select {_COLUMNS} from alert where id = :id"

_SILENCE_COLUMNS = ", ".join(Silence.__struct_fields__)
_SILENCE = f"""
insert into silence ({_SILENCE_COLUMNS})
select {", ".join(f":{name}" for name in Silence.__struct_fields__)}
where (select count(*) from silence) < {alerts.MAX_SILENCES}
returning {_SILENCE_COLUMNS}"""
_FORGET_SILENCES = "delete from silence where until_at <= :now"
_UNSILENCE = f"delete from silence where id = :id and until_at > :now returning {_SILENCE_COLUMNS}"
_SILENCES = f"select {_SILENCE_COLUMNS} from silence where until_at > :now {{whose}} order by until_at, id"
_FIND_SILENCE = f"select {_SILENCE_COLUMNS} from silence where id = :id and until_at > :now"


_EVENTS: Mapping[str, Event] = {
    State.FIRING: "firing",
    State.ACKNOWLEDGED: "acknowledged",
    State.RESOLVED: "resolved",
}


async def note(tx: Transaction, change: Change) -> Alert | None:
    """Move an alert: the one place where its state changes. Return it where it is in another state than before; one
    that is gone, as it was.
    """
    before = await _find(tx, change.id)
    if before is None and not isinstance(change, Raised):
        return None
    await _write(tx, change)
    after = await _find(tx, change.id)
    if before is not None and after is not None and before.state == after.state:
        if after.is_firing and (before.kind, before.severity) != (after.kind, after.severity):
            await notifications.record(tx, after.id, "firing")  # others may want to know of what it is now
        return None
    is_known = before is not None and before.is_firing
    if after is not None and (event := _EVENTS.get(after.state)) and (is_known or event == "firing"):
        await notifications.record(tx, after.id, event)
    return after or before


async def _write(tx: Transaction, change: Change) -> None:
    params = msgspec.structs.asdict(change) | {"now": tx.now_us}
    match change:
        case Pending():
            await tx.execute_many(_HOLD, [params | {"reason": change.reason[:MAX_REASON]}])
        case Raised():
            await tx.execute_many(_RAISE, [params | {"reason": change.reason[:MAX_REASON]}])
        case Resolved():
            for statement in (_RESOLVE, _DROP, _LEAVE):
                await tx.execute_many(statement, [params])
            await tx.execute_many(_FORGET, [{"before": tx.now_us - KEEP_US}])
        case Acknowledgement():
            await tx.execute_many(_ACKNOWLEDGE, [params])
        case _:
            assert_never(change)


async def _find(tx: Transaction, id: str) -> Alert | None:
    return next((Alert(*row) for row in await tx.fetch(_FIND, {"id": id})), None)


async def tell(tx: Transaction, news: News, items: Sequence[Raised | Pending | Resolved]) -> list[None]:
    for item in items:
        await note(tx, item)
    return [None] * len(items)


async def acknowledge(tx: Transaction, news: News, items: Sequence[Acknowledgement]) -> list[str | None]:
    """Answer in which states they were before; None: there is no such alert."""
    return [await _acknowledge(tx, item) for item in items]


async def _acknowledge(tx: Transaction, item: Acknowledgement) -> str | None:
    before = await _find(tx, item.id)
    await note(tx, item)
    return None if before is None else before.state


async def silence(tx: Transaction, news: News, items: Sequence[NewSilence]) -> list[Silence | errors.Conflict]:
    await tx.execute_many(_FORGET_SILENCES, [{"now": tx.now_us}])
    return [await _silence(tx, item) for item in items]


async def _silence(tx: Transaction, item: NewSilence) -> Silence | errors.Conflict:
    told = msgspec.structs.asdict(item)
    until_at = tx.now_us + int(told.pop("for_s") * 1e6)
    id = f"sil_{random_bits.token_hex(8)}"
    made = await tx.fetch(_SILENCE, told | {"id": id, "created_at": tx.now_us, "until_at": until_at})
    if not made:
        why = f"there are {alerts.MAX_SILENCES}, as many as there may be; end one first"
        return errors.Conflict(f"cannot add a silence: {why}")
    return Silence(*made[0])


async def unsilence(tx: Transaction, news: News, items: Sequence[End]) -> list[bool]:
    return [bool(await tx.fetch(_UNSILENCE, {"id": item.silence, "now": tx.now_us})) for item in items]


class Alerts:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def tell(self, change: Raised | Pending | Resolved) -> None:
        await self._commits.write(tell, change)

    async def tell_all(self, changes: Sequence[Raised | Pending | Resolved]) -> None:
        """Write *changes* in one commit, or in a few."""
        for answer in await self._commits.write_all(tell, changes):
            if isinstance(answer, BaseException):
                raise answer

    async def list(
        self, *, state: State | None = None, agent: str | None = None, agents: Agents = None
    ) -> Sequence[Alert]:
        """Return the alerts of *agents*, firing ones first, resolved ones last, and of each the latest first."""
        params: dict[str, Any] = {}
        clauses = []
        for name, value in (("state", state), ("agent", agent)):
            if value is not None:
                params[name] = str(value)
                clauses.append(f"{name} = :{name}")
        if (of_agents := agent_patterns.condition(agents, params)) is not None:
            clauses.append(of_agents)
        where = f"where {' and '.join(clauses)}" if clauses else ""
        return [Alert(*row) for row in await self._db.read(_LIST.format(where=where), params)]

    async def open(self) -> Sequence[Alert]:
        """Return those that are not resolved."""
        return [Alert(*row) for row in await self._db.read(_OPEN, {})]

    async def get(self, id: str) -> Alert:
        """Return the alert; raises `errors.NotFound`."""
        found = await self._db.lookup(_FIND, {"id": id})
        if not found:
            raise errors.NotFound(f"cannot find the alert {id[:200]}")
        return Alert(*found[0])

    async def acknowledge(self, id: str, *, by: str) -> Alert:
        """Note that somebody looks after the alert; the first who does so stays. Raises `errors.NotFound`, and
        `errors.Conflict` where it does not fire.
        """
        await self._commits.write(acknowledge, Acknowledgement(id, by))
        alert = await self.get(id)
        if alert.state != State.ACKNOWLEDGED:
            raise errors.Conflict(f"cannot acknowledge the alert {id[:200]}: it is {alert.state}")
        return alert

    async def silence(self, wanted: NewSilence) -> Silence:
        """Add a silence; raises `errors.Conflict` where there are too many."""
        made: Silence = await self._commits.write(silence, wanted)
        return made

    async def unsilence(self, id: str) -> None:
        """End a silence before its time; raises `errors.NotFound`."""
        if not await self._commits.write(unsilence, End(id)):
            raise no_silence(id)

    async def silences(self, *, now_us: int, agents: Agents = None) -> Sequence[Silence]:
        """Return those that are not over, the first to end first; of *agents* alone, by the pattern that they name."""
        params: dict[str, Any] = {"now": now_us}
        of_agents = agent_patterns.condition(agents, params)
        sql = _SILENCES.format(whose="" if of_agents is None else f"and {of_agents}")
        return [Silence(*row) for row in await self._db.lookup(sql, params)]

    async def get_silence(self, id: str, *, now_us: int) -> Silence:
        """Return the silence, unless it is over; raises `errors.NotFound`."""
        found = await self._db.lookup(_FIND_SILENCE, {"id": id, "now": now_us})
        if not found:
            raise no_silence(id)
        return Silence(*found[0])


def no_silence(id: str) -> errors.NotFound:
    return errors.NotFound(f"cannot find the silence {id[:200]}")


ORDER = (tell, acknowledge, silence, unsilence)
