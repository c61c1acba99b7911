"""What supervision remembers: failures and what was done about them, each agent's recovery record, and alerts.

Written by `control.host` in one transaction, so that a failure, its consequence and its alert are one fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.store import agent_patterns, database, notifications
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

KEEP_FAILURES = 200  # of each agent
KEEP_US = 30 * 86_400 * 1_000_000  # failures, and alerts that are resolved
MAX_REASON = 2_000  # characters
MAX_PAGE = 200


class NewFailure(msgspec.Struct, frozen=True):
    """The death of a replica, and the rung that it led to."""

    replica: str
    agent: str
    revision: int
    node: str
    kind: str
    reason: str
    rung: str = ""


class Failure(NewFailure, frozen=True):
    """A failure's row. *recovered_by* is the new incarnation that passed readiness; None: this rung led to none."""

    seq: int = 0
    at: int = 0
    recovered_at: int | None = None
    recovered_by: str | None = None


class Recovered(msgspec.Struct, frozen=True):
    """The incarnation *by* passed readiness in the place of *replica*."""

    replica: str
    by: str


class Raised(msgspec.Struct, frozen=True):
    """An alert that fires; raised again it is the same one."""

    id: str
    kind: str
    agent: str | None
    severity: str
    reason: str


class Resolved(msgspec.Struct, frozen=True):
    id: str


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
        return self.state == "firing"


class Noted(msgspec.Struct, frozen=True):
    """What became known of an agent in one step of its host. *record* is JSON; None: it is gone."""

    agent: str
    record: bytes | None
    failures: tuple[NewFailure, ...] = ()
    recovered: tuple[Recovered, ...] = ()
    proven: tuple[int, ...] = ()  # the revisions that have succeeded for the first time
    alert: Raised | Resolved | None = None


class Acknowledgement(msgspec.Struct, frozen=True):
    id: str
    by: str


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


_NEW = NewFailure.__struct_fields__
_FAILED = f"""
insert into failure ({", ".join(_NEW)}, at) values ({", ".join(f":{name}" for name in _NEW)}, :now)
on conflict (replica) do nothing"""
_FORGET_FAILURES = """
delete from failure where (agent = :agent and seq <= (
    select seq from failure where agent = :agent order by seq desc limit 1 offset :keep)) or at < :before"""
_RECOVERED = """
update failure set recovered_at = :now, recovered_by = :by where replica = :replica and recovered_at is null"""
_PUT_RECORD = """
insert into recovery (agent, record, updated_at) values (:agent, :record, :now)
on conflict (agent) do update set record = :record, updated_at = :now"""
_DROP_RECORD = "delete from recovery where agent = :agent"
_PROVEN = "update revision set proven_at = :now where agent = :agent and number = :number and proven_at is null"
_RAISE = """
insert into alert (id, kind, agent, severity, state, reason, count, first_at, last_at)
values (:id, :kind, :agent, :severity, 'firing', :reason, 1, :now, :now)
on conflict (id) do update set kind = :kind, severity = :severity, reason = :reason, last_at = :now, state = 'firing',
    count = case when alert.state = 'firing' then alert.count + 1 else 1 end,
    first_at = case when alert.state = 'firing' then alert.first_at else :now end,
    acknowledged_at = case when alert.state = 'firing' then alert.acknowledged_at end,
    acknowledged_by = case when alert.state = 'firing' then alert.acknowledged_by end, resolved_at = null
returning count"""
_RESOLVE = "update alert set state = 'resolved', resolved_at = :now where id = :id and state = 'firing' returning id"
_FORGET_ALERTS = "delete from alert where state = 'resolved' and resolved_at < :before"
_ACKNOWLEDGE = """
update alert set acknowledged_at = coalesce(acknowledged_at, :now), acknowledged_by = coalesce(acknowledged_by, :by)
where id = :id returning id, acknowledged_at, state"""
_RECORDS = "select agent, record, updated_at from recovery"
_OPEN = f"select {_columns(Failure)} from failure where recovered_at is null and at >= :after order by seq"
_FAILURES = f"""
select {_columns(Failure)} from failure where seq < :before {{whose}} order by seq desc limit :limit"""
_ALERTS = f"select {_columns(Alert)} from alert {{whose}} order by state, last_at desc, id limit {MAX_PAGE}"
_ALERT = f"select {_columns(Alert)} from alert where id = :id"


async def note(tx: Transaction, news: News, items: Sequence[Noted]) -> list[None]:
    for item in items:
        await _note_failures(tx, item)
        if item.record is None:
            await tx.execute_many(_DROP_RECORD, [{"agent": item.agent}])
        else:
            await tx.execute_many(_PUT_RECORD, [{"agent": item.agent, "record": item.record, "now": tx.now_us}])
        proven = [{"agent": item.agent, "number": number, "now": tx.now_us} for number in item.proven]
        await tx.execute_many(_PROVEN, proven)
        await note_alert(tx, item.alert)
    return [None] * len(items)


