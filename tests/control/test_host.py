"""The host: replicas are made what they should be, deaths are judged, and leaving is orderly."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from greenroom import errors, settings, telemetry
from greenroom.control import host
from greenroom.core import failures, recovery, rollouts
from greenroom.engine import contract, protocol
from greenroom.store.deployments import Deployment
from greenroom.store.recovery import Noted

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
    await loops.deploy()
    for number in range(2, 2 + 2 * recovery.INTENSITY):
        id = await loops.submit()
        loops.engine.die(loops.replica_of(id))
        await loops.step()
        assert len(loops.engine.started) == number
        await loops.store.tasks.cancel(id, tenant="acme")
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 2, cancelled=True))
        await loops.step(times=2)
    assert await _state(loops) == ("ready", "")
    rows = await loops.store.agents.replicas()
    assert [row.restarts for row in rows] == [2 * recovery.INTENSITY]


async def test_who_dies_of_its_first_tasks_comes_back_slower_and_is_quarantined(loops: Loops) -> None:
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
    assert (state, reason.partition(" (")[0]) == ("quarantined", f"death {2 * recovery.INTENSITY}")
    assert [(await loops.task(id)).state for id in ids] == ["failed"] * recovery.INTENSITY + ["queued"]


async def test_a_revision_that_has_succeeded_once_is_not_blamed_for_what_dies_at_work(loops: Loops) -> None:
    await loops.deploy(max_attempts=100, retry_backoff_s=0)
    loops.engine.succeed(loops.replica_of(await loops.submit()))
    await loops.settle()
    for _ in range(2 * recovery.INTENSITY):
        id = await loops.submit(timeout_s=1)
        started = len(loops.engine.started)
        loops.engine.die(loops.replica_of(id), "crashed")
        await loops.step()
        assert len(loops.engine.started) == started + 1
        await loops.advance(1)
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 2, cancelled=True))
        await loops.step(times=2)
    assert await _state(loops) == ("ready", "")


async def test_a_start_that_waits_is_not_late_by_a_step(loops: Loops) -> None:
    await loops.deploy()
    loops.engine.is_eager = False
    assert await loops.host.step() == host.STEP_EVERY_S
    (replica,) = loops.engine.replicas
    loops.engine.die(replica, "crashed", "broken")
    wait_s = await loops.host.step()
    assert 0 < wait_s <= recovery.BASE_S < host.STEP_EVERY_S
    started = len(loops.engine.started)
    await loops.scratch.advance(wait_s)
    await loops.host.step()
    assert len(loops.engine.started) == started + 1


async def test_the_work_of_an_old_revision_does_not_excuse_a_new_one_that_never_gets_ready(loops: Loops) -> None:
    await loops.deploy()
    (old,) = loops.engine.replicas
    loops.engine.is_eager = False
    await loops.deploy(digest="new")
    for number in range(rollouts.MOST_DEATHS):
        (fresh,) = set(loops.engine.replicas) - {old}
        loops.engine.die(fresh, "crashed", "broken")
        loops.engine.succeed(loops.replica_of(await loops.submit()))
        await loops.advance(recovery.BASE_S * 2.0**number)
    assert set(loops.engine.replicas) == {old}
    assert await _state(loops) == ("ready", "")
    entry = (await loops.store.directory.refresh())["agent"]
    assert (entry.agent.revision, entry.rollout and entry.rollout.phase) == (1, "rolled_back")
    (alert,) = await loops.store.alerts.list()
    told = "the rollout of agent to revision 2 has failed and revision 1 serves: 3 of its replicas have died; "
    assert (alert.state, alert.severity, alert.reason) == ("firing", "warning", f"{told}the last one: broken")


async def test_a_new_revision_that_serves_and_survives_no_task_is_rolled_back(loops: Loops) -> None:
    await loops.deploy(max_attempts=100, retry_backoff_s=0)
    loops.engine.succeed(loops.replica_of(await loops.submit()))
    await loops.step(times=2)
    await loops.deploy(digest="new", max_attempts=100, retry_backoff_s=0)
    await loops.advance(6)
    for _ in range(recovery.INTENSITY):
        await loops.advance(recovery.CAP_S)
        await loops.submit()
        for fresh in [each.id for each in loops.engine.replicas.values() if each.revision.number == 2]:
            loops.engine.die(fresh, "crashed", "broken")
    await loops.step(times=3)
    entry = (await loops.store.directory.refresh())["agent"]
    assert (entry.agent.revision, entry.rollout and entry.rollout.begun_by) == (1, "recovery")
    assert [fact.to for fact in loops.facts if isinstance(fact, telemetry.AgentRolledBack)] == [1]
    (alert,) = await loops.store.alerts.list()
    assert (alert.state, alert.severity, "revision 2 of agent was rolled back to 1: broken" in alert.reason) == (
        "firing",
        "warning",
        True,
    )
    assert "roll_back" in {failure.rung for failure in await loops.store.recovery.failures()}


async def test_the_ladder_is_written_down_rung_by_rung_with_the_incarnation_that_each_led_to(loops: Loops) -> None:
    loops.engine.is_eager = False
    await loops.deploy()
    ready: list[str | None] = []
    for number in range(recovery.INTENSITY):
        (replica,) = loops.engine.replicas
        is_ready = number % 2 == 1
        if is_ready:
            loops.engine.ready(replica)
            await loops.step()
        ready.append(replica if is_ready else None)
        loops.engine.die(replica, "crashed", f"death {number}")
        await loops.advance(recovery.BASE_S * 2.0**number)
    failures = [*reversed(await loops.store.recovery.failures(agent="agent"))]
    assert [(row.rung, row.reason) for row in failures] == [
        ("restart", "death 0"),
        ("restart", "death 1"),
        ("replace", "death 2"),
        ("migrate", "death 3"),
        ("quarantine", "death 4"),
    ]
    assert [row.recovered_by for row in failures] == [*ready[1:], None]
    assert [replica.revision.interpreter for replica in loops.engine.started] == [0, 0, 0, 1, 2]


async def test_a_migration_hands_the_work_of_those_that_still_run_over_to_a_fresh_interpreter(loops: Loops) -> None:
    await loops.deploy(replicas=2)
    id = await loops.submit()
    steady, dying = loops.replica_of(id), ""
    for _ in range(4):
        (dying,) = set(loops.engine.replicas) - {steady}
        loops.engine.is_eager = False
        loops.engine.die(dying, "crashed")
        await loops.step()
        await loops.advance(8)
    assert steady in loops.engine.replicas
    (first,) = set(loops.engine.replicas) - {steady}  # one has to get ready before another is started
    loops.engine.ready(first)
    await loops.step()
    assert steady in loops.engine.replicas
    (second,) = set(loops.engine.replicas) - {steady, first}
    loops.engine.ready(second)
    await loops.step(times=3)
    fresh = {first, second}
    assert set(loops.engine.replicas) == fresh
    assert loops.replica_of(id) in fresh
    task = await loops.task(id)
    assert (task.state, task.epoch, task.attempts_charged, task.kills) == ("running", 2, 1, 0)


async def test_of_many_that_die_at_once_one_is_started_and_the_others_when_that_is_ready(loops: Loops) -> None:
    await loops.deploy(replicas=8)
    loops.engine.is_eager = False
    for replica in list(loops.engine.replicas):
        loops.engine.die(replica, "crashed")
    await loops.step()
    await loops.advance(1)
    (replica,) = loops.engine.replicas
    loops.engine.ready(replica)
    await loops.step(times=2)
    assert len(loops.engine.replicas) == 8
    for replica in list(loops.engine.replicas)[1:]:
        loops.engine.ready(replica)
    await loops.step()
    assert await _state(loops) == ("ready", "")
    assert loops.host._recovery.record("agent").deaths == 1
    assert {row.recovered_by for row in await loops.store.recovery.failures()} == set(loops.engine.replicas)


async def test_who_is_stopped_while_it_has_nothing_to_do_is_replaced_and_not_blamed(loops: Loops) -> None:
    await loops.deploy()
    loops.engine.succeed(loops.replica_of(await loops.submit()))
    await loops.settle()
    for _ in range(2 * recovery.INTENSITY):
        loops.engine.die(next(iter(loops.engine.replicas)), "hung")
        await loops.advance(1)
    assert await _state(loops) == ("ready", "")
    assert [row.kind for row in await loops.store.recovery.failures()] == ["hung"] * 2 * recovery.INTENSITY


async def test_who_dies_in_idleness_comes_back_slower_and_is_quarantined_with_one_alert(loops: Loops) -> None:
    await loops.deploy()
    for number in range(1, recovery.INTENSITY + 1):
        assert len(loops.engine.started) == number
        loops.engine.die(next(iter(loops.engine.replicas)), "crashed", f"death {number}")
        await loops.step()
        assert len(loops.engine.started) == number
        assert (await _state(loops))[0] == ("failed" if number < recovery.INTENSITY else "quarantined")
        await loops.advance(recovery.BASE_S * 2.0 ** (number - 1))
    assert len(loops.engine.started) == recovery.INTENSITY
    state, reason = await _state(loops)
    assert state == "quarantined"
    assert reason.startswith(f"death {recovery.INTENSITY} (quarantined")
    assert sum(isinstance(fact, telemetry.AgentFailing) for fact in loops.facts) == recovery.INTENSITY
    await loops.advance(3600)
    assert len(loops.engine.started) == recovery.INTENSITY
    (alert,) = await loops.store.alerts.list()
    assert (alert.state, alert.severity) == ("firing", "critical")


async def test_a_quarantined_agent_is_judged_anew_when_it_is_deployed_again_or_released(loops: Loops) -> None:
    loops.engine.refusal = "cannot load agent agent: there is no module"
    await loops.deploy()
    assert await _state(loops) == ("failed", loops.engine.refusal)
    assert loops.host.settled.is_set()
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    assert (await _state(loops))[0] == "quarantined"
    await loops.deploy()
    assert await _state(loops) == ("failed", loops.engine.refusal)
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    assert (await _state(loops))[0] == "quarantined"
    loops.engine.refusal = ""
    await loops.store.agents.release("agent")
    await loops.step(times=2)
    assert await _state(loops) == ("ready", "")
    (alert,) = await loops.store.alerts.list()
    assert (alert.state, alert.count) == ("resolved", 1)


async def test_a_node_that_was_killed_remembers_the_quarantine_and_one_that_was_stopped_tries_once_more(
    loops: Loops,
) -> None:
    loops.engine.refusal = "broken"
    await loops.deploy()
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    assert (await _state(loops))[0] == "quarantined"
    loops.host = loops.another_host()  # a new life: only the store is left of the one before
    started = loops.engine.starts
    await loops.advance(3600)
    assert ((await _state(loops))[0], loops.engine.starts) == ("quarantined", started)
    acknowledged = await loops.store.alerts.acknowledge("agent-agent", by="ada")
    await loops.host.drain_all(grace_s=0)
    await loops.host.leave()
    loops.host = loops.another_host()
    await loops.advance(60)
    await loops.advance(60)
    assert ((await _state(loops))[0], loops.engine.starts) == ("quarantined", started + 1)
    assert await loops.store.alerts.list() == [acknowledged]  # the same, and not raised again


async def test_a_store_that_does_not_answer_while_a_replica_is_started_costs_a_step_and_no_replica(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    await loops.deploy(replicas=2)
    loops.engine.die(next(iter(loops.engine.replicas)), "killed")
    revision_of = loops.host._revision_of

    async def away(_: object, __: int) -> contract.Revision:
        raise errors.StoreUnavailable("away")

    monkeypatch.setattr(loops.host, "_revision_of", away)
    await loops.scratch.advance(1)
    with pytest.raises(errors.StoreUnavailable):
        await loops.host.step()
    monkeypatch.setattr(loops.host, "_revision_of", revision_of)
    await loops.advance(1)
    assert await _state(loops) == ("ready", "")
    (failure,) = await loops.store.recovery.failures()
    assert failure.recovered_by in loops.engine.replicas


async def test_a_migration_lets_end_what_must_not_run_twice(loops: Loops) -> None:
    await loops.deploy(replicas=2, on_replica_loss="fail")
    id = await loops.submit()
    steady = loops.replica_of(id)
    for _ in range(4):
        (dying,) = set(loops.engine.replicas) - {steady}
        loops.engine.is_eager = False
        loops.engine.die(dying, "crashed")
        await loops.step()
        await loops.advance(8)
    loops.engine.is_eager = True
    (first,) = set(loops.engine.replicas) - {steady}
    loops.engine.ready(first)
    await loops.step(times=3)
    assert steady in loops.engine.replicas
    assert (await loops.task(id)).state == "running"
    loops.engine.succeed(steady)
    await loops.settle()
    await loops.step(times=2)
    assert steady not in loops.engine.replicas
    assert (await loops.task(id)).state == "succeeded"


async def test_what_no_database_takes_in_the_words_of_a_death_ends_nobody(loops: Loops) -> None:
    await loops.deploy()
    loops.engine.die(next(iter(loops.engine.replicas)), "crashed", "a\0b\ud800c" * 1_000)
    await loops.step()
    (failure,) = await loops.store.recovery.failures()
    assert failure.reason.startswith("a?b?c")
    assert len(failure.reason) <= failures.MAX_WORDS


async def test_a_record_that_cannot_be_read_stops_no_host(loops: Loops) -> None:
    await loops.deploy()
    await loops.store.recovery.note(Noted("agent", b"\xff"))
    loops.host = loops.another_host()
    await loops.step(times=2)
    assert (await loops.store.recovery.records())["agent"][0].startswith(b"{")


async def test_what_works_after_an_orderly_stop_is_no_longer_alerted(loops: Loops) -> None:
    loops.engine.refusal = "broken"
    await loops.deploy()
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    await loops.host.drain_all(grace_s=0)
    await loops.host.leave()
    loops.engine.refusal = ""
    loops.host = loops.another_host()
    await loops.step(times=3)
    assert await _state(loops) == ("ready", "")
    (alert,) = await loops.store.alerts.list()
    assert alert.state == "resolved"


@pytest.mark.parametrize("lives_on", [True, False])
async def test_who_is_deployed_in_the_place_of_a_removed_agent_is_judged_anew(loops: Loops, *, lives_on: bool) -> None:
    loops.engine.refusal = "broken"
    await loops.deploy()
    for _ in range(recovery.INTENSITY):
        await loops.advance(60)
    assert (await _state(loops))[0] == "quarantined"
    loops.engine.refusal = ""
    spec = (await loops.store.directory.refresh())["agent"].spec
    await loops.store.rollouts.remove("agent")
    await loops.store.deployments.deploy(
        Deployment(agent="agent", digest="d", spec=spec, by="ann")
    )  # before any step has seen it gone
    if not lives_on:
        loops.host = loops.another_host()
    await loops.step(times=3)
    assert await _state(loops) == ("ready", "")


async def test_a_node_that_is_killed_in_the_middle_of_the_ladder_goes_on_where_it_was(loops: Loops) -> None:
    loops.engine.is_eager = False
    await loops.deploy()
    for _ in range(3):
        loops.engine.die(next(iter(loops.engine.replicas)), "crashed", "broken")
        await loops.step()
        await loops.advance(10)
    loops.engine.replicas.clear()
    loops.host = loops.another_host()
    await loops.step(times=2)
    (replica,) = loops.engine.replicas
    loops.engine.ready(replica)
    await loops.step()
    latest, *before = await loops.store.recovery.failures()
    assert (latest.rung, latest.recovered_by) == ("replace", replica)
    assert [row.recovered_by for row in before] == [None, None]
    for _ in range(2):
        loops.engine.die(next(iter(loops.engine.replicas)), "crashed", "broken")
        await loops.advance(60)
    assert (await _state(loops))[0] == "quarantined"


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


# A task that kills


async def test_a_task_that_has_killed_two_replicas_runs_alone_and_is_poison_if_it_kills_that_one(loops: Loops) -> None:
    await loops.deploy(concurrency=4, max_attempts=10)
    poison = await loops.submit()
    innocents = [await loops.submit() for _ in range(3)]
    loops.engine.die(loops.replica_of(poison), "crashed", "exit code 1")
    await loops.advance(1)
    assert {(await loops.task(id)).attempts_charged for id in innocents} == {1}  # the first was given back
    loops.engine.die(loops.replica_of(poison), "crashed", "exit code 1")
    await loops.advance(1)
    alone = loops.replica_of(poison)
    assert [invoke.task for invoke in loops.engine.replicas[alone].invocations] == [poison]
    assert len(loops.engine.replicas) == 2
    loops.engine.die(alone, "crashed", "exit code 1")
    await loops.step(times=3)
    task = await loops.task(poison)
    assert (task.state, task.kills) == ("failed", 2)
    assert msgspec.json.decode(task.error or b"")["type"] == "poison"
    for _ in range(len(innocents)):  # they were suspected, too: one after the other shows that it is not
        (running,) = [id for id in innocents if (await loops.task(id)).state == "running"]
        loops.engine.succeed(loops.replica_of(running))
        await loops.settle()
        await loops.step(times=2)
    assert [(await loops.task(id)).state for id in innocents] == ["succeeded"] * 3
    await loops.step(times=3)
    assert len(loops.engine.replicas) == 1
    record = loops.host._recovery.record("agent")
    assert (record.deaths, record.rung) == (0, None)
    assert await _state(loops) == ("ready", "")


async def test_who_is_killed_from_outside_while_it_runs_alone_is_not_poison(loops: Loops) -> None:
    await loops.deploy(max_attempts=10, retry_backoff_s=0)
    id = await loops.submit()
    for _ in range(5):
        loops.engine.die(loops.replica_of(id), "killed", "by SIGKILL")
        await loops.step(times=4)
    assert ((await loops.task(id)).state, (await loops.task(id)).kills) == ("running", 5)
    loops.engine.succeed(loops.replica_of(id))
    await loops.settle()
    assert (await loops.task(id)).state == "succeeded"


async def test_a_parent_that_waits_is_no_suspect(loops: Loops) -> None:
    await loops.deploy(concurrency=1)
    await loops.deploy("other")
    parent = await loops.submit()
    invoke = loops.engine.replicas[loops.replica_of(parent)].invocations[0]
    loops.engine.say(loops.replica_of(parent), protocol.Called(invoke.task, invoke.epoch, 0, "other", b"1"))
    await loops.settle()
    runs = await loops.submit()
    assert loops.replica_of(runs) == loops.replica_of(parent)
    loops.engine.die(loops.replica_of(runs), "crashed")
    await loops.settle()
    kills = [((await loops.task(id)).kills, (await loops.task(id)).attempts_charged) for id in (parent, runs)]
    assert kills == [(0, 0), (1, 1)]


async def _session_of_two_tasks(loops: Loops) -> None:
    await loops.deploy(sessions=True, max_attempts=3, retry_backoff_s=0)
    for state in (b'"good"', b'"bad"'):
        id = await loops.submit(session="s")
        invoke = loops.engine.replicas[loops.replica_of(id)].invocations[-1]
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, invoke.epoch, output=b"1", state=state))
        await loops.settle()


async def test_the_session_of_a_task_that_kills_alone_is_restored_to_its_last_good_state(loops: Loops) -> None:
    await _session_of_two_tasks(loops)
    poisoned = await loops.submit(session="s")
    for _ in range(3):
        assert loops.engine.replicas[loops.replica_of(poisoned)].invocations[-1].state == b'"bad"'
        loops.engine.die(loops.replica_of(poisoned), "crashed")
        await loops.step(times=4)
    (invoke,) = loops.engine.replicas[loops.replica_of(poisoned)].invocations
    assert (invoke.state, invoke.attempt) == (b'"good"', 3)
    (session,) = await loops.store.sessions.find("s", tenant="acme")
    assert session.state == b'"bad"'  # until the run with the restored one has succeeded
    loops.engine.say(loops.replica_of(poisoned), protocol.Ended(poisoned, 4, output=b"1", state=b'"better"'))
    await loops.settle()
    (session,) = await loops.store.sessions.find("s", tenant="acme")
    assert session.state == b'"better"'
    events = await loops.store.tasks.events(await loops.task(poisoned), after=0)
    assert any(b"last good state" in event.data for event in events)


async def test_who_kills_with_the_good_state_as_well_is_poison_and_the_session_stays_as_it_was(loops: Loops) -> None:
    await _session_of_two_tasks(loops)
    poisoned = await loops.submit(session="s")
    for _ in range(4):
        assert (await loops.task(poisoned)).state == "running"
        loops.engine.die(loops.replica_of(poisoned), "crashed")
        await loops.step(times=4)
    task = await loops.task(poisoned)
    assert (task.state, msgspec.json.decode(task.error or b"")["type"]) == ("failed", "poison")
    (session,) = await loops.store.sessions.find("s", tenant="acme")
    assert session.state == b'"bad"'


async def test_an_innocent_that_loses_its_replicas_to_others_keeps_its_sessions_last_state(loops: Loops) -> None:
    await _session_of_two_tasks(loops)
    innocent = await loops.submit(session="s")
    for _ in range(2):
        loops.engine.die(loops.replica_of(innocent), "killed")
        await loops.step(times=4)
    (invoke,) = loops.engine.replicas[loops.replica_of(innocent)].invocations
    assert invoke.state == b'"bad"'


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
    assert set(loops.engine.replicas) == {old, fresh}  # for an instant way back
    await loops.advance(settings.Rollout().scale_down_delay_s)
    assert set(loops.engine.replicas) == {fresh}
    assert (await loops.task(id)).output == b'"kept"'


async def test_the_replicas_of_a_removed_agent_go_and_its_record_too(loops: Loops) -> None:
    await loops.deploy()
    await loops.store.rollouts.remove("agent")
    await loops.step(times=3)
    assert not loops.engine.replicas
    assert not await loops.store.recovery.records()


async def test_who_drains_goes_as_soon_as_its_last_task_has_ended(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    replica = loops.replica_of(id)
    assert loops.host.restart(replica)
    await loops.step(times=2)
    loops.host.wakeup.clear()
    loops.engine.succeed(replica)
    assert loops.host.wakeup.is_set()
    await loops.step(times=2)
    assert replica not in loops.engine.replicas


async def test_a_cold_start_and_a_restart_are_told_apart_from_one_more(loops: Loops) -> None:
    await loops.deploy(replicas=2)
    loops.engine.die(next(iter(loops.engine.replicas)), "oom")
    await loops.advance(60)
    told = [(fact.is_cold, fact.is_restart) for fact in loops.facts if isinstance(fact, telemetry.ReplicaReady)]
    assert told == [(True, False), (False, False), (False, True)]


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


async def test_the_row_of_a_replica_that_was_let_go_says_why(loops: Loops) -> None:
    await loops.deploy()
    (old,) = loops.engine.replicas
    await loops.submit()
    assert loops.host.restart(old, "it was ejected: it fails")
    await loops.step()
    row = await loops.store.agents.replica(old)
    assert (row.state, row.reason) == ("draining", "it was ejected: it fails")
    loops.engine.succeed(old)
    await loops.settle()
    await loops.step(times=2)
    row = await loops.store.agents.replica(old)
    assert (row.state, row.reason) == ("stopped", "it was ejected: it fails")
    assert not await loops.store.recovery.failures()


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
