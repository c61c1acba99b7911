"""The reconciler: rollouts are moved on by what is seen of their new revisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greenroom.core import rollouts
from greenroom.core.rollouts import Phase
from greenroom.engine import protocol
from greenroom.store.rollouts import Rollout

if TYPE_CHECKING:
    from control.conftest import Loops

BLUE_GREEN = {"strategy": "blue-green", "scale_down_delay_s": 10}


async def last(loops: Loops) -> Rollout:
    rollout = (await loops.store.directory.refresh())["agent"].rollout
    assert rollout is not None
    return rollout


async def serving(loops: Loops) -> int:
    return (await loops.store.directory.refresh())["agent"].agent.revision


def of(loops: Loops, revision: int) -> list[str]:
    return [each.id for each in loops.engine.replicas.values() if each.revision.number == revision]


async def run(loops: Loops, *, outcomes: dict[int, bytes | None]) -> int:
    """Submit a task and end it as its revision does: with an output, or None for an error; return the revision."""
    id = await loops.submit()
    replica = loops.replica_of(id)
    revision = loops.engine.replicas[replica].revision.number
    output = outcomes[revision]
    ended = protocol.Ended(id, 1, output=output, error_type=None if output else "ValueError", input_tokens=10)
    loops.engine.say(replica, ended)
    await loops.settle()
    return revision


async def test_a_revision_is_tried_before_it_gets_tasks_and_serves_when_it_has_passed(loops: Loops) -> None:
    await loops.deploy(replicas=2, rollout=BLUE_GREEN)
    loops.engine.holds_trials = True
    await loops.deploy(digest="new", replicas=2, rollout=BLUE_GREEN)
    fresh = of(loops, 2)
    assert len(fresh) == 2
    assert loops.engine.replicas[loops.replica_of(await loops.submit())].revision.number == 1
    for replica in fresh:
        (probe,) = loops.engine.replicas[replica].trials
        assert isinstance(probe, protocol.Check)
        loops.engine.say(replica, protocol.Ended(probe.task, 0, output=b"true"))
    await loops.step(times=2)
    assert await serving(loops) == 2
    assert loops.engine.replicas[loops.replica_of(await loops.submit())].revision.number == 2
    assert len(of(loops, 1)) == 2
    await loops.advance(10)
    loops.engine.succeed(of(loops, 1)[0])
    await loops.step(times=3)
    assert of(loops, 1) == []


@pytest.mark.parametrize("kind", ["rolling", "blue-green", "canary"])
async def test_a_failed_check_rolls_back_and_says_which(loops: Loops, kind: str) -> None:
    await loops.deploy()
    loops.engine.check_failure = "it said no"
    await loops.deploy(digest="new", rollout={"strategy": kind, "checks": ["module:smoke"]})
    await loops.step(times=2)
    rollout = await last(loops)
    assert (rollout.phase, await serving(loops), of(loops, 2)) == (Phase.ROLLED_BACK, 1, [])
    assert "it said no" in rollout.reason


async def test_a_check_whose_replica_goes_away_runs_again_on_another(loops: Loops) -> None:
    await loops.deploy(rollout=BLUE_GREEN)
    loops.engine.holds_trials = True
    await loops.deploy(digest="new", rollout=BLUE_GREEN | {"checks": ["module:smoke"]})
    for number in range(2):
        (fresh,) = of(loops, 2)
        for place in range(2):
            trial = loops.engine.replicas[fresh].trials[place]
            if place == 1 and number == 0:
                loops.engine.die(fresh, "killed")
                break
            loops.engine.say(fresh, protocol.Ended(trial.task, 0, output=b"true"))
            await loops.step(times=2)
        await loops.advance(1)
    assert (await last(loops)).phase == Phase.COMPLETE


async def test_an_example_whose_output_is_not_as_expected_rolls_back(loops: Loops) -> None:
    example = {"input": "2 + 2", "contains": "4"}
    await loops.deploy()
    await loops.deploy(digest="new", rollout={"examples": [example]})
    (fresh,) = of(loops, 2)
    (invoke,) = loops.engine.replicas[fresh].invocations
    assert (invoke.is_check, invoke.input) == (True, b'"2 + 2"')
    loops.engine.say(fresh, protocol.Ended(invoke.task, 0, output=b'"five"'))
    await loops.step(times=2)
    rollout = await last(loops)
    assert rollout.phase == Phase.ROLLED_BACK
    assert rollout.reason.startswith("its example 1 failed: ")


async def test_a_revision_that_is_never_ready_is_rolled_back_at_the_deadline(loops: Loops) -> None:
    await loops.deploy()
    loops.engine.is_eager = False
    await loops.deploy(digest="new", rollout={"progress_deadline_s": 60})
    await loops.advance(59)
    assert (await last(loops)).phase == Phase.PROGRESSING
    await loops.advance(2)
    rollout = await last(loops)
    assert (rollout.phase, of(loops, 2)) == (Phase.ROLLED_BACK, [])
    assert rollout.reason == "no progress within 60 s (progress_deadline_s): 0 of 1 replicas were ready"


async def test_a_canary_that_fails_its_tasks_is_rolled_back_and_a_good_one_gets_through(loops: Loops) -> None:
    canary = {"strategy": "canary", "weights": [20, 100]}
    await loops.deploy(rollout=canary, concurrency=50)
    await loops.deploy(digest="bad", rollout=canary, concurrency=50)
    assert (await last(loops)).state.weight_pct == 20
    for _ in range(100):
        await run(loops, outcomes={1: b'"fine"', 2: None})
    await loops.step(times=2)
    rollout = await last(loops)
    assert (rollout.phase, await serving(loops)) == (Phase.ROLLED_BACK, 1)
    assert rollout.state.evidence[-1].candidate.errors >= 3
    await loops.deploy(digest="good", rollout=canary, concurrency=50)
    for _ in range(200):
        await run(loops, outcomes={1: b'"fine"', 3: b'"fine"'})
    await loops.step(times=3)
    assert (await last(loops)).phase == Phase.COMPLETE


async def test_what_was_counted_goes_on_after_the_node_was_killed(loops: Loops) -> None:
    canary = {"strategy": "canary", "weights": [50, 100]}
    await loops.deploy(rollout=canary, concurrency=50)
    await loops.deploy(digest="new", rollout=canary, concurrency=50)
    for _ in range(10):
        await run(loops, outcomes={1: b"1", 2: b"1"})
    await loops.advance(6)  # what is counted is written now and then
    counted = (await last(loops)).state.evidence[-1].candidate.tasks
    assert counted == 5
    loops.another_reconciler()
    await loops.step()
    for _ in range(4):
        await run(loops, outcomes={1: b"1", 2: b"1"})
    await loops.advance(6)
    assert (await last(loops)).state.evidence[-1].candidate.tasks == 7


async def test_time_that_passes_while_no_node_lives_ends_no_rollout(loops: Loops) -> None:
    await loops.deploy()
    loops.engine.is_eager = False
    await loops.deploy(digest="new")
    await loops.scratch.advance(100)
    loops.another_reconciler()
    await loops.step(times=2)
    assert (await last(loops)).phase == Phase.PROGRESSING


async def test_what_somebody_has_moved_meanwhile_is_read_again(loops: Loops) -> None:
    await loops.deploy(rollout=BLUE_GREEN)
    loops.engine.is_eager = False
    await loops.deploy(digest="new", rollout=BLUE_GREEN)
    rollout = await last(loops)
    assert await loops.store.rollouts.put(rollout, rollouts.abort(rollout.state, "ann undid it"))
    (fresh,) = of(loops, 2)
    loops.engine.ready(fresh)
    await loops.step(times=3)
    rollout = await last(loops)
    assert (rollout.phase, rollout.reason, await serving(loops), of(loops, 2)) == (
        Phase.ABORTED,
        "ann undid it",
        1,
        [],
    )


async def test_a_first_revision_gets_no_task_before_its_checks_have_passed(loops: Loops) -> None:
    loops.engine.holds_trials = True
    given: dict[str, Any] = {"rollout": {"checks": ["module:smoke"]}}
    await loops.deploy(**given)
    id = await loops.submit()
    agent = (await loops.store.directory.refresh())["agent"].agent
    assert (agent.state, agent.reason, (await loops.task(id)).state) == ("starting", "its checks run", "queued")
    (replica,) = of(loops, 1)
    for _ in range(2):
        trial = loops.engine.replicas[replica].trials[-1]
        loops.engine.say(replica, protocol.Ended(trial.task, 0, output=b"true"))
        await loops.step(times=2)
    agent = (await loops.store.directory.refresh())["agent"].agent
    assert (agent.state, (await loops.task(id)).state) == ("ready", "running")


async def test_a_first_revision_that_fails_its_checks_says_why_and_keeps_its_tasks(loops: Loops) -> None:
    loops.engine.check_failure = "it said no"
    await loops.deploy(rollout={"checks": ["module:smoke"]})
    id = await loops.submit()
    await loops.step(times=2)
    agent = (await loops.store.directory.refresh())["agent"].agent
    assert (agent.state, "it said no" in agent.reason) == ("failed", True)
    assert (await loops.task(id)).state == "queued"
    (alert,) = await loops.store.alerts.list()
    assert "it said no" in alert.reason
