"""The dispatcher: who gets which task, and what becomes of it, whatever replicas say or do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from greenroom import errors, telemetry
from greenroom.control import attempts, calls, dispatcher
from greenroom.engine import protocol, said
from greenroom.testing.fakes import Fault, FaultyDatabase

if TYPE_CHECKING:
    from control.conftest import Loops


def _called(invoke: protocol.Invoke, agent: str, ordinal: int = 0) -> protocol.Called:
    return protocol.Called(invoke.task, invoke.epoch, ordinal, agent, b"2")


async def test_a_task_goes_to_a_replica_and_its_end_is_recorded(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    loops.engine.succeed(loops.replica_of(id), b'"done"')
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.output, task.attempts_charged) == ("succeeded", b'"done"', 1)
    assert loops.store.board.busy(loops.replica_of(id)) == 0


async def test_tasks_spread_over_replicas_and_sessions_stay_where_they_were(loops: Loops) -> None:
    await loops.deploy(replicas=3, concurrency=2)
    homes = {}
    for session in ("a", "b", "c"):
        id = await loops.submit(session=session)
        homes[session] = loops.replica_of(id)
    assert len(set(homes.values())) == 3
    for replica in homes.values():
        loops.engine.succeed(replica)
    await loops.settle()
    for session, home in homes.items():
        assert loops.replica_of(await loops.submit(session=session)) == home


async def test_a_replica_speaks_for_its_own_attempts_only(loops: Loops) -> None:
    await loops.deploy(replicas=2)
    id = await loops.submit()
    mine = loops.replica_of(id)
    (other,) = set(loops.engine.replicas) - {mine}
    invoke = loops.engine.replicas[mine].invocations[0]
    loops.engine.say(other, protocol.Ended(id, invoke.epoch, output=b'"forged"'))
    loops.engine.say(mine, protocol.Ended(id, invoke.epoch + 1, output=b'"of another time"'))
    loops.engine.say(mine, protocol.Ended("no-such-task", 1, output=b'"unknown"'))
    await loops.settle()
    assert (await loops.task(id)).state == "running"


@pytest.mark.parametrize("output", [b"NaN", b"{", b"\xff", b'{"a":1'])
async def test_a_result_that_is_no_json_fails_the_task(loops: Loops, output: bytes) -> None:
    await loops.deploy()
    id = await loops.submit()
    loops.engine.succeed(loops.replica_of(id), output)
    await loops.settle()
    task = await loops.task(id)
    assert task.state == "failed"
    assert msgspec.json.decode(task.error or b"")["type"] == "result_not_json"


async def test_events_of_a_replica_are_checked_and_bounded(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts.Attempt, "may_emit", lambda self, _: len(self.claim.id) > 0)
    await loops.deploy()
    id = await loops.submit()
    replica = loops.replica_of(id)
    for type, data in [("message", b"1"), ("message", b"NaN"), ("state", b'{"state":"failed"}'), ("made up", b"1")]:
        loops.engine.say(replica, protocol.Emitted(id, 1, type, data))
    await loops.settle()
    assert [(event.type, event.data) for event in await loops.store.tasks.events(await loops.task(id), after=2)] == [
        ("message", b"1")
    ]
    monkeypatch.setattr(attempts.Attempt, "may_emit", lambda *_: False)
    loops.engine.say(replica, protocol.Emitted(id, 1, "message", b"2"))
    await loops.settle()
    assert len(await loops.store.tasks.events(await loops.task(id), after=2)) == 1


async def test_a_flood_of_log_lines_ends_in_a_note(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    (attempt,) = loops.dispatcher._attempts.values()
    attempt.log_bytes_left = 100
    for _ in range(10):
        loops.dispatcher.on_log(loops.replica_of(id), said.Line("stdout", "x" * 30))
    loops.engine.say(loops.replica_of(id), protocol.Emitted(id, 1, "message", b"1"))
    await loops.settle()
    *lines, note, message = await loops.store.tasks.events(await loops.task(id), after=2)
    assert 0 < len(lines) < 4
    assert (b"truncated" in note.data, message.type) == (True, "message")


async def test_an_end_that_the_store_can_never_take_fails_its_task(loops: Loops) -> None:
    await loops.deploy(concurrency=2)
    poisoned, other = await loops.submit(), await loops.submit()
    for id in (poisoned, other):
        tokens = 2**63 if id == poisoned else 1
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1", input_tokens=tokens))
    await loops.settle()
    await loops.advance(1)
    task = await loops.task(poisoned)
    assert (task.state, task.output) == ("failed", None)
    assert msgspec.json.decode(task.error or b"")["type"] == "result_not_storable"
    assert (await loops.task(other)).state == "succeeded"


async def test_an_end_that_meets_weather_while_leases_are_renewed_is_not_taken_for_a_lost_claim(
    loops: Loops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task begins and ends while a renewal is on its way, whose answer still has it."""
    await loops.deploy()
    renew, ids = loops.store.tasks.renew, []

    async def slow_renew(owner: str, *, ttl_us: int) -> set[tuple[str, int]]:
        monkeypatch.setattr(loops.store.tasks, "renew", renew)
        ids.append(await loops.submit())
        held = await renew(owner, ttl_us=ttl_us)
        faulty.faults = [Fault.AT_COMMIT]
        loops.engine.succeed(loops.replica_of(ids[0]), b'"once"')
        while not loops.dispatcher._unwritten:  # noqa: ASYNC110 - a few turns of the loop, and nobody tells of it
            await asyncio.sleep(0)
        return held

    monkeypatch.setattr(loops.store.tasks, "renew", slow_renew)
    loops.store.commits._db = faulty = FaultyDatabase(loops.store.db)
    await loops.dispatcher._renew()
    await loops.settle()
    await loops.advance(1)
    task = await loops.task(ids[0])
    assert (task.state, task.epoch, task.output) == ("succeeded", 1, b'"once"')


