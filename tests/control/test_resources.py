"""Replicas are replaced before they are too much, none before another is ready, and nobody pays for an eviction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from greenroom import telemetry
from greenroom.control import resources as loop
from greenroom.core import recovery, resources
from greenroom.engine import contract
from greenroom.testing.fake_engine import FakeEngine

if TYPE_CHECKING:
    from control.conftest import Loops


class _Scales:
    """A fake engine on the scales: each replica holds what the test says, 10 MB where it says nothing."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.sizes_mb: dict[str, float] = {}
        self.total_mb: float | None = None
        self.cpu_s = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def measure(self, *, enough_mb: float, each_mb: Mapping[str, float]) -> contract.Usage:
        self.asked = enough_mb, dict(each_mb)
        held = {
            id: contract.Held(size_mb, size_mb, self.cpu_s)
            for id in self._engine.replicas
            if (size_mb := self.sizes_mb.get(id, 10.0))
        }
        total_mb = sum(each.memory_mb for each in held.values()) if self.total_mb is None else self.total_mb
        return contract.Usage(held, total_mb, {1: self.cpu_s})


@pytest.fixture
def scales(loops: Loops) -> _Scales:
    return _Scales(loops.engine)


def _loop(loops: Loops, scales: _Scales, limits: resources.Limits | None = None) -> loop.Resources:
    return loop.Resources(
        scales,  # type: ignore[arg-type]  # a fake
        loops.scratch.clock,
        loops.told,
        limits=limits or resources.Limits(),
        hosted=lambda: loops.host.hosted,
        entries=lambda: loops.store.directory.entries,
        recycle=loops.host.recycle,
    )


async def _look(loops: Loops, watching: loop.Resources, *, after_s: float = loop.MEASURE_EVERY_S) -> None:
    await loops.scratch.advance(after_s)
    await watching.step()
    await loops.step(times=2)


def _recycled(loops: Loops) -> list[telemetry.ReplicaRecycled]:
    return [fact for fact in loops.facts if isinstance(fact, telemetry.ReplicaRecycled)]


async def _rows(loops: Loops) -> dict[str, tuple[str, str]]:
    return {row.id: (row.state, row.reason) for row in await loops.store.agents.replicas()}


async def test_a_replica_that_has_had_enough_ends_its_tasks_when_another_is_ready(
    loops: Loops, scales: _Scales
) -> None:
    await loops.deploy(memory_mb=500)
    watching = _loop(loops, scales)
    (old,) = loops.engine.replicas
    task = await loops.submit()
    scales.sizes_mb[old] = 451
    loops.engine.is_eager = False
    await _look(loops, watching)
    assert scales.asked[1] == {old: 450.0}
    assert [fact.replica for fact in _recycled(loops)] == [old]
    (fresh,) = set(loops.engine.replicas) - {old}
    reason = "recycled: it holds 451 MB, and is replaced from 450 MB on"
    assert (await _rows(loops))[old] == ("ready", reason)  # it serves until another does
    assert loops.store.board.usage("agent").replicas == 1
    await _look(loops, watching)
    assert len(_recycled(loops)) == 1
    loops.engine.ready(fresh)
    await loops.step(times=2)
    assert (await _rows(loops))[old] == ("draining", reason)
    assert set(loops.engine.replicas) == {old, fresh}  # its task goes on
    loops.engine.succeed(old)
    await loops.step(times=3)
    assert set(loops.engine.replicas) == {fresh}
    row = await loops.task(task)
    assert (row.state, row.attempts_charged) == ("succeeded", 1)
    assert not [fact for fact in loops.facts if isinstance(fact, telemetry.AgentFailing)]


async def test_who_is_too_large_when_it_is_new_is_not_replaced_for_ever(loops: Loops, scales: _Scales) -> None:
    watching = _loop(loops, scales)
    await loops.deploy(recycling={"memory_mb": 9})  # each has 10 when it is new
    (replica,) = loops.engine.replicas
    for _ in range(20):
        await _look(loops, watching)
    assert list(loops.engine.replicas) == [replica]
    (fact,) = [fact for fact in loops.facts if isinstance(fact, telemetry.EnvelopeWeak)]
    assert fact.warning.startswith("replicas of agent hold 10 MB when they are new")


