"""Where backups are kept: a folder, or a bucket of an S3-compatible store."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import msgspec

from greenroom import errors


class Stored(msgspec.Struct, frozen=True):
    name: str
    size_bytes: int
    modified_at: datetime


class Place(Protocol):
    """Objects by name; names are made by us. Every method raises `errors.BackupFailed` if the place cannot be used."""

    def put(self, name: str, content: bytes) -> None:
        """Store all of *content* or nothing, in the place of what had the name."""

    def get(self, name: str) -> bytes | None: ...

    def stored(self, under: str) -> list[Stored]:
        """Return what is there under a name that ends in a slash."""

    def delete(self, names: Iterable[str]) -> None: ...

    def settle(self) -> None:
        """Return when nothing that was put can be lost any more."""


def open(url: str) -> Place:
    """Open a folder's path or ``s3://BUCKET/PREFIX``; a folder is made when something is put into it."""
    if url.startswith("s3://"):
        from greenroom.backups import bucket

        return bucket.Bucket(url)
    return Folder(Path(url))


class Folder:
    """Files of mode 0600, complete under their names, also after a power cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unsettled: set[Path] = set()

    def put(self, name: str, content: bytes) -> None:
        target = self._path / name
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        with self._trouble():
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._unsettled |= {target.parent.parent, self._path, self._path.parent}
            try:
                fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(fd, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            self._unsettled.add(target.parent)

    def get(self, name: str) -> bytes | None:
        with self._trouble():
            try:
                return (self._path / name).read_bytes()
            except FileNotFoundError:
                return None

    def stored(self, under: str) -> list[Stored]:
        with self._trouble():
            return list(self._walk(self._path / under))

    def _walk(self, folder: Path) -> Iterator[Stored]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):  # nothing has been put there
                raise error

        for here, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                    path = Path(here, name)
                    seen = path.stat()
                    modified_at = datetime.fromtimestamp(seen.st_mtime, UTC)
                    yield Stored(path.relative_to(self._path).as_posix(), seen.st_size, modified_at)

    def delete(self, names: Iterable[str]) -> None:
        with self._trouble():
            for name in names:
                (self._path / name).unlink(missing_ok=True)

    def settle(self) -> None:
        with self._trouble():
            for folder in self._unsettled:
                fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        self._unsettled.clear()

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.BackupFailed(
                f"cannot use {self._path} for backups: {error.strerror}; free space there, or name another place "
                "(backups.to)"
            ) from error
