"""An archive of code from a stranger: what a folder could have given is taken, and all else is refused unwritten."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greenroom import errors
from greenroom.engine import archives, snapshots

MANY = "é" * 150  # bytes: more than a header's field


def write(folder: Path, name: str, content: bytes = b"") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def zipped(tar: bytes) -> bytes:
    return gzip.compress(tar, mtime=0)


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar with *members* as they are: names and contents, or headers without content."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as tar:
        for each in members:
            if isinstance(each, tarfile.TarInfo):
                tar.addfile(each)
                continue
            member = tarfile.TarInfo(each[0])
            member.size = len(each[1])
            tar.addfile(member, io.BytesIO(each[1]))
    return made.getvalue()


def member(name: str, type: bytes, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = type
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def header(name: bytes, size: int = 0, *, type: bytes = b"0") -> bytes:
    """Return a header that `tarfile` would not write."""
    fields = bytearray(512)
    fields[: len(name)] = name
    fields[100:108], fields[108:116], fields[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    fields[124:136], fields[136:148] = f"{size:011o}\0".encode(), b"00000000000\0"
    fields[156:157], fields[257:265] = type, b"ustar\00000"
    fields[148:156] = b" " * 8
    fields[148:156] = f"{sum(fields):06o}\0 ".encode()
    return bytes(fields)


def with_records(records: bytes, *, type: bytes = b"x") -> bytes:
    padded = records + bytes(-len(records) % 512)
    return header(b"pax", len(records), type=type) + padded + header(b"a.py") + bytes(1024)


def refusal(archive: bytes, into: Path) -> str:
    with pytest.raises(errors.AgentInvalid) as refused:
        snapshots.unpack(archive, into=into)
    assert not into.exists(), "something was written"
    assert str(refused.value).startswith("cannot take the archive: ")
    return str(refused.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "agents"
    write(folder, "shop.py", b"import helpers.tools\n")
    write(folder, "helpers/tools.py", b"TOOLS = ()\n" * 10_000)
    write(folder, "helpers/__init__.py")
    write(folder, f"prompts/{MANY[:100]}/ü.txt", bytes(range(256)))
    write(folder, "left.csv", b"1,2")
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "data" / "snapshots"


# --- what a folder gives


def test_a_packed_folder_unpacks_to_the_snapshot_that_is_taken_of_it(folder: Path, into: Path, tmp_path: Path) -> None:
    packed = snapshots.pack(folder, include=("prompts",), data_dir=tmp_path / "data")
    unpacked = snapshots.unpack(packed, into=into)
    assert unpacked.path == into / unpacked.digest
    assert all(path.stat().st_mode & 0o222 == 0 for path in [unpacked.path, *unpacked.path.rglob("*")])
    taken = snapshots.take(folder, include=("prompts",), into=tmp_path / "elsewhere" / "snapshots")
    assert unpacked.digest == taken.digest
    for path in taken.path.rglob("*"):
        copy = unpacked.path / path.relative_to(taken.path)
        assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()
    assert not (unpacked.path / "left.csv").exists()
    assert snapshots.unpack(packed, into=into) == unpacked


def test_the_digest_is_known_without_a_copy(folder: Path, into: Path) -> None:
    digest = snapshots.digest_of(folder, include=("*.csv",), data_dir=into.parent)
    assert not into.exists()
    assert snapshots.take(folder, include=("*.csv",), into=into).digest == digest
    with pytest.raises(errors.AgentInvalid, match="include names 'nothing'"):
        snapshots.digest_of(folder, include=("nothing",), data_dir=into.parent)


def test_the_same_files_give_the_same_archive(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            write(other, path.relative_to(folder).as_posix(), path.read_bytes())
    (other / "shop.py").chmod(0o755)
    packs = {snapshots.pack(each, include=("*",), data_dir=tmp_path / "data") for each in (folder, other)}
    assert len(packs) == 1
    with tarfile.open(fileobj=io.BytesIO(packs.pop())) as tar:
        members = tar.getmembers()
    assert [each.name for each in members] == sorted(each.name for each in members)
    assert {(each.mode, each.mtime, each.uid, each.gid, each.uname) for each in members} == {(0o644, 0, 0, 0, "")}


@pytest.mark.parametrize("name", ["a\\b.py", "a\nb.py", "\udcff.py"])
def test_a_name_that_no_archive_takes_is_told_of_before_it_is_sent(folder: Path, tmp_path: Path, name: str) -> None:
    write(folder, name)
    with pytest.raises(errors.AgentInvalid, match=r"cannot make the archive: .* rename the file"):
        snapshots.pack(folder, include=(), data_dir=tmp_path / "data")


@pytest.mark.parametrize("format", ["gnu", "pax", "posix", "ustar"])
def test_what_tar_makes_of_a_folder_is_taken(folder: Path, into: Path, format: str) -> None:
    (folder / f"prompts/{MANY[:100]}/ü.txt").rename(folder / "prompts" / "ü.txt")
    (folder / f"prompts/{MANY[:100]}").rmdir()
    write(folder, f"{'long/' * 25}{'n' * 60}.py", b"x = 1\n")  # fits ustar in two pieces only
    tar = subprocess.run(
        ["tar", f"--format={format}", "-cz", "-C", str(folder), "."], capture_output=True, check=True
    ).stdout
    taken = snapshots.take(folder, include=("*",), into=into.parent / "others" / "snapshots")
    assert snapshots.unpack(tar, into=into).digest == taken.digest


def test_an_archive_of_nothing_is_one_of_an_empty_folder(tmp_path: Path, into: Path) -> None:
    (tmp_path / "empty").mkdir()
    packed = snapshots.pack(tmp_path / "empty", include=(), data_dir=tmp_path / "data")
    assert list(snapshots.unpack(packed, into=into).path.iterdir()) == []


def test_a_comment_that_holds_for_all_members_is_ignored(into: Path) -> None:
    archive = zipped(with_records(b"16 comment=abcd\n", type=b"g"))
    assert [path.name for path in snapshots.unpack(archive, into=into).path.iterdir()] == ["a.py"]


@given(
    st.dictionaries(
        st.text("ab/é.\\\n", min_size=1, max_size=12) | st.text(min_size=1, max_size=300), st.binary(max_size=1500)
    )
)
@example({"a": b"", "a/b": b""})
def test_what_is_packed_is_read_and_what_is_refused_is_refused_by_both(files: dict[str, bytes]) -> None:
    try:
        packed = archives.pack(files)
    except errors.AgentInvalid:
        return
    try:
        assert archives.read(packed, max_files=1000, max_bytes=2**20) == files
    except errors.AgentInvalid as refused:
        assert "and the folder of" in str(refused)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute path"),
        (".//etc/passwd", "absolute path"),
        ("../up.py", "leads out"),
        ("a/../../up.py", "leads out"),
        ("a/..", "leads out"),
        ("./", "x"),
        ("a//b.py", "an empty part"),
        ("a/./b.py", "an empty part"),
        ("././b.py", "an empty part"),
        ("a\\b.py", "backslash"),
        ("a\nb.py", "control character"),
        ("a\x7fb.py", "control character"),
        ("a\x85b.py", "control character"),
        (".hidden.py", "hidden"),
        (".git/config", "hidden"),
        ("a/.b/c.py", "hidden"),
        ("__pycache__/a.pyc", "never part"),
        ("a/node_modules/b.js", "never part"),
        ("run.log", "never part"),
        ("a/run.log", "never part"),
        ("env/pyvenv.cfg", "never part"),
        ("n" * 253 + ".py", "more than 1000 bytes, or 255"),
        ("a/" * 499 + "b.py", "more than 1000 bytes"),
    ],
)
def test_a_name_that_no_snapshot_has_is_refused(into: Path, name: str, why: str) -> None:
    if name == "./":  # a folder, which needs no place
        assert snapshots.unpack(zipped(tar_of((name, b""))), into=into).path.exists()
        return
    message = refusal(zipped(tar_of(("fine.py", b"1"), (name, b"2"))), into)
    assert why in message
    assert "leave it out" in message


@pytest.mark.parametrize("name", [b"\xff.py", b"\xed\xa0\x80.py"])
def test_a_name_that_is_no_utf_8_is_refused(into: Path, name: bytes) -> None:
    assert "no UTF-8" in refusal(zipped(header(name) + bytes(1024)), into)


def test_a_name_without_letters_is_refused(into: Path) -> None:
    assert "an empty part" in refusal(zipped(header(b"") + bytes(1024)), into)


def test_a_nul_in_a_name_is_refused(into: Path) -> None:
    assert "control character" in refusal(zipped(with_records(b"14 path=a\0.py\n")), into)


@pytest.mark.parametrize(
    ("type", "what"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a fifo"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (tarfile.CONTTYPE, "no regular file"),
        (b"V", "no regular file"),
    ],
)
@pytest.mark.parametrize("target", ["shop.py", "/etc/passwd", "n" * 200])
def test_a_member_that_is_no_regular_file_is_refused(into: Path, type: bytes, what: str, target: str) -> None:
    linkname = target if type in {tarfile.SYMTYPE, tarfile.LNKTYPE} else ""
    message = refusal(zipped(tar_of(("shop.py", b""), member("other.py", type, linkname=linkname))), into)
    assert f"'other.py' is {what}; send regular files only" in message


def test_a_sparse_file_in_the_newer_form_is_refused(into: Path) -> None:
    assert "is a sparse file" in refusal(zipped(with_records(b"22 GNU.sparse.major=1\n")), into)


def test_a_folder_with_content_is_refused(into: Path) -> None:
    assert "has content" in refusal(zipped(header(b"a", 5, type=b"5") + bytes(512 + 1024)), into)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("a.py", "a.py"), "holds 'a.py' twice"),
        (("a.py", "./a.py"), "holds 'a.py' twice"),
        (("a", "a/b.py"), "'a' is a file in it, and the folder of 'a/b.py'"),
        (("a/b/c.py", "a"), "'a' is a file in it"),
    ],
)
def test_a_name_for_two_things_is_refused(into: Path, names: tuple[str, str], why: str) -> None:
    assert why in refusal(zipped(tar_of(*((name, b"") for name in names))), into)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5 a=",
        b"99 path=a.py\n",
        b"0 path=a\n",
        b"-5 path=a\n",
        b"4 =\n5",
        b" path=a.py\n",
        b"1" * 5000,
        b"6 path\n",
    ],
)
def test_records_that_cannot_be_read_are_refused(into: Path, records: bytes) -> None:
    assert "damaged" in refusal(zipped(with_records(records)), into)


@pytest.mark.parametrize("record", [b"13 path=a.py\n", b"9 size=3\n", b"14 linkpath=a\n"])
def test_a_name_or_size_for_all_members_is_refused(into: Path, record: bytes) -> None:
    assert "to all of its members" in refusal(zipped(with_records(record, type=b"g")), into)


@pytest.mark.parametrize("size", [b"-0000000001\0", b"0x000000001\0", b"\x80" + bytes(10) + b"\1", b"\xff" * 12])
def test_a_size_that_is_no_number_is_refused(into: Path, size: bytes) -> None:
    bad = bytearray(header(b"a.py"))
    bad[124:136] = size
    bad[148:156] = b" " * 8
    bad[148:156] = f"{sum(bad):06o}\0 ".encode()
    assert "no number" in refusal(zipped(bytes(bad) + bytes(1024)), into)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda tar: tar[:0], "no gzip file"),
        (lambda tar: tar, "no gzip file"),
        (lambda tar: b"PK\3\4" + tar, "no gzip file"),
        (zlib.compress, "no gzip file"),
        (lambda tar: zipped(tar[5:]), "no tar"),
        (lambda tar: zipped(tar[:5] + b"X" + tar[6:]), "checksum"),
        (lambda tar: zipped(tar[:700]), "ends early"),
        (lambda tar: zipped(tar[:0]), "ends early"),
        (lambda tar: zipped(tar[:1024]), "ends early"),
        (lambda tar: zipped(tar)[:-4], "ends early"),
        (lambda tar: zipped(tar)[:-4] + b"\0\0\0\0", "damaged"),
        (lambda tar: zipped(tar) + b"more", "something follows"),
        (lambda tar: zipped(tar) * 2, "something follows"),
        (lambda tar: zipped(tar + tar), "something follows"),
    ],
)
def test_what_is_no_gzipped_tar_or_not_whole_is_refused(into: Path, spoil: Callable[[bytes], bytes], why: str) -> None:
    message = refusal(spoil(tar_of(("a.py", b"x = 1\n"))), into)
    assert why in message
    assert "send" in message


@given(st.data())
def test_a_damaged_archive_is_refused_or_holds_what_it_held(data: st.DataObject) -> None:
    tar = bytearray(tar_of(("a.py", b"x = 1\n"), (f"{MANY[:60]}.py", b"y")))
    for _ in range(data.draw(st.integers(1, 3))):
        tar[data.draw(st.integers(0, 4096))] = data.draw(st.integers(0, 255))
    try:
        archives.read(zipped(bytes(tar)), max_files=10, max_bytes=10_000)
    except errors.AgentInvalid as refused:
        assert str(refused).startswith("cannot take the archive: ")


# --- bounds


def bomb(kind: str) -> bytes:
    """Return an archive of some kilobytes that unpacks to 64 MiB, and says 1 GiB of itself."""
    heads = {
        "a file": header(b"a.py", 2**30),
        "a record": header(b"pax", 2**30, type=b"x"),
        "a long name": header(b"long", 2**30, type=b"L"),
        "zeros after the end": bytes(1024),
        "folders": b"",
        "records": b"",
    }
    deflater, pieces = zlib.compressobj(wbits=31), []
    pieces.append(deflater.compress(heads[kind]))
    filling = {
        "folders": header(b"a", type=b"5") * 2048,
        "records": (header(b"pax", 2**14, type=b"x") + b"16384 comment=".ljust(2**14 - 1, b"c") + b"\n") * 60,
    }.get(kind, bytes(2**20))
    pieces += [deflater.compress(filling) for _ in range(64)]
    return b"".join([*pieces, deflater.flush()])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("a file", "it unpacks to more than"),
        ("a record", "an extended header of 1,073,741,824 bytes"),
        ("a long name", "an extended header of 1,073,741,824 bytes"),
        ("zeros after the end", "it unpacks to more than"),
        ("folders", "it unpacks to more than"),
        ("records", "it unpacks to more than"),
    ],
)
def test_a_bomb_is_not_inflated_beyond_the_bound(
    into: Path, kind: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 4 * 2**20)
    monkeypatch.setattr(snapshots, "MAX_FILES", 100)
    archive = bomb(kind)
    tracemalloc.start()
    try:
        message = refusal(archive, into)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert why in message
    assert peak < 16 * 2**20


def test_many_small_files_are_refused(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_FILES", 3)
    fits = [(f"{number}.py", b"") for number in range(3)]
    assert "more than 3 files" in refusal(zipped(tar_of(*fits, ("more.py", b""))), into)
    folders = [member(f"{number}/", tarfile.DIRTYPE) for number in range(13)]
    assert "more than 3 files" in refusal(zipped(tar_of(*folders)), into)
    assert len(list(snapshots.unpack(zipped(tar_of(*fits, *folders[:4])), into=into).path.iterdir())) == 3


def test_files_that_are_too_large_together_are_refused(into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MAX_BYTES", 2**20)
    half = random.Random(1).randbytes(2**19)
    assert "1 MiB" in refusal(zipped(tar_of(("a", half), ("b", half), ("c", b"1"))), into)
    assert len(list(snapshots.unpack(zipped(tar_of(("a", half), ("b", half))), into=into).path.iterdir())) == 2


def test_all_that_take_takes_is_taken_from_an_archive(
    tmp_path: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_FILES", 50)
    monkeypatch.setattr(snapshots, "MAX_BYTES", 50 * 100)
    for number in range(50):
        write(tmp_path / "full", f"{'ö' * 60}/{'é' * 60}/{number:0100}.py", b"x" * 100)
    packed = snapshots.pack(tmp_path / "full", include=(), data_dir=into.parent)
    assert snapshots.unpack(packed, into=into).digest == snapshots.digest_of(
        tmp_path / "full", include=(), data_dir=into.parent
    )
