"""The audit log in the store: an act and its entry are one fact, on both databases, whoever else writes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from greenroom import errors, settings
from greenroom.security import audit as chain
from greenroom.security import audit_checks
from greenroom.store import audit, audit_copies, audited, principals, sqlite
from greenroom.store.acting import Actor, actor
from greenroom.store.audit import Act, Filter
from greenroom.store.database import Transaction
from greenroom.store.deployments import Deployment
from greenroom.store.measures import Measure
from greenroom.store.news import News
from greenroom.store.store import Store
from greenroom.testing import databases, fakes

SIGNER = chain.Signer(b"s" * 32)
ANN = Actor("ann-key", "acme", "192.0.2.7", "request-1")


@pytest.fixture(params=["sqlite", "postgresql"])
def scratch(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("sqlite_scratch" if request.param == "sqlite" else "postgres_scratch")


@pytest.fixture
async def store(scratch: databases.Scratch) -> Store:
    opened = await scratch.open()
    opened.audit.is_on = True
    return opened


@contextlib.contextmanager
def acting(who: Actor) -> Any:
    token = actor.set(who)
    try:
        yield
    finally:
        actor.reset(token)


def _key(name: str = "k") -> principals.Principal:
    return principals.Principal(f"{name:0>16}", "acme", name, "user", b"h" * 32, 1)


async def findings(store: Store, *, anchor: audit_checks.Anchor | None = None) -> Sequence[audit_checks.Finding]:
    check = audit_checks.Check([SIGNER.public], checkpoints=await store.audit.checkpoints(), anchor=anchor)
    seq = 0
    while page := await store.audit.after(seq):
        for entry in page:
            check.add(entry)
        seq = page[-1].seq
    return check.end(await store.audit.head())


async def seal(store: Store) -> None:
    while await store.audit.seal(SIGNER):
        pass


def test_every_operation_is_an_act_or_has_a_written_reason_why_not(tmp_path: Path) -> None:
    store = Store(sqlite.Sqlite(tmp_path / "greenroom.db", fakes.FakeClock()), owner="node-1")
    names = {_named(operation) for operation in store.commits._rank}
    acts = {_named(operation) for operation in audited.AUDITED}
    others = {_named(operation) for operation in audited.NOT_AUDITED}
    assert names - {"Results.submit"} == (acts | others) - {"results.submit"}
    assert not acts & others
    assert all(audited.NOT_AUDITED.values())
    assert all(operation in store.commits._acts_of for operation in audited.AUDITED)


def _named(operation: Any) -> str:
    owner = getattr(operation, "__self__", None)
    return f"{operation.__module__.rpartition('.')[2] if owner is None else type(owner).__name__}.{operation.__name__}"


async def test_an_act_says_who_did_what_to_what_from_where_in_which_request(store: Store) -> None:
    with acting(ANN):
        await store.principals.create(_key())
    (entry,) = await store.audit.after(0)
    assert (entry.seq, entry.tenant, entry.actor, entry.source) == (1, "acme", "ann-key", "192.0.2.7")
    assert (entry.action, entry.object, entry.outcome) == ("key.create", f"key:{'k':0>16}", "done")
    assert entry.request_id == "request-1"
    assert entry.detail == '{"expires_at":null,"name":"k","role":"user"}'


async def test_without_anybody_it_was_the_node(store: Store) -> None:
    await store.principals.create(_key())
    (entry,) = await store.audit.after(0)
    assert (entry.actor, entry.tenant, entry.source) == ("node-1", "acme", "")


async def test_who_acts_is_who_put_it_there_though_another_commits_it(store: Store) -> None:
    others = [Actor(f"key-{n}", "acme", "", "") for n in range(20)]

    async def create(who: Actor) -> None:
        with acting(who):
            await store.principals.create(_key(who.principal))

    await asyncio.gather(*(create(who) for who in others))
    entries = await store.audit.after(0)
    assert {(entry.actor, entry.object) for entry in entries} == {
        (who.principal, f"key:{who.principal:0>16}") for who in others
    }
    assert await findings(store) == []


async def test_what_is_refused_is_said_to_be_refused(store: Store) -> None:
    with pytest.raises(errors.NotFound):
        await store.principals.revoke("0" * 16, tenant="acme")
    (entry,) = await store.audit.after(0)
    assert (entry.action, entry.outcome) == ("key.revoke", "refused")


async def test_what_is_off_writes_nothing(scratch: databases.Scratch) -> None:
    store = await scratch.open()
    await store.principals.create(_key())
    await store.audit.note(Act("node.start", "node:1"))
    assert await store.audit.after(0) == []


async def test_moves_of_the_node_itself_are_no_acts_and_those_of_people_are(store: Store) -> None:
    spec = settings.parse_agent("a", {"factory": "m:a"})
    await store.deployments.deploy(Deployment(agent="a", digest="d", spec=spec, by="ann"))
    await store.deployments.deploy(Deployment(agent="a", digest="d", spec=spec, by="the manifest"))  # unchanged
    (rollout,) = await store.rollouts.history("a")
    from greenroom.core import rollouts

    await store.rollouts.put(rollout, rollouts.pause(rollout.state))
    assert [entry.action for entry in await store.audit.after(0)] == ["agent.deploy"]
    with acting(ANN):
        await store.rollouts.move(rollout.id, rollouts.resume, verb="resume")
    (_, entry) = await store.audit.after(0)
    assert (entry.action, entry.object, entry.actor) == ("rollout.resume", f"rollout:{rollout.id}", "ann-key")


@pytest.mark.parametrize("broken", ["insert into audit_entry", "update audit_head"])
async def test_what_cannot_be_audited_is_not_done_and_others_are_not_kept_from_it(
    scratch: databases.Scratch, broken: str
) -> None:
    store = await scratch.open(wrap=lambda db: _Broken(db, broken))
    store.audit.is_on = True
    answers = await asyncio.gather(
        store.principals.create(_key()), store.alerts.tell(audit_alert()), return_exceptions=True
    )
    assert isinstance(answers[0], errors.AuditBroken)
    assert answers[1] is None
    assert await store.principals.all() == []
    assert [alert.id for alert in await store.alerts.list()] == ["alert-1"]
    assert await store.audit.after(0) == []


def audit_alert() -> Any:
    from greenroom.store.alerts import Raised

    return Raised("alert-1", "test", None, "warning", "why")


class _Broken:
    """A database that does not take one kind of statement."""

    def __init__(self, db: Any, broken: str) -> None:
        self._db, self._broken = db, broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    @contextlib.asynccontextmanager
    async def transaction(self) -> Any:
        async with self._db.transaction() as tx:
            yield _BrokenTransaction(tx, self._broken)


class _BrokenTransaction:
    def __init__(self, tx: Transaction, broken: str) -> None:
        self._tx, self._broken = tx, broken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)

    async def execute_many(self, sql: str, rows: Any) -> None:
        if self._broken in sql:
            raise errors.AuditBroken("it cannot be written")
        await self._tx.execute_many(sql, rows)


async def test_a_commit_that_fails_leaves_no_entry(store: Store) -> None:
    await store.principals.create(_key())
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        await store.principals.create(_key())
    assert [entry.action for entry in await store.audit.after(0)] == ["key.create"]
    assert await findings(store) == []


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
async def test_checkpoints_cover_everything_in_parts(store: Store, count: int) -> None:
    await store.audit.note(*(Act("test", str(n)) for n in range(count)))
    await seal(store)
    made = await store.audit.checkpoints()
    assert [each.last for each in made] == [*range(256, count + 1, 256), *([count] if count % 256 else [])]
    assert (await store.audit.head()).sealed == count
    assert await findings(store) == []
    assert await store.audit.seal(SIGNER) is False  # nothing new: nothing is signed
    assert len(await store.audit.checkpoints()) == len(made)


TAMPERING: dict[str, Callable[[Transaction], Awaitable[Any]]] = {
    "edit": lambda tx: tx.fetch("update audit_entry set actor = 'x' where seq = 7", {}),
    "delete": lambda tx: tx.fetch("delete from audit_entry where seq = 7", {}),
    "truncate": lambda tx: tx.fetch("delete from audit_entry where seq > 7", {}),
    "head": lambda tx: tx.fetch("delete from audit_head", {}),
    "move": lambda tx: tx.fetch("update audit_entry set prev = hash where seq = 7", {}),
}


@pytest.mark.parametrize("name", TAMPERING)
async def test_what_was_tampered_with_is_not_signed(store: Store, name: str) -> None:
    await store.audit.note(*(Act("test", str(n)) for n in range(10)))
    async with store.db.transaction() as tx:
        await TAMPERING[name](tx)
    with pytest.raises(audit.Broken):
        await store.audit.seal(SIGNER)
    assert await store.audit.checkpoints() == []
    assert await findings(store)
    if name == "head":  # and no second chain begins beside the first
        with pytest.raises(errors.AuditBroken):
            await store.audit.note(Act("test", "x"))
        with pytest.raises(errors.AuditBroken):
            await store.principals.create(_key())
        assert await store.principals.all() == []


ODD: dict[str, int] = {
    "update audit_entry set hash = 'zz' where seq = 7": 7,
    "update audit_entry set hash = x'00' where seq = 7": 7,
    "update audit_entry set hash = cast(x'ff' as text) where seq = 7": 7,
    "update audit_entry set prev = 'zz' where seq = 7": 7,
    "update audit_entry set time = 'noon' where seq = 7": 7,
    "update audit_entry set time = 1.5 where seq = 7": 7,
    "update audit_entry set detail = x'00' where seq = 7": 7,
    "update audit_entry set detail = null where seq = 7": 7,
    "update audit_entry set erased = '[' where seq = 7": 7,
    "update audit_entry set erased = x'' where seq = 7": 7,
    "update audit_entry set salts = x'00' where seq = 7": 7,
    "update audit_entry set seq = 'seven' where seq = 7": 7,
    "update audit_entry set seq = x'07' where seq = 7": 7,
    "update audit_entry set seq = -7 where seq = 7": 1,
    "update audit_checkpoint set signature = zeroblob(64)": 1,
    "update audit_checkpoint set signature = 'zz'": 1,
    "update audit_checkpoint set number = 'one'": 1,
    "update audit_checkpoint set last = x'00'": 1,
    "update audit_head set hash = zeroblob(3)": 10,
    "update audit_head set seq = 'ten'": 0,
    "drop table audit_entry": 1,
    "drop table audit_checkpoint": 1,
    "drop table audit_head": 0,
    "alter table audit_entry drop column salts": 1,
}


@pytest.mark.parametrize("sql", ODD)
async def test_whatever_a_row_has_become_is_found(sqlite_scratch: databases.Scratch, sql: str) -> None:
    url = sqlite_scratch.url
    store = await sqlite_scratch.open()
    store.audit.is_on = True
    await store.audit.note(*(Act("test", str(n)) for n in range(10)))
    await seal(store)
    anchor = audit_checks.anchor_of([line async for line in audit_copies.lines(url)])
    for each in (None, anchor):
        assert (await audit_copies.check(url, [SIGNER.public], each)).findings == []
    with contextlib.closing(apsw.Connection(url.removeprefix("sqlite:///"))) as database:
        database.execute("drop index audit_by_tenant")
        database.execute(sql)
    for each in (None, anchor):
        found = (await audit_copies.check(url, [SIGNER.public], each)).findings
        assert min(finding.index for finding in found) == found[0].index == ODD[sql]
        if sql == "drop table audit_entry":
            assert audit_checks.Kind.TRUNCATED in {finding.kind for finding in found}


async def test_a_store_of_before_the_log_has_none_unless_an_anchor_knows_better(
    sqlite_scratch: databases.Scratch,
) -> None:
    url = sqlite_scratch.url
    store = await sqlite_scratch.open()
    store.audit.is_on = True
    await store.audit.note(Act("test", "x"))
    anchor = audit_checks.anchor_of([line async for line in audit_copies.lines(url)])
    with contextlib.closing(apsw.Connection(url.removeprefix("sqlite:///"))) as database:
        for table in ("audit_entry", "audit_checkpoint", "audit_head"):
            database.execute(f"drop table {table}")
        database.pragma("user_version", audit_copies.SINCE_SCHEMA - 1)
    with pytest.raises(errors.NotFound, match="of a release that had none"):
        await audit_copies.check(url, [SIGNER.public], None)
    found = (await audit_copies.check(url, [SIGNER.public], anchor)).findings
    assert {(finding.index, finding.kind) for finding in found} == {(1, audit_checks.Kind.TRUNCATED)}


async def test_nothing_is_appended_to_an_end_that_is_none(sqlite_scratch: databases.Scratch) -> None:
    store = await sqlite_scratch.open()
    store.audit.is_on = True
    await store.audit.note(Act("test", "x"))
    async with store.db.transaction() as tx:
        await tx.fetch("update audit_head set hash = 'zz'", {})
    with pytest.raises(errors.AuditBroken, match="is not what was written"):
        await store.audit.note(Act("test", "y"))


async def test_two_nodes_never_fork_the_chain(postgres_scratch: databases.Scratch) -> None:
    one, other = await postgres_scratch.open("node-1"), await postgres_scratch.open("node-2")
    for store in (one, other):
        store.audit.is_on = True

    async def write(store: Store, name: str) -> None:
        for n in range(40):
            with acting(Actor(name, "acme", "", str(n))):
                await store.principals.create(_key(f"{name}{n}"))
            if n % 10 == 0:
                await store.audit.seal(SIGNER)

    await asyncio.gather(write(one, "one"), write(other, "two"), write(one, "three"))
    entries = await one.audit.after(0)
    assert [entry.seq for entry in entries] == list(range(1, 121))
    assert len(await other.principals.all()) == 120
    assert await findings(other) == []


async def test_erasing_keeps_the_chain_and_says_who_did_it(store: Store) -> None:
    for who in (ANN, Actor("bob-key", "acme", "192.0.2.8", "")):
        with acting(who):
            await store.audit.note(Act("test", f"of {who.principal}", detail={"name": who.principal}))
    await seal(store)
    exported = audit_checks.anchor_of([chain.line_of(entry) for entry in await store.audit.after(0)])
    with acting(Actor("root", "default", "", "")):
        assert await store.audit.erase("ann-key", tenant="acme") == [1]
        assert await store.audit.erase("ann-key", tenant="acme") == []
    gone, kept, erasure = await store.audit.after(0)
    assert (gone.actor, gone.source, gone.object, gone.detail, gone.action) == (None, None, None, None, "test")
    assert kept.actor == "bob-key"
    assert (erasure.action, erasure.actor, erasure.detail) == (chain.ERASE, "root", '{"seqs":[1]}')
    assert await findings(store, anchor=exported) == []


async def test_nobody_erases_what_another_tenant_did(store: Store) -> None:
    with acting(ANN):
        await store.audit.note(Act("test", "x"))
    assert await store.audit.erase("ann-key", tenant="other") == []
    assert (await store.audit.after(0))[0].actor == "ann-key"


async def test_the_list_is_filtered_and_goes_on(store: Store) -> None:
    for n in range(6):
        with acting(Actor(f"key-{n % 2}", "acme" if n < 4 else "other", "", "")):
            await store.audit.note(Act("key.create" if n % 3 else "agent.scale", f"thing:{n}"))

    async def seqs(*, before: int | None = None, after: int | None = None, **which: Any) -> list[int]:
        return [entry.seq for entry in await store.audit.list(Filter(**which), before=before, after=after, limit=3)]

    assert await seqs() == [6, 5, 4]
    assert await seqs(before=4) == [3, 2, 1]
    assert await seqs(after=1) == [2, 3, 4]
    assert await seqs(tenant="other") == [6, 5]
    assert await seqs(actor="key-1", tenant="acme") == [4, 2]
    assert await seqs(action="agent.scale") == [4, 1]
    assert await seqs(action="key.*") == [6, 5, 3]
    assert await seqs(object="thing:2") == [3]
    assert await seqs(since=2**60) == []


async def test_a_measure_is_an_act_and_so_is_its_end(store: Store) -> None:
    await store.measures.take(Measure("source:192.0.2.1", "lock", "failed_logins", "many", 1, 2))
    with acting(ANN):
        assert await store.measures.lift("source:192.0.2.1")
        assert not await store.measures.lift("source:192.0.2.1")
    found = [(entry.action, entry.object, entry.outcome) for entry in await store.audit.after(0)]
    assert found == [
        ("security.lock", "source:192.0.2.1", "done"),
        ("security.unlock", "source:192.0.2.1", "done"),
        ("security.unlock", "source:192.0.2.1", "refused"),
    ]


async def test_what_a_command_left_is_written_once(store: Store) -> None:
    async with store.db.transaction() as tx:
        await tx.fetch("insert into audit_pending values ('1', 'backup.restore', 'backup:b', '{\"n\":1}')", {})
    await store.audit.take_pending()
    await store.audit.take_pending()
    (entry,) = await store.audit.after(0)
    assert (entry.action, entry.object, entry.detail) == ("backup.restore", "backup:b", '{"n":1}')


async def test_text_that_no_database_takes_is_made_fit(store: Store) -> None:
    with acting(Actor("\ud800\0", "acme", "x" * 900, "")):
        await store.audit.note(Act("test", "a\0b", detail={"why": "\udfff" * 9_000}))
    (entry,) = await store.audit.after(0)
    assert (entry.actor, entry.object, len(entry.source or "")) == (
        "?\N{REPLACEMENT CHARACTER}",
        "a\N{REPLACEMENT CHARACTER}b",
        200,
    )
    assert await findings(store) == []


async def test_the_end_of_the_log_is_locked_last_of_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds it waits for nothing else: two nodes that commit never wait for each other there."""
    done: list[str] = []
    last, locked_head = store.commits._last, audit._locked_head

    async def noted_last(tx: Transaction, news: News) -> None:
        await last(tx, news)
        done.append("last")

    async def noted_head(tx: Transaction) -> audit.Head:
        done.append("head")
        return await locked_head(tx)

    monkeypatch.setattr(store.commits, "_last", noted_last)
    monkeypatch.setattr(audit, "_locked_head", noted_head)
    await asyncio.gather(store.audit.seal(SIGNER), store.audit.note(Act("test", "x")))
    assert done == ["last", "head", "head"]
