"""Webhooks in the store: endpoints, and the outbox of what has yet to be told to them.

The commit that ends a task writes its deliveries (`Recorder.conclude`), each with an id that follows from task and
endpoint, so that none is written twice. A delivery is claimed by moving its due time behind the time by which its
sender must be done: who dies with it leaves it to whoever looks then. Secrets are stored as they are given, encrypted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom import errors
from greenroom.core import webhooks
from greenroom.store import alerts, database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

MAX_ENDPOINTS = 50  # of a tenant
MAX_PAGE = 200
LEASE_US = 20_000_000  # a try takes 15 s at most
KEEP_US = 3 * 86_400 * 1_000_000  # deliveries, from when they were written
MAX_PRUNED = 500  # of one commit
OVERLAP_US = int(webhooks.OVERLAP_S * 1e6)


class Endpoint(msgspec.Struct, frozen=True):
    """An endpoint's row. Instants in microseconds."""

    id: str
    tenant: str
    url: str
    events: str
    description: str
    include_output: bool
    state: str
    reason: str
    secret: bytes
    old_secret: bytes | None
    old_until: int | None
    failing_since: int | None
    created_by: str
    created_at: int

    @property
    def types(self) -> tuple[str, ...]:
        return tuple(self.events.split())


def events_text(types: Sequence[str]) -> str:
    """Return *types* as a row has them."""
    return "".join(f" {type} " for type in dict.fromkeys(types))


