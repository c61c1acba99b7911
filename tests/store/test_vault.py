"""Encryption at rest, on both databases: what is stored cannot be read, moved or replaced without the key."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import errors
from greenroom.core import caching
from greenroom.security import vault as cryptography
from greenroom.store import data_keys, logs, migrations, resealing
from greenroom.store import store as stores
from greenroom.store.resealing import Stale
from greenroom.store.rows import Claim, Event
from greenroom.store.sealed import HASHED, LEFT, SEALED
from greenroom.store.vault import Mode, Vault, is_pause
from greenroom.testing import databases
from greenroom.testing.fakes import FakeKeySource, Fault, FaultyDatabase
from greenroom.testing.results_contract import caching_with
from greenroom.testing.store_contract import AGENT, TENANT, Node, new_task

CANARY = "canary-7f3e9b"
TEXT = f'"{CANARY} \\u00fc"'.encode()
OTHER = "other"


@pytest.fixture(params=["sqlite_scratch", "postgres_scratch"])
def scratch(request: pytest.FixtureRequest) -> databases.Scratch:
    scratch: databases.Scratch = request.getfixturevalue(request.param)
    return scratch


@pytest.fixture
def source() -> FakeKeySource:
    return FakeKeySource()


async def opened(
    scratch: databases.Scratch, source: FakeKeySource | None, *, is_on: bool = True, owner: str = "node-1", **given: Any
) -> Node:
    scratch.vault = lambda: Vault(source, is_on=is_on)
    store = await scratch.open(owner, **given)
    return Node(store)


async def closed(node: Node, scratch: databases.Scratch) -> None:
    await node.store.close()
    scratch.opened.remove(node.store)


async def fill(node: Node, *, tenant: str = TENANT, text: bytes = TEXT) -> str:
    """Store something in each column that holds payload; return the task that has them."""
    id = ""
    for state in (text, text):  # the second finds the state that the first has left
        id = await node.submit(tenant=tenant, session="s", input=text, metadata=text, routing=text)
        claim = await node.claim_one()
        assert (claim.id, claim.input, claim.metadata) == (id, text, text)
        assert await node.store.tasks.append(Event(id, 1, "message", text))
        assert await node.finish(claim, "queued", error=text)
        claim = await node.claim_one()
        assert await node.finish(claim, output=text, error=text, session_state=state, revision=1)
    await node.submit(tenant=tenant, agent="cached", input=text, idempotency_key=id, fingerprint=b"f" * 16)
    assert await node.finish(await node.claim_one(agent="cached"))
    await node.store.logs.put(
        [logs.Line(at=1, tenant=tenant, agent="a", level=20, source="stdout", text=text.decode())]
    )
    return id


async def everything(node: Node, id: str, *, tenant: str = TENANT) -> list[bytes | None]:
    """Read what `fill` has stored, by the ways that it is read."""
    task = await node.store.tasks.get(id, tenant=tenant)
    (session,) = await node.store.sessions.find("s", tenant=tenant)
    events = [event for event in await node.store.tasks.events(task) if event.type == "message"]
    lines = await node.store.logs.latest(logs.Filter(tenant=tenant), limit=1)
    claim = await begun(node, tenant=tenant)
    assert await node.finish(claim)
    return [
        task.input,
        task.output,
        task.error,
        task.metadata,
        task.routing,
        session.state,
        claim.state,
        *(event.data for event in events),
        *(line.text for line in lines),
    ]


async def begun(node: Node, *, tenant: str = TENANT) -> Claim:
    await node.submit(tenant=tenant, session="s", input=b"1")
    return await node.claim_one()


async def resealed(node: Node) -> None:
    while await node.store.resealing.step():
        pass


COLUMNS = [(table, column) for table, content in SEALED.items() for column in content.columns]
_KEYS = {"task": "id", "task_event": "task, seq", "session": "tenant, agent, id", "log_line": "tenant, seq"}
_OWNED = ("session", "log_line")  # those whose rows say of which tenant they are


async def values(node: Node, table: str, column: str) -> list[tuple[Any, ...]]:
    rows = await node.raw(f"select {column}, {_KEYS[table]} from {table} where {column} is not null")
    return [tuple(row) for row in rows if table != "task_event" or not is_pause("state", bytes(row[0]))]


class TestWhatIsStored:
    async def test_no_payload_is_in_the_tables(self, scratch: databases.Scratch, source: FakeKeySource) -> None:
        node = await opened(scratch, source)
        id = await fill(node)
        for table, column in COLUMNS:
            found = await values(node, table, column)
            assert found, f"nothing in {table}.{column}: the test looks at nothing"
            assert all(cryptography.is_sealed(bytes(row[0])) for row in found)
            assert not any(form in bytes(row[0]) for row in found for form in forms())
        assert all(value == TEXT for value in await everything(node, id))

    async def test_nor_is_it_in_any_file(self, sqlite_scratch: databases.Scratch, source: FakeKeySource) -> None:
        node = await opened(sqlite_scratch, source)
        await fill(node)
        large = b'"' + CANARY.encode() * 2_000_000 + b'"'
        await node.submit(input=large)
        folder = Path(sqlite_scratch.url.removeprefix("sqlite:///")).parent
        assert sum(path.stat().st_size for path in folder.iterdir()) > len(large)
        assert in_files(folder) == []
        await closed(node, sqlite_scratch)
        assert in_files(folder) == []

    async def test_a_store_that_is_encrypted_later_keeps_no_payload_in_its_files(
        self, sqlite_scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(sqlite_scratch, None, is_on=False)
        id = await fill(node)
        folder = Path(sqlite_scratch.url.removeprefix("sqlite:///")).parent
        assert in_files(folder)
        await closed(node, sqlite_scratch)
        node = await opened(sqlite_scratch, source)
        await resealed(node)
        assert node.store.vault.mode is Mode.SEALED
        assert in_files(folder) == []
        assert all(value == TEXT for value in await everything(node, id))

    async def test_hashes_of_payloads_are_keyed(self, scratch: databases.Scratch, source: FakeKeySource) -> None:
        plain, key = b"f" * 16, caching.key(1, b"1")
        node = await opened(scratch, source)
        caching_with(node)
        first = await node.submit(idempotency_key="k", fingerprint=plain, cache_key=key)
        assert await node.finish(await node.claim_one(), revision=1)
        ((fingerprint, cache_key),) = await node.raw("select fingerprint, cache_key from task where id = :id", id=first)
        ((kept,),) = await node.raw("select key from result_cache")
        assert plain not in bytes(fingerprint)
        assert key.partition(".")[2] not in cache_key + kept
        again = new_task(idempotency_key="k", fingerprint=plain)
        assert (await node.store.tasks.submit(again)).matches
        assert not (await node.store.tasks.submit(msgspec.structs.replace(again, fingerprint=b"g" * 16))).matches
        assert (await node.store.tasks.of_keys(["k"], tenant=TENANT, fingerprint=plain) or (0, 0))[1]
        cached = await node.store.tasks.submit(new_task(cache_key=key))
        assert cached.is_answered
        assert (await node.store.tasks.get(cached.id, tenant=TENANT)).output == b'"done"'

    def test_every_column_of_bytes_is_declared(self) -> None:
        declared = {f"{table}.{column}" for table, column in COLUMNS}
        assert not declared & LEFT.keys()
        declared |= LEFT.keys() | {name for name in HASHED if name == "task.fingerprint"}
        assert columns_of_bytes() == declared

    async def test_a_key_seals_no_more_than_is_counted(
        self, scratch: databases.Scratch, source: FakeKeySource, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data_keys, "LEASED", 12)
        monkeypatch.setattr(data_keys, "RESERVE", 6)
        node = await opened(scratch, source)
        for _ in range(20):
            await fill(node)
        (keys,) = [each for each in await node.store.resealing.keys() if each.tenant == TENANT]
        sealed = [row for table, column in COLUMNS for row in await values(node, table, column)]
        assert len(sealed) <= keys.messages
        monkeypatch.setattr(cryptography, "MAX_MESSAGES", keys.messages)
        await fill(node)
        (keys,) = [each for each in await node.store.resealing.keys() if each.tenant == TENANT]
        assert keys.retired == 1
        assert not node.store.resealing.progress.is_done
        monkeypatch.setattr(cryptography, "MAX_MESSAGES", 10_000)  # one key is to seal all of it anew
        await resealed(node)
        assert len({cryptography.key_id(bytes(row[0])) for row in await values(node, "task", "input")}) == 1


class TestTampering:
    async def test_nothing_opens_in_another_row_column_or_tenant(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        for tenant in (TENANT, OTHER):
            await fill(node, tenant=tenant, text=f'"{tenant}"'.encode())
        pool = [(table, column, row) for table, column in COLUMNS for row in await values(node, table, column)]
        vault, swaps = node.store.vault, 0
        tenants = {row[0]: row[1] for row in await node.raw("select id, tenant from task")}
        for (table, column, row), (_, _, given) in itertools.permutations(pool, 2):
            tenant = row[1] if table in _OWNED else tenants[row[1]]
            place = tuple(map(str, row[2:] if table in _OWNED else row[1:]))
            assert vault.open(tenant, table, column, place, bytes(row[0])) is not None
            with pytest.raises(errors.StoreDamaged, match=re.escape(f"{column} of {table} {place[0]}")):
                vault.open(tenant, table, column, place, bytes(given[0]))
            swaps += 1
        assert swaps > 500

    async def test_a_row_that_is_given_to_another_tenant_does_not_open(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        id = await fill(node)
        await fill(node, tenant=OTHER)
        await node.raw("update task set tenant = 'other', session = null where id = :id", id=id)
        with pytest.raises(errors.StoreDamaged, match="another tenant's key"):
            await node.store.tasks.get(id, tenant=OTHER)

    async def test_what_is_read_from_a_row_that_was_tampered_with_is_refused_and_told(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        told: list[str] = []
        node.store.vault.damaged = told.append
        first, second = [await fill(node), await fill(node)]
        ((input,),) = await node.raw("select input from task where id = :id", id=first)
        await node.raw("update task set input = :input where id = :id", input=input, id=second)
        await node.raw("update session set state = good_state")
        with pytest.raises(errors.StoreDamaged, match=f"input of task {second}: it was changed, or moved here"):
            await node.store.tasks.get(second, tenant=TENANT)
        by_id = {task.id: task for task in await node.store.tasks.list(tenant=TENANT)}
        listed = by_id.pop(second)
        assert (listed.state, listed.input, by_id[first].input) == (by_id[first].state, b"null", TEXT)
        assert all(task.error is None or b"store_damaged" not in task.error for task in by_id.values())
        assert {listed.output, listed.metadata, listed.routing} == {None}
        assert f"input of task {second}: it was changed".encode() in (listed.error or b"")
        with pytest.raises(errors.StoreDamaged, match="state of session research/s"):
            await node.store.sessions.find("s", tenant=TENANT)
        assert (await node.store.tasks.get(first, tenant=TENANT)).input == TEXT
        assert len(told) == 3

    async def test_a_task_whose_input_or_state_does_not_open_is_claimed_to_fail_and_holds_nobody_up(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        await fill(node, tenant=OTHER)
        await node.raw("update session set state = good_state")
        damaged, sound = await node.submit(input=TEXT), await node.submit(input=TEXT)
        stateless = await node.submit(tenant=OTHER, session="s")
        ((input,),) = await node.raw("select input from task where id = :id", id=sound)
        await node.raw("update task set input = :input where id = :id", input=input, id=damaged)
        claims = {claim.id: claim for claim in await node.claim(3)}
        assert claims[sound].damage is None
        assert "input of task" in (claims[damaged].damage or "")
        assert claims[damaged].input == b"null"
        assert "state of session" in (claims[stateless].damage or "")
        assert claims[stateless].state is None

    async def test_a_result_that_does_not_open_answers_nobody(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node, key = await opened(scratch, source), caching.key(1, b"1")
        caching_with(node)
        first = await node.submit(cache_key=key)
        assert await node.finish(await node.claim_one(), revision=1)
        await node.raw("update task set output = input where id = :id", id=first)
        assert not (await node.store.tasks.submit(new_task(cache_key=key))).is_answered

    @pytest.mark.parametrize(("table", "column"), COLUMNS)
    async def test_plain_text_is_refused_once_all_is_sealed(
        self, scratch: databases.Scratch, source: FakeKeySource, table: str, column: str
    ) -> None:
        node = await opened(scratch, source)
        id = await fill(node)
        if table == "task_event":
            await node.raw("delete from task_event")
            await node.raw(
                "insert into task_event (task, seq, epoch, type, at, data) values (:id, 3, 1, 'message', 1, :data)",
                id=id,
                data=TEXT,
            )
        else:
            await node.raw(f"update {table} set {column} = :text", text=TEXT)
        with pytest.raises(errors.StoreDamaged, match="is not encrypted"):
            await read_all(node, id)

    @pytest.mark.parametrize(
        "data",
        [
            b'{"state":"waiting","for":"x","text":"forged"}',
            b'{"state":"waiting","for":"%s"}' % (b"x" * 65),
            b'{"state":"waiting","for":{"text":"forged"}}',
            b'{"state":"running"} ',
        ],
    )
    def test_only_a_pause_is_stored_as_it_is(self, data: bytes) -> None:
        assert not is_pause("state", data)
        assert not is_pause("message", b'{"state":"running"}')
        assert is_pause("state", b'{"state":"waiting","for":"1a21ec5"}')

    async def test_a_data_key_that_was_moved_or_changed_is_refused_at_the_start(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        await fill(node)
        await fill(node, tenant=OTHER)
        await node.raw(
            "update data_key set wrapped = (select wrapped from data_key as kept where kept.tenant = 'other' "
            "and kept.purpose = 'seal') where tenant = 'acme' and purpose = 'seal'"
        )
        await closed(node, scratch)
        with pytest.raises(errors.StoreDamaged, match="cannot use the data key"):
            await opened(scratch, source)

    async def test_the_record_cannot_be_forged_or_dropped(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        await fill(node)
        await node.raw("update vault set record = :record", record=b"sealing")
        await closed(node, scratch)
        await refused(scratch, source, "changed without its key")
        await outside(scratch, "delete from vault")
        await refused(scratch, source, "the record of its key is missing")
        await outside(scratch, "delete from data_key")
        await refused(scratch, source, "its data keys and the record of its key are missing")


class TestKeys:
    async def test_another_key_refuses_the_start_and_nothing_changes(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        id = await fill(node)
        before = await contents(node)
        await closed(node, scratch)
        for other, is_on in ((FakeKeySource(), True), (FakeKeySource(), False), (None, False)):
            await refused(scratch, other, "cannot open the", is_on=is_on, kind=errors.StartRefused)
        node = await opened(scratch, source)
        assert await contents(node) == before
        assert all(value == TEXT for value in await everything(node, id))

    async def test_switched_off_what_was_encrypted_is_read_and_switched_on_again_all_is_sealed(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        first = await fill(node)
        await closed(node, scratch)
        node = await opened(scratch, source, is_on=False)
        assert node.store.vault.mode is Mode.LEFT
        assert all(value == TEXT for value in await everything(node, first))
        second = await fill(node)
        assert await values_with_canary(node)
        with pytest.raises(errors.Conflict, match="encryption is off"):
            await node.store.resealing.rotate(retires=True)
        await closed(node, scratch)
        node = await opened(scratch, source)
        assert not node.store.resealing.progress.is_done
        await resealed(node)
        assert node.store.vault.mode is Mode.SEALED
        assert not await values_with_canary(node)
        for id in (first, second):
            assert (await node.store.tasks.get(id, tenant=TENANT)).input == TEXT

    async def test_two_stores_of_one_database_share_their_keys(
        self, postgres_scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        one = await opened(postgres_scratch, source)
        two = await opened(postgres_scratch, source, owner="node-2")
        first = await fill(one)
        assert (await two.store.tasks.get(first, tenant=TENANT)).input == TEXT
        second = await fill(two)
        assert (await one.store.tasks.get(second, tenant=TENANT)).input == TEXT
        ids = {cryptography.key_id(bytes(row[0])) for row in await values(one, "task", "input")}
        assert len(ids) == 1

    async def test_a_key_of_a_rotated_vault_is_found_by_the_other_store(
        self, postgres_scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        one = await opened(postgres_scratch, source)
        two = await opened(postgres_scratch, source, owner="node-2")
        await fill(one)
        await one.store.resealing.rotate(retires=True)
        third = await fill(one)
        assert (await two.store.tasks.get(third, tenant=TENANT)).input == TEXT
        other = await fill(two, tenant=OTHER)  # its first key, made by a store that has missed the rotation
        ((kek,),) = await one.raw("select distinct kek from data_key")
        assert kek == one.store.vault.key
        assert (await one.store.tasks.get(other, tenant=OTHER)).input == TEXT

    @pytest.mark.parametrize("fault", [Fault.AT_COMMIT, Fault.AFTER_COMMIT])
    async def test_a_key_that_was_made_in_a_commit_that_failed_seals_nothing_that_is_lost(
        self, scratch: databases.Scratch, source: FakeKeySource, fault: Fault
    ) -> None:
        wrapped: list[FaultyDatabase] = []

        def wrap(db: Any) -> FaultyDatabase:
            wrapped.append(FaultyDatabase(db))
            return wrapped[0]

        node = await opened(scratch, source, wrap=wrap)
        wrapped[0].faults = [fault]
        with pytest.raises(errors.StoreUnavailable):
            await node.submit(input=TEXT)
        for claim in await node.claim(2):  # it was stored all the same
            assert (fault, claim.input) == (Fault.AFTER_COMMIT, TEXT)
            assert await node.finish(claim)
        id = await fill(node)
        await closed(node, scratch)
        node = await opened(scratch, source)
        assert all(value == TEXT for value in await everything(node, id))


class TestResealing:
    @pytest.mark.parametrize("retires", [True, False])
    async def test_a_rotation_wraps_all_keys_at_once_and_seals_anew_what_it_retires(
        self, scratch: databases.Scratch, source: FakeKeySource, retires: bool
    ) -> None:
        node = await opened(scratch, source)
        id = await fill(node)
        before = {bytes(row[0]) for table, column in COLUMNS for row in await values(node, table, column)}
        assert await node.store.resealing.rotate(retires=retires) == 2
        ((kek,),) = await node.raw("select distinct kek from data_key")
        assert kek == node.store.vault.key
        assert node.store.resealing.progress.is_done is not retires
        await resealed(node)
        assert node.store.resealing.progress.is_done
        after = {bytes(row[0]) for table, column in COLUMNS for row in await values(node, table, column)}
        assert not after & before if retires else after == before
        assert len({cryptography.key_id(value) for value in after}) == 1
        await closed(node, scratch)
        node = await opened(scratch, source)
        assert not await node.store.resealing.step()  # nothing is left to look for
        assert all(value == TEXT for value in await everything(node, id))

    @pytest.mark.parametrize("steps", range(4))
    async def test_a_pass_that_was_cut_off_is_begun_again(
        self, scratch: databases.Scratch, source: FakeKeySource, steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resealing, "MAX_VALUES", 3)
        node = await opened(scratch, source)
        id = await fill(node)
        await node.store.resealing.rotate(retires=True)
        for _ in range(steps):
            await node.store.resealing.step()
        await closed(node, scratch)
        node = await opened(scratch, source)
        await resealed(node)
        found = [bytes(row[0]) for table, column in COLUMNS for row in await values(node, table, column)]
        assert len({cryptography.key_id(value) for value in found}) == 1
        assert all(value == TEXT for value in await everything(node, id))

    async def test_many_rows_are_sealed_anew_while_others_come(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        texts = {f"t-{number}": b"%d" % number for number in range(1200)}
        await node.store.tasks.submit_all([new_task(id=id, input=text) for id, text in texts.items()])
        await node.store.resealing.rotate(retires=True)
        count = 0
        while await node.store.resealing.step():
            for claim in await node.claim(5):
                assert claim.input == texts[claim.id]
                assert await node.finish(claim, output=claim.input)
            count += 1
            extra = await node.submit(input=b"%d" % -count)
            texts[extra] = b"%d" % -count
        for id, text in texts.items():
            assert (await node.store.tasks.get(id, tenant=TENANT)).input == text
        assert len({cryptography.key_id(bytes(row[0])) for row in await values(node, "task", "input")}) == 1

    async def test_what_was_written_meanwhile_is_not_written_over(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        await fill(node)
        await node.store.resealing.rotate(retires=True)
        stale = Stale("session", "state", TENANT, (AGENT, "s"), 1)
        claim = await begun(node)
        assert await node.finish(claim, session_state=b'"newer"', revision=1)
        assert await node.store.commits.write(resealing.reseal, stale)
        (session,) = await node.store.sessions.find("s", tenant=TENANT)
        assert session.state == b'"newer"'

    async def test_what_does_not_open_is_left_and_the_store_is_not_called_sealed(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, None, is_on=False)
        await fill(node)
        await closed(node, scratch)
        node = await opened(scratch, source)
        id = await fill(node)
        await node.raw("update task set output = input where id = :id", id=id)
        await node.store.resealing.rotate(retires=True)
        await resealed(node)
        progress = node.store.resealing.progress
        assert (progress.is_done, progress.unreadable) == (True, 1)
        assert node.store.vault.mode is Mode.SEALING

    async def test_plain_hashes_are_keyed_but_for_those_that_others_wait_for(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        key = caching.key(1, b"1")
        node = await opened(scratch, None, is_on=False)
        caching_with(node)
        done = await node.submit(cache_key=key, idempotency_key="k", fingerprint=b"f" * 16)
        assert await node.finish(await node.claim_one(), revision=1)
        waiting = await node.submit(cache_key=caching.key(1, b"2"))
        await closed(node, scratch)
        node = await opened(scratch, source)
        await resealed(node)
        found = {row[0]: row[1] for row in await node.raw("select id, cache_key from task")}
        assert found[done] != key
        assert found[waiting] == caching.key(1, b"2")
        assert not await node.raw("select key from result_cache")
        assert await node.store.tasks.of_keys(["k"], tenant=TENANT, fingerprint=b"f" * 16) is not None
        again = await node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"f" * 16))
        assert (again.is_new, again.matches) == (False, True)

    async def test_events_can_be_sealed_anew_and_otherwise_not_be_changed(
        self, scratch: databases.Scratch, source: FakeKeySource
    ) -> None:
        node = await opened(scratch, source)
        await fill(node)
        for change in ("type = 'x'", "at = 1", "epoch = 9", "data = :data"):
            given = {"data": b'"plain"'} if ":data" in change else {}
            with pytest.raises(Exception, match="events are append-only"):
                await node.raw(f"update task_event set {change}", **given)


def forms() -> Iterator[bytes]:
    """The canary as it could stand in a file: as it is, in UTF-16, in hexadecimal, in base64 at each offset."""
    plain = CANARY.encode()
    yield plain
    yield CANARY.encode("utf-16-le")
    yield CANARY.encode("utf-16-be")
    yield plain.hex().encode()
    for offset in range(3):
        encoded = base64.b64encode(b" " * offset + plain)
        yield encoded[-(-offset * 4 // 3) + 1 : -4]


def in_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() for form in forms() if form in path.read_bytes()]


async def values_with_canary(node: Node) -> list[str]:
    return [
        f"{table}.{column}"
        for table, column in COLUMNS
        for row in await values(node, table, column)
        if CANARY.encode() in bytes(row[0])
    ]


def columns_of_bytes() -> set[str]:
    """Every column of bytes that the migrations make, but for numbers of a hash's own."""
    script = "".join(migration.script for migration in migrations.scripts("postgresql"))
    found = set()
    for table, body in re.findall(r"create table (\w+) \((.*?)\n\)", script, re.DOTALL):
        found |= {f"{table}.{column}" for column in re.findall(r"^\s+(\w+) bytea", body, re.MULTILINE)}
    found |= {f"{table}.{column}" for table, column in re.findall(r"alter table (\w+) add column (\w+) bytea", script)}
    return found


