"""What lies at a place: chunks by the key's name for their content, and for each backup an inventory of its chunks.

Chunks are written first and the inventory last: what has an inventory was whole when it was written. A chunk that no
inventory names is swept, after a grace for the backup that is being written now. A chunk that was found damaged is not
removed, for whoever found it may have read it wrong: a note of its name has the next backup store it anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from greenroom import errors
from greenroom.backups import places, sealing
from greenroom.sdk import models

FORMAT = 1
GRACE = timedelta(hours=24)
_ID = re.compile(r"\d{8}T\d{6}\.\d{3}Z")
_MARK = "greenroom"  # what is sealed under it tells whether a key is the right one
INVENTORIES, _CHUNKS, _DAMAGED = "inventories/", "chunks/", "damaged/"


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A chunk's name, and its size at the place."""

    name: str
    size_bytes: int


class Content(msgspec.Struct, frozen=True):
    """A table's rows, in the order of *key*; *sha256* is of all of them, however they are cut."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    sequence: int | None
    rows: int
    sha256: str
    chunks: tuple[Chunk, ...]


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to know about a backup. *files* are the node's, as a table of their paths, modes and contents."""

    format: int = FORMAT
    id: str
    created_at: datetime
    greenroom: str
    schema: int
    dialect: str
    tables: tuple[Content, ...]
    files: Content
    new_bytes: int  # what this backup added to the place

    @property
    def contents(self) -> tuple[Content, ...]:
        return (*self.tables, self.files)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """Each of them once."""
        return tuple({chunk.name: chunk for content in self.contents for chunk in content.chunks}.values())

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def stored_bytes(self) -> int:
        """What restoring it reads."""
        return sum(chunk.size_bytes for chunk in self.chunks)

    def described(self) -> models.Backup:
        return models.Backup(
            id=self.id,
            created_at=self.created_at,
            greenroom=self.greenroom,
            rows=self.rows,
            stored_bytes=self.stored_bytes,
            new_bytes=self.new_bytes,
        )


def ids(place: places.Place) -> list[str]:
    """Return the ids of all backups at *place*, oldest first; no key is needed for that."""
    names = map(_last, place.stored(INVENTORIES))
    return sorted(name for name in names if _ID.fullmatch(name))


