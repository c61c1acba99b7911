"""Families of metrics whose counting costs a dictionary's addition: prometheus' own take a lock and check, each time.

They write themselves down to the letter as `prometheus_client` would, in a twentieth of its time.

A family has at most `MAX_SERIES` series; what would be more goes to one with `OTHER` for each label, or, where a sum of
it says nothing, is left out. `forget` drops the series of an agent that is gone. All on the event loop's thread.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import core
from prometheus_client.utils import floatToGoString

MAX_SERIES = 2_000  # of one family; a histogram's are one here
OTHER = "_other"  # no name of an agent begins so

Labels = tuple[str, ...]
_as_go: Callable[[float], str] = floatToGoString
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Family:
    """A metric: its name without the suffix of its kind, what it says, and the names of its labels."""

    kind = ""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = f"greenroom_{name}", help, tuple(labels)
        self.values: dict[Labels, Any] = {}
        self._heads: dict[Labels, list[str]] = {}

    @property
    def shown(self) -> str:
        """The name that queries use, but for a histogram's suffixes."""
        return self.name

    def forget(self, agent: str) -> None:
        """Drop what is labelled with *agent*, which is gone."""
        if "agent" in self.labels:
            place = self.labels.index("agent")
            for labels in [labels for labels in self.values if labels[place] == agent]:
                del self.values[labels]

    def collect(self) -> core.Metric:
        """Return what there is now, as `prometheus_client` has it."""
        raise NotImplementedError

    def text(self) -> str:
        """Return what there is now in Prometheus' text format."""
        lines = [f"# HELP {self.shown} {self.help}\n# TYPE {self.shown} {self.kind}\n"]
        if len(self._heads) > len(self.values):
            self._heads = {labels: heads for labels, heads in self._heads.items() if labels in self.values}
        for labels, value in self.values.items():
            heads = self._heads.get(labels)
            if heads is None:
                heads = self._heads[labels] = self._make_heads(labels)
            lines += self._lines(heads, value)
        return "".join(lines)

    def _make_heads(self, labels: Labels) -> list[str]:
        """Return what the lines of a series begin with."""
        return [self._head("", zip(self.labels, labels, strict=True))]

    def _head(self, suffix: str, labels: Iterable[tuple[str, str]]) -> str:
        inner = ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in sorted(labels))
        return f"{self.shown}{suffix}{{{inner}}} " if inner else f"{self.shown}{suffix} "

    def _lines(self, heads: Sequence[str], value: Any) -> Iterable[str]:
        return (f"{heads[0]}{_number(value)}\n",)


class Total(Family):
    """A counter."""

    kind = "counter"
    values: dict[Labels, float]

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        if not labels:
            self.values[()] = 0.0

    @property
    def shown(self) -> str:
        return f"{self.name}_total"

    def add(self, *labels: str, count: float = 1) -> None:
        try:
            self.values[labels] += count
        except KeyError:
            if len(self.values) >= MAX_SERIES:
                labels = (OTHER,) * len(labels)
            self.values[labels] = self.values.get(labels, 0) + count

    def collect(self) -> core.Metric:
        family = core.CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Level(Family):
    """A gauge. It has no series for what is beyond the bounds: levels of many are not their sum."""

    kind = "gauge"
    values: dict[Labels, float]

    def set(self, value: float, *labels: str) -> None:
        if OTHER not in labels and (labels in self.values or len(self.values) < MAX_SERIES):
            self.values[labels] = value

    def replace(self, levels: Iterable[tuple[Labels, float]]) -> None:
        """Have these levels and no others; those of the same labels are added up."""
        self.values = {}
        for labels, value in levels:
            key = labels if labels in self.values or len(self.values) < MAX_SERIES else (OTHER,) * len(labels)
            self.values[key] = self.values.get(key, 0.0) + value

    def collect(self) -> core.Metric:
        family = core.GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Spread:
    """How many observations fell into each bucket, and their sum: the values of one series of a histogram."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self._bounds, value)] += 1
        self.sum += value


class Histogram(Family):
    """A histogram: *bounds* are the upper ends of its buckets."""

    kind = "histogram"
    values: dict[Labels, Spread]

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), *, bounds: Sequence[float]) -> None:
        super().__init__(name, help, labels)
        self.bounds = tuple(bounds)
        self._ends = [*map(_as_go, self.bounds), "+Inf"]
        if not labels:
            self.values[()] = Spread(self.bounds)

    def of(self, *labels: str) -> Spread:
        """Return the values of *labels*, to keep where they are added to often."""
        found = self.values.get(labels)
        if found is None:
            if len(self.values) >= MAX_SERIES:
                labels = (OTHER,) * len(labels)
            found = self.values.setdefault(labels, Spread(self.bounds))
        return found

    def add(self, value: float, *labels: str) -> None:
        self.of(*labels).add(value)

    def collect(self) -> core.Metric:
        family = core.HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, spread in self.values.items():
            buckets = zip(self._ends, itertools.accumulate(spread.counts), strict=True)
            family.add_metric(labels, buckets=list(buckets), sum_value=spread.sum)
        return family

    def _make_heads(self, labels: Labels) -> list[str]:
        named = [*zip(self.labels, labels, strict=True)]
        buckets = [self._head("_bucket", [*named, ("le", end)]) for end in self._ends]
        return [*buckets, self._head("_count", named), self._head("_sum", named)]

    def _lines(self, heads: Sequence[str], value: Spread) -> Iterable[str]:
        *buckets, count, total = heads
        counts = list(itertools.accumulate(value.counts))
        lines = [f"{head}{_number(number)}\n" for head, number in zip(buckets, counts, strict=True)]
        return (*lines, f"{count}{_number(counts[-1])}\n", f"{total}{_number(value.sum)}\n")


def _number(value: float) -> str:
    """Return *value* as Go writes it."""
    return f"{value}.0" if type(value) is int and value < 1_000_000 else _as_go(value)