async def test_weather_is_said_once_for_all_the_ends_that_meet_it_and_once_when_it_is_over(loops: Loops) -> None:
    await loops.deploy(concurrency=8)
    ids = [await loops.submit() for _ in range(8)]
    store = loops.store
    store.commits._db = faulty = FaultyDatabase(store.db)
    for place, id in enumerate(ids, 1):
        faulty.faults = [Fault.AT_COMMIT]
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1"))
        while len(loops.dispatcher._unwritten) < place:  # noqa: ASYNC110 - a few turns of the loop, and nobody tells of it
            await asyncio.sleep(0)
    await loops.advance(1)
    assert {(await loops.task(id)).state for id in ids} == {"succeeded"}
    told = [fact for fact in loops.facts if isinstance(fact, telemetry.StoreTrouble | telemetry.StoreRecovered)]
    assert [type(fact) for fact in told] == [telemetry.StoreTrouble, telemetry.StoreRecovered]


# Deadlines and the ladder


async def test_a_deadline_is_recorded_at_once_and_the_process_is_killed_after_the_grace(loops: Loops) -> None:
    await loops.deploy(concurrency=2, timeout_s=10)
    late = await loops.submit()
    await loops.advance(4)
    neighbour = await loops.submit()
    replica = loops.replica_of(late)
    await loops.advance(5.9)
    assert (await loops.task(late)).state == "running"
    await loops.advance(0.2)
    task = await loops.task(late)
    assert task.state == "expired"
    assert loops.engine.replicas[replica].sent[-1] == protocol.Cancel(late, 1, dispatcher.GRACE_S)
    await loops.advance(dispatcher.GRACE_S - 0.1)
    assert not loops.engine.killed
    await loops.advance(0.2)
    assert list(loops.engine.killed) == [replica]
    await loops.step(times=2)
    again = await loops.task(neighbour)
    assert (again.state, again.attempts_charged, again.epoch) == ("running", 1, 2)
    assert loops.replica_of(neighbour) != replica
    assert (await loops.task(late)).state == "expired"


