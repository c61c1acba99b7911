"""What simulated agents answer: results that tell which attempt they are of, and what that attempt had been given."""

from __future__ import annotations

import zlib
from typing import NamedTuple


class Result(NamedTuple):
    """Of one attempt. *seen* is the session's state that it began with, *saved* the one that it leaves."""

    task: str
    epoch: int
    seen: str
    saved: str

    @property
    def output(self) -> bytes:
        return f'"{self.task} {self.epoch} {self.seen} {self.saved}"'.encode()

    @property
    def state(self) -> bytes:
        return f'"{self.saved}"'.encode()


def work(task: str, epoch: int, state: bytes | None) -> Result:
    """Do a task: *state* becomes the head of a chain over all tasks that the session ever saw."""
    seen = "-" if state is None else state.decode().strip('"')
    return Result(task, epoch, seen, f"{zlib.crc32(f'{seen} {task} {epoch}'.encode()):08x}")


def read(output: bytes) -> Result:
    task, epoch, seen, saved = output.decode().strip('"').split(" ")
    return Result(task, int(epoch), seen, saved)
