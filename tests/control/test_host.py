"""The host: replicas are made what they should be, deaths are judged, and leaving is orderly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from greenroom import telemetry
from greenroom.core import recovery

if TYPE_CHECKING:
    from control.conftest import Loops


async def _state(loops: Loops, agent: str = "agent") -> tuple[str, str]:
    row = (await loops.store.directory.refresh())[agent].agent
    return row.state, row.reason


async def test_replicas_are_started_and_their_agent_is_ready_when_they_are(loops: Loops) -> None:
    loops.engine.is_eager = False
    await loops.deploy(replicas=2)
    assert len(loops.engine.replicas) == 2
    assert await _state(loops) == ("starting", "0 of 2 replicas are ready")
    assert not loops.host.settled.is_set()
    for replica in loops.engine.replicas:
        loops.engine.ready(replica)
    await loops.step()
    assert await _state(loops) == ("ready", "")
    assert loops.host.settled.is_set()
    assert {(row.state, row.slots) for row in await loops.store.agents.replicas()} == {("ready", 1)}


async def test_who_is_killed_at_its_first_work_is_replaced_at_once_however_often(loops: Loops) -> None:
    await loops.deploy(max_attempts=100, retry_backoff_s=0)
    id = await loops.submit()
    for number in range(2, 2 + 2 * recovery.INTENSITY):
        loops.engine.die(loops.replica_of(id))
        await loops.step()
        assert len(loops.engine.started) == number
        await loops.step(times=2)
    assert await _state(loops) == ("ready", "")
    rows = await loops.store.agents.replicas()
    assert [row.restarts for row in rows] == [2 * recovery.INTENSITY]


async def test_who_dies_of_its_first_tasks_comes_back_slower_and_is_given_up(loops: Loops) -> None:
    await loops.deploy(max_attempts=2, retry_backoff_s=0)
    ids = [await loops.submit() for _ in range(recovery.INTENSITY + 1)]
    for number in range(1, 2 * recovery.INTENSITY + 1):
        assert len(loops.engine.started) == number
        loops.engine.die(next(iter(loops.engine.replicas)), "crashed", f"death {number}")
        await loops.step()
        assert len(loops.engine.started) == number
        await loops.advance(recovery.CAP_AT_WORK_S)
    assert len(loops.engine.started) == 2 * recovery.INTENSITY
    state, reason = await _state(loops)
    assert (state, reason.partition(" (")[0]) == ("failed", f"death {2 * recovery.INTENSITY}")
    assert [(await loops.task(id)).state for id in ids] == ["failed"] * recovery.INTENSITY + ["queued"]


async def test_a_task_that_kills_every_replica_does_not_end_its_agent(loops: Loops) -> None:
    await loops.deploy(max_attempts=recovery.INTENSITY, retry_backoff_s=0)
    poison = await loops.submit()
    for _ in range(recovery.INTENSITY):
        loops.engine.die(loops.replica_of(poison), "crashed")
        await loops.advance(recovery.CAP_AT_WORK_S)
    assert (await loops.task(poison)).state == "failed"
    innocent = await loops.submit()
    loops.engine.succeed(loops.replica_of(innocent))
    await loops.settle()
    assert (await loops.task(innocent)).state == "succeeded"
    assert await _state(loops) == ("ready", "")


async def test_a_revision_that_has_succeeded_once_is_not_blamed_for_what_dies_at_work(loops: Loops) -> None:
    await loops.deploy(max_attempts=100, retry_backoff_s=0)
    loops.engine.succeed(loops.replica_of(await loops.submit()))
    await loops.settle()
    id = await loops.submit()
    for _ in range(2 * recovery.INTENSITY):
        started = len(loops.engine.started)
        loops.engine.die(loops.replica_of(id), "crashed")
        await loops.step()
        assert len(loops.engine.started) == started + 1
        await loops.step(times=2)
    assert await _state(loops) == ("ready", "")


async def test_the_work_of_an_old_revision_does_not_excuse_a_new_one(loops: Loops) -> None:
    await loops.deploy()
    (old,) = loops.engine.replicas
    loops.engine.is_eager = False
    await loops.deploy(digest="new")
    for number in range(recovery.INTENSITY):
        (fresh,) = set(loops.engine.replicas) - {old}
        loops.engine.die(fresh, "crashed", "broken")
        loops.engine.succeed(loops.replica_of(await loops.submit()))
        await loops.advance(recovery.BASE_S * 2.0**number)
    assert set(loops.engine.replicas) == {old}
    assert (await _state(loops))[1].startswith("broken (given up")


async def test_who_dies_in_idleness_comes_back_slower_and_is_given_up(loops: Loops) -> None:
    await loops.deploy()
    for number in range(1, recovery.INTENSITY + 1):
        assert len(loops.engine.started) == number
        loops.engine.die(next(iter(loops.engine.replicas)), "crashed", f"death {number}")
        await loops.step()
        assert len(loops.engine.started) == number
        assert (await _state(loops))[0] == "failed"
        await loops.advance(recovery.BASE_S * 2.0 ** (number - 1))
    assert len(loops.engine.started) == recovery.INTENSITY
    state, reason = await _state(loops)
    assert state == "failed"
    assert reason.startswith(f"death {recovery.INTENSITY} (given up")
    assert sum(isinstance(fact, telemetry.AgentFailing) for fact in loops.facts) == recovery.INTENSITY
    await loops.advance(3600)
    assert len(loops.engine.started) == recovery.INTENSITY


async def test_a_given_up_agent_is_judged_anew_when_it_is_deployed_again(loops: Loops) -> None:
    loops.engine.refusal = "cannot load agent agent: there is no module"
    await loops.deploy()
    assert await _state(loops) == ("failed", loops.engine.refusal)
    assert loops.host.settled.is_set()
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    await loops.advance(60)
    loops.engine.refusal = ""
    await loops.deploy()
    assert await _state(loops) == ("ready", "")


async def test_a_success_clears_the_record(loops: Loops) -> None:
    await loops.deploy()
    for _ in range(recovery.INTENSITY - 1):
        loops.engine.die(next(iter(loops.engine.replicas)))
        await loops.advance(10)
    id = await loops.submit()
    loops.engine.succeed(loops.replica_of(id))
    await loops.settle()
    loops.engine.die(next(iter(loops.engine.replicas)))
    await loops.advance(10)
    assert await _state(loops) == ("ready", "")


async def test_a_neighbour_is_not_touched_by_a_crash_loop(loops: Loops) -> None:
    await loops.deploy("good")
    good = set(loops.engine.replicas)
    await loops.deploy("bad")
    for _ in range(recovery.INTENSITY):
        for replica in set(loops.engine.replicas) - good:
            loops.engine.die(replica)
        await loops.advance(7)
    assert set(loops.engine.replicas) == good
    assert await _state(loops, "good") == ("ready", "")


async def test_a_new_revision_is_ready_before_the_old_one_goes_and_no_task_is_cut(loops: Loops) -> None:
    await loops.deploy()
    (old,) = loops.engine.replicas
    id = await loops.submit()
    loops.engine.is_eager = False
    await loops.deploy(digest="new")
    assert next(iter(loops.engine.replicas)) == old
    (fresh,) = set(loops.engine.replicas) - {old}
    loops.engine.ready(fresh)
    await loops.step(times=3)
    assert set(loops.engine.replicas) == {old, fresh}
    assert loops.replica_of(await loops.submit()) == fresh
    loops.engine.succeed(old, b'"kept"')
    await loops.settle()
    await loops.step(times=2)
    assert set(loops.engine.replicas) == {fresh}
    assert (await loops.task(id)).output == b'"kept"'


async def test_the_replicas_of_a_removed_agent_go_and_its_record_too(loops: Loops) -> None:
    await loops.deploy()
    await loops.store.agents.remove("agent")
    await loops.step(times=3)
    assert not loops.engine.replicas
    assert not loops.host._health


async def test_a_restarted_replica_is_drained_and_replaced(loops: Loops) -> None:
    await loops.deploy()
    (old,) = loops.engine.replicas
    id = await loops.submit()
    assert loops.host.restart(old)
    assert not loops.host.restart("unknown")
    await loops.step(times=2)
    assert old in loops.engine.replicas
    loops.engine.succeed(old)
    await loops.settle()
    await loops.step(times=2)
    assert old not in loops.engine.replicas
    assert len(loops.engine.replicas) == 1
    assert (await loops.task(id)).state == "succeeded"


async def test_leaving_waits_for_what_runs_and_starts_nothing_more(loops: Loops) -> None:
    await loops.deploy(replicas=2)
    id = await loops.submit()
    leaving = asyncio.create_task(loops.host.drain_all(grace_s=20))
    await loops.settle()
    await loops.advance(5)
    assert not leaving.done()
    late = await loops.submit()
    assert (await loops.task(late)).state == "queued"
    loops.engine.succeed(loops.replica_of(id))
    await loops.settle()
    await loops.advance(0.1)
    await asyncio.wait_for(leaving, 5)
    await loops.step(times=2)
    assert not loops.engine.replicas
    assert (await loops.task(id)).state == "succeeded"


async def test_leaving_hands_back_what_does_not_end_within_the_grace(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    leaving = asyncio.create_task(loops.host.drain_all(grace_s=20))
    await loops.settle()
    await loops.advance(19)
    assert not leaving.done()
    await loops.advance(2)
    await asyncio.wait_for(leaving, 5)
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.attempts_charged) == ("queued", 0)


async def test_leaving_in_a_hurry_waits_for_nothing(loops: Loops) -> None:
    await loops.deploy()
    await loops.submit()
    leaving = asyncio.create_task(loops.host.drain_all(grace_s=3600))
    await loops.advance(1)
    loops.host.hurry()
    await loops.advance(0.1)
    await asyncio.wait_for(leaving, 5)