async def test_who_stops_when_asked_keeps_the_process_and_its_late_answer_is_nothing(loops: Loops) -> None:
    await loops.deploy(timeout_s=10)
    id = await loops.submit()
    replica = loops.replica_of(id)
    await loops.advance(10.1)
    loops.engine.say(replica, protocol.Emitted(id, 1, "message", b'"late"'))
    loops.engine.succeed(replica, b'"late"')
    await loops.advance(5)
    task = await loops.task(id)
    assert (task.state, task.output) == ("expired", None)
    assert not loops.engine.killed
    assert loops.replica_of(await loops.submit()) == replica


async def test_cancel_stops_the_attempt(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    replica = loops.replica_of(id)
    await loops.store.tasks.cancel(id, tenant="acme")
    await loops.settle()
    assert loops.engine.replicas[replica].sent[-1] == protocol.Cancel(id, 1, dispatcher.GRACE_S)
    loops.engine.say(replica, protocol.Ended(id, 1, cancelled=True))
    await loops.settle()
    assert (await loops.task(id)).state == "cancelled"
    assert loops.store.board.busy(replica) == 0


# The ends of replicas


@pytest.mark.parametrize(
    ("reason", "charged", "told"),
    [("stopped", 0, "drained"), ("killed", 1, "replica_lost"), ("crashed", 1, "replica_lost"), ("oom", 1, "oom")],
)
async def test_a_lost_replica_gives_its_task_back(loops: Loops, reason: str, charged: int, told: str) -> None:
    await loops.deploy()
    id = await loops.submit()
    loops.engine.die(loops.replica_of(id), reason)
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.attempts_charged) == ("queued", charged)
    assert f'"{told}"'.encode() in (await loops.store.tasks.state_events(task))[-1].data


async def test_a_stopped_replica_says_cancelled_before_it_goes_and_its_task_is_handed_back(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    replica = loops.replica_of(id)
    loops.engine.say(replica, protocol.Ended(id, 1, cancelled=True))
    await loops.settle()
    assert (await loops.task(id)).state == "running"
    loops.engine.die(replica, "stopped")
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.attempts_charged) == ("queued", 0)


async def test_a_replica_that_lies_about_being_cancelled_is_ended_by_the_deadline(loops: Loops) -> None:
    await loops.deploy(timeout_s=10)
    id = await loops.submit()
    loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, cancelled=True))
    await loops.advance(10.1)
    assert (await loops.task(id)).state == "expired"


async def test_dead_replicas_leave_nothing_behind_in_memory(loops: Loops) -> None:
    await loops.deploy()
    for _ in range(5):
        id = await loops.submit()
        loops.engine.die(loops.replica_of(id), "stopped")
        await loops.advance(1)
        loops.engine.succeed(loops.replica_of(id))
        await loops.settle()
    assert set(loops.dispatcher._by_replica) <= set(loops.engine.replicas)
    assert set(loops.dispatcher._resuming) <= set(loops.engine.replicas)
    assert not loops.dispatcher._attempts
    assert not loops.dispatcher._killed


async def test_a_fenced_attempt_is_stopped(loops: Loops) -> None:
    await loops.deploy(replicas=1)
    id = await loops.submit()
    replica = loops.replica_of(id)
    await loops.store.tasks.rescue(not_owner="another")
    await loops.advance(dispatcher.RENEW_EVERY_S)
    assert protocol.Cancel(id, 1, dispatcher.GRACE_S) in loops.engine.replicas[replica].sent
    loops.engine.say(replica, protocol.Ended(id, 1, output=b'"stale"'))
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.output) == ("running", None)
    assert task.epoch == 2


# Sub-tasks


async def test_a_parent_frees_its_slot_and_takes_it_again_before_new_tasks(loops: Loops) -> None:
    await loops.deploy()
    parent = await loops.submit()
    replica = loops.replica_of(parent)
    invoke = loops.engine.replicas[replica].invocations[0]
    loops.engine.say(replica, _called(invoke, "agent"))
    await loops.until(lambda: len(loops.engine.replicas[replica].invocations) == 2)
    assert (await loops.task(parent)).state == "waiting"
    next_, last = await loops.submit(), await loops.submit()
    loops.engine.succeed(replica, b'"child"')  # in one commit with the claim of the next task
    await loops.settle()
    assert [(await loops.task(id)).state for id in (parent, next_, last)] == ["waiting", "running", "queued"]
    loops.engine.succeed(replica)
    await loops.until(lambda: isinstance(loops.engine.replicas[replica].sent[-1], protocol.CallEnded))
    answer = loops.engine.replicas[replica].sent[-1]
    assert isinstance(answer, protocol.CallEnded)
    assert (answer.output, answer.error_type) == (b'"child"', None)
    assert [(await loops.task(id)).state for id in (parent, next_, last)] == ["running", "succeeded", "queued"]
    loops.engine.succeed(replica, place=0)
    await loops.settle()
    assert (await loops.task(last)).state == "running"


