"""Resources: who has to go when memory runs short, and which replica is replaced though nothing has failed. Pure.

`control.resources` measures and acts. Instants are monotonic seconds, sizes MB, rates CPUs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from greenroom.core.failures import Failure

RECYCLE_PCT = 90  # of the envelope: from here on the fattest replica is replaced
CROWDED_PCT = 95  # from here on the autoscaler gives replicas up; a kernel that holds the limit lets use come no closer
FULL_PCT = 100
REST_S = 60.0  # from one replacement for the envelope's sake to the next: where all use what they need, none helps
WORTH_TIMES = 1.25  # as much as when it was new: less is what any replica grows by at work
KNOWN_PCT = 75  # below nobody needs to know the use exactly; the optimizer looks from 80 on

WARM_S = 60.0  # since readiness: what a replica loads with its first tasks is no leak
LEAK_S = 600.0
LEAK_SAMPLES = 60
LEAK_MB = 100.0
LEAK_TIMES = 2.0
SEGMENTS = 6
MAX_SAMPLES = 240  # of each replica; when they are full every other one goes
MAX_PAIRS_OF = 40  # samples that the slope is the median of, each with each


class Use(msgspec.Struct, frozen=True):
    """What all replicas together use; *memory_mb* may be more than that while it is far below the limit.

    *counted* is how many ready replicas of each agent it is of; None: of all that there are.
    """

    cpu: float = 0.0
    memory_mb: float = 0.0
    counted: Mapping[str, int] | None = None


class Limits(msgspec.Struct, frozen=True):
    """The envelope; None: no limit. *kernel_holds_memory*: it kills by itself who would break it."""

    cpu: float | None = None
    memory_mb: int | None = None
    kernel_holds_memory: bool = False


class Replica(msgspec.Struct, frozen=True):
    """A replica as it was measured. *memory_mb* counts shared pages in full, *share_mb* its part of them.

    *successor_mb* is what another in its place would hold when it is new, as *share_mb*; 0 where nobody knows.
    """

    id: str
    agent: str
    memory_mb: float
    share_mb: float
    is_ready: bool = True
    is_recycled: bool = False  # another takes its place already
    successor_mb: float = 0.0


class Recycle(msgspec.Struct, frozen=True):
    """Replace *replica*: let it end its tasks when another is ready."""

    replica: str
    reason: str


class Evict(msgspec.Struct, frozen=True):
    """Kill *replica*. `Failure.EVICTED` is for the others' sake, and nobody is charged; `Failure.OOM` is for its own:
    it alone is too much, and would be again, so that somebody has to be charged, or it would go on for ever.
    """

    replica: str
    reason: str
    failure: Failure = Failure.EVICTED


def pct(used: float, limit: float | None) -> float | None:
    """Return how much of *limit* is used, in percent.

    >>> pct(900, 1000), pct(900, None)
    (90.0, None)
    """
    return None if limit is None else round(100 * used / limit, 1)


def is_short(limits: Limits, use: Use) -> bool:
    """Whether room is to be made in the memory of the envelope.

    >>> is_short(Limits(memory_mb=1000), Use(memory_mb=901)), is_short(Limits(), Use(memory_mb=901))
    (True, False)
    """
    return limits.memory_mb is not None and use.memory_mb > limits.memory_mb * RECYCLE_PCT / 100


def relieve(
    limits: Limits, use: Use, replicas: Sequence[Replica], *, since_s: float = math.inf
) -> Recycle | list[Evict] | None:
    """Return what makes room in the memory of the envelope, if that is short.

    One at a time: while a replica is on its way out, and for `REST_S` after the last that was recycled for this,
    *since_s* ago, no other is recycled. None is where its successor is as large, or has no room beside it. Over the
    limit, and where no kernel sees to it, the fattest are killed, as many as have to go, also those that are on their
    way out: that may take as long as their tasks do.

    >>> one, two = Replica("one", "a", 500, 450), Replica("two", "a", 600, 500)
    >>> relieve(Limits(memory_mb=1000), Use(memory_mb=950), [one, two]).replica
    'two'
    >>> [each.replica for each in relieve(Limits(memory_mb=1000), Use(memory_mb=1001), [one, two])]
    ['two']
    """
    if limits.memory_mb is None or not replicas:
        return None
    if use.memory_mb > limits.memory_mb * FULL_PCT / 100 and not limits.kernel_holds_memory:
        return _evicted(limits.memory_mb, use, replicas)
    if not is_short(limits, use) or since_s < REST_S:
        return None
    if any(each.is_recycled for each in replicas):
        return None
    room_mb = limits.memory_mb - use.memory_mb
    worth_it = [
        each
        for each in replicas
        if each.is_ready and (not each.successor_mb or each.successor_mb < min(each.share_mb / WORTH_TIMES, room_mb))
    ]
    if not worth_it:
        return None
    fattest = max(worth_it, key=_fatness)
    return Recycle(fattest.id, f"{_told(limits.memory_mb, use)}, and with {fattest.share_mb:.0f} MB it has the most")


def _evicted(most_mb: int, use: Use, replicas: Sequence[Replica]) -> list[Evict]:
    """Return the fattest without whom there would be room; not all: what is too much then is not theirs."""
    found: list[Evict] = []
    over_mb = use.memory_mb - most_mb * FULL_PCT / 100
    for each in sorted(replicas, key=_fatness, reverse=True)[: max(1, len(replicas) - 1)]:
        if over_mb <= 0:
            break
        over_mb -= each.share_mb
        if each.share_mb > most_mb:
            alone = f"it alone used {each.share_mb:.0f} MB, and cluster.memory_mb is {most_mb}"
            found.append(Evict(each.id, alone, Failure.OOM))
        else:
            why = f"{_told(most_mb, use)}, and with {each.share_mb:.0f} MB it was among those that had the most"
            found.append(Evict(each.id, why))
    return found


def _fatness(replica: Replica) -> tuple[float, str]:
    return replica.share_mb, replica.id


def _told(most_mb: int, use: Use) -> str:
    return f"all replicas use {use.memory_mb:.0f} MB of cluster.memory_mb, {most_mb}"


# --- replicas that have had enough


class Bounds(msgspec.Struct, frozen=True):
    """When a replica of an agent has had enough: its `settings.Recycling`, and the size at which it is killed."""

    recycle_mb: int | None = None
    memory_mb: int | None = None
    tasks: int | None = None

    @property
    def most_mb(self) -> float | None:
        if self.recycle_mb is not None:
            return float(self.recycle_mb)
        return None if self.memory_mb is None else self.memory_mb * RECYCLE_PCT / 100


class Sample(msgspec.Struct, frozen=True):
    at_s: float
    memory_mb: float


class Trend(msgspec.Struct, frozen=True):
    """What a replica held since it was warm: at most `MAX_SAMPLES`, evenly spread over all of that time."""

    samples: tuple[Sample, ...] = ()
    every_s: float = 0.0

    def noted(self, sample: Sample) -> Trend:
        """Return the trend with *sample*, if it is time for one."""
        if self.samples and sample.at_s < self.samples[-1].at_s + self.every_s:
            return self
        samples = (*self.samples, sample)
        if len(samples) < MAX_SAMPLES:
            return replace(self, samples=samples)
        thinned = samples[::2]
        return Trend(thinned, (thinned[-1].at_s - thinned[0].at_s) / (len(thinned) - 1))


class Leak(msgspec.Struct, frozen=True):
    """Memory that only grows: from *from_mb* to *to_mb* in *over_s*, by *mb_per_hour* in the middle."""

    from_mb: float
    to_mb: float
    over_s: float
    mb_per_hour: float

    def __str__(self) -> str:
        return (
            f"its memory only grows: from {self.from_mb:.0f} to {self.to_mb:.0f} MB in {self.over_s / 60:.0f} minutes, "
            f"by {self.mb_per_hour:.0f} MB an hour"
        )


def leak(trend: Trend) -> Leak | None:
    """Return the leak that *trend* shows, None if it shows none.

    It takes `LEAK_SAMPLES` samples over `LEAK_S` and more, a growth to `LEAK_TIMES` as much and by `LEAK_MB`, and that
    in each of `SEGMENTS` equal parts of the time even the least was more than the least of the part before, by a fair
    part of the whole. So a few steps, a saw with a tooth that has fallen, and noise around a level are none. The slope,
    the median of those between any two samples (Theil and Sen), has to bear half of the growth.
    """
    samples = trend.samples
    if len(samples) < LEAK_SAMPLES or (over_s := samples[-1].at_s - samples[0].at_s) < LEAK_S:
        return None
    part_s = over_s / SEGMENTS
    parts: list[list[float]] = [[] for _ in range(SEGMENTS)]
    for sample in samples:
        parts[min(SEGMENTS - 1, int((sample.at_s - samples[0].at_s) / part_s))].append(sample.memory_mb)
    if not all(parts):
        return None
    least = [min(part) for part in parts]
    growth_mb = least[-1] - least[0]
    if growth_mb < LEAK_MB or least[-1] < LEAK_TIMES * least[0]:
        return None
    fair_mb = growth_mb / (SEGMENTS - 1) / 4
    if any(after - before < fair_mb for before, after in itertools.pairwise(least)):
        return None
    slope = _slope(samples)
    if slope * over_s < growth_mb / 2:
        return None
    return Leak(least[0], least[-1], over_s, slope * 3600)


def _slope(samples: Sequence[Sample]) -> float:
    """Return the median slope in MB a second."""
    few = samples[:: -(-len(samples) // MAX_PAIRS_OF)]
    return statistics.median(
        (after.memory_mb - before.memory_mb) / (after.at_s - before.at_s)
        for before, after in itertools.combinations(few, 2)
    )


def why_recycled(
    bounds: Bounds, *, memory_mb: float, tasks: int, trend: Trend, new_mb: float | None = None
) -> str | None:
    """Return why a replica has had enough, None if it has not.

    One that held more than its bound when it was new, *new_mb*, is not replaced for that: the next one would hold it,
    too, and the one after it.

    >>> why_recycled(Bounds(memory_mb=512), memory_mb=470, tasks=3, trend=Trend())
    'it holds 470 MB, and is replaced from 461 MB on'
    >>> why_recycled(Bounds(tasks=100), memory_mb=470, tasks=100, trend=Trend())
    'it has run 100 tasks, and is replaced after so many'
    """
    if bounds.tasks is not None and tasks >= bounds.tasks:
        return f"it has run {tasks} tasks, and is replaced after so many"
    most_mb = bounds.most_mb
    if most_mb is not None and (new_mb is None or new_mb <= most_mb):
        return f"it holds {memory_mb:.0f} MB, and is replaced from {most_mb:.0f} MB on" if memory_mb > most_mb else None
    found = leak(trend)
    return None if found is None else str(found)


# --- rates


def cpus(before: Mapping[int, float], after: Mapping[int, float], *, elapsed_s: float) -> float:
    """Return how many CPUs were in use on average, by the CPU seconds of each tree of processes.

    A tree that was not there before began at nothing; one that has shrunk says nothing.

    >>> cpus({1: 10.0}, {1: 14.0, 2: 1.0}, elapsed_s=5.0)
    1.0
    """
    spent_s = sum(max(0.0, now - before.get(root, 0.0)) for root, now in after.items())
    return spent_s / elapsed_s if elapsed_s > 0 else 0.0
