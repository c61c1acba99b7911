"""Alerts: what becomes of one as its condition holds or not, which are silenced, and which are told together. Pure.

`TRANSITIONS` is the whole machine; docs/state-machines.md is drawn from it. An alert is its id: what is raised under
one that stands is that alert again. Called by `control.monitor`, the store, the API and whoever delivers.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Protocol, assert_never

import msgspec

from greenroom.core.permissions import matches

OF_RULES = "rule:"  # begins the ids of alerts of rules over signals; nobody else's does
SEVERITIES = ("critical", "warning")
MAX_SILENCES = 1_000  # that are not over
MAX_SILENCE_S = 90 * 86_400


class State(enum.StrEnum):
    PENDING = "pending"
    FIRING = "firing"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Move(enum.StrEnum):
    HOLD = "hold"  # its condition holds, but not for long enough yet
    FIRE = "fire"
    ACKNOWLEDGE = "acknowledge"
    RESOLVE = "resolve"


TRANSITIONS: Mapping[tuple[State, Move], State] = {
    (State.PENDING, Move.FIRE): State.FIRING,
    (State.PENDING, Move.RESOLVE): State.RESOLVED,
    (State.FIRING, Move.ACKNOWLEDGE): State.ACKNOWLEDGED,
    (State.FIRING, Move.RESOLVE): State.RESOLVED,
    (State.ACKNOWLEDGED, Move.RESOLVE): State.RESOLVED,
    (State.RESOLVED, Move.HOLD): State.PENDING,
    (State.RESOLVED, Move.FIRE): State.FIRING,
}

ACTIVE = frozenset({State.FIRING, State.ACKNOWLEDGED})
"""States of what somebody has to look after. Where a row is in one, raising it again changes its reason alone."""
OPEN = ACTIVE | {State.PENDING}


class Condition(enum.Enum):
    HOLDS = enum.auto()
    CLEAR = enum.auto()
    UNKNOWN = enum.auto()  # nobody could look


class Known(msgspec.Struct, frozen=True):
    """What there is to know of an alert from one look to the next. What a restart forgets, *clear_since_us*, makes it
    fire for longer, and never for less.
    """

    state: State = State.RESOLVED
    since_us: int = 0  # of the state
    clear_since_us: int | None = None  # since when its condition does not hold any more


NOTHING = Known()


def after(known: Known, condition: Condition, *, for_s: float, keep_s: float, now_us: int) -> Known:
    """Return what is known at *now_us* of an alert whose *condition* was looked at then.

    It fires when its condition has held for *for_s*, and is resolved when it has not held for *keep_s*: a value that
    goes to and fro is one alert. What is unknown changes nothing, and the time goes on: where a look before and a look
    after find that it holds, so it did between. What is pending ends with the first look that finds it clear.

    >>> seen = after(NOTHING, Condition.HOLDS, for_s=60, keep_s=0, now_us=0)
    >>> str(seen.state), str(after(seen, Condition.HOLDS, for_s=60, keep_s=0, now_us=60_000_000).state)
    ('pending', 'firing')
    """
    match condition:
        case Condition.UNKNOWN:
            return known
        case Condition.HOLDS:
            return _held(known, for_s=for_s, now_us=now_us)
        case Condition.CLEAR:
            return _cleared(known, keep_s=keep_s, now_us=now_us)
    assert_never(condition)


def _held(known: Known, *, for_s: float, now_us: int) -> Known:
    if known.state in ACTIVE:
        return msgspec.structs.replace(known, clear_since_us=None)
    # A clock that went back would else have it wait for the time between.
    since_us = min(known.since_us, now_us) if known.state is State.PENDING else now_us
    if now_us - since_us >= for_s * 1e6:
        return Known(TRANSITIONS[known.state, Move.FIRE], now_us)
    return Known(State.PENDING, since_us)


def _cleared(known: Known, *, keep_s: float, now_us: int) -> Known:
    if known.state is State.RESOLVED:
        return known
    if known.state is State.PENDING:
        return Known(TRANSITIONS[known.state, Move.RESOLVE], now_us)
    since_us = now_us if known.clear_since_us is None else min(known.clear_since_us, now_us)
    if now_us - since_us >= keep_s * 1e6:
        return Known(TRANSITIONS[known.state, Move.RESOLVE], now_us)
    return msgspec.structs.replace(known, clear_since_us=since_us)


class Labelled(Protocol):
    """What tells alerts apart."""

    @property
    def id(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def agent(self) -> str | None: ...
    @property
    def severity(self) -> str: ...


class Silence(msgspec.Struct, frozen=True):
    """Of alerts that match all of *alert* (an id), *kind*, *agent* and *severity* nobody is told, until then.

    ``*`` stands for any text; None: any at all, and of *agent* also that there is none. Instants in microseconds.
    Silenced alerts go through their states all the same, and are seen by who looks.
    """

    id: str
    alert: str | None
    kind: str | None
    agent: str | None
    severity: str | None
    comment: str
    created_by: str
    created_at: int
    until_at: int

    def covers(self, alert: Labelled, *, now_us: int) -> bool:
        """Tell whether it silences *alert*."""
        if now_us >= self.until_at:
            return False
        asked = ((self.alert, alert.id), (self.kind, alert.kind), (self.agent, alert.agent))
        told = (*asked, (self.severity, alert.severity))
        return all(pattern is None or (text is not None and matches(pattern, text)) for pattern, text in told)


def silenced_by(alert: Labelled, silences: Iterable[Silence], *, now_us: int) -> list[str]:
    """Return the ids of the silences that cover *alert*; where there are some, nobody is to be told of it."""
    return [silence.id for silence in silences if silence.covers(alert, now_us=now_us)]
