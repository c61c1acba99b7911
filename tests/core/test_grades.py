"""How agents and the system are graded: by replicas, by what became of tasks, and by the node itself."""

from __future__ import annotations

import doctest
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import grades, health, history
from greenroom.core.grades import Bounds, Graded, Recent
from greenroom.core.health import Finding, Grade


@pytest.mark.parametrize(
    ("desired", "ready", "failure", "grade", "reason"),
    [
        (0, "", "", Grade.UNKNOWN, "it should have no replicas"),
        (2, "", "", Grade.UNKNOWN, "none of its 2 replicas is ready"),
        (2, "", "it dies", Grade.UNHEALTHY, "it dies"),
        (1, "healthy", "", Grade.HEALTHY, "it is healthy"),
        (2, "healthy", "", Grade.DEGRADED, "1 of 2 replicas are ready"),
        (2, "healthy", "it dies", Grade.DEGRADED, "1 of 2 replicas are ready: it dies"),
        (2, "unknown unknown", "", Grade.UNKNOWN, "it is unknown"),
        (2, "unknown", "", Grade.UNKNOWN, "it is unknown"),
        (2, "healthy unknown", "", Grade.UNKNOWN, "r1: it is unknown"),
        (2, "healthy degraded", "", Grade.DEGRADED, "r1: it is degraded"),
        (3, "degraded unhealthy healthy", "", Grade.DEGRADED, "r1: it is unhealthy"),
        (2, "unhealthy unhealthy", "", Grade.UNHEALTHY, "r0: it is unhealthy"),
    ],
)
def test_an_agent_is_graded_by_its_replicas(desired: int, ready: str, failure: str, grade: Grade, reason: str) -> None:
    replicas = [Graded(f"r{place}", Grade(word), f"it is {word}") for place, word in enumerate(ready.split())]
    assert grades.of_replicas(desired, replicas, failure=failure) == (grade, reason)


# What became of its tasks


def _recent(judged: int = 0, errors: int = 0, tasks: int = 0, response_s: float = 0.0, wait_s: float = 0.0) -> Recent:
    return Recent(judged, errors, tasks, response_s, wait_s)


@pytest.mark.parametrize(
    ("recent", "grade", "reason"),
    [
        (_recent(), Grade.UNKNOWN, "too few of its tasks"),
        (_recent(judged=9, errors=9, tasks=9, response_s=99), Grade.UNKNOWN, "too few of its tasks"),
        (_recent(judged=10), Grade.HEALTHY, "its tasks end well"),
        (_recent(judged=100, errors=9), Grade.HEALTHY, "its tasks end well"),
        (
            _recent(judged=100, errors=10),
            Grade.DEGRADED,
            (
                "10 of the last 100 attempts (10 %) ended with an error in 5 min; from 10 % on it is degraded; see "
                "greenroom tasks ls --agent research --state failed"
            ),
        ),
        (_recent(judged=100, errors=29), Grade.DEGRADED, "(29 %)"),
        (_recent(judged=100, errors=30), Grade.UNHEALTHY, "from 30 % on it is unhealthy"),
        (_recent(tasks=10, response_s=9.9), Grade.HEALTHY, "its tasks end well"),
        (
            _recent(tasks=10, response_s=10.0, wait_s=1.0),
            Grade.DEGRADED,
            (
                "its tasks took 10.0 s on average in 5 min, 1.0 s of it waiting; from 10 s on it is degraded; if that "
                "is its work, raise agents.research.health.response_s"
            ),
        ),
        (
            _recent(tasks=10, response_s=30.0, wait_s=25.0),
            Grade.UNHEALTHY,
            "from 30 s on it is unhealthy; it waits for a slot most of the time: see greenroom scale explain research",
        ),
        (_recent(judged=10, errors=2, tasks=10, response_s=31.0), Grade.UNHEALTHY, "31.0 s"),
        (_recent(judged=10, errors=9, tasks=10, response_s=11.0), Grade.UNHEALTHY, "(90 %)"),
    ],
)
def test_an_agent_is_graded_by_its_last_tasks(recent: Recent, grade: Grade, reason: str) -> None:
    found = grades.judge("research", recent, Bounds())
    assert found.grade is grade
    assert reason in found.reason


def test_what_is_off_grades_nobody_and_what_is_raised_lets_the_slow_be_well() -> None:
    slow = _recent(judged=10, errors=5, tasks=10, response_s=60.0)
    assert grades.judge("a", slow, Bounds(error_pct=None)).cause == "slow"
    assert grades.judge("a", slow, Bounds(response_s=None)).cause == "errors"
    assert grades.judge("a", slow, Bounds(error_pct=None, response_s=(120.0, 360.0))) is grades.WELL
    assert grades.judge("a", slow, Bounds(error_pct=None, response_s=None)) is grades.TOO_FEW


def test_half_as_many_samples_keep_a_grade_as_make_one() -> None:
    few = _recent(judged=5, errors=5)
    assert grades.judge("a", few, Bounds()) is grades.TOO_FEW
    assert grades.judge("a", few, Bounds(), is_graded=True).grade is Grade.UNHEALTHY
    assert grades.judge("a", _recent(judged=4, errors=4), Bounds(), is_graded=True) is grades.TOO_FEW


