"""Every point of every scenario, and what it found: whether all that was planned was struck, and came to rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from greenroom.testing.simulation import rollouts
from greenroom.testing.simulation.scenarios import Scenario
from greenroom.testing.simulation.strikes import Blow, Strike

REPLAY = "python -m greenroom.testing.simulation rollouts"
EVERY = frozenset(Strike)

# A scenario, on the average: one that hardly moves has few commits. Less, and nothing was proven.
PLANNED: Mapping[Strike, int] = {
    Strike.NODE_BEFORE: 12,
    Strike.NODE_AFTER: 12,
    Strike.COMMIT_FAILS: 12,
    Strike.ANSWER_LOST: 12,
    Strike.NEW_KILLED: 9,
    Strike.OLD_KILLED: 11,
}


@dataclass
class Report:
    scenarios: int = 0
    points: int = 0
    runs: int = 0
    tasks: int = 0
    elapsed_s: float = 0.0
    due: Counter[Strike] = field(default_factory=Counter)
    struck: Counter[Strike] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # how to see it again, and what

    def add(self, run: rollouts.Run) -> None:
        self.runs += 1
        self.tasks += run.tasks
        if run.blow is not None:
            self.struck[run.blow.strike] += run.has_struck
        if run.violation is not None:
            blow = "" if run.blow is None else f" --blow {run.blow}"
            self.failures.append((f"--scenario {run.scenario.name}{blow}", str(run.violation)))

    def merge(self, other: Report) -> None:
        self.scenarios += other.scenarios
        self.points += other.points
        self.runs += other.runs
        self.tasks += other.tasks
        self.due.update(other.due)
        self.struck.update(other.struck)
        self.failures += other.failures

    @property
    def complaints(self) -> list[str]:
        """What makes the run a failure, in words: broken promises, and points that were not struck."""
        broken = [f"breaks {what}\n  see it again: {REPLAY} {again}" for again, what in self.failures]
        missed = [
            f"{strike}: {self.struck[strike]} struck, {due} planned"
            for strike in Strike
            if self.struck[strike] < (due := self.due[strike])
        ]
        return broken + missed

    def __str__(self) -> str:
        told = [
            f"rollouts: {self.scenarios} scenarios with {self.points:,} points, in {self.elapsed_s:.0f} s",
            f"  {self.runs:,} runs with {self.tasks:,} tasks",
        ]
        told += [f"  {self.struck[strike]:>9,} {strike} (planned {self.due[strike]:,})" for strike in Strike]
        return "\n".join(told)


def run_every_point(scenario: Scenario, strikes: Collection[Strike] = EVERY) -> Report:
    """Run *scenario* undisturbed, and then with each of *strikes* at each of its points."""
    report, undisturbed = Report(scenarios=1), rollouts.run(scenario)
    report.add(undisturbed)
    report.points = len(undisturbed.points)
    blows = [
        Blow(strike, point.number) for point in undisturbed.points for strike in point.strikes if strike in strikes
    ]
    report.due.update(blow.strike for blow in blows)
    if undisturbed.violation is None:
        for blow in blows:
            report.add(rollouts.run(scenario, blow))
    return report


def run_all(
    scenarios: Sequence[Scenario], *, workers: int, progress: Callable[[Report], None] = lambda _: None
) -> Report:
    """Run every point of *scenarios* in *workers* processes; *progress* hears of what is done so far."""
    report, began_s = Report(), time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(run_every_point, scenarios):
            report.merge(part)
            progress(report)
    report.elapsed_s = time.monotonic() - began_s
    for strike, number in PLANNED.items():
        report.due[strike] = max(report.due[strike], number * len(scenarios))
    return report