class NewEndpoint(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    url: str
    events: str
    description: str
    include_output: bool
    secret: bytes
    created_by: str


class Change(msgspec.Struct, frozen=True):
    """What an endpoint is to be; None: as it is."""

    id: str
    tenant: str
    state: str | None = None
    events: str | None = None
    description: str | None = None
    include_output: bool | None = None


class Rotation(msgspec.Struct, frozen=True):
    id: str
    tenant: str
    secret: bytes


class Removal(msgspec.Struct, frozen=True):
    id: str
    tenant: str


class Test(msgspec.Struct, frozen=True):
    """A delivery of no task, with an id of its own."""

    id: str
    webhook: str
    tenant: str


class Delivery(msgspec.Struct, frozen=True):
    """A delivery's row. *attempts* are those begun."""

    seq: int
    id: str
    webhook: str
    tenant: str
    type: str
    task: str | None
    state: str
    attempts: int
    due_at: int
    status: int | None
    error: str | None
    created_at: int
    ended_at: int | None


class Due(msgspec.Struct, frozen=True):
    """Claim at most *most* deliveries that are due at an endpoint."""

    webhook: str
    most: int


class Claimed(msgspec.Struct, frozen=True):
    """What may be sent now, to *endpoint*, and in how many microseconds there is more; None: nothing is known of."""

    endpoint: Endpoint | None
    deliveries: tuple[Delivery, ...]
    now_us: int
    next_us: int | None


class Outcome(msgspec.Struct, frozen=True):
    """How a try went. *delay_us* None: it is over, as *state* says; *is_gone*: the endpoint wants nothing more."""

    seq: int
    attempt: int
    webhook: str
    state: str
    status: int | None
    error: str | None
    delay_us: int | None = None
    is_gone: bool = False


class Disabled(msgspec.Struct, frozen=True):
    """An endpoint was disabled by how a try went."""

    webhook: str
    reason: str


class Prune(msgspec.Struct, frozen=True):
    """Forget what is old."""


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


_NEW = NewEndpoint.__struct_fields__
_COUNT = "select count(*) from webhook where tenant = :tenant"
_INSERT = f"""
insert into webhook ({", ".join(_NEW)}, state, reason, created_at)
values ({", ".join(f":{name}" for name in _NEW)}, 'enabled', '', :now)"""
_OF_TENANT = f"select {_columns(Endpoint)} from webhook where tenant = :tenant order by created_at, id"
_GET = f"select {_columns(Endpoint)} from webhook where id = :id and tenant = :tenant"
_CHANGE = """
update webhook set state = :state, events = :events, description = :description, include_output = :include_output,
    reason = :reason, failing_since = :failing_since
where id = :id"""
_ROTATE = """
update webhook set old_secret = secret, old_until = :until, secret = :secret where id = :id and tenant = :tenant
returning id"""
_REMOVE = "delete from webhook where id = :id and tenant = :tenant returning id"
_USED = "select distinct tenant from webhook where state = 'enabled' and events <> ''"

# Who is named is told, also where the endpoint was disabled meanwhile: it may be enabled again in time.
_RECORD = """
insert into delivery (id, webhook, tenant, type, task, state, due_at, created_at)
select 'msg_' || task.id || '_' || substr(webhook.id, 4), webhook.id, task.tenant, 'task.' || task.state, task.id,
    'pending', task.finished_at, task.finished_at
from task join webhook on webhook.tenant = task.tenant
where task.id = :id and (webhook.id = task.webhook
    or (webhook.state = 'enabled' and webhook.events like '% task.' || task.state || ' %'))
on conflict (id) do nothing
returning webhook, tenant"""
_NAME = "update task set webhook = :webhook where id = :id"
_TEST = """
insert into delivery (id, webhook, tenant, type, state, due_at, created_at)
values (:id, :webhook, :tenant, :type, 'pending', :now, :now)"""

_CLAIM = f"""
update delivery set attempts = attempts + 1, due_at = :until
where seq in (
    select seq from delivery where webhook = :webhook and state = 'pending' and due_at <= :now
    order by due_at limit :most for update skip locked)
returning {_columns(Delivery)}"""
_ENABLED = f"select {_columns(Endpoint)} from webhook where id = :id and state = 'enabled'"
_NEXT = "select min(due_at) from delivery where webhook = :webhook and state = 'pending'"
# Fenced by the number of the try: who took longer than the lease must not overwrite what came of a later one.
_NOTE = """
update delivery set state = :state, status = :status, error = :error, due_at = :due_at, ended_at = :ended_at
where seq = :seq and attempts = :attempt and state = 'pending' returning seq"""
_IS_TAKEN = "update webhook set failing_since = null where id = :id and failing_since is not null"
_IS_FAILING = "update webhook set failing_since = coalesce(failing_since, :now) where id = :id"
_DISABLE = """
update webhook set state = 'disabled', reason = :reason where id = :id and state = 'enabled'
    and (:is_gone = 1 or failing_since < :before) returning tenant"""
_PRUNE = """
delete from delivery where seq in (select seq from delivery where created_at < :before order by created_at limit :most)
returning seq"""
_PENDING = """
select id, tenant from webhook where state = 'enabled' and exists (
    select 1 from delivery where delivery.webhook = webhook.id and delivery.state = 'pending')"""
_LIST = f"""
select {_columns(Delivery)} from delivery where webhook = :webhook and tenant = :tenant and seq < :before
order by seq desc limit :limit"""
_DELIVERY = f"select {_columns(Delivery)} from delivery where id = :id"

GONE = "its receiver answered 410: it wants nothing more"
FAILING = f"its receiver has taken nothing for {webhooks.DISABLE_AFTER_S / 86_400:g} days"


async def create(tx: Transaction, news: News, items: Sequence[NewEndpoint]) -> list[int | None]:
    """Answers when it was made; None where the tenant has too many."""
    answers: list[int | None] = []
    for item in items:
        ((count,),) = await tx.fetch(_COUNT, {"tenant": item.tenant})
        if count < MAX_ENDPOINTS:
            await tx.execute_many(_INSERT, [msgspec.structs.asdict(item) | {"now": tx.now_us}])
        answers.append(tx.now_us if count < MAX_ENDPOINTS else None)
    return answers


async def change(tx: Transaction, news: News, items: Sequence[Change]) -> list[bool]:
    answers = []
    for item in items:
        found = await tx.fetch(_GET + " for update", {"id": item.id, "tenant": item.tenant})
        answers.append(bool(found))
        if not found:
            continue
        given = {name: value for name, value in msgspec.structs.asdict(item).items() if value is not None}
        after = msgspec.structs.asdict(Endpoint(*found[0])) | given
        if item.state is not None:  # disabled by its owner, or with a new life
            after |= {"reason": "" if item.state == "enabled" else "by its owner", "failing_since": None}
            await alerts.note(tx, alerts.Resolved(alert_id(item.id)))
            news.deliveries[item.id] = item.tenant
        names = ("id", "state", "events", "description", "include_output", "reason", "failing_since")
        await tx.execute_many(_CHANGE, [{name: after[name] for name in names}])
    return answers


async def rotate(tx: Transaction, news: News, items: Sequence[Rotation]) -> list[bool]:
    until = {"until": tx.now_us + OVERLAP_US}
    return [bool(await tx.fetch(_ROTATE, msgspec.structs.asdict(item) | until)) for item in items]


async def remove(tx: Transaction, news: News, items: Sequence[Removal]) -> list[bool]:
    """Remove endpoints. What they were not told yet stays, told to nobody, until it is old."""
    answers = []
    for item in items:
        answers.append(bool(await tx.fetch(_REMOVE, msgspec.structs.asdict(item))))
        await alerts.note(tx, alerts.Resolved(alert_id(item.id)))
    return answers


async def test(tx: Transaction, news: News, items: Sequence[Test]) -> list[None]:
    rows = [msgspec.structs.asdict(item) | {"type": webhooks.TEST, "now": tx.now_us} for item in items]
    await tx.execute_many(_TEST, rows)
    news.deliveries.update((item.webhook, item.tenant) for item in items)
    return [None] * len(items)


async def claim(tx: Transaction, news: News, items: Sequence[Due]) -> list[Claimed]:
    answers = []
    for item in items:
        found = await tx.fetch(_ENABLED, {"id": item.webhook})
        if not found:
            answers.append(Claimed(None, (), tx.now_us, None))
            continue
        lease = {"now": tx.now_us, "until": tx.now_us + LEASE_US, "most": item.most, "webhook": item.webhook}
        rows = await tx.fetch(_CLAIM, lease)
        ((next_at,),) = await tx.fetch(_NEXT, {"webhook": item.webhook})
        next_us = None if next_at is None else max(0, next_at - tx.now_us)
        answers.append(Claimed(Endpoint(*found[0]), tuple(Delivery(*row) for row in rows), tx.now_us, next_us))
    return answers


async def note(tx: Transaction, news: News, items: Sequence[Outcome]) -> list[Disabled | None]:
    return [await _note(tx, item) for item in items]


async def _note(tx: Transaction, item: Outcome) -> Disabled | None:
    is_over = item.delay_us is None
    noted = {
        "seq": item.seq,
        "attempt": item.attempt,
        "state": item.state,
        "status": item.status,
        "error": item.error,
        "due_at": tx.now_us + (item.delay_us or 0),
        "ended_at": tx.now_us if is_over else None,
    }
    if not await tx.fetch(_NOTE, noted):
        return None  # somebody else has tried again since
    if item.state == "delivered":
        await tx.execute_many(_IS_TAKEN, [{"id": item.webhook}])
        return None
    await tx.execute_many(_IS_FAILING, [{"id": item.webhook, "now": tx.now_us}])
    reason = GONE if item.is_gone else FAILING
    before_us = tx.now_us - int(webhooks.DISABLE_AFTER_S * 1e6)
    found = await tx.fetch(
        _DISABLE, {"id": item.webhook, "reason": reason, "is_gone": int(item.is_gone), "before": before_us}
    )
    if not found:
        return None
    what = f"the webhook {item.webhook} of tenant {found[0][0]} was disabled: {reason}"
    what += f"; once it is mended: greenroom webhooks enable {item.webhook}"
    await alerts.note(tx, alerts.Raised(alert_id(item.webhook), "webhook", None, "warning", what))
    return Disabled(item.webhook, reason)


def alert_id(webhook: str) -> str:
    return f"webhook-{webhook}"


async def prune(tx: Transaction, news: News, items: Sequence[Prune]) -> list[int]:
    gone = await tx.fetch(_PRUNE, {"before": tx.now_us - KEEP_US, "most": MAX_PRUNED})
    return [len(gone)] * len(items)


class Recorder:
    """Writes the deliveries of the tasks that end in a commit. Where nobody wants any, that costs a truth test.

    *tenants* are those with endpoints that want to be told of every task, as far as this node knows.
    """

    def __init__(self) -> None:
        self.tenants: set[str] = set()

    async def conclude(self, tx: Transaction, news: News) -> None:
        if news.named:
            await tx.execute_many(_NAME, [{"id": id, "webhook": webhook} for id, webhook in news.named.items()])
        if self.tenants and not self.tenants.isdisjoint(tenant for tenant, _, _ in news.endings):
            await self._record(tx, news, news.ended)
        elif news.hooked:
            await self._record(tx, news, news.hooked)

    async def _record(self, tx: Transaction, news: News, ids: Iterable[str]) -> None:
        recorded = await tx.fetch_many(_RECORD, [{"id": id} for id in ids])
        news.deliveries.update((webhook, tenant) for webhook, tenant in recorded)


class Webhooks:
    """The endpoints for the API, the outbox for the loop."""

    def __init__(self, db: database.Database, commits: Commits, recorder: Recorder) -> None:
        self._db, self._commits, self._recorder = db, commits, recorder

    # --- endpoints

    async def create(self, endpoint: NewEndpoint) -> Endpoint:
        """Raises `errors.Conflict` where the tenant has as many as it may have."""
        if await self._commits.write(create, endpoint) is None:
            raise errors.Conflict(
                f"cannot add a webhook: there are {MAX_ENDPOINTS}, and more are not taken; remove one first"
            )
        await self.refresh()
        return await self.get(endpoint.id, tenant=endpoint.tenant)

    async def get(self, id: str, *, tenant: str) -> Endpoint:
        """Raises `errors.NotFound`, for another tenant's too."""
        found = await self._db.lookup(_GET, {"id": id, "tenant": tenant})
        if not found:
            raise _unknown(id)
        return Endpoint(*found[0])

    async def all(self, *, tenant: str) -> Sequence[Endpoint]:
        return [Endpoint(*row) for row in await self._db.lookup(_OF_TENANT, {"tenant": tenant})]

    async def change(self, changed: Change) -> Endpoint:
        if not await self._commits.write(change, changed):
            raise _unknown(changed.id)
        await self.refresh()
        return await self.get(changed.id, tenant=changed.tenant)

    async def rotate(self, rotation: Rotation) -> Endpoint:
        if not await self._commits.write(rotate, rotation):
            raise _unknown(rotation.id)
        return await self.get(rotation.id, tenant=rotation.tenant)

    async def remove(self, id: str, *, tenant: str) -> None:
        if not await self._commits.write(remove, Removal(id, tenant)):
            raise _unknown(id)
        await self.refresh()

    async def refresh(self) -> None:
        """Learn which tenants want to be told: other nodes change that, too."""
        self._recorder.tenants = {row[0] for row in await self._db.lookup(_USED, {})}

    # --- deliveries

    async def test(self, item: Test) -> Delivery:
        await self._commits.write(test, item)
        (row,) = await self._db.lookup(_DELIVERY, {"id": item.id})
        return Delivery(*row)

    async def deliveries(
        self, webhook: str, *, tenant: str, before_seq: int | None = None, limit: int = 50
    ) -> Sequence[Delivery]:
        """Return the latest deliveries, latest first."""
        params = {"webhook": webhook, "tenant": tenant, "before": before_seq or 2**62, "limit": min(limit, MAX_PAGE)}
        return [Delivery(*row) for row in await self._db.read(_LIST, params)]

    async def pending(self) -> dict[str, str]:
        """Return the endpoints that have something to be told, now or later, each with its tenant."""
        return {row[0]: row[1] for row in await self._db.read(_PENDING, {})}

    async def claim(self, items: Sequence[Due]) -> list[Claimed]:
        """Take what is due, to send it; one answer for each of *items*."""
        answers = await self._commits.write_all(claim, items)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def note(self, outcome: Outcome) -> Disabled | None:
        """Write how a try went; says so where that has disabled the endpoint."""
        disabled: Disabled | None = await self._commits.write(note, outcome)
        if disabled is not None:
            await self.refresh()
        return disabled

    async def prune(self) -> None:
        """Forget deliveries that are old."""
        while await self._commits.write(prune, Prune()) == MAX_PRUNED:
            pass


def _unknown(id: str) -> errors.NotFound:
    return errors.NotFound(f"cannot find the webhook {id[:64]}; there are: greenroom webhooks ls")


ORDER = (create, change, rotate, remove, test, claim, note, prune)