async def test_a_call_twice_or_of_nobody_is_refused(loops: Loops) -> None:
    await loops.deploy()
    invoke_id = await loops.submit()
    replica = loops.replica_of(invoke_id)
    invoke = loops.engine.replicas[replica].invocations[0]
    loops.engine.say(replica, _called(invoke, "nobody"))
    loops.engine.say(replica, _called(invoke, "agent"))
    await loops.until(lambda: len(loops.engine.replicas[replica].sent) == 3)
    answers = loops.engine.replicas[replica].sent[1:]
    assert {answer.error_type for answer in answers if isinstance(answer, protocol.CallEnded)} == {
        "not-found",
        "too_many_calls",
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"session": "../x"}, "a session's name is"),
        ({"session": "s" * 129}, "a session's name is"),
        ({"session": "a\x00"}, "a session's name is"),
        ({"timeout_s": -1.0}, "timeout_s is over 0"),
        ({"timeout_s": float("nan")}, "timeout_s is over 0"),
        ({"timeout_s": float("inf")}, "timeout_s is over 0"),
    ],
)
async def test_a_call_keeps_the_rules_that_callers_of_the_api_keep(
    loops: Loops, given: dict[str, Any], told: str
) -> None:
    await loops.deploy()
    replica = loops.replica_of(await loops.submit())
    fake = loops.engine.replicas[replica]
    loops.engine.say(replica, msgspec.structs.replace(_called(fake.invocations[0], "agent"), **given))
    await loops.until(lambda: len(fake.sent) == 2)
    answer = fake.sent[-1]
    assert isinstance(answer, protocol.CallEnded)
    assert answer.error_type == "invalid-body"
    assert told in answer.error_message
    assert len(await loops.store.tasks.list(tenant="acme")) == 1


