"""What clients were told: every submission with its idempotency key, and what became of it. Written by `load`.

An answer is an acknowledgement or a refusal. Without one the fate of a submission is unknown (Jepsen's ``info``): the
same key asks again until it is known; what stays unknown is no success and no failure.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from greenroom.sdk import models


class Outcome(enum.StrEnum):
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One submission. *task* is the id of the first acknowledgement, *others* are different ids for the same key.

    *order* is its place among its session's. *was_unknown*: it took the same key again to learn its fate.
    """

    key: str
    outcome: Outcome
    task: str | None = None
    others: tuple[str, ...] = ()
    session: str | None = None
    order: int = 0
    was_unknown: bool = False
    is_poison: bool = False
    was_cancelled: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """A task's end as a client saw it while faults went on; it must never look different later."""

    task: str
    state: str
    epoch: int


def end_of(task: models.Task) -> End:
    return End(task.id, task.state, task.attempts[-1].epoch if task.attempts else 0)


@dataclass(slots=True)
class History:
    """Grows while clients run."""

    sent: dict[str, Sent] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)

    def note(self, sent: Sent) -> None:
        self.sent[sent.key] = sent

    def of(self, outcome: Outcome) -> Iterator[Sent]:
        return (sent for sent in self.sent.values() if sent.outcome == outcome)
