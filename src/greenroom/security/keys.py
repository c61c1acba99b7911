"""API keys: ``gr_<env>_<key id>_<secret>_<checksum>``, 256 random bits, stored as HMAC-SHA-256 under a pepper.

The checksum rejects typos before any look-up. Checking an unknown key id costs what checking a known one does: a dummy
comparison is made. Pure but for the randomness of `mint`.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import zlib

import msgspec

_FORM = re.compile(r"gr_([a-z]{2,12})_([0-9a-f]{16})_([A-Za-z0-9~-]{43})_([0-9a-f]{8})")
_DUMMY_HASH = bytes(32)


class Key(msgspec.Struct, frozen=True):
    """A key that was just minted: *text* is shown once, *secret_hash* is stored."""

    id: str
    text: str
    secret_hash: bytes


class Presented(msgspec.Struct, frozen=True):
    """A well-formed key that somebody presents."""

    id: str
    secret: str


def mint(environment: str, pepper: bytes) -> Key:
    """Make a new key; *environment* is a word for people and secret scanners (dev, stage, prod)."""
    key_id = secrets.token_hex(8)
    secret = base64.b64encode(secrets.token_bytes(32), altchars=b"-~").decode().rstrip("=")  # no "_": it separates
    body = f"gr_{environment}_{key_id}_{secret}"
    return Key(key_id, f"{body}_{_checksum(body)}", hashed(secret, pepper))


def parse(text: str) -> Presented | None:
    """Return the key that *text* holds; None if it is malformed or mistyped."""
    match = _FORM.fullmatch(text)
    if match is None or not hmac.compare_digest(_checksum(text.rpartition("_")[0]), match.group(4)):
        return None
    return Presented(match.group(2), match.group(3))


def hashed(secret: str, pepper: bytes) -> bytes:
    return hmac.digest(pepper, secret.encode(), "sha256")


def verify(presented: Presented | None, stored_hash: bytes | None, pepper: bytes) -> bool:
    """Tell whether the presented secret is the stored one; takes the same time whatever is missing."""
    secret = presented.secret if presented is not None else "x" * 43
    is_equal = hmac.compare_digest(hashed(secret, pepper), stored_hash if stored_hash is not None else _DUMMY_HASH)
    return is_equal and presented is not None and stored_hash is not None


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
