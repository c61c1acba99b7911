"""Notifications of alerts: who is told what, together with what, when again, and what follows from an answer. Pure.

A receiver is told that an alert fires, again after a while if it still does, and that it is resolved; the last only
where it knows of the first.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from greenroom.core import webhooks
from greenroom.core.permissions import matches
from greenroom.core.webhooks import GivenUp, Retry, Taken

Event = Literal["firing", "acknowledged", "resolved"]
Type = Literal["alertmanager", "webhook", "slack", "email", "apprise"]

MAX_GROUP = 50  # alerts of one message; more of a group go into the next
RESEND_S = 60.0  # to Alertmanager, which forgets what it is not told again ...
LIVES_S = 4 * RESEND_S  # ... after this
GIVEN_UP_S = 3600.0  # until an alert that fires is tried again, after nobody took it for a day
_SHORTEST_DELAY_S = 1.0


class Told(msgspec.Struct, frozen=True):
    """One alert of a message. Instants in microseconds; *ended_at* None: it fires."""

    id: str
    kind: str
    agent: str | None
    severity: str
    reason: str
    event: Event
    begun_at: int
    ended_at: int | None = None
    by: str | None = None  # who looks after it
    owed_at: int = 0  # since when it is to be told: the same for each try


class Route(msgspec.Struct, frozen=True):
    """What one receiver wants; of each, nothing stands for all. *agents* may be patterns (``research-*``)."""

    name: str
    type: Type
    severities: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    acknowledged: bool = False
    repeat_s: float = 4 * 3600.0

    @property
    def is_resent(self) -> bool:
        """Whether it wants to hear all the time that an alert still fires, whoever looks after it."""
        return self.type == "alertmanager"

    def wants(self, *, kind: str, agent: str | None, severity: str) -> bool:
        return (
            (not self.severities or severity in self.severities)
            and (not self.kinds or kind in self.kinds)
            and (not self.agents or (agent is not None and any(matches(one, agent) for one in self.agents)))
        )

    def wants_event(self, event: str) -> bool:
        return event != "acknowledged" or self.acknowledged

    def again_s(self, told: Told) -> float | None:
        """Return when the receiver is told again what it has taken; None: not unless it changes."""
        if told.event == "resolved":
            return None
        if self.is_resent:
            return RESEND_S
        return self.repeat_s if told.by is None else None


def after(
    status: int | None, *, attempt: int, age_s: float, jitter: float, retry_after_s: float | None
) -> Taken | Retry | GivenUp:
    """Decide as for webhooks, but that nobody is gone for good: a receiver is the operator's, and may be mended."""
    if status == 410:
        status = None
    verdict = webhooks.after(status, attempt=attempt, age_s=age_s, jitter=jitter, retry_after_s=retry_after_s)
    return Retry(max(_SHORTEST_DELAY_S, verdict.delay_s)) if isinstance(verdict, Retry) else verdict