@given(st.integers(10, 1000), st.integers(0, 1000), st.floats(0, 1000), st.floats(0, 1000))
def test_who_fails_or_takes_longer_is_never_graded_better(
    judged: int, errors: int, response_s: float, more_s: float
) -> None:
    errors = min(errors, judged)
    order = list(Grade)

    def place(errors: int, response_s: float) -> int:
        recent = _recent(judged=judged, errors=errors, tasks=10, response_s=response_s)
        return order.index(grades.judge("a", recent, Bounds()).grade)

    assert place(errors, response_s) <= place(min(judged, errors + 1), response_s + more_s)


def test_who_was_cancelled_or_drained_is_not_judged() -> None:
    counts = history.Counts()
    for state, reason, count in (
        ("succeeded", "ok", 6),
        ("failed", "agent_error", 3),
        ("queued", "timeout", 1),
        ("cancelled", "cancelled", 90),
        ("queued", "drained", 50),
    ):
        counts.end(state, reason, count)
    counts.response.add(4.0)
    counts.wait.add(1.0)
    assert Recent.of(counts) == Recent(judged=10, errors=4, tasks=1, response_s=4.0, wait_s=1.0)


@pytest.mark.parametrize(
    ("of_replicas", "of_tasks", "grade"),
    [
        (Grade.HEALTHY, Grade.HEALTHY, Grade.HEALTHY),
        (Grade.HEALTHY, Grade.DEGRADED, Grade.DEGRADED),
        (Grade.DEGRADED, Grade.UNHEALTHY, Grade.UNHEALTHY),
        (Grade.UNHEALTHY, Grade.DEGRADED, Grade.UNHEALTHY),
        (Grade.UNKNOWN, Grade.HEALTHY, Grade.UNKNOWN),
        (Grade.UNKNOWN, Grade.DEGRADED, Grade.DEGRADED),
        (Grade.HEALTHY, Grade.UNKNOWN, Grade.HEALTHY),
    ],
)
def test_the_worse_of_replicas_and_tasks_holds(of_replicas: Grade, of_tasks: Grade, grade: Grade) -> None:
    found, reason = grades.of_agent((of_replicas, "replicas"), Finding(of_tasks, "tasks"))
    assert found is grade
    assert reason == ("tasks" if of_tasks is grade and of_replicas is not grade else "replicas")


# The system


def _node(
    *,
    troubles: Mapping[str, str] = {},
    failure: str | None = None,
    disk_free_mb: float | None = 10_000.0,
    envelope_pct: Mapping[str, float] = {},
) -> Finding:
    return grades.of_node(troubles=troubles, failure=failure, disk_free_mb=disk_free_mb, envelope_pct=envelope_pct)


@pytest.mark.parametrize(
    ("node", "grade", "reason"),
    [
        (_node(), Grade.HEALTHY, "the node is well"),
        (_node(disk_free_mb=None, envelope_pct={"cpu": 94.9}), Grade.HEALTHY, "the node is well"),
        (_node(failure="the loops have ended"), Grade.UNHEALTHY, "the node: the loops have ended"),
        (
            _node(troubles={"janitor": "it is full"}, disk_free_mb=0.0),
            Grade.UNHEALTHY,
            "the store: it is full (told by janitor)",
        ),
        (_node(disk_free_mb=2047.0), Grade.DEGRADED, "has 2047 MB left; make room"),
        (_node(disk_free_mb=511.0), Grade.UNHEALTHY, "has 511 MB left"),
        (
            _node(envelope_pct={"cpu": 20.0, "memory_mb": 96.0}),
            Grade.DEGRADED,
            "replicas use 96 % of cluster.memory_mb; raise it",
        ),
    ],
)
def test_the_node_is_graded_by_what_it_stands_on(node: Finding, grade: Grade, reason: str) -> None:
    assert node.grade is grade
    assert reason in node.reason


@pytest.mark.parametrize(
    ("node", "agents", "grade", "reason"),
    [
        (Grade.HEALTHY, "", Grade.HEALTHY, "the node is well"),
        (Grade.HEALTHY, "healthy healthy", Grade.HEALTHY, "the node and its agents are well"),
        (Grade.HEALTHY, "healthy unknown", Grade.UNKNOWN, "a1: it is unknown"),
        (Grade.HEALTHY, "unhealthy degraded unhealthy", Grade.UNHEALTHY, "a0: it is unhealthy; and 1 more"),
        (Grade.DEGRADED, "degraded healthy", Grade.DEGRADED, "the node is degraded; and 1 more"),
        (Grade.UNHEALTHY, "degraded", Grade.UNHEALTHY, "the node is unhealthy"),
    ],
)
def test_the_system_is_as_good_as_its_worst(node: Grade, agents: str, grade: Grade, reason: str) -> None:
    graded = [Graded(f"a{place}", Grade(word), f"it is {word}") for place, word in enumerate(agents.split())]
    assert grades.of_system(Finding(node, f"the node is {node}"), graded) == (grade, reason)


def test_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(grades).failed == doctest.testmod(health).failed == 0
