"""The outbox of alerts: what each receiver has yet to be told of which alert, and how each receiver does.

The commit in which an alert begins to fire, is acknowledged or is resolved writes one row for it (`record`); who wants
it is judged when a node with receivers looks (`route`). There is at most one row for a receiver and an alert, with what
is true now and no text: what the alert says is read from its own row when it is sent. So the outbox is bounded by the
alerts, and whoever was away for a day is told how it stands, not what it has missed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom.core import notifications
from greenroom.core.alerts import Silence
from greenroom.core.notifications import Event, Route, Told
from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

HOLD_US = 60_000_000  # until it is asked again whether an alert is silenced: people may have ended the silence
LEASE_US = 40_000_000  # a try takes 30 s at most
MAX_ROUTED = 500  # of one commit


class Routing(msgspec.Struct, frozen=True):
    """Give what is new to those of *routes* that want it; what fires is due *wait_us* after it began to."""

    routes: tuple[Route, ...]
    wait_us: int


class Due(msgspec.Struct, frozen=True):
    receiver: str


class Item(msgspec.Struct, frozen=True):
    """One alert of a claim. *turn* fences what is written of it."""

    told: Told
    turn: int
    attempt: int


class Claimed(msgspec.Struct, frozen=True):
    """One group of alerts that may be told now."""

    items: tuple[Item, ...]
    now_us: int


class Outcome(msgspec.Struct, frozen=True):
    """How a try went. *delays_us* are until each item is due again, None: it is not; *is_taken*: the receiver has it,
    *is_given_up*: what is owed begins anew.
    """

    receiver: str
    items: tuple[Item, ...]
    delays_us: tuple[int | None, ...]
    is_taken: bool
    is_given_up: bool
    status: int | None
    error: str | None


class _Candidate(msgspec.Struct, frozen=True):
    """What is due, with what a silence may be of."""

    id: str
    kind: str
    agent: str | None
    severity: str
    event: str


class Keep(msgspec.Struct, frozen=True):
    """Forget what is owed to any receiver but these."""

    receivers: tuple[str, ...]


class State(msgspec.Struct, frozen=True):
    """How a receiver does. Instants in microseconds."""

    name: str
    tried_at: int | None = None
    told_at: int | None = None
    failing_since: int | None = None
    failures: int = 0
    status: int | None = None
    error: str | None = None
    waiting: int = 0


_RECORD = """
insert into notification (receiver, alert, event, owed_at, due_at) values ('', :alert, :event, :now, :now)
on conflict (receiver, alert) do update set event = :event, owed_at = :now, due_at = :now"""
_NEW = f"""
delete from notification where receiver = '' and alert in (
    select alert from notification where receiver = '' order by owed_at, alert limit {MAX_ROUTED})
