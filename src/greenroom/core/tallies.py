"""Tallies: many alike things told as one, with their number. Pure; of bounded size.

The first of a kind is told at once, those that follow once a minute. Where too many kinds come at once, the others are
told together.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import msgspec

Kind = TypeVar("Kind", bound=Hashable)


class _Count(msgspec.Struct):
    waiting: int = 0
    first: str = ""  # of those that wait
    told_s: float | None = None


class Tally(Generic[Kind]):
    """*others* is what stands for the kinds beyond *most*."""

    def __init__(self, others: Kind, *, most: int = 64, every_s: float = 60.0) -> None:
        self._others, self._most, self._every_s = others, most, every_s
        self._counts: dict[Kind, _Count] = {}

    def note(self, kind: Kind, what: str = "") -> None:
        count = self._counts.get(kind)
        if count is None:
            if len(self._counts) >= self._most:
                kind = self._others
            count = self._counts.setdefault(kind, _Count())
        if not count.waiting:
            count.first = what
        count.waiting += 1

    def due(self, now_s: float, *, all_of_it: bool = False) -> list[tuple[Kind, int, str]]:
        """Return what is to be told now: each kind with how many came since it was told last, and the first of them."""
        told = []
        for kind, count in list(self._counts.items()):
            is_due = count.told_s is None or now_s - count.told_s >= self._every_s
            if count.waiting and (is_due or all_of_it):
                told.append((kind, count.waiting, count.first))
                count.waiting, count.told_s = 0, now_s
            elif is_due:  # nothing more came
                del self._counts[kind]
        return told

    def wait_s(self, now_s: float) -> float:
        """Return the seconds until something is to be told; a minute if nothing waits."""
        waits = [
            0.0 if count.told_s is None else max(0.0, count.told_s + self._every_s - now_s)
            for count in self._counts.values()
            if count.waiting
        ]
        return min([self._every_s, *waits])
