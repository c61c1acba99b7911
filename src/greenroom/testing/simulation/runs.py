"""Many seeds: what they found, and whether they had what it takes to find anything."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from greenroom.testing.simulation import checks, core, faults, loops
from greenroom.testing.simulation.core import Run
from greenroom.testing.simulation.faults import Fault


@dataclass(frozen=True, slots=True)
class Ring:
    """A simulation: how one seed is run, and the faults that a seed has at least."""

    name: str
    run: Callable[..., Run]
    planned: Mapping[Fault, float]


REPLAY = "python -m greenroom.testing.simulation"
RINGS = {
    "core": Ring("core", core.run, core.PLANNED),
    "loops": Ring("loops", loops.run, loops.PLANNED),
}


@dataclass
class Report:
    ring: str
    seeds: int = 0
    events: int = 0
    elapsed_s: float = 0.0
    counts: checks.Counts = field(default_factory=checks.Counts)
    injected: Counter[Fault] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, run: Run) -> None:
        self.seeds += 1
        self.events += run.events
        self.counts.add(run.counts)
        self.injected.update(run.injected)
        if run.violation is not None:
            self.failures.append((run.seed, str(run.violation)))

    def merge(self, other: Report) -> None:
        self.seeds += other.seeds
        self.events += other.events
        self.counts.add(other.counts)
        self.injected.update(other.injected)
        self.failures += other.failures

    @property
    def complaints(self) -> list[str]:
        """What makes the run a failure, in words: broken promises, and faults that were not injected."""
        broken = [
            f"seed {seed} breaks {what}\n  see it again: {REPLAY} {self.ring} --seed {seed}"
            for seed, what in self.failures
        ]
        return broken + faults.too_few(self.injected, RINGS[self.ring].planned, seeds=self.seeds)

    def __str__(self) -> str:
        counts, planned = self.counts, RINGS[self.ring].planned
        rate = self.seeds / self.elapsed_s if self.elapsed_s else 0.0
        pace = f"{self.elapsed_s:.0f} s ({rate:.0f} a second)"
        tasks = f"{counts.lost} lost, {counts.duplicated} duplicated, {counts.unknown:,} unknown"
        told = [
            f"{self.ring}: {self.seeds:,} seeds in {pace}, {self.events:,} events",
            f"  tasks: {counts.accepted:,} accepted, {tasks}, {counts.recovered:,} recovered",
            "  ends: " + ", ".join(f"{number:,} {state}" for state, number in sorted(counts.ended.items())),
        ]
        for fault, number in self.injected.most_common():
            told.append(f"  {number:>9,} {fault} (planned {planned.get(fault, 0) * self.seeds:,.0f})")
        return "\n".join(told)


def run(ring: str, seeds: Iterable[int]) -> Report:
    """Run *seeds* one after the other, in this process."""
    report, began_s = Report(ring), time.monotonic()
    for seed in seeds:
        report.add(RINGS[ring].run(seed))
    report.elapsed_s = time.monotonic() - began_s
    return report


def run_in_parallel(
    ring: str, seeds: range, *, workers: int, progress: Callable[[Report], None] = lambda _: None
) -> Report:
    """Run *seeds* in *workers* processes; *progress* hears of what is done so far."""
    report, began_s = Report(ring), time.monotonic()
    chunk = max(1, min(1000, len(seeds) // (4 * workers)))
    chunks = [seeds[start : start + chunk] for start in range(0, len(seeds), chunk)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(run, itertools.repeat(ring), chunks):
            report.merge(part)
            progress(report)
    report.elapsed_s = time.monotonic() - began_s
    return report
