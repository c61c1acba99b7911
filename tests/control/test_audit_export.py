"""The export of the audit log: in order, at least once, from where it was; and nobody waits for it."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import apsw
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from greenroom import errors, telemetry
from greenroom.control.audit_export import BATCH, AuditExport
from greenroom.control.audit_places import Blocking, Place, Undelivered, place_of
from greenroom.control.audit_receiver import Receiver
from greenroom.security import audit, audit_checks
from greenroom.store.audit import Act
from greenroom.store.store import Store
from greenroom.testing import databases
from greenroom.testing.fakes import FakeClock

SIGNER = audit.Signer(b"s" * 32)


class Taking:
    name = "a test"

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.failing = 0
        self.told: list[str] = []

    async def last(self) -> None:
        return None

    async def take(self, lines: Sequence[bytes]) -> None:
        self.lines += lines  # also where it says that it has not
        if self.failing:
            self.failing -= 1
            raise Undelivered("cannot: it is away")


@pytest.fixture
async def scratch(tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) as scratch:
        yield scratch


@pytest.fixture
async def store(scratch: databases.Scratch) -> Store:
    opened = await scratch.open()
    opened.audit.is_on = True
    return opened


def _export(
    scratch: databases.Scratch, store: Store, place: Place, facts: telemetry.Telemetry | None = None
) -> AuditExport:
    async def tell(trouble: str) -> None:
        if isinstance(place, Taking):
            place.told.append(trouble)

    return AuditExport(store, scratch.clock, facts or telemetry.Telemetry(), place, tell=tell)


async def _fill(store: Store, count: int) -> None:
    await store.audit.note(*(Act("test", str(n)) for n in range(count)))


async def _drain(export: AuditExport) -> None:
    while await export.step() == 0.0:
        pass


async def _check(store: Store, lines: Sequence[bytes]) -> Sequence[audit_checks.Finding]:
    check = audit_checks.Check([SIGNER.public], anchor=audit_checks.anchor_of(lines))
    for entry in await store.audit.after(0):
        check.add(entry)
    return check.end(await store.audit.head())


async def test_entries_and_checkpoints_come_in_order_and_once(scratch: databases.Scratch, store: Store) -> None:
    place = Taking()
    export = _export(scratch, store, place)
    for count in (3, BATCH + 5, 1):
        await _fill(store, count)
        await _drain(export)
        while await store.audit.seal(SIGNER):
            pass
        await _drain(export)
    found = [audit.parse(line) for line in place.lines]
    entries = [each.seq for each in found if isinstance(each, audit.Entry)]
    assert entries == list(range(1, BATCH + 10))
    checkpoints = [each for each in found if isinstance(each, audit.Checkpoint)]
    assert [each.number for each in checkpoints] == [1, 2, 3]
    for each in checkpoints:
        assert found.index(each) > max(
            n for n, one in enumerate(found) if isinstance(one, audit.Entry) and one.seq <= each.last
        )
    assert await _check(store, place.lines) == []


async def test_a_checkpoint_waits_for_all_that_it_signs(scratch: databases.Scratch, store: Store) -> None:
    await _fill(store, 2 * BATCH + 5)
    while await store.audit.seal(SIGNER):
        pass
    place = Taking()
    await _drain(_export(scratch, store, place))
    seen = 0
    for each in map(audit.parse, place.lines):
        if isinstance(each, audit.Checkpoint):
            assert each.last <= seen
        elif each is not None:
            seen = each.seq
    assert seen == 2 * BATCH + 5


async def test_it_goes_on_where_it_was_and_what_was_not_taken_comes_again(
    scratch: databases.Scratch, store: Store
) -> None:
    place, facts, told = Taking(), telemetry.Telemetry(), list[telemetry.Fact]()
    facts.subscribe(told.append)
    export = _export(scratch, store, place, facts)
    await _fill(store, 5)
    place.failing = 3
    delays = [await export.step() for _ in range(3)]
    assert delays == [2.0, 4.0, 8.0]
    assert export.trouble == "cannot: it is away"
    await _drain(export)
    assert [type(fact).__name__ for fact in told] == ["AuditTrouble", "AuditRecovered"]
    await _fill(store, 5)
    place.lines.clear()
    await _drain(_export(scratch, store, place))  # of the next life
    assert [each.seq for each in map(audit.parse, place.lines) if isinstance(each, audit.Entry)] == [6, 7, 8, 9, 10]


def _cut(scratch: databases.Scratch, seq: int) -> None:
    """Cut the log off behind entry *seq*, as somebody does who owns the database."""
    with contextlib.closing(apsw.Connection(scratch.url.removeprefix("sqlite:///"))) as database:
        ((hash,),) = database.execute("select hash from audit_entry where seq = ?", (seq,))
        database.execute("delete from audit_entry where seq > ?", (seq,))
        database.execute("delete from audit_checkpoint")
        head = "update audit_head set seq = ?, hash = ?, sealed = 0, checkpoint = 0, checkpoint_hash = ?"
        database.execute(head, (seq, hash, audit.BEGIN))


def _seqs(lines: Sequence[bytes]) -> list[int]:
    return [each.seq for each in map(audit.parse, lines) if isinstance(each, audit.Entry)]


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_log_that_is_behind_its_export_is_told_and_exported_again(
    scratch: databases.Scratch, store: Store, is_running: bool
) -> None:
    place = Taking()
    export = _export(scratch, store, place)
    await _fill(store, 12)
    await _drain(export)
    _cut(scratch, 5)
    if not is_running:
        export = _export(scratch, store, place)  # of the next life
        await _fill(store, 3)
    place.lines.clear()
    await _drain(export)
    (told,) = place.told
    assert "entry 12 was exported, and the log ends at entry" in told
    assert export.mismatch == told
    seqs = _seqs(place.lines)
    assert seqs == list(range(1, len(seqs) + 1))
    newest = (await store.audit.after(seqs[-1] - 1))[0]
    assert (newest.action, newest.outcome, newest.object) == ("audit.export", "found", "a test")
    await _fill(store, 1)
    await _drain(export)
    assert _seqs(place.lines) == [*seqs, seqs[-1] + 1]
    assert len(place.told) == 1


@pytest.mark.parametrize("column", ["seq", "checkpoint"])
async def test_a_cursor_that_was_set_ahead_stops_no_export(
    scratch: databases.Scratch, store: Store, column: str
) -> None:
    place = Taking()
    await _fill(store, 3)
    await _drain(_export(scratch, store, place))
    with contextlib.closing(apsw.Connection(scratch.url.removeprefix("sqlite:///"))) as database:
        database.execute(f"update audit_cursor set {column} = 1000000000")
    place.lines.clear()
    await _drain(_export(scratch, store, place))
    assert len(place.told) == 1
    assert _seqs(place.lines) == [1, 2, 3, 4]


async def test_a_file_knows_what_it_has_better_than_the_store(
    scratch: databases.Scratch, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "anchor.jsonl"

    def next_life() -> AuditExport:
        return _export(scratch, store, place_of(path.name, tmp_path, signer=SIGNER, clock=scratch.clock))

    await _fill(store, 5)
    await _drain(next_life())
    exported = path.read_bytes()
    await _fill(store, 5)
    await _drain(next_life())
    path.write_bytes(exported)  # an older one: no evidence of anything, and what it has not comes
    export = next_life()
    await _drain(export)
    assert (_seqs(path.read_bytes().splitlines()), export.mismatch) == (list(range(1, 11)), None)
    _cut(scratch, 5)
    await _fill(store, 20)  # others than those, and the cursor is not ahead of them
    export = next_life()
    await _drain(export)
    assert export.mismatch is not None
    assert "entry 10, the last one there, is gone from the log or is another one" in export.mismatch
    lines = path.read_bytes().splitlines()
    assert _seqs(lines) == [*range(1, 11), *range(1, 27)]
    assert (await _check(store, lines))[0].kind is audit_checks.Kind.REWRITTEN
    export = next_life()
    await _drain(export)
    assert export.mismatch is None


async def test_a_pipe_is_not_asked_what_it_has(scratch: databases.Scratch, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert await place_of("pipe", tmp_path, signer=SIGNER, clock=scratch.clock).last() is None


async def test_a_file_is_for_its_owner_and_goes_on_behind_a_torn_line(
    scratch: databases.Scratch, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "anchor.jsonl"
    path.write_bytes(b'{"kind":"entr')
    export = _export(scratch, store, place_of("anchor.jsonl", tmp_path, signer=SIGNER, clock=scratch.clock))
    await _fill(store, 3)
    await _drain(export)
    torn, *lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    assert audit.parse(torn) is None
    assert await _check(store, lines) == []
    (tmp_path / "new").mkdir()
    await _drain(_export(scratch, store, place_of("new/a", tmp_path, signer=SIGNER, clock=scratch.clock)))
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o600


async def test_a_file_that_cannot_be_written_is_told_of(
    scratch: databases.Scratch, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for where in ("missing/a", "link"):
        export = _export(scratch, store, place_of(where, tmp_path, signer=SIGNER, clock=scratch.clock))
        await _fill(store, 1)
        assert await export.step() > 0
        assert export.trouble is not None
    assert not (tmp_path / "elsewhere").exists()


async def test_a_place_that_hangs_holds_nobody_up_and_is_not_called_again_meanwhile() -> None:
    gate, calls = threading.Event(), list[int]()

    def write(lines: Sequence[bytes]) -> None:
        calls.append(len(lines))
        gate.wait(30)

    place = Blocking("slow", write, timeout_s=0.01)
    for _ in range(3):
        with pytest.raises(Undelivered, match="it takes nothing"):
            await place.take([b"a"])
    assert calls == [1]
    gate.set()
    await Blocking("slow", lambda _: None).take([b"a"])
    place._timeout_s = 10.0
    await place.take([b"a", b"b"])  # behind the one that hung
    assert calls == [1, 2]


async def test_a_pipe_that_is_full_is_no_loss() -> None:
    reading, writing = os.pipe()
    place = Blocking("pipe", lambda lines: _write_to(writing, lines))
    line = b"x" * 100_000  # more than a pipe holds
    reader = threading.Thread(target=lambda: _read(reading, len(line)), daemon=True)
    reader.start()
    await place.take([line])
    reader.join(10)
    assert not reader.is_alive()
    os.close(reading)
    with pytest.raises(Undelivered, match="Broken pipe"):
        await place.take([b"x"])
    os.close(writing)


def _write_to(fd: int, lines: Sequence[bytes]) -> None:
    from greenroom.control import audit_places

    audit_places._write(fd, lines)


def _read(fd: int, count: int) -> None:
    while count > 0:
        count -= len(os.read(fd, 65_536))


async def test_a_receiver_gets_signed_requests_and_anything_but_2xx_is_no_receipt() -> None:
    seen: list[httpx.Request] = []
    statuses = iter([200, 204, 302, 500])

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(next(statuses), headers={"location": "https://elsewhere.example"})

    clock = FakeClock()
    url = "https://siem.example:8443/in?token=secret"
    place = Receiver(url, signer=SIGNER, clock=clock, transport=httpx.MockTransport(answer))
    await place.take([b'{"a":1}', b'{"b":2}'])
    await place.take([b'{"a":1}', b'{"b":2}'])
    for status in ("302", "500"):
        with pytest.raises(Undelivered, match=status) as caught:
            await place.take([b"{}"])
        assert "secret" not in str(caught.value) + place.name
    first, again, *_ = seen
    assert first.headers["webhook-id"] == again.headers["webhook-id"]
    body = first.content
    assert body == b'{"a":1}\n{"b":2}\n'
    signed = f"{first.headers['webhook-id']}.{first.headers['webhook-timestamp']}.".encode() + body
    kind, _, signature = first.headers["webhook-signature"].partition(",")
    assert kind == "v1a"
    Ed25519PublicKey.from_public_bytes(SIGNER.public).verify(base64.b64decode(signature), signed)
    assert len(seen) == 4  # and nobody followed the redirect


def test_what_is_no_url_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match="audit_export"):
        place_of("https://[::1", tmp_path, signer=SIGNER, clock=FakeClock())


async def test_a_receiver_that_is_away_is_told_of() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no", request=request)

    place = Receiver("https://siem.example/", signer=SIGNER, clock=FakeClock(), transport=httpx.MockTransport(refuse))
    with pytest.raises(Undelivered, match="ConnectError"):
        await place.take([b"{}"])
