"""What only a server can do: go away in the middle, refuse, and serve two nodes at once."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from greenroom import errors
from greenroom.store import claims, postgres, results, sessions, store, submissions, transitions
from greenroom.store.rows import Call
from greenroom.testing import databases
from greenroom.testing.fakes import FakeClock
from greenroom.testing.store_contract import AGENT, TENANT, Node, new_task

DEADLINE_S = 30.0
_KILL_OTHERS = """
select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"""


async def test_a_killed_connection_is_weather(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open("node-1"))
    killer = Node(await postgres_scratch.open("node-2"))
    stored = await node.submit()
    for _ in range(3):
        await node.store.tasks.get(stored, tenant=TENANT)
        await killer.raw(_KILL_OTHERS)
        with contextlib.suppress(errors.StoreUnavailable):  # or it was noticed before
            await node.submit()
        await node.submit()
    assert await node.state(stored) == "queued"
    assert len(await node.store.tasks.list(tenant=TENANT)) in range(4, 8)


async def test_a_connection_killed_in_a_transaction_stores_nothing(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open("node-1"))
    killer = Node(await postgres_scratch.open("node-2"))
    id = await node.submit()

    async def delete_all() -> None:
        async with node.store.db.transaction() as tx:
            await tx.fetch("delete from task", {})
            await killer.raw(_KILL_OTHERS)
            await tx.fetch("select 1", {})

    with pytest.raises(errors.StoreUnavailable):
        await delete_all()
    assert await node.state(id) == "queued"


async def test_readers_outlive_killed_connections(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open("node-1"))
    killer = Node(await postgres_scratch.open("node-2"))
    id = await node.submit()
    for _ in range(5):
        await asyncio.gather(*(node.state(id) for _ in range(8)))
        await killer.raw(_KILL_OTHERS)
        assert await node.state(id) == "queued"


async def test_a_server_that_is_away_is_weather() -> None:
    opened = store.open("postgresql://nobody@127.0.0.1:1/nothing", clock=FakeClock(), owner="node-1")
    with pytest.raises(errors.StoreUnavailable):
        await opened.start()
    await opened.db.close()


async def test_a_database_that_would_lose_what_it_acknowledges_is_refused(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open())
    ((name,),) = await node.raw("select current_database()")
    await node.store.db.read(f"alter database {name} set synchronous_commit = off", {})
    with pytest.raises(errors.StartRefused, match="synchronous_commit"):
        await postgres_scratch.open("node-2")


async def test_a_newer_schema_is_refused(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open())
    await node.raw("insert into greenroom_schema (number, name) values (9999, 'later')")
    with pytest.raises(errors.StoreOfAnotherRelease, match="newer than this release"):
        await node.store.db.migrate()


async def test_two_nodes_that_start_at_once_migrate_once(postgres_server: databases.Server) -> None:
    async with postgres_server.scratch() as scratch:
        first = Node(await scratch.open())
        numbers = await first.raw("select number from greenroom_schema")
        await first.store.db.read("drop schema public cascade", {})
        await first.store.db.read("create schema public", {})
        nodes = [store.open(scratch.url, clock=FakeClock(), owner="x") for _ in range(3)]
        await asyncio.gather(*(node.start() for node in nodes))
        assert await first.raw("select number from greenroom_schema") == numbers
        await asyncio.gather(*(node.close() for node in nodes))


async def test_equal_submissions_through_two_nodes_are_one_task(postgres_scratch: databases.Scratch) -> None:
    nodes = [Node(await postgres_scratch.open(f"node-{number}")) for number in (1, 2)]
    for key in range(20):
        answers = await asyncio.gather(
            *(
                node.store.tasks.submit(new_task(idempotency_key=f"k{key}", fingerprint=b"same"))
                for _ in range(8)
                for node in nodes
            )
        )
        assert len({answer.id for answer in answers}) == 1
        assert sum(answer.is_new for answer in answers) == 1


async def test_transactions_that_wait_for_each_other_are_run_again(postgres_scratch: databases.Scratch) -> None:
    """Each node's commit opens a task of one session and then ends one of the session that the other opens one of."""
    nodes = [Node(await postgres_scratch.open("node-1"))]
    ((name,),) = await nodes[0].raw("select current_database()")
    await nodes[0].store.db.read(f"alter database {name} set deadlock_timeout = '10ms'", {})
    nodes.append(Node(await postgres_scratch.open("node-2")))
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    async with asyncio.timeout(DEADLINE_S):
        while await nodes[0].raw(deadlocks) == [(0,)]:
            sessions = "a", "b"
            for session in sessions:
                await nodes[0].submit(session=session)
            claims = sorted(await nodes[0].claim(2), key=lambda claim: claim.session or "")
            opened = asyncio.gather(
                *(node.store.tasks.submit(new_task(session=name)) for node, name in zip(nodes, sessions, strict=True))
            )
            ended = asyncio.gather(*(node.finish(claim) for node, claim in zip(nodes, claims[::-1], strict=True)))
            assert all(answer.is_new for answer in await opened)
            assert all(await ended)
            for _ in sessions:
                await asyncio.gather(*(nodes[0].finish(claim) for claim in await nodes[0].claim(2)))


