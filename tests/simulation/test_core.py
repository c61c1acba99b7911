"""The decisions, in thousands of worlds in which everything fails; and that what lacks a guard is found there."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest

from greenroom.testing.simulation import __main__ as command
from greenroom.testing.simulation import core, nodes, runs, table
from greenroom.testing.simulation.checks import Violation
from greenroom.testing.simulation.faults import Fault

SEEDS, PARTS = 2_000, 2
ENOUGH = 3_000  # seeds: what is missing is found long before
# Without a guard of the table or a habit of the nodes: the promises of which one is broken.
LACKS = {
    "finish_compares_epoch": "I4 I6",
    "call_compares_epoch": "I4",
    "rescue_compares_lease": "I5",
    "ends_are_absorbing": "I3",
    "refunds": "I6",
    "one_of_a_session": "I15",
    "order_of_a_session": "I15",
    "state_goes_with_result": "I16",
    "keys_are_unique": "I8",
    "ends_children": "I10",
    "suspects_run_alone": "I22",
    "gives_back_unknown_claims": "I7",
    "writes_ends_again": "I6",
    "renews": "I7",
    "rescues": "I7",
    "plans_with_care": "I34",
    "counts_deaths": "I21",
    "spares_neighbours": "I6",
    "accepts_only_what_is_stored": "I1",
}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_world(part: int) -> None:
    report = runs.run("core", range(part, SEEDS, PARTS))
    assert not report.complaints, "\n".join(report.complaints)
    assert (report.counts.lost, report.counts.duplicated) == (0, 0)


def _violation_without(lack: str) -> Violation:
    guards, habits = table.ALL, nodes.ALL
    if hasattr(guards, lack):
        guards = dataclasses.replace(guards, **{lack: False})
    else:
        habits = dataclasses.replace(habits, **{lack: False})
    violations = (core.run(seed, guards=guards, habits=habits).violation for seed in range(ENOUGH))
    return next(violation for violation in violations if violation is not None)


def test_the_simulation_finds_a_finish_without_its_epoch() -> None:
    assert _violation_without("finish_compares_epoch").promise in {"I4", "I6"}


def test_the_simulation_finds_a_rescue_of_what_is_leased() -> None:
    assert _violation_without("rescue_compares_lease").promise == "I5"


def test_the_simulation_finds_a_drain_that_is_charged() -> None:
    assert _violation_without("refunds").promise == "I6"


@pytest.mark.slow
@pytest.mark.parametrize("lack", LACKS)
def test_the_simulation_finds_what_is_missing(lack: str) -> None:
    assert _violation_without(lack).promise in LACKS[lack].split()


def test_every_guard_and_every_habit_is_missed() -> None:
    names = {field.name for field in (*dataclasses.fields(table.Guards), *dataclasses.fields(nodes.Habits))}
    assert names == LACKS.keys()


def test_a_seed_is_its_run() -> None:
    first, second = (core.run(7, is_traced=True) for _ in range(2))
    assert first.trace == second.trace
    assert len(first.trace) > 50
    assert core.run(8, is_traced=True).trace != first.trace


def test_a_run_with_too_few_faults_fails() -> None:
    report = runs.Report("core", seeds=100, injected=Counter(dict.fromkeys(Fault, 1000)))
    assert not report.complaints
    report.injected[Fault.NODE_KILLED] = 1
    assert report.complaints == ["node killed: 1 injected, 40 planned"]


def test_a_failing_seed_says_how_to_see_it_again() -> None:
    report = runs.Report("core", injected=Counter(dict.fromkeys(Fault, 1000)))
    report.add(dataclasses.replace(core.run(7), violation=Violation("I3", "t1 had failed and is running now")))
    (complaint,) = report.complaints
    assert complaint.endswith("python -m greenroom.testing.simulation core --seed 7")


def test_a_seed_is_told_line_by_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["simulation", "core", "--seed", "7"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "seed 7: every promise is kept"
    assert any("begins t1#1 on a-node-" in line for line in lines)
    times_s = [float(line.split()[0]) for line in lines[:-1]]
    assert all(earlier <= later for earlier, later in itertools.pairwise(times_s))
