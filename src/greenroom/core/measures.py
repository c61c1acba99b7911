"""Measures against who is locked or slowed down: whom they refuse, and until when. Pure.

A subject is ``principal:ID`` or ``source:ADDRESS``. What is refused of a source are its rejected credentials: who has a
valid one is not to suffer for its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from greenroom import errors

THROTTLED_EVERY_S = 6.0  # one request


class Standing(msgspec.Struct):
    """*kind* is throttle or lock; *until_s* and *next_s* are instants of the node's life."""

    kind: str
    reason: str
    until_s: float
    next_s: float = 0.0


class Measures:
    """*is_any* is what the main path asks first."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self.is_any = False

    def replace(self, standings: Mapping[str, Standing]) -> None:
        """Let these stand, and no others."""
        for subject, standing in standings.items():
            before = self._standings.get(subject)
            standing.next_s = before.next_s if before is not None else 0.0
        self._standings = dict(standings)
        self.is_any = bool(self._standings)

    def put(self, subject: str, standing: Standing) -> None:
        self._standings[subject] = standing
        self.is_any = True

    def drop(self, subject: str) -> None:
        self._standings.pop(subject, None)
        self.is_any = bool(self._standings)

    def is_locked(self, subject: str, now_s: float) -> bool:
        standing = self._standings.get(subject)
        return standing is not None and standing.kind == "lock" and now_s < standing.until_s

    def check(self, subject: str, now_s: float) -> None:
        """Raise `errors.Forbidden` for a principal who is locked, `errors.Overloaded` for who has to wait."""
        standing = self._standings.get(subject)
        if standing is None or now_s >= standing.until_s:
            return
        left_s = standing.until_s - now_s
        if standing.kind == "throttle":
            if now_s < standing.next_s:
                wait_s = min(left_s, standing.next_s - now_s)
                raise errors.Overloaded("cannot take this yet: you are slowed down", retry_after_s=wait_s)
            standing.next_s = now_s + THROTTLED_EVERY_S
        elif subject.startswith("source:"):
            raise errors.Overloaded("cannot try another credential yet: too many were rejected", retry_after_s=left_s)
        else:
            raise errors.Forbidden(
                f"cannot take this: you are locked for another {left_s:.0f} s; whoever runs this node can end that: "
                "greenroom security unlock"
            )
