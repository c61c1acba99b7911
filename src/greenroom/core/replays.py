"""Replays: what the autoscaler would have done with a load that was recorded. Pure, and nothing is waited for.

A queue in steps of a second: the arrivals of each bucket come evenly, but for those that came at once, as far as more
have waited than evenness would leave; a task takes its bucket's mean time, replicas take a cold start, and
`core.scaling` decides as it does at work. What it leaves out: that tasks differ, priorities and sessions, rollouts,
other agents, and what more of them at once would do to each other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Sequence

import msgspec

from greenroom.core import scaling
from greenroom.core.scaling import Memory, Policy, Sample

STEP_S = 1.0
LONGEST_GAP_S = 600.0  # of a time without load; the rest of a longer one is skipped in the bucket's steps
LONGEST_END_S = 3600.0  # after what was recorded: what waits longer than that is not counted


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """What was recorded from *at_s* on. *start_s* is how long replicas took to start, if any did."""

    at_s: float
    arrivals: int
    ends: int = 0
    run_s: float | None = None
    start_s: float | None = None
    waiting: int = 0  # the most, as it really was; so the next two
    busy: float = 0.0
    replicas: int = 0


class Point(msgspec.Struct, frozen=True):
    """One bucket's time as it would have been: the most that waited, the mean of the rest."""

    at_s: float
    arrivals: int
    waiting: int
    busy: float
    replicas: float


class Replay(msgspec.Struct, frozen=True):
    points: tuple[Point, ...]
    most_replicas: int
    mean_replicas: float
    replica_hours: float
    wait_p50_s: float
    wait_p95_s: float
    tasks: int
    changes: int


class _World(msgspec.Struct):
    """The queue and the replicas."""

    policy: Policy
    memory: Memory
    replicas: int  # that there should be
    now_s: float = 0.0
    starting: list[float] = []  # when each will be ready
    queue: deque[tuple[float, int]] = msgspec.field(default_factory=deque)  # since when, how many
    running: list[tuple[float, int]] = []  # until when, how many
    waits: list[tuple[float, int]] = []
    owed: float = 0.0  # arrivals that do not come out even
    carried: float = 0.0  # so of what a slot does in a step
    changes: int = 0
    most: int = 0  # replicas

    @property
    def ready(self) -> int:
        return max(0, self.replicas - len(self.starting))

    @property
    def waiting(self) -> int:
        return sum(count for _, count in self.queue)

    @property
    def busy(self) -> int:
        return sum(count for _, count in self.running)


def replay(policy: Policy, buckets: Sequence[Bucket], *, bucket_s: float = 10.0) -> Replay:
    """Return what *policy* makes of what was recorded, oldest first. It begins with as many as there really were."""
    first = buckets[0].replicas if buckets else policy.min_replicas
    world = _World(policy, Memory.empty(policy), min(policy.max_replicas, max(policy.min_replicas, first)))
    run_s, start_s = (
        _mean(bucket.run_s for bucket in buckets) or 1.0,
        _mean(bucket.start_s for bucket in buckets) or 0.1,
    )
    points, weights = [], []
    opened = 0  # tasks that were there when the bucket began, as it really was
    for bucket in _with_gaps(buckets, bucket_s):
        burst, opened = at_once(bucket, opened), max(0, opened + bucket.arrivals - bucket.ends)
        run_s, start_s = bucket.run_s or run_s, bucket.start_s or start_s
        points.append(_live(world, bucket, bucket_s, burst=burst, run_s=run_s, start_s=start_s))
        weights.append(points[-1].replicas)
    most = world.most  # in the time that was recorded
    for _ in range(round(LONGEST_END_S / bucket_s)):  # what still waits has waited, too
        if world.queue:
            _live(world, Bucket(at_s=world.now_s, arrivals=0), bucket_s, run_s=run_s, start_s=start_s)
    waits = sorted(world.waits)
    return Replay(
        points=tuple(points),
        most_replicas=most,
        mean_replicas=sum(weights) / len(weights) if weights else 0.0,
        replica_hours=sum(weights) * bucket_s / 3600,
        wait_p50_s=_percentile(waits, 50),
        wait_p95_s=_percentile(waits, 95),
        tasks=sum(count for _, count in waits),
        changes=world.changes,
    )