async def test_a_sub_task_called_while_its_parent_is_cancelled_does_not_stay(
    postgres_scratch: databases.Scratch,
) -> None:
    caller, canceller = [Node(await postgres_scratch.open(f"node-{number}")) for number in (1, 2)]
    for _ in range(60):
        root = await caller.submit()
        claim = await caller.claim_one()
        child = new_task(parent=root, agent="writing")
        accepted, _ = await asyncio.gather(
            caller.store.tasks.call(Call(root, claim.epoch, child)), canceller.store.tasks.cancel(root, tenant=TENANT)
        )
        if accepted is not None:
            assert await caller.state(child.id) == "cancelled"


async def test_a_cancel_that_comes_too_late_says_so(postgres_scratch: databases.Scratch) -> None:
    finisher, canceller = [Node(await postgres_scratch.open(f"node-{number}")) for number in (1, 2)]
    outcomes = set()
    for _ in range(60):
        id = await finisher.submit()
        claim = await finisher.claim_one()
        is_stored, answer = await asyncio.gather(
            finisher.finish(claim), canceller.store.tasks.cancel(id, tenant=TENANT), return_exceptions=True
        )
        state = await finisher.state(id)
        outcomes.add(state)
        assert (state, is_stored, type(answer)) in {
            ("succeeded", True, errors.Conflict),
            ("cancelled", False, type(None)),
        }
    assert outcomes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_sessions_stay_in_order_and_none_is_forgotten_while_two_nodes_race(
    postgres_scratch: databases.Scratch, seed: int
) -> None:
    """Submissions, ends and cancels of the same few sessions meet in every order; at the end nothing is blocked."""
    nodes = [Node(await postgres_scratch.open(f"node-{number}")) for number in (1, 2)]
    chance = random.Random(seed)
    accepted: list[str] = []
    order: list[tuple[str, str]] = []  # session, id, as claimed

    async def submit(node: Node) -> None:
        for _ in range(30):
            id = await node.submit(session=f"s{chance.randrange(3)}")
            accepted.append(id)

    async def cancel(node: Node) -> None:
        for _ in range(20):
            await node.flush()
            with contextlib.suppress(errors.Conflict, IndexError):
                await node.store.tasks.cancel(chance.choice(accepted), tenant=TENANT)

    async def work(node: Node) -> None:
        for _ in range(30):
            await _drain(node, order)

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(act(node) for node in nodes for act in (submit, cancel, work)))
        while any(await asyncio.gather(*(_drain(node, order) for node in nodes))):
            pass
        assert await nodes[0].store.tasks.open_counts() == {}
    rows = await nodes[0].raw("select id, seq from task")
    seq = dict(rows)
    for session in ("s0", "s1", "s2"):
        numbers = [seq[id] for name, id in order if name == session]
        assert numbers == sorted(numbers)
    assert len(rows) == len(accepted) == 60


async def _drain(node: Node, order: list[tuple[str, str]]) -> bool:
    claims = await node.claim(3)
    order += [(claim.session or "", claim.id) for claim in claims]
    for claim in claims:
        await node.finish(claim)
    return bool(claims)


async def test_two_nodes_never_claim_the_same_task(postgres_scratch: databases.Scratch) -> None:
    nodes = [Node(await postgres_scratch.open(f"node-{number}")) for number in (1, 2)]
    ids = {await nodes[0].submit() for _ in range(60)}
    for node in nodes:
        node.store.board.open(f"{node.store.claims.owner}-r", agent=AGENT, revision=1, slots=40)
    await asyncio.gather(*(node.flush() for node in nodes for _ in range(5)))
    claims = [claim.id for node in nodes for claim in node.claims]
    assert len(claims) == len(set(claims)) == len(ids)


