"""History: what became of an agent's attempts and how long they took, in buckets of a minute and of an hour. Pure.

Counts may be added in any order: the parts of a bucket that several nodes hold, minutes to quarters, hours to days. Of
durations it is counted how many fell between two bounds, which are a quarter of an octave apart: a quantile that is
read from them is off by `ERROR_PCT` at most, however many were added. Called by `control.history` and the API.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable

import msgspec
from msgspec import field

from greenroom.core import costs, health, tasks
from greenroom.core.measurements import Spread

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
KEPT_S = (MINUTE_S, HOUR_S)  # buckets that are stored
STEPS_S = (MINUTE_S, 300, 900, HOUR_S, DAY_S)  # buckets that are shown, made of those
MAX_SHOWN = 1_500  # buckets: a day of minutes, two months of hours

_OF_AN_OCTAVE = 4
BOUNDS_S = tuple(2 ** (place / _OF_AN_OCTAVE) for place in range(-13 * _OF_AN_OCTAVE, 20 * _OF_AN_OCTAVE + 1))
"""From an eighth of a millisecond to twelve days: a task may take seven."""
ERROR_PCT = 10  # 2 ** (1/8) is 1.09: a value is read as the middle of its bounds
_READ_S = (
    0.0,
    *(float(f"{math.sqrt(low * high):.4g}") for low, high in itertools.pairwise(BOUNDS_S)),  # more digits say nothing
    BOUNDS_S[-1],
)


class Histogram(msgspec.Struct):
    """Durations, counted by where they fall: *bins* holds at *n* those up to bound *n*, over the one before."""

    bins: dict[int, int] = field(default_factory=dict)
    sum_s: float = 0.0

    def add(self, duration_s: float) -> None:
        place = bisect.bisect_left(BOUNDS_S, duration_s)
        self.bins[place] = self.bins.get(place, 0) + 1
        self.sum_s += duration_s

    def merge(self, other: Histogram) -> None:
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count
        self.sum_s += other.sum_s

    def spread(self) -> Spread | None:
        """Return mean, median and 95th percentile in seconds; None of nothing.

        The mean is exact. What is shorter than the first bound counts as 0, what is over the last as that.

        >>> seen = Histogram()
        >>> for duration_s in (0.0, 1.0, 2.0, 4.0):
        ...     seen.add(duration_s)
        >>> seen.spread()
        Spread(mean=1.75, p50=0.917, p95=3.668, count=4)
        """
        count = sum(self.bins.values())
        if not count:
            return None
        p50, p95 = self._read(math.ceil(0.5 * count), math.ceil(0.95 * count))
        return Spread(self.sum_s / count, p50, p95, count)

    def share_over(self, bound_s: float) -> float:
        """Return which part was longer than *bound_s*, which counts as the next of `BOUNDS_S`; 0 of nothing.

        >>> seen = Histogram()
        >>> for duration_s in (0.5, 2.0, 2.3, 8.0):
        ...     seen.add(duration_s)
        >>> seen.share_over(2.1)
        0.25
        """
        count = sum(self.bins.values())
        last = bisect.bisect_left(BOUNDS_S, bound_s)
        return sum(found for place, found in self.bins.items() if place > last) / count if count else 0.0

    def _read(self, *ranks: int) -> list[float]:
        """Return the values of *ranks*, which rise."""
        found: list[float] = []
        up_to = 0
        for place in sorted(self.bins):
            up_to += self.bins[place]
            while len(found) < len(ranks) and ranks[len(found)] <= up_to:
                found.append(_READ_S[place])
        return found


class Counts(msgspec.Struct):
    """A bucket. *ends* counts attempts by ``state reason``: the state is the task's afterwards. *tasks* counts tasks by
    the state that they ended in, also those that were never tried.

    *run* is of all attempts. *wait* and *response* are of some of the tasks that have ended, and are what their rows
    say: until a slot was theirs, and from acceptance to the end. *cost* is in nano-dollars, of what had a price when it
    ended; None where nothing had.
    """

    ends: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    input_tokens: int = 0  # of those
    cost: int | None = None
    run: Histogram = field(default_factory=Histogram)
    wait: Histogram = field(default_factory=Histogram)
    response: Histogram = field(default_factory=Histogram)

    @property
    def attempts(self) -> int:
        return sum(self.ends.values())

    @property
    def states(self) -> dict[str, int]:
        return self._by(0)

    @property
    def reasons(self) -> dict[str, int]:
        return self._by(1)

    @property
    def errors(self) -> int:
        """Attempts that speak against the agent, as `core.health` has it; who was cancelled or drained says nothing."""
        return sum(count for reason, count in self.reasons.items() if health.is_error(reason))

    @property
    def judged(self) -> int:
        """Attempts that say something about the agent: what `errors` are a share of."""
        return sum(count for reason, count in self.reasons.items() if health.is_error(reason) is not None)

    @property
    def ended(self) -> int:
        """Tasks that an attempt has ended."""
        return sum(count for state, count in self.states.items() if state in tasks.TERMINAL)

    @property
    def retries(self) -> int:
        return self.states.get(tasks.State.QUEUED, 0)

    def end(self, state: str, reason: str, count: int = 1) -> None:
        key = f"{state} {reason}"
        self.ends[key] = self.ends.get(key, 0) + count

    def merge(self, other: Counts) -> None:
        for key, count in other.ends.items():
            self.ends[key] = self.ends.get(key, 0) + count
        for state, count in other.tasks.items():
            self.tasks[state] = self.tasks.get(state, 0) + count
        self.tokens += other.tokens
        self.input_tokens += other.input_tokens
        self.cost = costs.added(self.cost, other.cost)
        self.run.merge(other.run)
        self.wait.merge(other.wait)
        self.response.merge(other.response)

    def _by(self, place: int) -> dict[str, int]:
        found: dict[str, int] = {}
        for key, count in self.ends.items():
            word = key.split(" ")[place]
            found[word] = found.get(word, 0) + count
        return found


def begin_us(at_us: int, step_s: int) -> int:
    """Return when the bucket of *step_s* that has *at_us* in it began.

    >>> begin_us(125_000_001, 60)
    120000000
    """
    return at_us - at_us % (step_s * 1_000_000)


def next_bound_s(duration_s: float) -> float:
    """Return what *duration_s* counts as: the upper end of where it falls.

    >>> next_bound_s(2.1), next_bound_s(8)
    (2.378414230005442, 8.0)
    """
    return BOUNDS_S[min(bisect.bisect_left(BOUNDS_S, duration_s), len(BOUNDS_S) - 1)]


def source_s(step_s: int) -> int:
    """Return which of the kept buckets those of *step_s* are made of."""
    return HOUR_S if step_s % HOUR_S == 0 else MINUTE_S


def rolled(records: Iterable[tuple[int, bytes]], step_s: int) -> dict[int, Counts]:
    """Add *records*, each with its begin, up to buckets of *step_s*, in order of time; empty ones are left out."""
    buckets: dict[int, Counts] = {}
    for at_us, record in sorted(records):
        begun_us, counts = begin_us(at_us, step_s), decode(record)
        if begun_us in buckets:
            buckets[begun_us].merge(counts)
        else:
            buckets[begun_us] = counts
    return buckets


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Counts).decode