returning alert, event, owed_at"""
_ALERT = "select kind, agent, severity from alert where id = :alert"
# A try that has begun may have arrived.
_OWE = """
insert into notification (receiver, alert, event, owed_at, due_at) values (:receiver, :alert, :event, :now, :due_at)
on conflict (receiver, alert) do update set event = :event, turn = notification.turn + 1, attempts = 0, owed_at = :now,
    due_at = :due_at, told_at = coalesce(notification.told_at, case when notification.attempts > 0 then :now end)"""
_KNOWS = """
select 1 from notification where receiver = :receiver and alert = :alert and (told_at is not null or attempts > 0)"""
_QUIET = "update notification set due_at = null where receiver = :receiver and alert = :alert and told_at is not null"
_DROP = "delete from notification where receiver = :receiver and alert = :alert"

_DUE = f"""
select alert.id, kind, agent, severity, event from notification join alert on alert.id = notification.alert
where receiver = :receiver and due_at <= :now order by due_at, notification.alert limit {MAX_ROUTED}"""
_SILENCES = f"select {', '.join(Silence.__struct_fields__)} from silence where until_at > :now"
_PUT_OFF = "update notification set due_at = :due_at where receiver = :receiver and alert = :alert and due_at <= :now"
# The due time is asked for again: on PostgreSQL another node may have claimed the row since.
_CLAIM = """
update notification set turn = turn + 1, attempts = attempts + 1, due_at = :until
where receiver = :receiver and alert = :alert and due_at <= :now
returning event, turn, attempts, owed_at"""
_SAYS = "select reason, first_at, resolved_at, acknowledged_by from alert where id = :alert"
_ORPHANS = "delete from notification where alert not in (select id from alert)"
_FENCE = "where receiver = :receiver and alert = :alert and turn = :turn"
_AGAIN = f"""
update notification set due_at = :due_at, attempts = case when :is_over = 1 then 0 else attempts end,
    owed_at = case when :is_over = 1 then coalesce(:due_at, owed_at) else owed_at end,
    told_at = case when :is_taken = 1 then coalesce(told_at, :now) else told_at end
{_FENCE}"""
_DONE = f"delete from notification {_FENCE}"
_TRIED = """
insert into receiver (name, tried_at, told_at, failing_since, failures, status, error)
values (:name, :now, :told_at, :failing_since, :failures, :status, :error)
on conflict (name) do update set tried_at = :now, told_at = coalesce(:told_at, receiver.told_at), status = :status,
    error = :error, failures = case when :failures = 0 then 0 else receiver.failures + 1 end,
    failing_since = case when :failures = 0 then null else coalesce(receiver.failing_since, :now) end"""
_OWED = "select distinct receiver from notification where receiver <> ''"
_KNOWN = "select name from receiver"
_FORGET_OWED = "delete from notification where receiver = :receiver"
_FORGET = "delete from receiver where name = :receiver"
_STATES = """
select name, tried_at, told_at, failing_since, failures, status, error from receiver"""
_WAITING = """
select receiver, count(*) from notification where receiver <> '' and due_at is not null and owed_at <= :now
group by receiver"""
_NEXT_OF_ALL = """
select receiver, min(due_at) from notification where receiver <> '' and due_at is not null group by receiver"""
_IS_NEW = "select 1 from notification where receiver = '' limit 1"


async def record(tx: Transaction, alert: str, event: Event) -> None:
    """Note what became of *alert*, in the transaction in which it did."""
    await tx.execute_many(_RECORD, [{"alert": alert, "event": event, "now": tx.now_us}])


async def route(tx: Transaction, news: News, items: Sequence[Routing]) -> list[int]:
    """Answer how many changes were given to those who want them."""
    return [await _route(tx, item) for item in items]


async def _route(tx: Transaction, item: Routing) -> int:
    changes = await tx.fetch(_NEW, {})
    for alert, event, changed_at in changes:
        # From then on: a node that looks late is not to wait once more.
        due_at = max(tx.now_us, changed_at + item.wait_us) if event == "firing" else tx.now_us
        for row in await tx.fetch(_ALERT, {"alert": alert}):
            for route in item.routes:
                await _owe(tx, route, alert, event, row=row, due_at=due_at)
    return len(changes)


async def _owe(tx: Transaction, route: Route, alert: str, event: Event, *, row: database.Row, due_at: int) -> None:
    """Note what *route* is to be told of *alert*: of its end and of who took it only where it knows that it fires."""
    key = {"receiver": route.name, "alert": alert}
    if event == "firing":
        kind, agent, severity = row
        is_owed = route.wants(kind=kind, agent=agent, severity=severity)
    else:
        known = await tx.fetch(_KNOWS, key)
        is_owed = bool(known) and route.wants_event(event)
        if event == "resolved" and not known:
            await tx.execute_many(_DROP, [key])
        elif event == "acknowledged" and not is_owed and not route.is_resent:
            await tx.execute_many(_QUIET, [key])
    if is_owed:
        await tx.execute_many(_OWE, [key | {"event": event, "now": tx.now_us, "due_at": due_at}])


async def claim(tx: Transaction, news: News, items: Sequence[Due]) -> list[Claimed]:
    return [await _claim(tx, item.receiver) for item in items]


async def _claim(tx: Transaction, receiver: str) -> Claimed:
    due = await _due(tx, receiver)
    group = [each for each in due if (each.kind, each.agent) == (due[0].kind, due[0].agent)]
    claimed = []
    for each in group[: notifications.MAX_GROUP]:
        whose = {"receiver": receiver, "alert": each.id, "now": tx.now_us, "until": tx.now_us + LEASE_US}
        for event, turn, attempt, owed_at in await tx.fetch(_CLAIM, whose):
            ((reason, begun_at, ended_at, by),) = await tx.fetch(_SAYS, {"alert": each.id})
            ended_at = (ended_at or tx.now_us) if event == "resolved" else None
            told = Told(each.id, each.kind, each.agent, each.severity, reason, event, begun_at, ended_at, by, owed_at)
            claimed.append(Item(told, turn, attempt))
    return Claimed(tuple(claimed), tx.now_us)


async def _due(tx: Transaction, receiver: str) -> list[_Candidate]:
    """Return what *receiver* may be told now, and let wait what is silenced. Who knows that an alert fires is told of
    its end all the same: what people have opened for it is to be closed.
    """
    whose = {"receiver": receiver, "now": tx.now_us}
    silences = [Silence(*row) for row in await tx.fetch(_SILENCES, {"now": tx.now_us})]
    while due := [_Candidate(*row) for row in await tx.fetch(_DUE, whose)]:
        until = {each.id: _silenced_until(each, silences, now_us=tx.now_us) for each in due}
        waiting = [{"alert": id, "due_at": until_at} for id, until_at in until.items() if until_at is not None]
        await tx.execute_many(_PUT_OFF, [whose | each for each in waiting])
        if told := [each for each in due if until[each.id] is None]:
            return told
    return []


def _silenced_until(due: _Candidate, silences: Sequence[Silence], *, now_us: int) -> int | None:
    """Return when it is asked again whether *due* may be told; None: it may."""
    if due.event == "resolved":
        return None
    ends = [silence.until_at for silence in silences if silence.covers(due, now_us=now_us)]
    return min(max(ends), now_us + HOLD_US) if ends else None


async def note(tx: Transaction, news: News, items: Sequence[Outcome]) -> list[None]:
    for item in items:
        await _note(tx, item)
    return [None] * len(items)


async def _note(tx: Transaction, item: Outcome) -> None:
    is_over = item.is_taken or item.is_given_up
    for each, delay_us in zip(item.items, item.delays_us, strict=True):
        fence = {"receiver": item.receiver, "alert": each.told.id, "turn": each.turn}
        if is_over and each.told.event == "resolved":
            await tx.execute_many(_DONE, [fence])
            continue
        due_at = None if delay_us is None else tx.now_us + delay_us
        flags = {"is_over": int(is_over), "is_taken": int(item.is_taken), "due_at": due_at, "now": tx.now_us}
        await tx.execute_many(_AGAIN, [fence | flags])
    await tx.execute_many(
        _TRIED,
        [
            {
                "name": item.receiver,
                "now": tx.now_us,
                "told_at": tx.now_us if item.is_taken else None,
                "failing_since": None if item.is_taken else tx.now_us,
                "failures": 0 if item.is_taken else 1,
                "status": item.status,
                "error": item.error,
            }
        ],
    )


async def keep(tx: Transaction, news: News, items: Sequence[Keep]) -> list[None]:
    for item in items:
        owed = {row[0] for row in await tx.fetch(_OWED, {})}
        known = {row[0] for row in await tx.fetch(_KNOWN, {})}
        gone = [{"receiver": name} for name in sorted((owed | known).difference(item.receivers))]
        await tx.execute_many(_FORGET_OWED, gone)
        await tx.execute_many(_FORGET, gone)
        await tx.fetch(_ORPHANS + " returning alert", {})  # an alert is kept for a month after its end
    return [None] * len(items)


class Notifications:
    """The outbox for the loop, the receivers for the API."""

    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def route(self, routes: Sequence[Route], *, wait_s: float) -> None:
        """Give what is new to whoever wants it; to nobody, where there are no *routes*."""
        wanted = Routing(tuple(routes), int(wait_s * 1e6))
        while await self._db.lookup(_IS_NEW, {}):
            await self._commits.write(route, wanted)

    async def claim(self, receiver: str) -> Claimed:
        """Take a group of what is due, to send it."""
        claimed: Claimed = await self._commits.write(claim, Due(receiver))
        return claimed

    async def next_due(self) -> dict[str, int]:
        """Return the receivers that have something to be told, each with when, in microseconds."""
        return {row[0]: row[1] for row in await self._db.lookup(_NEXT_OF_ALL, {})}

    async def note(self, outcome: Outcome) -> None:
        await self._commits.write(note, outcome)

    async def keep(self, receivers: Sequence[str]) -> None:
        """Forget what is owed to any receiver but these."""
        await self._commits.write(keep, Keep(tuple(receivers)))

    async def states(self, *, now_us: int) -> dict[str, State]:
        """Return how each receiver does, of those that were tried or have something to be told."""
        found = {row[0]: State(*row) for row in await self._db.lookup(_STATES, {})}
        for name, waiting in await self._db.lookup(_WAITING, {"now": now_us}):
            found[name] = msgspec.structs.replace(found.get(name, State(name)), waiting=waiting)
        return found


ORDER = (route, claim, note, keep)
