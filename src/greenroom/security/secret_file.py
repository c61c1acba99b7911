"""The node's own secrets: one file, mode 0600, made at first start, never in the environment.

The mode keeps other users out, not agents: in isolation tier T0 replicas run as the node's user and can read the file.
"""

from __future__ import annotations

import os
import secrets
import shlex
from pathlib import Path

import msgspec

from greenroom import errors


class Secrets(msgspec.Struct, frozen=True):
    """*pepper* keys the hashes of API keys: without it no stored key can be checked."""

    pepper: bytes


def load_or_make(path: Path) -> Secrets:
    """Read *path*, made with new secrets if it is missing; raises `errors.StartRefused` if it is not safe."""
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise errors.StartRefused(
                f"cannot trust {path}: others may read it (mode {mode:o}); run: chmod 600 {shlex.quote(str(path))}"
            )
        return msgspec.json.decode(path.read_bytes(), type=Secrets)
    except FileNotFoundError:
        made = Secrets(secrets.token_bytes(32))
        write_private(path, msgspec.json.encode(made))
        return made
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise errors.StartRefused(
            f"cannot read {path}: it is not a secrets file of Greenroom; restore the right one"
        ) from None
    except OSError as error:
        raise errors.StartRefused(f"cannot read {path}: {error.strerror}") from None


def write_private(path: Path, content: bytes) -> None:
    """Write *path* with mode 0600, all or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise errors.StartRefused(
            f"cannot write {path}: {error.strerror}; choose another folder with --data-dir"
        ) from None
