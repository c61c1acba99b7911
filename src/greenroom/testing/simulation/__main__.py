"""``python -m greenroom.testing.simulation``: the long run, or one run of it again with all that happens in it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from greenroom.testing.simulation import rollout_runs, rollouts, runs, scenarios, strikes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m greenroom.testing.simulation", description=__doc__)
    parser.add_argument(
        "ring",
        choices=(*runs.RINGS, "rollouts"),
        help="core: the decisions over a table; loops: the real loops; rollouts: every point of every scenario",
    )
    parser.add_argument("--seed", type=int, help="run this seed, and print what happens")
    parser.add_argument("--seeds", type=int, default=1000, help="run so many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one (default: %(default)s)")
    parser.add_argument("--scenario", help="of rollouts: run this one, and print what happens")
    parser.add_argument("--blow", help="strike it there, such as node_after@7 (default: nowhere)")
    parser.add_argument("--workers", type=int, default=2, help="in so many processes (default: %(default)s)")
    given = parser.parse_args()
    if given.ring == "rollouts":
        return _run_rollouts(given.workers) if given.scenario is None else _tell(given.scenario, given.blow)
    if given.seed is not None:
        return _replay(given.ring, given.seed)
    seeds = range(given.first, given.first + given.seeds)
    report = runs.run_in_parallel(
        given.ring, seeds, workers=given.workers, progress=_show if sys.stderr.isatty() else _quiet
    )
    return _conclude(str(report), report.complaints)


def _run_rollouts(workers: int) -> int:
    every = scenarios.every()
    report = rollout_runs.run_all(every, workers=workers, progress=_show_runs if sys.stderr.isatty() else _quiet)
    return _conclude(str(report), report.complaints)


def _conclude(told: str, complaints: Sequence[str]) -> int:
    _say(told)
    for complaint in complaints:
        _say(f"  FAILED: {complaint}")
    return 1 if complaints else 0


def _tell(scenario: str, blow: str | None) -> int:
    done = rollouts.run(scenarios.named(scenario), None if blow is None else strikes.parsed(blow), is_traced=True)
    for line in done.trace:
        _say(line)
    _say(f"{scenario}: {done.violation or 'every promise is kept'}")
    return 0 if done.violation is None else 1


def _replay(ring: str, seed: int) -> int:
    done = runs.RINGS[ring].run(seed, is_traced=True)
    for line in done.trace:
        _say(line)
    _say(f"seed {seed}: {done.violation or 'every promise is kept'}")
    return 0 if done.violation is None else 1


def _show(report: runs.Report) -> None:
    sys.stderr.write(f"\r{report.seeds:,} seeds, {len(report.failures)} of them failed ")


def _show_runs(report: rollout_runs.Report) -> None:
    sys.stderr.write(f"\r{report.scenarios} scenarios, {report.runs:,} runs, {len(report.failures)} of them failed ")


def _quiet(report: object) -> None:
    """A log needs no progress."""


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
