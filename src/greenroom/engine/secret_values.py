"""Secrets by reference, at both ends: the node opens what a reference names and never reads it, the replica reads it.

A replica gets an open file for each of its secrets with its fork. So a rotated file counts from the next replica on,
and a file that only the node's user may read can be given to one agent. The replica's side: standard library only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greenroom import redaction

MAX_BYTES = 64 * 1024
FILE, VARIABLE = "file:", "env:"


class Unresolved(Exception):
    """A reference leads nowhere; the message names it, and never what is there."""


# --- the node's end


def opened(references: Mapping[str, str], *, closed: Sequence[Path] = ()) -> list[int]:
    """Open what each of *references* names, in their order; raises `Unresolved`, and has opened nothing then.

    Files in *closed*, the node's own, are no agent's secrets. Blocks.
    """
    fds: list[int] = []
    try:
        for name, reference in references.items():
            fds.append(_opened(name, reference, closed))
    except Unresolved:
        for fd in fds:
            os.close(fd)
        raise
    return fds


def _opened(name: str, reference: str, closed: Sequence[Path]) -> int:
    what = f"cannot resolve the secret {name}, {reference}"
    if reference.startswith(VARIABLE):
        value = os.environb.get(os.fsencode(reference.removeprefix(VARIABLE)))
        if value is None:
            raise Unresolved(f"{what}: the node does not have that variable; set it where the node is started")
        fd = os.memfd_create("secret")
        os.write(fd, value)
        return fd
    path = reference.removeprefix(FILE)
    try:
        real = Path(os.path.realpath(path))
        if any(folder in (real, *real.parents) for folder in closed):
            raise Unresolved(f"{what}: it is the node's own; name a file outside its data directory")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise Unresolved(f"{what}: {error.strerror}; correct the reference, or let the node read it") from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
        os.close(fd)
        raise Unresolved(f"{what}: it is no file of at most {MAX_BYTES} bytes")
    return fd


# --- the replica's end


def learn(names: Sequence[str], fds: Sequence[int]) -> None:
    """Set the variables *names* to what the open files hold, without a last line end; close the files."""
    for name, fd in zip(names, fds, strict=True):
        value = os.pread(fd, MAX_BYTES + 1, 0)
        os.close(fd)
        os.environb[name.encode()] = value.removesuffix(b"\n").removesuffix(b"\r").replace(b"\0", b"")
        redaction.register(os.environ[name])


def filled_in(arguments: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return *arguments* with the value of a secret wherever one says ``{"secret": NAME}``, at any depth."""
    known = frozenset(names)
    return {key: _filled_in(value, known) for key, value in arguments.items()}


def _filled_in(value: Any, names: frozenset[str]) -> Any:
    match value:
        case {"secret": str(name), **others} if not others and name in names:
            return os.environ[name]
        case dict():
            return {key: _filled_in(inner, names) for key, inner in value.items()}
        case list():
            return [_filled_in(inner, names) for inner in value]
        case _:
            return value
