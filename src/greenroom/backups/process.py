"""A backup in a process of its own, for a node that goes on serving: ``python -m greenroom.backups``.

What is wanted goes in on stdin, for a store's URL may hold a password; what came of it comes out on stdout. The process
leaves when its stdin closes: with the node that started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import threading
from pathlib import Path

import msgspec

import greenroom
from greenroom import clock as clocks
from greenroom import errors
from greenroom.backups import creating

NICENESS = 15
_ISOLATED = Path(greenroom.__file__).parent / "cli" / "isolated.py"


class _Answer(msgspec.Struct, frozen=True):
    """*refused* is a `GreenroomError`'s code and message."""

    made: creating.Made | None = None
    refused: tuple[str, str] | None = None


async def create(wanted: creating.Wanted) -> creating.Made:
    """Have a backup made by another process, which ends with this call; raises `errors.BackupFailed`."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*_command(), stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise errors.BackupFailed(f"cannot back up: no process can be started: {error.strerror}") from None
    assert process.stdin is not None
    try:
        with contextlib.suppress(ConnectionError):  # it died: its exit says more
            process.stdin.write(msgspec.json.encode(wanted) + b"\n")
            await process.stdin.drain()
        assert process.stdout is not None
        assert process.stderr is not None
        output, complaint, _ = await asyncio.gather(process.stdout.read(), process.stderr.read(), process.wait())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process.stdin.close()
    return _read(output, complaint, process.returncode or 0)


def _command() -> tuple[str, ...]:
    """Return what runs `main` in another process, as isolated from what packages hook into Python as this one is."""
    if sys.flags.no_site:
        return (sys.executable, "-I", "-S", str(_ISOLATED), "--greenroom.backups")
    return (sys.executable, "-P", "-m", "greenroom.backups")  # -P: the node's working directory is the agents'


def _read(output: bytes, complaint: bytes, code: int) -> creating.Made:
    if code:
        last = complaint.decode(errors="replace").strip().rpartition("\n")[2][:500]
        raise errors.BackupFailed(f"cannot back up: the process that did ended with {code}: {last}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except msgspec.MsgspecError:
        raise errors.BackupFailed("cannot back up: the process that did gave no answer") from None
    if answer.made is None:
        raise errors.BackupFailed(answer.refused[1] if answer.refused else "cannot back up")
    return answer.made


def main() -> int:
    """Make the backup that stdin asks for."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its memory holds the key, and the rows that it seals
    os.nice(NICENESS)
    wanted = msgspec.json.decode(sys.stdin.buffer.readline(), type=creating.Wanted)
    threading.Thread(target=_leave_with_the_node, daemon=True).start()
    try:
        answer = _Answer(made=asyncio.run(creating.create(wanted, now=clocks.SystemClock().now())))
    except errors.GreenroomError as error:
        answer = _Answer(refused=(error.code, str(error)))
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.buffer.flush()
    return 0


def _leave_with_the_node() -> None:
    while os.read(0, 1024):  # not sys.stdin: an interpreter that ends while a thread holds its lock aborts
        pass
    os._exit(1)
