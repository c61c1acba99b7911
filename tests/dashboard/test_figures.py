"""What pages write down: numbers, charts, and how the system is in one sentence."""

from __future__ import annotations

import doctest
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from greenroom.api import schemas
from greenroom.api.dashboard import charts, formats, overview, payloads, series, tasks, timeline
from greenroom.core import history
from greenroom.sdk import models


@pytest.mark.parametrize("module", [formats, charts, payloads, timeline, tasks])
def test_the_examples_of_the_docstrings_hold(module: object) -> None:
    tried = doctest.testmod(module)  # type: ignore[arg-type]
    assert tried.attempted > 0
    assert tried.failed == 0


def test_a_minute_in_which_nothing_ended_has_no_latency_and_is_no_zero() -> None:
    counts = history.Counts()
    counts.end("succeeded", "ok", 3)
    counts.response.add(0.5)
    found = series.series({0: counts}, 0)
    assert found.ends[:2] == (3, 0)
    assert found.p50_s[0] == pytest.approx(0.5, rel=0.1)
    assert found.p50_s[1] is None
    assert len(found.ends) == series.MINUTES


def test_the_cost_of_an_hour_is_of_what_has_a_price_and_unknown_where_nothing_has() -> None:
    minute_us = 60_000_000
    priced = {0: history.Counts(cost=1_500_000_000), minute_us: history.Counts(), 2 * minute_us: history.Counts(cost=1)}
    assert series.series(priced, 0).cost_usd == 1.500000001
    assert series.series({0: history.Counts(tokens=9)}, 0).cost_usd is None


STATUS = schemas.Status(
    environment="production",
    grade="healthy",
    grade_reason="",
    node=schemas.NodeStatus(
        id="node-1",
        state="ready",
        reason=None,
        started_at=datetime(2030, 1, 1, tzinfo=UTC),
        store="sqlite",
        isolation="",
        tracing="off",
    ),
    agents=[],
    replicas=schemas.ReplicasStatus(total=0, by_state={}, memory_mb=0.0, limit=10),
    resources=models.Resources(),
    tasks={},
    alerts={},
    advice=0,
    backups=models.Backups(),
    encryption="off",
)


def _agent(name: str, grade: str, why: str = "", replicas: int = 1) -> schemas.AgentStatus:
    return schemas.AgentStatus(
        name=name,
        state="ready",
        reason="",
        grade=grade,
        grade_reason=why,
        revision=1,
        replicas=models.ReplicaCount(desired=replicas, ready=replicas),
        tasks={},
        rollout=None,
        breaker=models.BreakerState(),
    )


@pytest.mark.parametrize(
    ("agents", "firing", "expected"),
    [
        ([], 0, ("unknown", "The node is ready, and no agent is deployed yet.")),
        ([_agent("a", "healthy"), _agent("b", "healthy")], 0, ("healthy", "All is well: 2 agents on 2 replicas.")),
        ([_agent("a", "healthy")], 2, ("degraded", "The agents are well, but 2 alerts fire.")),
        (
            [_agent("a", "degraded", "slow"), _agent("b", "unhealthy", "silent")],
            1,
            ("unhealthy", "b is unhealthy: silent"),
        ),
        ([_agent("a", "unknown", replicas=0)], 0, ("healthy", "Ready: 1 agent asleep until a task comes.")),
    ],
)
def test_one_sentence_says_how_the_system_is(
    agents: list[schemas.AgentStatus], firing: int, expected: tuple[str, str]
) -> None:
    found = overview.health_of(msgspec.structs.replace(STATUS, agents=agents), firing=firing)
    assert (found.grade, found.sentence) == expected


def test_a_node_in_trouble_says_so_where_its_agents_are_well() -> None:
    status = msgspec.structs.replace(
        STATUS, agents=[_agent("a", "healthy")], grade="degraded", grade_reason="the disk has 1 GB left"
    )
    assert overview.health_of(status, firing=0).sentence == "the disk has 1 GB left"


def test_a_node_that_has_failed_says_so_before_anything_else() -> None:
    node = msgspec.structs.replace(STATUS.node, state="failed", reason="the disk is full")
    found = overview.health_of(msgspec.structs.replace(STATUS, node=node), firing=3)
    assert (found.grade, found.sentence) == ("unhealthy", "The node is failed: the disk is full")


NOW = datetime(2030, 1, 1, 0, 1, tzinfo=UTC)


def _attempt(number: int, began_s: float, ended_s: float | None, reason: str | None) -> dict[str, object]:
    at = [None if second is None else NOW + timedelta(seconds=second - 60) for second in (began_s, ended_s)]
    return {"attempt": number, "started_at": at[0], "ended_at": at[1], "reason": reason}


def _task(*attempts: dict[str, object], not_before: datetime | None = None) -> dict[str, object]:
    created_at = NOW - timedelta(seconds=60)
    times = {"created_at": created_at, "not_before": not_before, "finished_at": None}
    return {"state": "running", "attempts": attempts, **times}


def test_what_goes_on_still_reaches_to_the_present_in_steps() -> None:
    task = _task(_attempt(1, 10, None, None))
    drawn = [timeline.timeline(task, [], NOW + timedelta(seconds=second)) for second in (0, 4, 5)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [(lane.label, lane.tone, lane.took_s) for lane in drawn[0].lanes] == [
        ("Waited", "plain", 10),
        ("Attempt 1", "busy", 50),
    ]


def test_a_task_that_is_put_off_has_waited_until_now_alone() -> None:
    (lane,) = timeline.timeline(_task(not_before=NOW + timedelta(days=1)), [], NOW).lanes
    assert (lane.label, lane.took_s) == ("Put off", 60)


def test_of_many_attempts_the_first_and_the_last_are_drawn() -> None:
    attempts = [_attempt(number, number, number + 0.5, "drained") for number in range(1, 50)]
    drawn = timeline.timeline(_task(*attempts), [], NOW)
    assert len(drawn.lanes) + drawn.left_out == 99
    assert len(drawn.lanes) == timeline.MAX_LANES
    assert (drawn.lanes[1].label, drawn.lanes[-2].label) == ("Attempt 1", "Attempt 49")
    assert all(0 <= lane.x <= timeline.WIDTH - lane.width for lane in drawn.lanes)


@pytest.mark.parametrize(
    "raw", [b'"' + b"x" * 10**6 + b'"', b"[" + b"1," * 10**6 + b"1]", b'"' + b"\\n" * 40_000 + b'"']
)
def test_however_large_an_output_is_its_beginning_is_shown(raw: bytes) -> None:
    found = payloads.shown(msgspec.Raw(raw))
    assert found is not None
    assert found.is_cut
    assert len(found.text) == payloads.MAX_CHARACTERS