def time_of(id: str) -> datetime:
    return datetime.strptime(id, "%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)


def next_id(now: datetime, ids: Sequence[str]) -> str:
    """Return the id of a backup made now: later than all *ids*, which are sorted, whatever the clock says."""
    if ids:
        now = max(now, time_of(ids[-1]) + timedelta(milliseconds=1))
    return f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"


class _Format(msgspec.Struct):
    format: int


class Archive:
    """The backups at *place* under *key*."""

    def __init__(self, place: places.Place, key: sealing.Key) -> None:
        """Raise `errors.BackupInvalid` if *place* holds the backups of another key."""
        self._place, self._key = place, key
        mark = place.get(_MARK)
        self._is_marked = mark is not None
        if mark is not None:
            key.open(mark, _MARK)

    def ids(self) -> list[str]:
        return ids(self._place)

    def find(self, wanted: str) -> Inventory:
        """Return the inventory of the backup *wanted*, an id or ``latest``; raises `errors.NotFound`."""
        ids = self.ids()
        if not ids:
            raise errors.NotFound("cannot find a backup: there is none at this place; next: greenroom backup create")
        if wanted == "latest":
            return self.inventory(ids[-1])
        if wanted not in ids:
            raise errors.NotFound(f"cannot find the backup {wanted[:64]}; greenroom backup ls shows those there are")
        return self.inventory(wanted)

    def inventory(self, id: str) -> Inventory:
        """Read an inventory; raises `errors.NotFound`, or `errors.BackupInvalid` if it is not what was put."""
        content = self._read(f"{INVENTORIES}{id}")
        try:
            if (format := msgspec.msgpack.decode(content, type=_Format).format) != FORMAT:
                raise errors.BackupInvalid(f"cannot read the backup {id}: its format {format} is not known here")
            return msgspec.msgpack.decode(content, type=Inventory)
        except msgspec.MsgspecError:
            raise errors.BackupInvalid(f"cannot read the backup {id}: its inventory is no inventory") from None

    def mark(self) -> None:
        """Let only this key write here from now on."""
        if not self._is_marked:
            self._place.put(_MARK, self._key.seal(b"", _MARK))

    def whole(self, inventories: Iterable[Inventory]) -> dict[str, Chunk]:
        """Return the chunks of *inventories* that lie here in their full size, and that nobody has found damaged."""
        sizes = {_last(found): found.size_bytes for found in self._place.stored(_CHUNKS)}
        for found in self._place.stored(_DAMAGED):
            sizes.pop(_last(found), None)
        named = (chunk for inventory in inventories for chunk in inventory.chunks)
        return {chunk.name: chunk for chunk in named if sizes.get(chunk.name) == chunk.size_bytes}

    def note_damaged(self, inventory: Inventory) -> int:
        """Have the next backup store anew what of *inventory* cannot be read; return how many chunks that is.

        Reads all of it.
        """
        damaged = [chunk for chunk in inventory.chunks if not self._is_readable(chunk)]
        with contextlib.suppress(errors.BackupFailed):  # whoever may only read still wants to know
            for chunk in damaged:
                self._place.put(f"{_DAMAGED}{chunk.name}", b"")
        return len(damaged)

    def _is_readable(self, chunk: Chunk) -> bool:
        try:
            self.chunk(chunk)
        except errors.BackupInvalid:
            return False
        return True

    def name_of(self, content: bytes) -> str:
        return self._key.name_of(content)

    def put(self, name: str, content: bytes) -> Chunk:
        sealed = self._key.seal(content, f"{_CHUNKS}{name}")
        self._place.put(_path(name), sealed)
        return Chunk(name, len(sealed))

    def chunk(self, chunk: Chunk) -> bytes:
        """Return a chunk's content; raises `errors.BackupInvalid` if it is missing or not what was put."""
        sealed = self._place.get(_path(chunk.name))
        if sealed is None:
            raise errors.BackupInvalid(f"cannot read the backup: its chunk {chunk.name} is missing at the place")
        return self._key.open(sealed, f"{_CHUNKS}{chunk.name}")

    def publish(self, inventory: Inventory) -> None:
        """Make the backup one, once all that it names is there for good."""
        self._place.settle()
        named = {chunk.name for chunk in inventory.chunks}
        missing = named - {_last(found) for found in self._place.stored(_CHUNKS)}
        if missing:
            raise errors.BackupFailed(
                f"cannot finish the backup: {len(missing)} of its chunks have gone meanwhile; make it again"
            )
        name = f"{INVENTORIES}{inventory.id}"
        self._place.put(name, self._key.seal(msgspec.msgpack.encode(inventory), name))
        self._place.settle()

    def delete(self, ids: Iterable[str], *, now: datetime) -> None:
        """Delete backups, and the chunks that none of the others needs.

        While one of these cannot be read no chunk goes: nobody knows which are its.
        """
        self._place.delete(f"{INVENTORIES}{id}" for id in ids)
        left = []
        for id in self.ids():
            try:
                left.append(self.inventory(id))
            except errors.NotFound:
                continue  # it went meanwhile
            except errors.BackupInvalid:
                return
        needed = {chunk.name for inventory in left for chunk in inventory.chunks}
        found = self._place.stored(_CHUNKS)
        self._place.delete(
            [each.name for each in found if _last(each) not in needed and each.modified_at < now - GRACE]
        )
        self._place.delete([each.name for each in self._place.stored(_DAMAGED) if _last(each) not in needed])

    def forget_damage(self, stored: Iterable[str]) -> None:
        """Drop the notes of the chunks that were *stored* anew, by their names."""
        noted = {_last(found) for found in self._place.stored(_DAMAGED)}
        self._place.delete([f"{_DAMAGED}{name}" for name in noted.intersection(stored)])

    def _read(self, name: str) -> bytes:
        sealed = self._place.get(name)
        if sealed is None:
            raise errors.NotFound(f"cannot find {name} at the place of the backups")
        return self._key.open(sealed, name)


def _path(name: str) -> str:
    return f"{_CHUNKS}{name[:2]}/{name}"


def _last(found: places.Stored) -> str:
    return found.name.rpartition("/")[2]