async def test_who_alone_is_more_than_the_envelope_is_charged(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(max_attempts=2, retry_backoff_s=0)
    watching = _loop(loops, scales, resources.Limits(memory_mb=1000))
    task = await loops.submit()
    for _ in range(2):
        fattest = loops.replica_of(task)
        scales.sizes_mb = {fattest: 1001.0}
        await loops.scratch.advance(loop.MEASURE_EVERY_S)
        await watching.step()
        assert loops.engine.killed[fattest] == "oom"
        await loops.advance(recovery.CAP_S)
    row = await loops.task(task)
    assert (row.state, row.reason) == ("failed", "oom")  # it does not go on for ever


async def test_one_of_an_agent_waits_for_its_successor_at_a_time(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(replicas=3, recycling={"memory_mb": 100})
    watching = _loop(loops, scales)
    scales.sizes_mb = dict.fromkeys(loops.engine.replicas, 101.0)
    loops.engine.is_eager = False
    for number in range(1, 4):
        before = set(loops.engine.replicas)
        await _look(loops, watching)
        assert len(_recycled(loops)) == number
        await _look(loops, watching)
        assert len(_recycled(loops)) == number
        (fresh,) = set(loops.engine.replicas) - before
        assert loops.store.board.usage("agent").replicas == 3
        loops.engine.ready(fresh)
        await loops.step(times=3)
    assert not set(scales.sizes_mb) & set(loops.engine.replicas)
    await _look(loops, watching)
    assert len(_recycled(loops)) == 3


async def test_a_replica_goes_after_as_many_tasks_as_it_may_run(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(recycling={"tasks": 2})
    watching = _loop(loops, scales)
    for _ in range(5):
        loops.engine.succeed(loops.replica_of(await loops.submit()))
        await loops.settle()
        await _look(loops, watching)
    assert len(loops.engine.started) == 3
    assert {fact.reason for fact in _recycled(loops)} == {"it has run 2 tasks, and is replaced after so many"}


async def test_who_grows_fast_is_seen_between_two_looks_at_everything(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(recycling={"memory_mb": 5})  # the fake's own size is 10
    watching = _loop(loops, scales)
    scales.sizes_mb = dict.fromkeys(loops.engine.replicas, 1.0)
    await watching.step()
    assert not _recycled(loops)
    await _look(loops, watching, after_s=loop.LOOK_EVERY_S)
    assert len(_recycled(loops)) == 1


async def test_a_leak_is_recycled_and_growth_while_it_warms_up_is_none(loops: Loops, scales: _Scales) -> None:
    await loops.deploy()
    watching = _loop(loops, scales)
    (leaking,) = loops.engine.replicas
    looks = int((resources.WARM_S + resources.LEAK_S) / loop.MEASURE_EVERY_S)
    for number in range(looks):
        scales.sizes_mb[leaking] = 50.0 + 3.0 * number
        assert not _recycled(loops), number
        await loops.scratch.advance(loop.MEASURE_EVERY_S)
        await watching.step()
    (fact,) = _recycled(loops)
    assert fact.reason.startswith("its memory only grows: from 8")
    assert fact.reason.endswith("by 2160 MB an hour")


async def test_over_its_memory_the_fattest_is_killed_where_no_kernel_does_and_nobody_is_charged(
    loops: Loops, scales: _Scales
) -> None:
    await loops.deploy(replicas=2, max_attempts=2, retry_backoff_s=0)
    watching = _loop(loops, scales, resources.Limits(memory_mb=1000))
    tasks = [await loops.submit() for _ in range(2)]
    for _ in range(2 * recovery.INTENSITY):
        fattest = loops.replica_of(tasks[0])
        scales.sizes_mb, scales.total_mb = {fattest: 600.0}, 1001.0
        await loops.scratch.advance(loop.MEASURE_EVERY_S)
        await watching.step()
        assert loops.engine.killed[fattest] == "evicted"
        scales.total_mb = 500.0
        await loops.step(times=2)
    states = [(row.state, row.attempts_charged, row.kills) for row in [await loops.task(task) for task in tasks]]
    assert states == [("running", 1, 0), ("running", 1, 0)]  # however often
    entry = (await loops.store.directory.refresh())["agent"]
    assert (entry.agent.state, await loops.store.alerts.list()) == ("ready", [])
    failure = (await loops.store.recovery.failures())[0]
    assert (failure.kind, failure.rung) == ("evicted", "restart")
    assert failure.reason.startswith("all replicas use 1001 MB of cluster.memory_mb, 1000")


async def test_close_to_its_memory_the_fattest_is_replaced_one_at_a_time(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(replicas=3)
    watching = _loop(loops, scales, resources.Limits(memory_mb=1000))
    first, second, _ = loops.engine.replicas
    scales.sizes_mb, scales.total_mb = {first: 500.0, second: 400.0}, 950.0
    loops.engine.is_eager = False
    for _ in range(3):
        await _look(loops, watching)
    assert [fact.replica for fact in _recycled(loops)] == [first]
    assert scales.asked[0] == 750.0
    assert not loops.engine.killed


async def test_what_is_only_kept_warm_goes_before_what_is_used(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(replicas=3)
    watching = _loop(loops, scales, resources.Limits(memory_mb=1000))
    spares = [True, True]
    watching._lower_spares = lambda: bool(spares) and spares.pop()
    scales.sizes_mb, scales.total_mb = {next(iter(loops.engine.replicas)): 500.0}, 950.0
    for _ in range(2):
        await _look(loops, watching)
        assert not _recycled(loops)
    await _look(loops, watching)
    assert len(_recycled(loops)) == 1
    spares, scales.total_mb = [True], 1001.0
    await _look(loops, watching)
    assert list(loops.engine.killed.values()) == ["evicted"]  # there is no time


async def test_one_that_runs_suspects_is_evicted_like_any_other(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(replicas=2)
    watching = _loop(loops, scales, resources.Limits(memory_mb=1000))
    alone = loops.replica_of(await loops.submit())
    loops.host._replicas[alone].for_suspects = True
    scales.sizes_mb, scales.total_mb = {alone: 900.0}, 950.0
    await _look(loops, watching)
    assert not any(fact.replica == alone for fact in _recycled(loops))  # it goes by itself
    scales.total_mb = 1001.0
    await _look(loops, watching)
    assert loops.engine.killed == {alone: "evicted"}  # and not one that is innocent


async def test_one_that_dies_before_it_is_replaced_says_what_it_died_of(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(memory_mb=500)
    watching = _loop(loops, scales)
    (old,) = loops.engine.replicas
    scales.sizes_mb[old] = 451
    loops.engine.is_eager = False
    await _look(loops, watching)
    loops.engine.kill(old, "oom", "it used 501 MB, and memory_mb is 500")
    await loops.step(times=2)
    row = await loops.store.agents.replica(old)
    assert (row.state, row.reason) == ("failed", "it used 501 MB, and memory_mb is 500")


async def test_what_is_used_is_told_to_whoever_asks(loops: Loops, scales: _Scales) -> None:
    await loops.deploy(replicas=2)
    metrics = telemetry.Metrics()
    metrics.listen(loops.told)
    watching = _loop(loops, scales, resources.Limits(cpu=2.0, memory_mb=100))
    assert not watching.is_known
    await watching.step()
    scales.cpu_s = 2.5
    await _look(loops, watching)
    assert watching.use() == resources.Use(0.5, 20.0, {"agent": 2})
    (replica, _) = loops.engine.replicas
    assert watching.cpu_of(replica) == 0.5
    text = metrics.render().decode()
    assert 'greenroom_replica_cpu_seconds_total{agent="agent"} 5.0' in text
    assert 'greenroom_replicas_memory_bytes{agent="agent"} 2.097152e+07' in text
    assert 'greenroom_envelope_use_ratio{resource="cpu"} 0.25' in text
    assert 'greenroom_envelope_use_ratio{resource="memory"} 0.2' in text
    loops.engine.die(replica)
    await loops.step()
    assert watching.held_by(replica) is None
    loops.told.emit(telemetry.AttemptEnded("agent", "succeeded", "ok", 1.0, replica))  # its end comes late
    assert replica not in watching._watched


async def test_what_is_started_for_suspects_or_not_there_is_not_recycled(loops: Loops) -> None:
    await loops.deploy()
    (replica,) = loops.engine.replicas
    assert not loops.host.recycle("nobody", "why")
    loops.engine.is_eager = False
    assert loops.host.recycle(replica, "why")
    assert not loops.host.recycle(replica, "again")
    loops.engine.die(replica)
    await loops.advance(recovery.CAP_S)
    (fresh,) = loops.engine.replicas
    assert not loops.host.recycle(fresh, "it only starts")
    loops.engine.ready(fresh)
    assert loops.host.recycle(fresh, "why")
