"""From a fault to the first task that it hit running again, and to all replicas ready again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from greenroom.sdk import models
from greenroom.testing.chaos import recovery
from greenroom.testing.chaos.recovery import Injection, Sighting


def task(*attempts: tuple[str, float, float | None]) -> models.Task:
    return models.Task(
        id="t",
        state="succeeded",
        attempts=tuple(
            models.Attempt(
                epoch=number, replica=replica, started_at=at(begun), ended_at=None if ended is None else at(ended)
            )
            for number, (replica, begun, ended) in enumerate(attempts, 1)
        ),
    )


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


KILL = Injection("kill", 10.0, 10.0, hit=frozenset({"r1"}), gone=frozenset({"r1"}))
TWO = frozenset({"r1", "r2"})


def test_the_first_task_that_was_hit_counts() -> None:
    tasks = [
        task(("r1", 9.0, 10.01), ("r2", 12.0, None)),
        task(("r1", 9.5, 10.01), ("r3", 10.5, None)),
        task(("r2", 9.0, 10.02), ("r3", 10.1, None)),  # of a replica that was not hit
        task(("r1", 5.0, 6.0), ("r3", 10.1, None)),  # it had ended before
        task(("r1", 9.0, 11.0)),  # it never ran again
    ]
    (found,) = recovery.recoveries([KILL], tasks, [], desired=2)
    assert found.resumed_s == pytest.approx(0.5)


def test_ready_again_is_without_the_replica_that_is_gone() -> None:
    seen = [
        Sighting(1.0, TWO),
        Sighting(10.02, TWO),  # its death is not noticed yet
        Sighting(10.05, frozenset({"r2"})),
        Sighting(10.3, frozenset({"r2", "r3"})),
    ]
    (found,) = recovery.recoveries([KILL], [], seen, desired=2)
    assert found.ready_s == pytest.approx(0.3)


def test_what_was_hit_twice_has_to_get_all_its_replicas_back() -> None:
    seen = [
        Sighting(1.0, TWO),
        Sighting(9.0, frozenset({"r1"})),
        Sighting(10.2, frozenset({"r3"})),
        Sighting(11.0, frozenset({"r3", "r4"})),
    ]
    (found,) = recovery.recoveries([KILL], [], seen, desired=2)
    assert found.ready_s == pytest.approx(1.0)


def test_a_fault_that_interrupted_nothing_has_no_times_and_one_that_was_not_injected_is_left_out() -> None:
    refused = Injection("lock", 10.0, 10.0, why_not="unknown")
    (found,) = recovery.recoveries([Injection("lock", 10.0, 12.0), refused], [task(("r1", 9.0, None))], [], desired=2)
    assert (found.resumed_s, found.ready_s) == (None, None)
    assert recovery.times([None]) is None


def test_percentiles_are_values_that_were_seen() -> None:
    times = recovery.times([None, *(number / 100 for number in range(1, 101))])
    assert times == recovery.Times(100, 0.5, 0.99, 1.0)
