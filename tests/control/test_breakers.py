"""The breakers' loop: how many tasks of an agent run, by its spec and by what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from greenroom import errors, settings, telemetry
from greenroom.control.breakers import Breakers
from greenroom.core import tasks
from greenroom.engine import protocol
from greenroom.sdk import models
from greenroom.store.deployments import Deployment

if TYPE_CHECKING:
    from control.conftest import Loops

BREAKER = {"min_attempts": 4, "window_s": 30, "open_s": 10}
DOWN = tasks.AgentFailed("ConnectError", "no route", retryable=True)


@pytest.fixture
def breakers(loops: Loops) -> Breakers:
    return Breakers(loops.store, loops.scratch.clock, loops.told, jitter=lambda: 0.0)


def _running(loops: Loops) -> int:
    return loops.store.board.running("agent")


async def _end_all(loops: Loops, *, is_failure: bool) -> None:
    """End what runs, each attempt once: retried ones are due later."""
    for replica in list(loops.engine.replicas.values()):
        for invoke in replica.invocations:
            ended = protocol.Ended(invoke.task, invoke.epoch, output=None if is_failure else b"1")
            if is_failure:
                ended = protocol.Ended(
                    invoke.task, invoke.epoch, error_type="ConnectError", error_message="no route", retryable=True
                )
            loops.engine.say(replica.id, ended)
        replica.sent.clear()
    await loops.settle()


def _end(loops: Loops, end: tasks.End, *, times: int = 1, duration_s: float = 0.1) -> None:
    for _ in range(times):
        reason = tasks.Reason.OK if isinstance(end, tasks.Succeeded) else tasks.Reason.AGENT_ERROR
        loops.told.emit(telemetry.AttemptEnded("agent", "failed", reason, duration_s, "r", end))


async def test_no_more_tasks_run_at_once_than_max_running_says_whoever_submits_them(
    loops: Loops, breakers: Breakers
) -> None:
    await loops.deploy(replicas=2, concurrency=4, max_running=3)
    await breakers.step()
    ids = [await loops.submit() for _ in range(8)]
    assert _running(loops) == 3
    await _end_all(loops, is_failure=False)
    await loops.step()
    assert _running(loops) == 3
    for _ in range(2):
        await _end_all(loops, is_failure=False)
        await loops.step()
    assert {(await loops.task(id)).state for id in ids} == {"succeeded"}


async def test_another_spec_is_taken_over_in_a_step_and_an_agent_that_is_gone_leaves_no_limit(
    loops: Loops, breakers: Breakers
) -> None:
    await loops.deploy(max_running=3)
    await breakers.step()
    assert loops.store.board.limit_of("agent") == 3
    await loops.deploy(max_running=5)
    assert breakers.wakeup.is_set()
    await breakers.step()
    assert loops.store.board.limit_of("agent") == 5
    await loops.deploy()
    await breakers.step()
    assert loops.store.board.limit_of("agent") is None
    await loops.deploy(max_running=2)
    await breakers.step()
    await loops.store.rollouts.remove("agent")
    await loops.store.directory.refresh()
    await breakers.step()
    assert loops.store.board.limit_of("agent") is None


async def test_an_agent_whose_attempts_fail_is_tried_no_more_until_it_is_tried_gently(
    loops: Loops, breakers: Breakers
) -> None:
    await loops.deploy(concurrency=8, breaker=BREAKER, max_attempts=5, retry_backoff_s=0)
    await breakers.step()
    ids = [await loops.submit() for _ in range(6)]
    await _end_all(loops, is_failure=True)
    assert breakers.state("agent").state == "open"
    assert _running(loops) == 0  # in the very commit that ended the last one
    assert {(await loops.task(id)).state for id in ids} == {"queued"}
    ids.append(await loops.submit())  # it is taken, and waits with the others
    await loops.advance(9)
    await breakers.step()
    assert _running(loops) == 0
    await loops.advance(1)
    for expected in (1, 2, 4):
        await breakers.step()
        await loops.step()
        assert _running(loops) == expected
        await _end_all(loops, is_failure=False)
    assert breakers.state("agent") == models.BreakerState(state="closed")
    assert loops.store.board.limit_of("agent") is None
    await loops.step()
    await _end_all(loops, is_failure=False)
    assert {(await loops.task(id)).state for id in ids} == {"succeeded"}


async def test_a_failure_while_it_is_tried_opens_it_for_longer(loops: Loops, breakers: Breakers) -> None:
    await loops.deploy(concurrency=8, breaker=BREAKER, max_attempts=9, retry_backoff_s=0)
    await breakers.step()
    for _ in range(4):
        await loops.submit()
    await _end_all(loops, is_failure=True)
    await loops.advance(10)
    await breakers.step()
    await loops.step()
    assert breakers.state("agent").state == "half_open"
    assert _running(loops) == 1
    await _end_all(loops, is_failure=True)
    assert _running(loops) == 0
    assert breakers.state("agent").state == "open"
    await loops.advance(19)
    assert await breakers.step() == 1.0
    assert breakers.state("agent").state == "open"
    await loops.advance(1)
    await breakers.step()
    assert breakers.state("agent").state == "half_open"


async def test_errors_of_the_tasks_own_and_lost_replicas_open_nothing(loops: Loops, breakers: Breakers) -> None:
    await loops.deploy(breaker=BREAKER, timeout_s=5)
    await breakers.step()
    for end in (
        tasks.AgentFailed("ValueError", "bad input"),
        tasks.ReplicaGone(tasks.Reason.REPLICA_LOST),
        tasks.ReplicaGone(tasks.Reason.DRAINED, charged=False),
        tasks.TimedOut(4.0),
    ):
        _end(loops, end, times=100)
    assert breakers.state("agent").state == "closed"
    _end(loops, tasks.TimedOut(5.0), times=4)
    assert breakers.state("agent").state == "open"


async def test_what_still_runs_from_before_neither_keeps_a_task_from_being_tried_nor_opens_it_again(
    loops: Loops, breakers: Breakers
) -> None:
    await loops.deploy(concurrency=8, breaker=BREAKER)
    await breakers.step()
    old = [await loops.submit() for _ in range(3)]
    _end(loops, DOWN, times=4)
    for _ in range(3):
        await loops.submit()
    await loops.advance(10)
    await breakers.step()
    await loops.step()
    assert _running(loops) == 4
    assert loops.store.board.limit_of("agent") == 4
    (replica,) = loops.engine.replicas.values()
    for invoke in [each for each in replica.invocations if each.task in old]:
        failed = protocol.Ended(invoke.task, invoke.epoch, error_type="E", error_message="late", retryable=True)
        loops.engine.say(replica.id, failed)
    await loops.settle()
    assert breakers.state("agent").state == "half_open"
    assert _running(loops) == 1


async def test_people_are_told_once_and_again_when_it_is_over(loops: Loops, breakers: Breakers) -> None:
    await loops.deploy(breaker=BREAKER)
    await breakers.step()
    _end(loops, DOWN, times=4)
    shown = breakers.state("agent")
    assert shown.reason == "4 of 4 attempts failed within 30 s; the last one: ConnectError"
    assert shown.until is not None
    assert (shown.until - loops.scratch.clock.now()).total_seconds() == 10
    await breakers.step()
    await breakers.step()
    (alert,) = await loops.store.alerts.list()
    assert (alert.id, alert.severity, alert.state, alert.count) == ("breaker-agent", "warning", "firing", 1)
    assert shown.reason in alert.reason
    assert "greenroom agents release agent" in alert.reason
    await loops.advance(10)
    await breakers.step()
    _end(loops, tasks.Succeeded(), duration_s=0.0)
    await breakers.step()
    (alert,) = await loops.store.alerts.list()
    assert alert.state == "resolved"
    moves = [fact.state for fact in loops.facts if isinstance(fact, telemetry.BreakerMoved)]
    assert moves == ["open", "half_open", "closed"]
    told = [fact.state for fact in loops.facts if isinstance(fact, telemetry.AlertChanged)]
    assert told == ["firing", "resolved"]


async def test_what_the_store_could_not_be_told_is_told_later(
    loops: Loops, breakers: Breakers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loops.deploy(breaker=BREAKER)
    await breakers.step()
    _end(loops, DOWN, times=4)

    async def tell(_: object) -> None:
        raise errors.StoreUnavailable("a test said so")

    with monkeypatch.context() as patch:
        patch.setattr(loops.store.alerts, "tell", tell)
        with pytest.raises(errors.StoreUnavailable):
            await breakers.step()
    assert await loops.store.alerts.list() == []
    await breakers.step()
    assert [alert.state for alert in await loops.store.alerts.list()] == ["firing"]


async def test_after_a_restart_it_is_closed_and_its_alert_is_over(loops: Loops, breakers: Breakers) -> None:
    await loops.deploy(breaker=BREAKER)
    await breakers.step()
    _end(loops, DOWN, times=4)
    await breakers.step()
    again = Breakers(loops.store, loops.scratch.clock, telemetry.Telemetry())
    await again.step()
    assert again.state("agent").state == "closed"
    assert [alert.state for alert in await loops.store.alerts.list()] == ["resolved"]


@pytest.mark.parametrize("how", ["by hand", "by another revision", "by the spec"])
async def test_it_can_be_closed(loops: Loops, breakers: Breakers, how: str) -> None:
    await loops.deploy(breaker=BREAKER)
    await breakers.step()
    _end(loops, DOWN, times=4)
    assert loops.store.board.limit_of("agent") == 0
    match how:
        case "by hand":
            breakers.release("agent")
        case "by another revision":
            await loops.deploy(digest="another", breaker=BREAKER, rollout={"scale_down_delay_s": 0})
            await loops.step(times=4)
        case "by the spec":
            parsed = settings.parse_agent("agent", {"factory": "module:agent", "breaker": {"failure_pct": "off"}})
            await loops.store.deployments.deploy(Deployment(agent="agent", digest="d", spec=parsed, by="ann"))
            await loops.store.directory.refresh()
    await breakers.step()
    assert breakers.state("agent").state == ("off" if how == "by the spec" else "closed")
    assert loops.store.board.limit_of("agent") is None
    _end(loops, DOWN, times=3)  # what was before is forgotten
    assert breakers.state("agent").state != "open"


async def test_what_a_distrusted_replica_fails_is_not_counted(loops: Loops, breakers: Breakers) -> None:
    await loops.deploy(replicas=2, breaker=BREAKER)
    await breakers.step()
    bad, good = loops.engine.replicas
    loops.store.board.distrust(bad, is_resting=False)
    for replica, expected in ((bad, "closed"), (good, "open")):
        for _ in range(4):
            ended = telemetry.AttemptEnded("agent", "queued", tasks.Reason.AGENT_ERROR, 0.1, replica, DOWN)
            loops.told.emit(ended)
        assert breakers.state("agent").state == expected


async def test_an_agent_that_nobody_knows_has_a_closed_one(loops: Loops, breakers: Breakers) -> None:
    assert breakers.state("agent").state == "closed"
    breakers.release("agent")
    _end(loops, DOWN, times=100)
    await breakers.step()
    assert loops.store.board.limit_of("agent") is None