async def _note_failures(tx: Transaction, item: Noted) -> None:
    failed = [
        msgspec.structs.asdict(failure) | {"reason": failure.reason[:MAX_REASON], "now": tx.now_us}
        for failure in item.failures
    ]
    await tx.execute_many(_FAILED, failed)
    if failed:
        bounds = {"agent": item.agent, "keep": KEEP_FAILURES, "before": tx.now_us - KEEP_US}
        await tx.execute_many(_FORGET_FAILURES, [bounds])
    recovered = [msgspec.structs.asdict(each) | {"now": tx.now_us} for each in item.recovered]
    await tx.execute_many(_RECOVERED, recovered)


async def note_alert(tx: Transaction, alert: Raised | Resolved | None) -> None:
    match alert:
        case Raised():
            params = msgspec.structs.asdict(alert) | {"reason": alert.reason[:MAX_REASON], "now": tx.now_us}
            ((count,),) = await tx.fetch(_RAISE, params)
            if count == 1:  # it begins to fire; who silences it is asked here
                await notifications.record(tx, alert.id, "firing")
        case Resolved(id):
            if await tx.fetch(_RESOLVE, {"id": id, "now": tx.now_us}):
                await notifications.record(tx, id, "resolved")
            await tx.execute_many(_FORGET_ALERTS, [{"before": tx.now_us - KEEP_US}])
        case None:
            pass


async def tell(tx: Transaction, news: News, items: Sequence[Raised | Resolved]) -> list[None]:
    for item in items:
        await note_alert(tx, item)
    return [None] * len(items)


async def acknowledge(tx: Transaction, news: News, items: Sequence[Acknowledgement]) -> list[bool]:
    params: list[dict[str, Any]] = [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items]
    answers = []
    for each in params:
        answers.append(bool(found := await tx.fetch(_ACKNOWLEDGE, each)))
        if found and found[0][1] == tx.now_us and found[0][2] == "firing":  # nobody had before
            await notifications.record(tx, each["id"], "acknowledged")
    return answers


class Recovery:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def note(self, noted: Noted) -> None:
        await self._commits.write(note, noted)

    async def tell(self, alert: Raised | Resolved) -> None:
        """Write an alert that goes with no failure."""
        await self._commits.write(tell, alert)

    async def records(self) -> dict[str, tuple[bytes, int]]:
        """Return each agent's record, and when it was written, in microseconds."""
        return {row[0]: (row[1], row[2]) for row in await self._db.lookup(_RECORDS, {})}

    async def open_failures(self, *, after_us: int) -> Sequence[Failure]:
        """Return the failures since *after_us* in whose place no incarnation is ready yet, oldest first."""
        return [_failure(row) for row in await self._db.lookup(_OPEN, {"after": after_us})]

    async def failures(
        self, *, agent: str | None = None, before_seq: int | None = None, limit: int = 50, agents: Agents = None
    ) -> Sequence[Failure]:
        """Return the latest failures, latest first, of *agents* alone."""
        params: dict[str, Any] = {"before": 2**62 if before_seq is None else before_seq, "limit": min(limit, MAX_PAGE)}
        clauses = []
        if agent is not None:
            params["agent"] = agent
            clauses.append("and agent = :agent")
        if (of_agents := agent_patterns.condition(agents, params)) is not None:
            clauses.append(f"and {of_agents}")
        sql = _FAILURES.format(whose=" ".join(clauses))
        return [_failure(row) for row in await self._db.read(sql, params)]

    async def alerts(self, *, agents: Agents = None) -> Sequence[Alert]:
        """Return the alerts, firing ones first, then the latest first; of *agents* alone."""
        params: dict[str, Any] = {}
        of_agents = agent_patterns.condition(agents, params)
        whose = "" if of_agents is None else f"where {of_agents}"
        return [Alert(*row) for row in await self._db.read(_ALERTS.format(whose=whose), params)]

    async def alert(self, id: str) -> Alert:
        """Return the alert; raises `errors.NotFound`."""
        found = await self._db.lookup(_ALERT, {"id": id})
        if not found:
            raise _no_alert(id)
        return Alert(*found[0])

    async def acknowledge(self, id: str, *, by: str) -> Alert:
        """Note that somebody looks after the alert; raises `errors.NotFound`."""
        if not await self._commits.write(acknowledge, Acknowledgement(id, by)):
            raise _no_alert(id)
        return await self.alert(id)


def _no_alert(id: str) -> errors.NotFound:
    return errors.NotFound(f"cannot find the alert {id[:200]}")


def _failure(row: database.Row) -> Failure:
    return Failure(**dict(zip(Failure.__struct_fields__, row, strict=True)))


ORDER = (note, tell, acknowledge)
