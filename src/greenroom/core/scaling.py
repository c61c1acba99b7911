"""Scaling: how many replicas an agent should have, why, and in what words. Pure; `control.autoscaler` applies it.

Two signals ask for replicas, and the larger counts: what waits (``target_queue_per_replica``) and how many slots are
busy (``target_busy_pct``). *Up* goes by their mean over ``burst_window_s``; a *burst*, which asks for more than twice
what is there, is answered at once from the latest sample. *Down* goes only when less would have been enough for all of
``stabilisation_s``, at most by half, and once in ``cooldown_s``.

It never flaps: there is at most one change of direction within ``stabilisation_s``. Exempt are bursts and waking from
zero, where somebody waits now, and what people set, a deployment's bounds among it. So a burst may follow a step down
at once, and may be followed by one step down when its window is over.

Instants are seconds of the node's life. After a start nothing goes before ``stabilisation_s`` was seen.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from greenroom.core import windows

BURST_RATIO = 2  # what asks for more than so many times what is there does not wait for a mean
MOST_OFF = 2  # a step down leaves one in so many


class Rule(enum.StrEnum):
    """What decided. Those of the first group move the number, those of the second bound it, the last hold it."""

    BURST = "burst"
    QUEUE = "queue"
    BUSY = "busy"
    WAKE = "wake"
    IDLE = "idle"
    SLEEP = "sleep"
    SET = "set"  # by a person

    MIN = "min"
    MAX = "max"
    MAX_RUNNING = "max_running"
    BREAKER = "breaker"
    FAILING = "failing"
    CLUSTER = "cluster"
    SURGE = "surge"
    MEMORY = "memory"
    CPU = "cpu"

    ENOUGH = "enough"
    STABILISING = "stabilising"
    COOLDOWN = "cooldown"
    TURNED = "turned"


MOVES = frozenset({Rule.BURST, Rule.QUEUE, Rule.BUSY, Rule.WAKE, Rule.IDLE, Rule.SLEEP, Rule.SET})
EXEMPT = frozenset({Rule.BURST, Rule.WAKE, Rule.SET, Rule.MIN, Rule.MAX})
"""Changes by these rules are no change of direction."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent's manifest says; *slots* of one replica."""

    min_replicas: int = 1
    max_replicas: int = 10
    slots: int = 1
    target_queue: float = 5.0
    target_busy_pct: int = 80
    stable_window_s: float = 60.0
    burst_window_s: float = 6.0
    stabilisation_s: float = 60.0
    cooldown_s: float = 5.0
    idle_s: float = 60.0
    max_running: int | None = None

    @property
    def lowest(self) -> int:
        return max(1, self.min_replicas)


class Sample(msgspec.Struct, frozen=True):
    """What is seen at one instant: tasks that wait and may be claimed, and what the ready replicas have and do."""

    at_s: float
    waiting: int
    busy: int
    ready: int

    @property
    def is_idle(self) -> bool:
        return not (self.waiting or self.busy)


