"""Takes the immutable, content-addressed copy of an agent's code that a revision runs, from a folder or an archive.

Called when an agent is deployed. The digest is of names and contents alone, so the same files give the same
digest on every machine. Bytecode is not part of it: compiling costs 1.4 ms a file, once for each zygote.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from greenroom import errors
from greenroom.engine import archives, definitions

MAX_FILES = 5_000
MAX_BYTES = 64 * 1024 * 1024
_NEVER = frozenset({"__pycache__", "node_modules"})


class Snapshot(msgspec.Struct, frozen=True):
    digest: str
    path: Path


def take(folder: Path, *, include: Sequence[str], into: Path) -> Snapshot:
    """Copy ``*.py`` and what *include* names under *folder* to ``into/<digest>``; a copy that is there is
    kept.

    A pattern is a file, a folder (all below it) or a glob whose ``*`` crosses slashes. Left out whatever
    *include* says: hidden names, virtual environments, caches, ``*.log``, symbolic links, and the data
    directory, which is *into*'s parent. Raises `errors.AgentInvalid` over `MAX_FILES` or `MAX_BYTES`, and for
    a pattern that names nothing.
    """
    return _store(_read(folder, include, data_dir=into.parent), into)


def digest_of(folder: Path, *, include: Sequence[str], data_dir: Path) -> str:
    """Return the digest that `take` would give, and write nothing; raises as `take` does."""
    return _digest(_read(folder, include, data_dir=data_dir))


def pack(folder: Path, *, include: Sequence[str], data_dir: Path) -> bytes:
    """Return the files that `take` would copy, as an archive for `unpack` on another machine; raises as `take` does.

    The same files give the same archive.
    """
    return archives.pack(_read(folder, include, data_dir=data_dir))


def unpack(archive: bytes, *, into: Path) -> Snapshot:
    """Store what *archive* holds as `take` would have done with its folder; nothing of a bad one is written.

    Raises `errors.AgentInvalid` for what is no gzipped tar, or damaged; for whatever is in it and neither a regular
    file nor a folder; for names that lead elsewhere, that stand for two things, or that `take` leaves out; and over
    `MAX_FILES` or `MAX_BYTES`, before more is inflated.
    """
    files = archives.read(archive, max_files=MAX_FILES, max_bytes=MAX_BYTES)
    for name in files:
        _refuse_no_code(name)
    return _store(files, into)


missing = definitions.missing


def _store(files: dict[str, bytes], into: Path) -> Snapshot:
    digest = _digest(files)
    target = into / digest
    if not target.is_dir():
        _write(files, target)
    return Snapshot(digest, target)


def _refuse_no_code(name: str) -> None:
    *folders, file = name.split("/")
    if file.endswith(".log") or not _NEVER.isdisjoint(folders) or (folders and file == "pyvenv.cfg"):
        raise errors.AgentInvalid(
            f"cannot take the archive: {name!r} is never part of an agent's code (caches, *.log, virtual environments);"
            " leave it out"
        )


def _read(folder: Path, include: Sequence[str], *, data_dir: Path) -> dict[str, bytes]:
    # Contents are read once, so that what is hashed is what is copied even while somebody edits.
    if not folder.is_dir():
        raise errors.AgentInvalid(f"cannot take a snapshot of {folder}: it is not a folder")
    files: dict[str, bytes] = {}
    unused, total = set(include), 0
    for name in _candidates(folder, data_dir):
        patterns = {pattern for pattern in include if _matches(name, pattern)}
        if not patterns and not name.endswith(".py"):
            continue
        unused -= patterns
        with _opened(folder, name) as file:
            size = os.fstat(file.fileno()).st_size
            total += size
            if len(files) >= MAX_FILES or total > MAX_BYTES:
                raise errors.AgentInvalid(_too_much(folder, {**{n: len(c) for n, c in files.items()}, name: size}))
            files[name] = file.read(size)  # not more, if it grows meanwhile
    if unused:
        raise errors.AgentInvalid(
            f"cannot take a snapshot of {folder}: include names {', '.join(map(repr, sorted(unused)))}, and no file "
            "there matches (hidden files, *.log and symbolic links never do); correct or remove it"
        )
    return files


def _candidates(folder: Path, data_dir: Path) -> Iterator[str]:
    data_dir = data_dir.resolve()
    for here, folders, names in os.walk(folder):
        at = Path(here)
        folders[:] = sorted(name for name in folders if _is_code(at / name) and (at / name).resolve() != data_dir)
        for name in sorted(names):
            path = at / name
            if not name.startswith(".") and not name.endswith(".log") and path.is_file() and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file below *folder* without following links: what has become one since it was found is refused."""
    *folders, last = name.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = inner
        # Without waiting: it may have become a fifo.
        file = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        with os.fdopen(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise OSError(errno.ELOOP, "it is no regular file", name)
            yield opened
    except OSError as error:
        raise errors.AgentInvalid(
            f"cannot take a snapshot of {folder}: cannot read {name}: {error.strerror}; is it changing now?"
        ) from None
    finally:
        os.close(at)


def _is_code(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in _NEVER
    return not hidden and not folder.is_symlink() and not (folder / "pyvenv.cfg").exists()


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./").rstrip("/")
    return (
        name.startswith(pattern + "/")
        or fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(name, pattern.removeprefix("**/"))
    )


def _too_much(folder: Path, sizes: dict[str, int]) -> str:
    biggest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:3]
    named = ", ".join(f"{name} ({sizes[name] / 1024:,.0f} KiB)" for name in biggest)
    return (
        f"cannot take a snapshot of {folder}: it has more than {MAX_FILES:,} files or {MAX_BYTES // 2**20} MiB "
        f"of code; the biggest so far: {named}; keep the agent's code in a folder of its own, or narrow include"
    )


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files, key=os.fsencode):
        encoded = os.fsencode(name)
        digest.update(len(encoded).to_bytes(4, "big") + encoded + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


def _write(files: dict[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=target.parent))
    try:
        for name, content in files.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o444)
        with contextlib.suppress(FileExistsError):
            _publish(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError as error:
        if target.is_dir():  # another node took the same snapshot meanwhile
            raise FileExistsError(target) from error
        raise
    for here, _, _ in os.walk(target):
        Path(here).chmod(0o555)
