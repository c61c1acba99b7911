"""The optimizer: which advice is open, and what became of it. Pure; `control.optimizer` measures, writes and acts.

The rules are `core.optimizer_rules`; what they find is opened once it has lasted, withdrawn once it has been gone for a
while, and let rest then, so that nothing flaps. What was done about it is measured when the window of the measurements
has seen nothing of before, and is said to have had no effect where it had none. Instants are monotonic seconds.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from greenroom.core.measurements import Measurements

LOOK_EVERY_S = 10.0
OPEN_AFTER_S = 20.0  # three looks in a row
WITHDRAW_AFTER_S = 60.0
EASED = 0.8  # of each threshold: from there down what is open counts as gone
QUIET_S = 600.0  # after its end nothing is said or done again for so long
WINDOW_S = 300.0
SETTLE_S = WINDOW_S + 30.0
NO_EFFECT_PCT = 10.0  # less than that is chance


class Restart(msgspec.Struct, frozen=True, tag="restart"):
    """Put another in the place of *replica*."""

    replica: str
    agent: str


class Scale(msgspec.Struct, frozen=True, tag="scale"):
    agent: str
    replicas: int
    before: int = 0


class TrimCache(msgspec.Struct, frozen=True, tag="trim_cache"):
    agent: None = None


class LowerSpares(msgspec.Struct, frozen=True, tag="lower_spares"):
    agent: None = None


class LimitAdmission(msgspec.Struct, frozen=True, tag="limit_admission"):
    """Let only so much of what may be queued be queued; taken back when the condition is over."""

    pct: float
    agent: None = None


Act = Restart | Scale | TrimCache | LowerSpares | LimitAdmission
Key = tuple[str, str]  # a rule, and the agent that it found, or nothing


class Found(msgspec.Struct, frozen=True):
    """What a rule has found. *metric* is what should become less: *before* now, *wanted* if all goes well."""

    rule: str
    agent: str | None
    what: str
    why: str
    expected: str
    metric: str
    before: float
    wanted: float | None = None
    act: Act | None = None  # None: only people can do it

    @property
    def key(self) -> Key:
        return self.rule, self.agent or ""


class Rule(msgspec.Struct, frozen=True):
    """*condition*, *action* and *gain* are for people. *find* is given what each threshold is to be multiplied with."""

    name: str
    condition: str
    action: str
    gain: str
    find: Callable[[Measurements, float], Iterator[Found]]


class Phase(enum.StrEnum):
    SEEN = "seen"  # its condition holds, and has to last
    OPEN = "open"
    APPLIED = "applied"
    QUIET = "quiet"


class Standing(msgspec.Struct, frozen=True):
    """How far it is with what a rule found. *gone_s*: since when its condition holds no more."""

    phase: Phase
    since_s: float
    metric: str = ""
    before: float = 0.0
    gone_s: float | None = None
    act: Act | None = None


Memory = Mapping[Key, Standing]


class Opened(msgspec.Struct, frozen=True):
    found: Found


class Withdrawn(msgspec.Struct, frozen=True):
    """Its condition has gone without our doing."""

    key: Key
    after: float | None


class Measured(msgspec.Struct, frozen=True):
    """What was done has settled. *is_undone*: it was for as long as the condition lasted, and is to be taken back."""

    key: Key
    after: float | None
    outcome: str
    is_undone: bool = False


Move = Opened | Withdrawn | Measured


def advise(
    seen: Measurements, memory: Memory, now_s: float, *, rules: Sequence[Rule], own: Sequence[Found] = ()
) -> tuple[list[Move], dict[Key, Standing]]:
    """Return what changes about the advice, and what to remember; *own* is what rules of users have found."""
    strictly = {found.key: found for rule in rules for found in rule.find(seen, 1.0)}
    loosely = {found.key: found for rule in rules for found in rule.find(seen, EASED)}
    strictly |= {found.key: found for found in own}
    loosely |= {found.key: found for found in own}
    moves: list[Move] = []
    after: dict[Key, Standing] = {}
    for key in [*memory, *(key for key in strictly if key not in memory)]:
        standing = memory.get(key)
        if standing is None:
            after[key] = _of(strictly[key], Phase.SEEN, now_s)
        elif standing.phase is Phase.SEEN:
            if (found := strictly.get(key)) is None:
                continue
            if now_s < standing.since_s + OPEN_AFTER_S:
                after[key] = standing
            else:
                moves.append(Opened(found))
                after[key] = _of(found, Phase.OPEN, now_s)
        elif standing.phase is Phase.QUIET:
            if now_s < standing.since_s + QUIET_S:
                after[key] = standing
        else:
            standing, move = _lasting(key, standing, seen, now_s, is_there=key in loosely)
            after[key] = standing
            moves += [] if move is None else [move]
    return moves, after


def _of(found: Found, phase: Phase, now_s: float) -> Standing:
    return Standing(phase, now_s, found.metric, found.before)


def _lasting(
    key: Key, standing: Standing, seen: Measurements, now_s: float, *, is_there: bool
) -> tuple[Standing, Move | None]:
    """Judge what is open or was done."""
    gone_s = None if is_there else now_s if standing.gone_s is None else standing.gone_s
    is_gone = gone_s is not None and now_s >= gone_s + WITHDRAW_AFTER_S
    standing = replace(standing, gone_s=gone_s)
    now = value(seen, standing.metric, key[1])
    quiet = Standing(Phase.QUIET, now_s)
    if standing.phase is Phase.OPEN:
        return (quiet, Withdrawn(key, now)) if is_gone else (standing, None)
    if isinstance(standing.act, LimitAdmission):
        if not is_gone:
            return standing, None
        return quiet, Measured(key, now, outcome(standing.before, now), is_undone=True)
    if now_s < standing.since_s + SETTLE_S:
        return standing, None
    return quiet, Measured(key, now, outcome(standing.before, now) + _undoing(standing, now))


def applied(memory: Memory, key: Key, found: Found, now_s: float) -> dict[Key, Standing]:
    """Note that what is open was done, as it was *found* just now: what it gains is measured from there."""
    return {**memory, key: replace(_of(found, Phase.APPLIED, now_s), act=found.act)}


def reopened(metric: str, before: float, now_s: float) -> Standing:
    """Return the standing of advice that was open when the node was last stopped."""
    return Standing(Phase.OPEN, now_s, metric, before)


def may_apply(memory: Memory, act: Act) -> bool:
    """Whether nothing that was done about the same agent, or about the node, has yet to settle."""
    return all(
        standing.phase is not Phase.APPLIED or standing.act is None or standing.act.agent != act.agent
        for standing in memory.values()
    )


def outcome(before: float, after: float | None) -> str:
    """Say what has become of a metric that should become less.

    >>> outcome(10.0, 5.0), outcome(10.0, 9.5), outcome(10.0, 20.0)
    ('better by 50 %', 'no effect', 'worse by 100 %')
    >>> outcome(10.0, None)
    'not known: too little has happened since'
    """
    if after is None:
        return "not known: too little has happened since"
    change_pct = 100 * (before - after) / before if before else 0.0 if not after else -100.0
    if abs(change_pct) < NO_EFFECT_PCT:
        return "no effect"
    return f"better by {change_pct:.0f} %" if change_pct > 0 else f"worse by {-change_pct:.0f} %"


def _undoing(standing: Standing, after: float | None) -> str:
    """Say how to undo what has made it worse."""
    act = standing.act
    if not isinstance(act, Scale) or not act.before or not outcome(standing.before, after).startswith("worse"):
        return ""
    return f"; undo it: greenroom scale {act.agent} {act.before}"


def value(seen: Measurements, metric: str, agent: str) -> float | None:
    """Return the metric that *metric* names, of *agent* or of the node; None if nothing is known."""
    if metric in ("cpu_pct", "memory_pct", "queued", "spares", "cache_entries"):
        found: float | None = getattr(seen, metric)
        return found
    known = seen.agent(agent)
    if known is None:
        return None
    match metric:
        case "response_s":
            return None if known.response_s is None else known.response_s.mean
        case "wait_s":
            return None if known.wait_s is None else known.wait_s.p95
        case "missed":  # lookups in the cache that found nothing
            return float(known.cache_misses)
        case "cold_starts" | "replicas":
            return float(getattr(known, metric))
        case "error_pct":
            return known.error_pct
        case _:
            return None