async def test_a_second_node_is_refused_until_the_first_has_gone(
    postgres_scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.store.postgres.CLAIM_TIMEOUT_S", 0.1)
    first, second = await postgres_scratch.open("node-1"), await postgres_scratch.open("node-2")
    await first.claim_alone()
    with pytest.raises(errors.StoreInUse, match="another node"):
        await second.claim_alone()
    await first.close()
    await second.claim_alone()


async def test_a_lost_claim_is_taken_again_or_nothing_is_written(
    postgres_scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.store.postgres.CLAIM_TIMEOUT_S", 0.1)
    node, other = Node(await postgres_scratch.open("node-1")), Node(await postgres_scratch.open("node-2"))
    await node.store.claim_alone()
    await other.raw(_KILL_OTHERS)
    with contextlib.suppress(errors.StoreUnavailable):  # or it was noticed before
        await node.submit()
    await node.submit()
    with pytest.raises(errors.StoreInUse):
        await other.store.claim_alone()


async def test_a_claim_is_not_trusted_when_the_writer_was_cut(postgres_scratch: databases.Scratch) -> None:
    node, other = Node(await postgres_scratch.open("node-1")), Node(await postgres_scratch.open("node-2"))
    await node.store.claim_alone()
    claim = node.store.db._claim.get_server_pid()  # type: ignore[attr-defined] # it is PostgreSQL's
    writer = node.store.db._writer.get_server_pid()  # type: ignore[attr-defined] # it is PostgreSQL's
    await other.raw(f"select pg_terminate_backend({writer})")
    with contextlib.suppress(errors.StoreUnavailable):  # or it was noticed before
        await node.submit()
    await node.submit()
    assert node.store.db._claim.get_server_pid() != claim  # type: ignore[attr-defined] # it is PostgreSQL's


@pytest.mark.parametrize(
    ("sql", "has_form"),
    [
        (submissions._INSERT, True),
        (submissions._INSERT + submissions._ONCE, True),
        (submissions._INSERT_KEYED, True),
        (results._ANSWER, True),
        (results._PUT, True),
        (claims._CLAIM, True),
        (transitions._LEASED, True),
        (transitions._FINISH, True),
        (transitions._INSERT_EVENT, True),
        (transitions._UNBLOCK, False),  # it asks for its row
        (sessions._TAKE, False),  # it needs a value again where there is a conflict
    ],
)
def test_what_is_written_for_every_task_is_written_for_many_at_once(sql: str, has_form: bool) -> None:
    assert postgres._has_form(sql) == has_form


async def test_large_inputs_are_written_in_several_messages(
    postgres_scratch: databases.Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "MAX_BYTES_AT_ONCE", 10)
    node = Node(await postgres_scratch.open())
    inputs = [b'"%d"' % number * 3 for number in range(7)]
    await node.store.tasks.submit_all([new_task(input=each) for each in inputs])
    claims_ = await node.claim(7)
    assert sorted(claim.input for claim in claims_) == sorted(inputs)
    assert all(await asyncio.gather(*(node.finish(claim, output=claim.input) for claim in claims_)))


def test_a_statement_for_columns_names_its_values_apart_from_columns() -> None:
    text = postgres._for_columns(
        "update task set state = :state, n = n - :n\nwhere seq = :seq and x = 1", ("text", "int4", "int8")
    )
    assert text == (
        "update task set state = given._state, n = n - given._n from "
        "unnest($1::text[], $2::int4[], $3::int8[]) as given (_state, _n, _seq) where seq = given._seq and x = 1"
    )


async def test_writing_reads_no_table_whole_whatever_its_statistics_say(postgres_scratch: databases.Scratch) -> None:
    node = Node(await postgres_scratch.open())
    ids = [await node.submit() for _ in range(3)]
    async with node.store.db.transaction() as tx:
        ask = f"explain {postgres._for_columns(transitions._LEASED, ('text', 'int4'))}"
        plan = await tx._connection.fetch(ask, ids, [1, 1, 1])  # type: ignore[attr-defined] # it is PostgreSQL's
    assert "Index Scan using task_id_key" in "\n".join(row[0] for row in plan)


def test_an_unknown_store_is_refused_without_its_password() -> None:
    with pytest.raises(errors.StartRefused, match="mysql") as refused:
        store.open("mysql://user:hunter2@host/db", clock=FakeClock(), owner="node-1")
    assert "hunter2" not in str(refused.value)
