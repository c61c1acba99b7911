"""The node's own secrets: one file, mode 0600, made at first start, never in the environment.

The mode keeps other users out, and the rooms agents: in isolation tier T0, which has none, replicas can read the file.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path

import msgspec

from greenroom import errors


class Secrets(msgspec.Struct, frozen=True):
    """*pepper* keys the hashes of API keys: without it no stored key can be checked. 32 bytes each; what a file of an
    earlier release lacks is added to it.
    """

    pepper: bytes
    audit_key: bytes = b""  # the seed of the Ed25519 key that signs checkpoints of the audit log
    login_key: bytes = b""  # signs the cookies and links of logins
    webhook_key: bytes = b""  # encrypts the secrets of webhooks


def load_or_make(path: Path) -> Secrets:
    """Read *path*, made with new secrets if it is missing; raises `errors.StartRefused` if it is not safe."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise errors.StartRefused(
                f"cannot trust {path}: others may read it (mode {mode:o}); run: chmod 600 {shlex.quote(str(path))}"
            )
        found = msgspec.json.decode(path.read_bytes(), type=Secrets)
    except FileNotFoundError:
        found = Secrets(secrets.token_bytes(32))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise errors.StartRefused(
            f"cannot read {path}: it is not a secrets file of Greenroom; restore the right one"
        ) from None
    except OSError as error:
        raise errors.StartRefused(f"cannot read {path}: {error.strerror}") from None
    missing = [name for name, secret in msgspec.structs.asdict(found).items() if not secret]
    if missing or not path.exists():
        found = msgspec.structs.replace(found, **{name: secrets.token_bytes(32) for name in missing})
        write_private(path, msgspec.json.encode(found))
    return found


def audit_key(path: Path) -> bytes | None:
    """Return the key that signs the audit log, from a secrets file that is there; None: it is not, or has none yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Secrets).audit_key or None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write_private(path: Path, content: bytes) -> None:
    """Write *path* with mode 0600, all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise errors.StartRefused(
            f"cannot write {path}: {error.strerror}; choose another folder with --data-dir"
        ) from None
