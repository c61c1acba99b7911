"""The key of the backups: what is written at a place is encrypted, authentic, and named so that names tell nothing."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import shlex
import zlib
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from greenroom import errors, redaction
from greenroom.security import secret_file

_FORM = re.compile(r"greenroom-backup-key-1:([0-9a-f]{64})\s*")
_VERSION = b"\x01"
_NONCE_BYTES = 12
LEVEL = 3  # of zlib: 6 takes twice as long for 5 % less


class Key:
    """Seals and opens; *secret* is 32 random bytes."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(_derived(secret, b"content"))
        self._naming = _derived(secret, b"names")

    def name_of(self, content: bytes) -> str:
        """Return the name under which *content* is stored: equal for equal contents, and nothing without the key."""
        return hmac.digest(self._naming, content, "sha256").hex()

    def seal(self, content: bytes, name: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, zlib.compress(content, LEVEL), name.encode())

    def open(self, sealed: bytes, name: str) -> bytes:
        """Return the content; raises `errors.BackupInvalid` if it is not what was sealed with this key and name."""
        nonce, rest = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            return zlib.decompress(self._cipher.decrypt(nonce, rest, name.encode()))
        except (InvalidTag, ValueError):
            raise errors.BackupInvalid(
                f"cannot open {name}: it is damaged, or was made with another key; give the right one with --key-file"
            ) from None


def load(path: Path) -> Key:
    """Read the key file; raises `errors.BackupInvalid` if it is missing, no key, or open to others."""
    try:
        mode = path.stat().st_mode & 0o777
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise errors.BackupInvalid(
            f"cannot read the key of the backups, {path}: {why}; put your copy of it there, or name it with --key-file"
        ) from None
    if mode & 0o077:
        raise errors.BackupInvalid(
            f"cannot trust {path}: others may read it (mode {mode:o}); run: chmod 600 {shlex.quote(str(path))}"
        )
    match = _FORM.fullmatch(text)
    if match is None:
        raise errors.BackupInvalid(f"cannot use {path}: it is not a key of Greenroom's backups")
    redaction.register(match[1], bytes.fromhex(match[1]))
    return Key(bytes.fromhex(match[1]))


def make(path: Path) -> None:
    """Write a new key to *path*, mode 0600."""
    secret_file.write_private(path, f"greenroom-backup-key-1:{secrets.token_hex(32)}\n".encode())


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"greenroom backup " + purpose).derive(secret)
