"""When the next backup is due, and which old ones may go. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime

import msgspec

FIRST_RETRY_S = 60.0


class Retention(msgspec.Struct, frozen=True):
    """Keep the *keep_last* newest backups, and the newest of each of the last *keep_days* days that have one."""

    keep_last: int
    keep_days: int


def expired(backups: Sequence[tuple[str, datetime]], retention: Retention) -> list[str]:
    """Return the ids of *backups*, oldest first, that may go; never the newest.

    Days are counted by the backups themselves: where the clock jumps or no backup was made for a month, none goes.
    """
    kept = {id for id, _ in backups[-max(retention.keep_last, 1) :]}
    days: dict[date, str] = {}
    for id, created_at in backups:
        days[created_at.date()] = id
    kept |= {days[day] for day in sorted(days)[-retention.keep_days :]} if retention.keep_days else set()
    return [id for id, _ in backups if id not in kept]


def first_delay_s(last_at: datetime | None, now: datetime, *, every_s: float) -> float:
    """Return how long a node that starts waits with its first backup; a clock that was set back does not hold it up."""
    if last_at is None:
        return 0.0
    return min(max(every_s - (now - last_at).total_seconds(), 0.0), every_s)


def retry_delay_s(failures: int, *, every_s: float) -> float:
    """Return how long to wait after *failures* in a row, which are at least one."""
    return min(every_s, FIRST_RETRY_S * 2.0 ** min(failures - 1, 20))