async def read_all(node: Node, id: str) -> None:
    """Read all that there is of the task and its session, and have a task begin that needs it; raises what is found."""
    if (damage := (await begun(node)).damage) is not None:
        raise errors.StoreDamaged(damage)
    task = await node.store.tasks.get(id, tenant=TENANT)
    await node.store.sessions.find("s", tenant=TENANT)
    for event in await node.store.tasks.events(task):
        if b"store_damaged" in event.data:
            raise errors.StoreDamaged(msgspec.json.decode(event.data)["error"]["message"])
    for line in await node.store.logs.latest(logs.Filter(tenant=TENANT), limit=50):
        if line.text.startswith(b"(cannot read"):
            raise errors.StoreDamaged(line.text.decode())


async def refused(
    scratch: databases.Scratch,
    source: FakeKeySource | None,
    match: str,
    *,
    is_on: bool = True,
    kind: type[Exception] = errors.StoreDamaged,
) -> None:
    with pytest.raises(kind, match=match):
        await opened(scratch, source, is_on=is_on)
    await scratch.opened.pop().close()


async def outside(scratch: databases.Scratch, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement as somebody who has the database and no key."""
    db = stores.open(scratch.url, clock=scratch.clock, owner="nobody").db
    try:
        async with db.transaction() as tx:
            return [tuple(row) for row in await tx.fetch(sql, {})]
    finally:
        await db.close()


async def contents(node: Node) -> list[list[str]]:
    """All rows of the tables that a start could change."""
    tables = ("task", "task_event", "session", "data_key", "vault")
    return [sorted(map(repr, await node.raw(f"select * from {table}"))) for table in tables]


def test_the_documentation_names_each_column() -> None:
    text = (Path(__file__).parents[2] / "docs" / "encryption.md").read_text()
    named = set(re.findall(r"`(\w+\.\w+)`", text))
    assert {f"{table}.{column}" for table, column in COLUMNS} | HASHED.keys() | LEFT.keys() <= named
