"""The ledger of what really ran, as its readers see it; `agent` writes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task; instants are seconds since 1970. *ended_at* is None where its process did not live to see it.

    *key* is the submission's; a sub-task's is its parent's with ``/1``.
    """

    key: str
    task: str
    epoch: int
    attempt: int
    pid: int
    begun_at: float
    ended_at: float | None


def parse(lines: Iterable[str]) -> list[Run]:
    """Return the runs in the order of their beginnings; raises ValueError for what is no line of a ledger."""
    runs: dict[tuple[str, int], Run] = {}
    for line in lines:
        key, task, epoch, attempt, pid, begun_at, ended_at = line.rstrip("\n").split(",")
        run = Run(key, task, int(epoch), int(attempt), int(pid), float(begun_at), float(ended_at) if ended_at else None)
        runs[task, run.epoch] = run
    return sorted(runs.values(), key=lambda run: run.begun_at)


def read(path: Path) -> Sequence[Run]:
    """Return the runs that *path* tells of; none where nothing has run."""
    return parse(path.read_text().splitlines()) if path.exists() else []
