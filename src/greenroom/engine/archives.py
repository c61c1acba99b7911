"""An agent's code as an archive: a gzipped tar of regular files under relative names, and nothing else.

`engine.snapshots` makes one of a folder, and reads one that a stranger has sent: reading inflates no more than it has
room for, gives names and contents, and touches no disk. Links, devices, sparse files and names that lead elsewhere are
refused; so is all that a reader could take for something else than its writer meant.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping

from greenroom import errors

MAX_NAME_BYTES = 1000
MAX_PART_BYTES = 255
_BLOCK = 512
_CHUNK_BYTES = 64 * 1024
_MAX_EXTENSION_BYTES = 16 * 1024  # of a pax header or a GNU long name
_MAX_END_BYTES = 1024 * 1024  # of zeros: a tape's record
_HEADERS_PER_FILE = 4  # a folder and two extensions beside its own

_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a fifo",
    b"S": "a sparse file",
}
_REMEDY = "send regular files only, under relative names, as `tar -czf` makes them of a clean folder"


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return *files* as an archive, the same bytes for the same files; raises `errors.AgentInvalid` for a name that
    `read` refuses.
    """
    for name in files:
        _check_name(name, doing="make")
    packed = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=packed, mtime=0) as zipped,  # without a name and the time
        tarfile.open(fileobj=zipped, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(files[name]), 0o644
            tar.addfile(member, io.BytesIO(files[name]))
    return packed.getvalue()


def read(archive: bytes, *, max_files: int, max_bytes: int) -> dict[str, bytes]:
    """Return the files of *archive* by name; raises `errors.AgentInvalid`, before more than the bounds allow is
    inflated.
    """
    room = _Room(max_files, max_bytes)
    overhead = max_files * _HEADERS_PER_FILE * 2 * _BLOCK + _MAX_END_BYTES
    inflated = _Inflated(archive, limit_bytes=max_bytes + overhead, room=room)
    files: dict[str, bytes] = {}
    for name, size in _members(inflated, room):
        _check_name(name)
        if name in files:
            raise _refused(f"it holds {name!r} twice")
        files[name] = inflated.take(size)
        inflated.skip_padding(size)
    _check_folders(files)
    return files


class _Room:
    """How much an archive may still hold."""

    def __init__(self, max_files: int, max_bytes: int) -> None:
        self._max_files, self._max_bytes = max_files, max_bytes
        self._files, self._bytes, self._headers = 0, 0, 0

    def count_header(self) -> None:
        self._headers += 1
        if self._headers > self._max_files * _HEADERS_PER_FILE:
            raise self.too_much()

    def count_file(self, size: int) -> None:
        self._files += 1
        self._bytes += size
        if self._files > self._max_files or self._bytes > self._max_bytes:
            raise self.too_much()

    def too_much(self) -> errors.AgentInvalid:
        return errors.AgentInvalid(
            f"cannot take the archive: it unpacks to more than {self._max_files:,} files or"
            f" {self._max_bytes // 2**20} MiB; keep the agent's code in a folder of its own, or narrow include"
        )


class _Inflated:
    """The archive's bytes as they were before gzip, inflated as they are taken, never more than *limit_bytes*."""

    def __init__(self, archive: bytes, *, limit_bytes: int, room: _Room) -> None:
        self._left, self._room = limit_bytes, room
        self._pieces = _inflate(archive)
        self._buffer = bytearray()

    def take(self, size: int) -> bytes:
        """Return the next *size* bytes; raises where the archive ends before."""
        while len(self._buffer) < size:
            if not self._inflate_more():
                raise _refused("it ends early; send it again, whole")
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def skip_padding(self, size: int) -> None:
        self.take(-size % _BLOCK)

    def expect_end(self) -> None:
        """See that only zeros follow, as after the end of a tar."""
        while True:
            if self._buffer.strip(b"\0"):
                raise _refused("something follows its end; send one archive")
            self._buffer.clear()
            if not self._inflate_more():
                return

    def _inflate_more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self._left -= len(piece)
        if self._left < 0:
            raise self._room.too_much()
        self._buffer += piece
        return True


def _inflate(archive: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # gzip, and no other
    try:
        for start in range(0, len(archive), _CHUNK_BYTES):
            piece, is_full = archive[start : start + _CHUNK_BYTES], False
            while (piece or is_full) and not inflater.eof:
                inflated = inflater.decompress(piece, _CHUNK_BYTES)
                yield inflated
                piece, is_full = inflater.unconsumed_tail, len(inflated) == _CHUNK_BYTES
            if inflater.eof and (inflater.unused_data or start + _CHUNK_BYTES < len(archive)):
                raise _refused("something follows its end; send one archive")
    except zlib.error as error:
        raise _refused(f"it is no gzip file, or damaged ({error}); send a .tar.gz") from None
    if not inflater.eof:
        raise _refused("it ends early, or is no gzip file; send a .tar.gz, whole")


def _members(inflated: _Inflated, room: _Room) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each regular file; whoever takes them takes its content, too."""
    long_name: bytes | None = None
    records: dict[bytes, bytes] = {}
    while (header := inflated.take(_BLOCK)).strip(b"\0"):
        room.count_header()
        _check_sum(header)
        kind, size = header[156:157], _number(header[124:136])
        if kind in {b"x", b"g", b"L"}:
            extension = _extension(inflated, size)
            if kind == b"L":
                long_name = extension.rstrip(b"\0")
            elif kind == b"x":
                records = _records(extension)
            elif {b"path", b"size", b"linkpath"} & _records(extension).keys():
                raise _refused(f"it gives one name or size to all of its members; {_REMEDY}")
            continue
        name = _decoded(records.get(b"path") or long_name or _name_of(header))
        size = _decimal(records[b"size"]) if b"size" in records else size
        if any(key.startswith(b"GNU.sparse") for key in records):
            raise _refused(f"{name!r} is a sparse file; {_REMEDY}")
        long_name, records = None, {}
        if kind == b"5" or (kind in {b"0", b"\0"} and name.endswith("/")):
            if size:
                raise _refused(f"the folder {name!r} has content; {_REMEDY}")
            continue
        if kind not in {b"0", b"\0"}:
            raise _refused(f"{name!r} is {_KINDS.get(kind, 'no regular file')}; {_REMEDY}")
        room.count_file(size)
        yield name.removeprefix("./"), size
    inflated.expect_end()


def _check_sum(header: bytes) -> None:
    given = header[148:156]
    if _number(given) != sum(header) - sum(given) + len(given) * 0x20:
        raise _refused("it is no tar, or damaged: a header's checksum is wrong; send a .tar.gz")


def _number(field: bytes) -> int:
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # also the binary form, which is for members of 8 GiB and more
        raise _refused("it is no tar, or damaged: a header has no number where one belongs; send a .tar.gz")
    return int(digits or b"0", 8)


def _decimal(digits: bytes) -> int:
    if not digits or len(digits) > 20 or digits.strip(b"0123456789"):
        raise _refused("it is damaged: an extended header has no number where one belongs; send a .tar.gz")
    return int(digits)


def _extension(inflated: _Inflated, size: int) -> bytes:
    if size > _MAX_EXTENSION_BYTES:
        raise _refused(f"it has an extended header of {size:,} bytes, more than any name needs; {_REMEDY}")
    extension = inflated.take(size)
    inflated.skip_padding(size)
    return extension


def _records(extension: bytes) -> dict[bytes, bytes]:
    """Read a pax header: records of ``length key=value`` and a newline, where the length counts all of it."""
    records: dict[bytes, bytes] = {}
    rest = extension
    while rest:
        digits, _, _ = rest[:21].partition(b" ")
        length = _decimal(digits)
        key, pair, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        if length > len(rest) or rest[length - 1 : length] != b"\n" or not pair:
            raise _refused("it is damaged: an extended header cannot be read; send a .tar.gz")
        records[key] = value
        rest = rest[length:]
    return records


def _name_of(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0]
    is_posix = header[257:263] == b"ustar\0"  # else it is GNU's, which has times there, or old and has nothing
    return prefix + b"/" + name if is_posix and prefix else name


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise _refused(f"the name {name[:100]!r} is no UTF-8; rename the file") from None


def _check_name(name: str, *, doing: str = "take") -> None:
    why = _misnamed(name)
    if why is not None:
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        raise _refused(f"{shown!r} {why}; rename the file, or leave it out", doing=doing)


def _misnamed(name: str) -> str | None:
    """Say what is wrong with a name, for every machine that may get it; names are compared as they are given."""
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in name):
        return "has a control character or half of a surrogate pair in its name"
    if "\\" in name:
        return "has a backslash in its name"
    if name.startswith("/"):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of its folder"
    if not all(parts) or "." in parts:
        return "has an empty part in its name"
    if any(part.startswith(".") for part in parts):
        return "is hidden, which is never part of an agent's code"
    if len(name.encode()) > MAX_NAME_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"has a name of more than {MAX_NAME_BYTES} bytes, or {MAX_PART_BYTES} between slashes"
    return None


def _check_folders(files: Mapping[str, bytes]) -> None:
    for name in files:
        for end, character in enumerate(name):
            if character == "/" and name[:end] in files:
                raise _refused(f"{name[:end]!r} is a file in it, and the folder of {name!r}")


def _refused(why: str, *, doing: str = "take") -> errors.AgentInvalid:
    return errors.AgentInvalid(f"cannot {doing} the archive: {why}")
