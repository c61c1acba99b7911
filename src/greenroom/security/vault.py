"""The vault's cryptography: what one data key seals, and how data keys are wrapped. Pure but for random numbers.

A value is sealed with AES-256-GCM under a data key of its tenant, bound to the place that it is stored in: moved to
another row, column, table or tenant it does not open. The data keys are themselves stored, wrapped under one
key-encryption key, which is never stored in the clear beside them (`security.key_sources`).

Python cannot promise that a key leaves the memory: secrets are held as `bytearray` while they are ours and overwritten
after use, but the copies that the interpreter and OpenSSL make stay until the process ends.
"""

from __future__ import annotations

import hmac
import os
import secrets
import struct
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from greenroom import random_bits

VERSION = b"\x01"
"""What a sealed value begins with; no JSON text does."""
KEY_BYTES = 32
ID_BYTES = 8
NONCE_BYTES = 12
TAG_BYTES = 16
HEAD_BYTES = len(VERSION) + ID_BYTES  # which key: enough to tell by how a value is sealed
BODY_AT = HEAD_BYTES + NONCE_BYTES
OVERHEAD_BYTES = BODY_AT + TAG_BYTES
MAX_MESSAGES = 2**30
"""Of one data key: SP 800-38D allows 2^32 random nonces before two of them may be equal."""

SEAL, INDEX = "seal", "index"  # what a data key is for: sealing, or keyed hashes of what has to be found again


_LENGTH_BYTES = 4
_LENGTHS = struct.Struct(">II").pack


class Unopened(Exception):
    """Not what was sealed with this key for this place."""


def is_sealed(value: bytes) -> bool:
    return value[:1] == VERSION


def key_id(value: bytes) -> bytes:
    """Return the id of the key that *value* is sealed with."""
    return value[len(VERSION) : HEAD_BYTES]


def joined(parts: Iterable[bytes]) -> bytes:
    """Return *parts* as one text that no other parts give: each behind its length.

    >>> joined([b"ab", b"c"]) == joined([b"a", b"bc"])
    False
    """
    return b"".join([part for each in parts for part in (len(each).to_bytes(_LENGTH_BYTES, "big"), each)])


class DataKey:
    """One tenant's key. *secret* is 32 bytes."""

    __slots__ = ("_around", "_decrypt", "_encrypt", "_head", "id", "tenant")

    def __init__(self, id: bytes, tenant: str, secret: bytes | bytearray) -> None:
        self.id, self.tenant = id, tenant
        cipher = AESGCM(bytes(secret))
        self._encrypt, self._decrypt = cipher.encrypt, cipher.decrypt
        self._head = VERSION + id
        self._around: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    def seal(self, value: bytes, table: str, column: str, row: tuple[str, ...]) -> bytes:
        nonce = random_bits.token_bytes(NONCE_BYTES)
        return self._head + nonce + self._encrypt(nonce, value, self.place(table, column, row))

    def open(self, value: bytes, table: str, column: str, row: tuple[str, ...]) -> bytes:
        """Return what was sealed; raises `Unopened`."""
        nonce = value[HEAD_BYTES:BODY_AT]
        try:
            return self._decrypt(nonce, value[BODY_AT:], self.place(table, column, row))
        except (InvalidTag, ValueError):
            raise Unopened from None

    def place(self, table: str, column: str, row: tuple[str, ...]) -> bytes:
        """Return the associated data of a value: version, tenant, table, row, column and key id, none ambiguous."""
        around = self._around.get((table, column))
        if around is None:
            around = self._around[table, column] = (
                joined((VERSION, self.tenant.encode(), table.encode())),
                joined((column.encode(), self.id)),
            )
        if len(row) == 1:  # as each task's: what `joined` does, at once
            part = row[0].encode()
            return around[0] + _LENGTHS(_LENGTH_BYTES + len(part), len(part)) + part + around[1]
        return around[0] + joined((joined([part.encode() for part in row]),)) + around[1]


class IndexKey:
    """One tenant's key for hashes of what is looked up again; never rotated, or nothing would be found."""

    __slots__ = ("_secret", "id", "tenant")

    def __init__(self, id: bytes, tenant: str, secret: bytes | bytearray) -> None:
        self.id, self.tenant, self._secret = id, tenant, bytes(secret)

    def digest(self, purpose: bytes, value: bytes) -> bytes:
        return hmac.digest(self._secret, joined((purpose, value)), "sha256")


class KeyEncryptionKey:
    """Wraps data keys; *id* tells it from others and says nothing about it."""

    def __init__(self, secret: bytes | bytearray) -> None:
        self._cipher = AESGCM(_derived(secret, b"wrap"))
        self.id = _derived(secret, b"id")[:ID_BYTES].hex()

    def wrap(self, secret: bytes | bytearray, id: bytes, tenant: str, purpose: str) -> bytes:
        return self._seal(bytes(secret), b"data key", id, tenant.encode(), purpose.encode())

    def unwrap(self, wrapped: bytes, id: bytes, tenant: str, purpose: str) -> bytearray:
        """Return a data key's secret; raises `Unopened`."""
        return bytearray(self._open(wrapped, b"data key", id, tenant.encode(), purpose.encode()))

    def sign(self, record: bytes) -> bytes:
        """Seal what the store says about itself, so that who can write to it alone cannot say otherwise."""
        return self._seal(record, b"record")

    def verify(self, signed: bytes) -> bytes:
        """Return what was signed; raises `Unopened`."""
        return self._open(signed, b"record")

    def _seal(self, value: bytes, *about: bytes) -> bytes:
        nonce = os.urandom(NONCE_BYTES)
        return VERSION + nonce + self._cipher.encrypt(nonce, value, joined((VERSION, *about)))

    def _open(self, value: bytes, *about: bytes) -> bytes:
        nonce, rest = value[1 : 1 + NONCE_BYTES], value[1 + NONCE_BYTES :]
        try:
            if not is_sealed(value):
                raise Unopened
            return self._cipher.decrypt(nonce, rest, joined((VERSION, *about)))
        except (InvalidTag, ValueError):
            raise Unopened from None


def new_secret() -> bytearray:
    return bytearray(secrets.token_bytes(KEY_BYTES))


def wipe(secret: bytearray) -> None:
    """Overwrite *secret*, as far as that is ours to do."""
    secret[:] = bytes(len(secret))


def new_id() -> bytes:
    return secrets.token_bytes(ID_BYTES)


def _derived(secret: bytes | bytearray, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"greenroom vault " + purpose).derive(bytes(secret))