class Caps(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds an agent from outside; None: nothing does. *room* is of replicas more than there are; less than 0: so
    many have to go.
    """

    allotment: int | None = None  # of ``cluster.max_replicas``, where agents want more than there may be
    sharing: str = ""  # who else wants how many
    surge: int | None = None  # replicas with which the open rollout still fits
    room_by_memory: int | None = None
    memory: str = ""  # what is used, of what, and what one takes
    cpu: str = ""  # what is used, of what: more replicas would not help
    breaker: str = ""  # its circuit is open
    failing: str = ""  # none of its replicas works


class Memory(msgspec.Struct, frozen=True):
    """What is remembered of an agent between two decisions."""

    short: windows.Mean
    stable: windows.Mean
    highest: windows.Highest  # recommendations
    since_s: float | None = None
    idle_since_s: float | None = None
    down_at_s: float | None = None  # the last step down
    turned_at_s: float | None = None  # the last change of direction that was not exempt
    direction: int = 0  # of the last change
    set_at_s: float | None = None  # by a person

    @classmethod
    def empty(cls, policy: Policy) -> Memory:
        return cls(
            windows.Mean(policy.burst_window_s),
            windows.Mean(policy.stable_window_s),
            windows.Highest(policy.stabilisation_s),
        )

    def resized(self, policy: Policy) -> Memory:
        """Return it with the windows of *policy*, which a deployment may have changed: those begin anew."""
        own = (self.short.window_s, self.stable.window_s, self.highest.window_s)
        if own == (policy.burst_window_s, policy.stable_window_s, policy.stabilisation_s):
            return self
        return replace(
            Memory.empty(policy),
            direction=self.direction,
            turned_at_s=self.turned_at_s,
            down_at_s=self.down_at_s,
            set_at_s=self.set_at_s,
        )


class Decision(msgspec.Struct, frozen=True):
    """*before* replicas become *replicas*, which may be the same: then *rule* is what holds them."""

    before: int
    replicas: int
    rule: Rule
    sentence: str
    wanted: int  # by the load alone
    inputs: Mapping[str, float] = {}

    @property
    def has_changed(self) -> bool:
        return self.replicas != self.before


class _Wish(msgspec.Struct, frozen=True):
    """How many replicas the load asks for now, by which rule, and because of what."""

    replicas: int
    rule: Rule
    why: str


def demand(policy: Policy, sample: Sample) -> float:
    """Return how many replicas *sample* asks for, as a fraction.

    >>> demand(Policy(target_queue=5), Sample(0.0, waiting=200, busy=1, ready=1))
    40.0
    """
    return max(sample.waiting / policy.target_queue, sample.busy / _busy_per_replica(policy))


def observe(policy: Policy, memory: Memory, sample: Sample) -> Memory:
    """Return *memory* with *sample* in it."""
    asked = demand(policy, sample)
    short, stable = memory.short.add(sample.at_s, asked), memory.stable.add(sample.at_s, asked)
    recommended = min(policy.max_replicas, max(_up(short.value), _up(stable.value)))
    idle_since_s = None
    if sample.is_idle:
        idle_since_s = sample.at_s if memory.idle_since_s is None else memory.idle_since_s
    return replace(
        memory,
        short=short,
        stable=stable,
        highest=memory.highest.add(sample.at_s, recommended),
        since_s=sample.at_s if memory.since_s is None else memory.since_s,
        idle_since_s=idle_since_s,
    )


def noted(memory: Memory, at_s: float, *, before: int, replicas: int) -> Memory:
    """Return *memory* after somebody else has set the number: a recommendation of now, not undone for its window."""
    return replace(
        memory,
        highest=memory.highest.add(at_s, replicas),
        direction=_sign(replicas - before) or memory.direction,
        set_at_s=at_s,
    )


def decide(
    policy: Policy, memory: Memory, sample: Sample, current: int, caps: Caps | None = None
) -> tuple[Decision, Memory]:
    """Decide how many replicas there should be instead of *current*, with *sample* observed already.

    The answer is within the policy's bounds and the caps'; what only keeps more from coming takes
    nothing that is there.

    >>> policy = Policy(max_replicas=10)
    >>> sample = Sample(0.0, waiting=200, busy=1, ready=1)
    >>> decision, _ = decide(policy, observe(policy, Memory.empty(policy), sample), sample, 1)
    >>> print(decision.sentence)
    from 1 to 10: 200 tasks wait for 1 ready replica, the target is 5 each, so 40 are wanted; max_replicas is 10
    """
    caps = Caps() if caps is None else caps
    wish = _wish(policy, memory, sample, current)
    # What there is comes first: more than there may be goes whatever is wished for.
    bounded, cap, told = _bounded(policy, caps, max(wish.replicas, current), current)
    is_cut = bounded < current
    if not is_cut:
        bounded, cap, told = _bounded(policy, caps, wish.replicas, current)
    held, rule, why = None, wish.rule, f"{wish.why}; {told}" if told else wish.why
    if is_cut:
        assert cap is not None
        held, rule = _hold_cut(policy, memory, sample, cap), cap
    elif bounded > current:
        held = None if cap is Rule.MIN else _hold_up(policy, memory, sample, wish)
        rule = Rule.MIN if cap is Rule.MIN else rule
    elif bounded < current:  # min_replicas only ends the step
        held = _hold_down(policy, memory, sample, wish)
        bounded = _step_down(policy, bounded, current)
    elif cap is not None:
        rule = cap
    if held is not None:
        bounded, rule, why = current, held[0], f"{wish.why}; {held[1]}"
    decision = _decision(policy, memory, sample, current, bounded, rule, wish, why)
    return decision, after(memory, sample.at_s, decision)


def share(
    total: int, wants: Mapping[str, tuple[int, int]], *, turns: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Share *total* replicas out between agents that have to have the first number, and want the second.

    Max-min fair over what each wants above its minimum: nobody gets more while somebody has less and wants more. What
    is left over where it does not come out even goes to the least of *turns*, then by name. The minimums are given in
    any case.

    >>> share(10, {"a": (1, 20), "b": (1, 3), "c": (0, 0)})
    {'a': 7, 'b': 3, 'c': 0}
    """
    shares = {name: least for name, (least, _) in wants.items()}
    left = total - sum(shares.values())
    hungry = [name for name, (least, wanted) in wants.items() if wanted > least]
    hungry.sort(key=lambda name: ((turns or {}).get(name, 0), name))
    while left > 0 and hungry:
        each = max(1, left // len(hungry))
        for name in hungry:
            given = min(each, wants[name][1] - shares[name], left)
            shares[name] += given
            left -= given
        hungry = [name for name in hungry if shares[name] < wants[name][1]]
    return shares


# --- what the load asks for


def _wish(policy: Policy, memory: Memory, sample: Sample, current: int) -> _Wish:
    latest = _up(demand(policy, sample))
    if not current:
        if sample.waiting:
            return _Wish(max(1, latest), Rule.WAKE, f"{_tasks(sample.waiting)} for an agent that is asleep")
        return _Wish(0, Rule.ENOUGH, "asleep, and no task waits")
    if latest > BURST_RATIO * current:
        return _Wish(latest, Rule.BURST, _because(policy, sample, latest))
    up = _up(memory.short.value)
    if up > current:
        by = (
            Rule.QUEUE if sample.waiting / policy.target_queue >= sample.busy / _busy_per_replica(policy) else Rule.BUSY
        )
        mean = f"on average over {memory.short.window_s:g} s {memory.short.value:.2f} replicas were asked for"
        return _Wish(up, by, f"{mean} ({_load(policy, sample)})")
    idle_s = _since(memory.idle_since_s, sample.at_s)
    if not policy.min_replicas and current == 1 and idle_s is not None and idle_s >= policy.idle_s:
        return _Wish(0, Rule.SLEEP, f"nothing to do for {idle_s:.0f} s, and idle_s is {policy.idle_s:g}")
    enough = max(1, memory.highest.value)
    if enough < current:
        window = f"for {policy.stabilisation_s:g} s {_replicas(enough)} would have been enough"
        return _Wish(enough, Rule.IDLE, f"{window} ({_load(policy, sample)})")
    now = max(policy.lowest, _up(max(memory.short.value, memory.stable.value)))
    if now < current:
        window = f"{_replicas(now)} would do now, but {current} were wanted within {policy.stabilisation_s:g} s"
        return _Wish(current, Rule.STABILISING, f"{window} ({_load(policy, sample)})")
    return _Wish(current, Rule.ENOUGH, _load(policy, sample))


def _because(policy: Policy, sample: Sample, wanted: int) -> str:
    """Say why a burst asks for so many."""
    if sample.waiting / policy.target_queue < sample.busy / _busy_per_replica(policy):
        return f"{_load(policy, sample)}, so {wanted} are wanted"
    ready = f"{sample.ready} ready replica{'' if sample.ready == 1 else 's'}"
    return f"{_tasks(sample.waiting)} for {ready}, the target is {policy.target_queue:g} each, so {wanted} are wanted"


def _load(policy: Policy, sample: Sample) -> str:
    slots = sample.ready * policy.slots
    return f"{_tasks(sample.waiting)}, {sample.busy} of {slots} slot{'' if slots == 1 else 's'} busy"


# --- what bounds it


def _bounded(policy: Policy, caps: Caps, wanted: int, current: int) -> tuple[int, Rule | None, str]:
    """Return *wanted* within all bounds, the one that binds last, and how it is said."""
    found: tuple[int, Rule | None, str] = wanted, None, ""
    for most, rule, told in _ceilings(policy, caps, current):
        if found[0] > most:
            found = most, rule, told
    least = policy.min_replicas
    if caps.allotment is not None:
        least = min(least, caps.allotment)
    if found[0] < least:
        return least, Rule.MIN, f"min_replicas is {policy.min_replicas}"
    return found


def _ceilings(policy: Policy, caps: Caps, current: int) -> list[tuple[int, Rule, str]]:
    """Return the bounds from above, in the order in which they are looked at."""
    found = [(policy.max_replicas, Rule.MAX, f"max_replicas is {policy.max_replicas}")]
    if policy.max_running is not None:
        most = math.ceil(policy.max_running / policy.slots)
        told = f"max_running is {policy.max_running}, and {_replicas(most)} have slots for it"
        found.append((max(1, most), Rule.MAX_RUNNING, told))
    kept = max(current, policy.min_replicas)  # by what only keeps more from coming
    waking = max(kept, 1)
    if caps.failing:
        found.append((waking, Rule.FAILING, caps.failing))
    if caps.breaker:
        found.append((waking, Rule.BREAKER, caps.breaker))
    if caps.cpu:
        found.append((waking, Rule.CPU, caps.cpu))
    if caps.room_by_memory is not None:
        least = kept if caps.room_by_memory >= 0 else policy.lowest
        found.append((max(least, current + caps.room_by_memory), Rule.MEMORY, caps.memory))
    if caps.surge is not None:
        told = f"the rollout that is open leaves room for {caps.surge} (cluster.max_surge)"
        found.append((max(kept, caps.surge), Rule.SURGE, told))
    if caps.allotment is not None:
        found.append((caps.allotment, Rule.CLUSTER, caps.sharing))
    return found


# --- what holds it


def _hold_up(policy: Policy, memory: Memory, sample: Sample, wish: _Wish) -> tuple[Rule, str] | None:
    if wish.rule not in (Rule.QUEUE, Rule.BUSY):  # somebody waits now, or it is min_replicas that asks for it
        return None
    set_s = _since(memory.set_at_s, sample.at_s)
    if set_s is not None and set_s < policy.stabilisation_s:
        return Rule.SET, f"it was set {set_s:.0f} s ago, which holds for {policy.stabilisation_s:g} s but for bursts"
    return _hold_turn(policy, memory, sample, direction=1)


def _hold_down(policy: Policy, memory: Memory, sample: Sample, wish: _Wish) -> tuple[Rule, str] | None:
    set_s, seen_s = _since(memory.set_at_s, sample.at_s), _since(memory.since_s, sample.at_s)
    if set_s is not None and set_s < policy.stabilisation_s:
        return Rule.SET, f"it was set {set_s:.0f} s ago, which holds for {policy.stabilisation_s:g} s"
    if wish.rule is not Rule.SLEEP and (seen_s is None or seen_s < policy.stabilisation_s):
        return Rule.STABILISING, f"it was looked at for {seen_s or 0:.0f} of {policy.stabilisation_s:g} s"
    return _hold_cut(policy, memory, sample, wish.rule)


def _hold_cut(policy: Policy, memory: Memory, sample: Sample, rule: Rule) -> tuple[Rule, str] | None:
    """Say what holds a step down, whatever asks for it; nothing holds what a deployment asks for."""
    if rule in EXEMPT:
        return None
    down_s = _since(memory.down_at_s, sample.at_s)
    if down_s is not None and down_s < policy.cooldown_s:
        return Rule.COOLDOWN, f"the last step down was {down_s:.0f} s ago, and cooldown_s is {policy.cooldown_s:g}"
    return _hold_turn(policy, memory, sample, direction=-1)


def _hold_turn(policy: Policy, memory: Memory, sample: Sample, *, direction: int) -> tuple[Rule, str] | None:
    turned_s = _since(memory.turned_at_s, sample.at_s)
    if memory.direction in (0, direction) or turned_s is None or turned_s >= policy.stabilisation_s:
        return None
    return Rule.TURNED, f"its direction changed {turned_s:.0f} s ago: not twice in {policy.stabilisation_s:g} s"


def _step_down(policy: Policy, wanted: int, current: int) -> int:
    """Return how far one step goes: at most half of the replicas at once."""
    return wanted if wanted == 0 else max(wanted, policy.lowest, math.ceil(current / MOST_OFF))


# --- writing it down


def _decision(
    policy: Policy, memory: Memory, sample: Sample, before: int, after: int, rule: Rule, wish: _Wish, why: str
) -> Decision:
    move = f"from {before} to {after}" if before != after else f"stays at {after}"
    inputs = {
        "waiting": sample.waiting,
        "busy": sample.busy,
        "ready": sample.ready,
        "slots": policy.slots,
        "asked": round(demand(policy, sample), 3),
        "asked_over_burst_window": round(memory.short.value, 3),
        "asked_over_stable_window": round(memory.stable.value, 3),
        "highest_recommendation": memory.highest.value,
        "min_replicas": policy.min_replicas,
        "max_replicas": policy.max_replicas,
    }
    return Decision(before, after, rule, f"{move}: {why}", wish.replicas, inputs)


def after(memory: Memory, at_s: float, decision: Decision) -> Memory:
    """Return *memory* after a decision was carried out: with its direction, and a recommendation that holds."""
    if not decision.has_changed:
        return memory
    direction = _sign(decision.replicas - decision.before)
    has_turned = memory.direction == -direction and decision.rule not in EXEMPT
    return replace(
        memory,
        highest=memory.highest.add(at_s, decision.replicas) if direction > 0 else memory.highest,
        direction=direction,
        turned_at_s=at_s if has_turned else memory.turned_at_s,
        down_at_s=at_s if direction < 0 else memory.down_at_s,
    )


def _up(asked: float) -> int:
    """Round up; what is a whole number but for the sum's last bits is that."""
    return math.ceil(asked - 1e-9)


def _busy_per_replica(policy: Policy) -> float:
    return policy.slots * policy.target_busy_pct / 100


def _since(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else now_s - at_s


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _tasks(count: int) -> str:
    return "1 task waits" if count == 1 else f"{count or 'no'} tasks wait"


def _replicas(count: int) -> str:
    return f"{count} replica{'' if count == 1 else 's'}"
