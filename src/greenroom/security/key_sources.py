"""Where the key-encryption key comes from: a key file, or a key management service that a command speaks to.

The command wraps and unwraps that one key, at a start and at a rotation, and is never called for a row.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from greenroom import errors, redaction, settings
from greenroom.security import secret_file, vault
from greenroom.security.vault import KeyEncryptionKey

DEFAULT_FILE = "encryption.key"
COMMAND_TIMEOUT_S = 30.0
MAX_ANSWER_BYTES = 64 * 1024
MAX_FILE_BYTES = 1024 * 1024
_FORM = re.compile(r"greenroom-encryption-key-1:([0-9a-f]{64})")


class Found(NamedTuple):
    """A key, and what the store keeps of it: *wrapped* by a key management service, or None: a file has it."""

    key: KeyEncryptionKey
    wrapped: bytes | None


class Source(Protocol):
    async def first(self) -> Found:
        """Return the key for a store that has none yet."""

    async def find(self, id: str, wrapped: bytes | None) -> KeyEncryptionKey:
        """Return the key *id*, which the store's data keys are wrapped by; raises `errors.StartRefused`."""

    async def next(self, current: str) -> Found:
        """Return the key that is to follow the key *current*; what can be lost of it has been written."""


class Sources:
    """A file, and a command instead where there is one; then the file is only read, for a key of before.

    *is_ours*: the file is the default one, made where it is missing.
    """

    def __init__(self, file: Path, command: Sequence[str] = (), *, is_ours: bool) -> None:
        self.file, self._command, self._is_ours = file, tuple(command), is_ours
        self.has_made_file = False

    async def first(self) -> Found:
        if self._command:
            return await self._wrapped_new()
        if self._is_ours and not self.file.exists():
            make(self.file)
            self.has_made_file = True
        return Found(KeyEncryptionKey(load(self.file)[0]), None)

    async def find(self, id: str, wrapped: bytes | None) -> KeyEncryptionKey:
        if wrapped is None:
            return self._in_file(id)
        if not self._command:
            raise errors.StartRefused(
                f"cannot open the encrypted store: a key management service has its key {id}; "
                "give the command that speaks to it as security.encryption_command"
            )
        key = KeyEncryptionKey(await self._run("unwrap", wrapped))
        if key.id != id:
            raise errors.StartRefused(
                f"cannot open the encrypted store: its key is {id}, and {self._command[0]} unwrap has answered with "
                f"the key {key.id}"
            )
        return key

    async def next(self, current: str) -> Found:
        if self._command:
            return await self._wrapped_new()
        secrets = load(self.file)
        key = KeyEncryptionKey(secrets[0])
        if key.id == current:  # else somebody has put the next one there
            secret = vault.new_secret()
            try:
                _write(self.file, (secret, *secrets))
            except errors.StartRefused as error:
                raise errors.StartRefused(
                    f"{error}. Where the file is not the node's to write, put a line with a new key before the others "
                    "yourself, and rotate again"
                ) from None
            key = KeyEncryptionKey(secret)
        return Found(key, None)

    def _in_file(self, id: str) -> KeyEncryptionKey:
        if not self.file.exists():
            raise errors.StartRefused(
                f"cannot open the encrypted store: its key file {self.file} is missing; put your copy of it there, "
                "or name it as security.encryption_key_file. Without the key what is stored cannot be read"
            )
        keys = [KeyEncryptionKey(secret) for secret in load(self.file)]
        for key in keys:
            if key.id == id:
                return key
        held = ", ".join(key.id for key in keys)
        raise errors.StartRefused(
            f"cannot open the encrypted store: it is encrypted with the key {id}, and {self.file} holds {held}; "
            "nothing was changed. Put the right key file there, or name it as security.encryption_key_file"
        )

    async def _wrapped_new(self) -> Found:
        secret = vault.new_secret()
        wrapped = await self._run("wrap", bytes(secret))
        if bytes(secret) in wrapped:
            raise errors.StartRefused(f"cannot use {self._command[0]} wrap: it answers with the key itself")
        found = Found(KeyEncryptionKey(secret), wrapped)
        vault.wipe(secret)
        # What cannot be unwrapped is better known before anything is encrypted with it.
        if KeyEncryptionKey(await self._run("unwrap", wrapped)).id != found.key.id:
            raise errors.StartRefused(f"cannot use {self._command[0]}: unwrap does not give back what wrap was given")
        return found

    async def _run(self, word: str, given: bytes) -> bytes:
        if word == "wrap":
            redaction.register(given)  # before the command can say it
        what = f"{self._command[0]} {word}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                word,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            raise errors.StartRefused(
                f"cannot run {what} (security.encryption_command): {error.strerror}; it needs the path of a program"
            ) from None
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                answer, said = await process.communicate(base64.b64encode(given) + b"\n")
        except TimeoutError:
            raise errors.StartRefused(
                f"cannot get the key: {what} has not answered within {COMMAND_TIMEOUT_S:g} s; is its service reachable?"
            ) from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            why = said.decode(errors="replace").strip().splitlines()[-1:] or [""]
            shown = "".join(letter if letter.isprintable() else " " for letter in redaction.text(why[0]))[:300]
            raise errors.StartRefused(f"cannot get the key: {what} has ended with {process.returncode}: {shown}")
        try:
            decoded = base64.b64decode(answer.strip(), validate=True) if len(answer) <= MAX_ANSWER_BYTES else b""
        except binascii.Error:
            decoded = b""
        if not decoded or (word == "unwrap" and len(decoded) != vault.KEY_BYTES):
            raise errors.StartRefused(f"cannot get the key: {what} has not answered with a key in base64")
        if word == "unwrap":
            redaction.register(decoded)
        return decoded


def named(security: settings.Security, *, folder: Path, data_dir: Path) -> Sources:
    """Return what the settings name; a relative path is seen from the manifest's *folder*."""
    file, command = security.encryption_key_file, security.encryption_command
    path = data_dir / DEFAULT_FILE if file is None else folder / file
    return Sources(path, command, is_ours=file is None)


def load(path: Path) -> list[bytearray]:
    """Read a key file: a key a line, the one in use or to be used next first; raises `errors.StartRefused`."""
    try:
        mode = path.stat().st_mode & 0o777
        with path.open("rb") as file:
            lines = file.read(MAX_FILE_BYTES).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise errors.StartRefused(
            f"cannot read the key file {path}: {why}; make one: greenroom encryption make-key {shlex.quote(str(path))}"
        ) from None
    if mode & 0o077:
        raise errors.StartRefused(
            f"cannot trust {path}: others may read it (mode {mode:o}); run: chmod 600 {shlex.quote(str(path))}"
        )
    matches = [_FORM.fullmatch(line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    if not matches or None in matches:
        raise errors.StartRefused(f"cannot use {path}: it is not a key file of Greenroom's encryption")
    keys = [bytearray.fromhex(match[1]) for match in matches if match is not None]
    redaction.register(*map(bytes, keys))
    return keys


def make(path: Path) -> str:
    """Write a new key to *path*, mode 0600, and return its id; raises `errors.Conflict` if there is a file."""
    if path.exists():
        raise errors.Conflict(f"cannot make a key: {path} is there already; a key that is lost cannot be made again")
    secret = vault.new_secret()
    _write(path, (secret,))
    return KeyEncryptionKey(secret).id


def _write(path: Path, secrets: Sequence[bytearray]) -> None:
    lines = "".join(f"greenroom-encryption-key-1:{secret.hex()}\n" for secret in secrets)
    secret_file.write_private(path, lines.encode())
