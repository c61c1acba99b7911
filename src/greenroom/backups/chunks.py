"""Rows as chunks, cut so that rows which stay as they are give the same chunks again. Pure.

A row of n bytes is the last of its chunk with the probability n / `TARGET_BYTES`, drawn from its key: where a chunk
ends depends on that row alone, so a row that changes, comes or goes changes the chunk that it is in and no other.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom import errors

TARGET_BYTES = 512 * 1024
MOST_BYTES = 8 * TARGET_BYTES  # one in 3,000 is cut here; a single row may be longer
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Cutter(msgspec.Struct):
    """Takes rows in the order of their keys; *key* is where the key's values stand in a row."""

    key: Sequence[int]
    rows: int = 0
    _parts: list[bytes] = []
    _bytes: int = 0
    _digest: Any = msgspec.field(default_factory=hashlib.sha256)

    def add(self, row: Sequence[Any]) -> bytes | None:
        """Return the chunk that *row* ends, if it ends one."""
        part = _encode(row)
        self._digest.update(part)
        self._parts.append(part)
        self._bytes += len(part)
        self.rows += 1
        drawn = zlib.crc32(_encode([row[place] for place in self.key])) / 2**32
        if drawn * TARGET_BYTES < len(part) or self._bytes >= MOST_BYTES:
            return self.end()
        return None

    def end(self) -> bytes | None:
        """Return the chunk of what is left, if anything is."""
        if not self._parts:
            return None
        chunk = b"\xdd" + len(self._parts).to_bytes(4, "big") + b"".join(self._parts)  # a list, as msgpack has it
        self._parts, self._bytes = [], 0
        return chunk

    @property
    def sha256(self) -> str:
        """Of all rows so far, wherever they were cut."""
        digest: str = self._digest.hexdigest()
        return digest


def rows_of(chunk: bytes) -> list[list[Any]]:
    try:
        return _decode(chunk)
    except msgspec.MsgspecError:
        raise errors.BackupInvalid("cannot read the backup: a chunk of it holds no rows") from None