async def test_calls_that_call_themselves_come_to_an_end(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_DEPTH", 2)
    await loops.deploy()
    fake = loops.engine.replicas[loops.replica_of(await loops.submit())]
    for _ in range(2):
        invoked = len(fake.invocations)
        loops.engine.say(fake.id, _called(fake.invocations[-1], "agent"))
        await loops.until(lambda invoked=invoked: len(fake.invocations) > invoked)  # type: ignore[misc] # mypy sees no type
    loops.engine.say(fake.id, _called(fake.invocations[-1], "agent"))
    await loops.until(lambda: isinstance(fake.sent[-1], protocol.CallEnded))
    answer = fake.sent[-1]
    assert isinstance(answer, protocol.CallEnded)
    assert (answer.error_type, "2 calls deep" in answer.error_message) == ("conflict", True)


async def test_no_more_tasks_run_at_once_than_the_limit_says_and_who_resumes_goes_first(loops: Loops) -> None:
    await loops.deploy(replicas=3)
    await loops.deploy("child", digest="c")
    board = loops.store.board
    board.limit("agent", 1)
    parent, neighbour, last = [await loops.submit() for _ in range(3)]

    async def running() -> set[str]:
        return {id for id in (parent, neighbour, last) if (await loops.task(id)).state == "running"}

    assert await running() == {parent}
    (attempt,) = loops.dispatcher._attempts.values()
    board.drain(attempt.claim.replica)  # so that the neighbour runs on another one
    loops.engine.say(attempt.claim.replica, _called(attempt.invocation(), "child"))
    await loops.settle()
    assert await running() == {neighbour}  # the parent waits, and holds no slot
    (child,) = (each for each in loops.dispatcher._attempts.values() if each.claim.agent == "child")
    loops.engine.succeed(child.claim.replica)
    await loops.settle()
    assert await running() == {neighbour}  # there is a free slot at the parent's replica, and no room
    assert loops.replica_of(neighbour) != attempt.claim.replica
    loops.engine.succeed(loops.replica_of(neighbour))
    await loops.settle()
    assert await running() == {parent}
    loops.engine.succeed(attempt.claim.replica)
    await loops.settle()
    assert await running() == {last}


async def test_no_slot_is_lost_when_a_parent_ends_just_as_it_gets_one(loops: Loops) -> None:
    await loops.deploy()
    (replica,) = loops.engine.replicas
    fake = loops.engine.replicas[replica]
    parent = await loops.submit()
    loops.engine.say(replica, _called(fake.invocations[-1], "agent"))
    await loops.until(lambda: len(fake.invocations) == 2)
    await loops.submit()
    loops.engine.succeed(replica)  # the child: the next task has its slot, and the parent waits for that
    await loops.until(lambda: len(fake.invocations) == 3)
    await loops.until(lambda: bool(loops.dispatcher._resuming[replica]))
    loops.engine.succeed(replica)
    loops.engine.say(replica, protocol.Ended(parent, 1, error_type="error"))
    await loops.settle()
    assert loops.store.board.busy(replica) == 0
    assert loops.store.board.attempts(replica) == 0
    assert (await loops.task(parent)).state == "failed"


async def test_a_claim_whose_answer_was_lost_is_handed_back_and_runs(loops: Loops) -> None:
    await loops.deploy(concurrency=2)
    loops.store.commits._db = faulty = FaultyDatabase(loops.store.db)
    faulty.faults = [Fault.AFTER_COMMIT]
    with pytest.raises(errors.StoreUnavailable):
        await loops.submit()
    (lost,) = await loops.store.tasks.list(tenant="acme")
    assert (lost.state, lost.epoch) == ("running", 1)  # leased to a node that does not know of it
    await loops.advance(dispatcher.RENEW_EVERY_S)
    task = await loops.task(lost.id)
    assert (task.state, task.epoch, task.attempts_charged) == ("running", 2, 1)
    assert loops.replica_of(lost.id)


async def test_a_jump_of_the_clock_takes_no_work_away(loops: Loops) -> None:
    await loops.deploy(max_attempts=1)
    id = await loops.submit()
    await loops.scratch.advance(60)
    await loops.janitor.step()
    assert (await loops.task(id)).state == "running"


async def test_an_input_that_fits_no_frame_fails_its_task_alone(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    await loops.deploy()

    def refuse(_replica: str, _message: protocol.ToReplica) -> bool:
        raise ValueError("a frame of 40000000 bytes is over the limit")

    with monkeypatch.context() as patch:
        patch.setattr(loops.engine, "invoke", refuse)
        id = await loops.submit()
    task = await loops.task(id)
    assert task.state == "failed"
    assert b"input_too_large" in (task.error or b"")
    assert (await loops.task(await loops.submit())).state == "running"


async def test_the_number_of_replicas_outlives_an_equal_deployment(loops: Loops) -> None:
    await loops.deploy(replicas=1)
    await loops.store.agents.scale("agent", 3)
    await loops.deploy(replicas=1)
    entry = (await loops.store.directory.refresh())["agent"]
    assert (entry.agent.replicas, entry.agent.revision) == (3, 1)


async def test_who_shares_a_suspects_replica_while_that_waits_is_not_called_poison(loops: Loops) -> None:
    await loops.deploy(concurrency=2, max_attempts=5, retry_backoff_s=0)
    await loops.deploy("child", digest="c")
    parent, innocent = await loops.submit(), await loops.submit()
    for _ in range(2):
        loops.engine.die(loops.replica_of(parent), "crashed")
        await loops.advance(2)
    alone = loops.replica_of(parent)
    assert loops.replica_of(innocent) != alone
    loops.engine.say(alone, protocol.Called(parent, 3, 1, "child", b"1"))
    await loops.step(times=2)
    loops.engine.die(alone, "crashed")
    await loops.step(times=2)
    task = await loops.task(innocent)
    assert task.state != "failed", task.error