def _with_gaps(buckets: Sequence[Bucket], bucket_s: float) -> Iterator[Bucket]:
    """Yield *buckets*, and empty ones where nothing was recorded for there was nothing to do."""
    before_s: float | None = None
    for bucket in buckets:
        if before_s is not None:
            gap_s = min(bucket.at_s - before_s - bucket_s, LONGEST_GAP_S)
            for place in range(round(gap_s / bucket_s)):
                yield Bucket(at_s=before_s + (place + 1) * bucket_s, arrivals=0)
        yield bucket
        before_s = bucket.at_s


def at_once(bucket: Bucket, opened: int) -> int:
    """Return how many of a bucket's arrivals came at once, where *opened* tasks were there when it began.

    Who comes evenly waits no longer than for what was there and for what is not served. The more wait beside those, of
    all that could, the more have come at once.

    >>> at_once(Bucket(at_s=0, arrivals=60, ends=60, waiting=60), 0), at_once(Bucket(at_s=0, arrivals=60, ends=60), 0)
    (60, 0)
    >>> at_once(Bucket(at_s=0, arrivals=50, ends=20, waiting=130), 100)
    0
    """
    most = min(bucket.arrivals, bucket.ends)
    evenly = opened + max(0, bucket.arrivals - bucket.ends)
    beside = min(bucket.waiting - evenly, most)
    return round(bucket.arrivals * beside / most) if most and beside > 0 else 0


def _live(world: _World, bucket: Bucket, bucket_s: float, *, burst: int = 0, run_s: float, start_s: float) -> Point:
    """Let a bucket's time pass; *burst* of its arrivals come at once when it begins."""
    steps = round(bucket_s / STEP_S)
    most, busy, replicas = 0, 0.0, 0
    if burst:
        world.queue.append((world.now_s, burst))
    for _ in range(steps):
        world.owed += (bucket.arrivals - burst) / steps
        if (coming := int(world.owed + 1e-9)) > 0:
            world.queue.append((world.now_s, coming))
            world.owed -= coming
        at_work = _serve(world, run_s)
        busy += at_work
        most = max(most, world.waiting)
        _scale(world, busy_now=round(at_work), start_s=start_s)
        replicas += world.replicas
        world.most = max(world.most, world.replicas)
        world.now_s += STEP_S
    return Point(bucket.at_s, bucket.arrivals, most, busy / steps, replicas / steps)


def _serve(world: _World, run_s: float) -> float:
    """Let tasks end and begin in one step; return how many slots were busy."""
    while world.running and world.running[0][0] <= world.now_s:
        heapq.heappop(world.running)
    world.starting = [ready_s for ready_s in world.starting if ready_s > world.now_s]
    free = max(0, world.ready * world.policy.slots - world.busy)
    if world.policy.max_running is not None:
        free = min(free, max(0, world.policy.max_running - world.busy))
    if run_s >= STEP_S:
        begun = _begin(world, free)
        if begun:
            heapq.heappush(world.running, (world.now_s + run_s, begun))
        return world.busy
    room = free * STEP_S / run_s + world.carried  # each slot does several in a step
    begun = _begin(world, int(room))
    world.carried = min(1.0, room - int(room)) if begun == int(room) else 0.0
    return world.busy + begun * run_s / STEP_S


def _begin(world: _World, most: int) -> int:
    """Let up to *most* tasks begin, the oldest first."""
    begun = 0
    while world.queue and begun < most:
        since_s, count = world.queue.popleft()
        taken = min(count, most - begun)
        if taken < count:
            world.queue.appendleft((since_s, count - taken))
        world.waits.append((world.now_s - since_s, taken))
        begun += taken
    return begun


def _scale(world: _World, *, busy_now: int, start_s: float) -> None:
    sample = Sample(world.now_s, world.waiting, busy_now, world.ready)
    world.memory = scaling.observe(world.policy, world.memory, sample)
    decision, world.memory = scaling.decide(world.policy, world.memory, sample, world.replicas)
    if not decision.has_changed:
        return
    world.changes += 1
    added = decision.replicas - decision.before
    world.starting = (
        world.starting + [world.now_s + start_s] * added if added > 0 else world.starting[: max(0, decision.replicas)]
    )
    world.replicas = decision.replicas


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percentile(waits: Sequence[tuple[float, int]], pct: int) -> float:
    """Return the wait that *pct* percent of the tasks did not exceed; *waits* rise."""
    left = sum(count for _, count in waits) * pct / 100
    for wait_s, count in waits:
        left -= count
        if left <= 0:
            return wait_s
    return waits[-1][0] if waits else 0.0
