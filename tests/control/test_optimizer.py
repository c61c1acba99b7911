"""The optimizer's loop: what is measured, advice as rows, acting on it, and rules of users at arm's length."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from greenroom import errors, settings, telemetry
from greenroom.control import user_rules
from greenroom.control.measurements import DRAWN, Collector, Drawn, Sources
from greenroom.control.optimizer import Actions, Optimizer, scaled
from greenroom.core import measurements, optimizer
from greenroom.engine import protocol
from greenroom.store.deployments import Limits
from greenroom.testing.fakes import Fault, FaultyDatabase

if TYPE_CHECKING:
    from control.conftest import Loops

EVERY_S = optimizer.LOOK_EVERY_S


class _World:
    """What the optimizer sees of the node, and what it does to it."""

    def __init__(self, loops: Loops) -> None:
        self.loops = loops
        self.cpu_pct: float | None = None
        self.memory_pct: float | None = None
        self.replicas: list[measurements.Replica] = []
        self.done: list[tuple[Any, ...]] = []

    def optimizer(self, *rules: user_rules.UserRule, is_applying: bool = False) -> Optimizer:
        loops = self.loops
        found = settings.load(overrides={}, environ={})
        sources = Sources(
            replicas=lambda: self.replicas,
            cpu_pct=lambda: self.cpu_pct,
            memory_pct=lambda: self.memory_pct,
        )
        self.collector = Collector(loops.store, loops.scratch.clock, loops.told, found, sources)
        return Optimizer(
            loops.store,
            loops.scratch.clock,
            loops.told,
            collector=self.collector,
            actions=Actions(
                restart=lambda replica, why: self._do("restart", replica, why),
                scale=self._scale,
                limit_admission=lambda pct: self.done.append(("admission", pct)),
            ),
            is_applying=is_applying,
            rules_of_users=rules,
        )

    def _do(self, *what: Any) -> bool:
        self.done.append(what)
        return True

    async def _scale(self, agent: str, replicas: int) -> bool:
        await self.loops.store.agents.scale(agent, replicas)
        return self._do("scale", agent, replicas)

    async def rows(self) -> list[tuple[str, str]]:
        return [(row.rule, row.state) for row in await self.loops.store.advice.list()]


@pytest.fixture
def world(loops: Loops) -> _World:
    return _World(loops)


async def _look(loops: Loops, looking: Optimizer, times: int = 1) -> None:
    for _ in range(times):
        await loops.scratch.advance(EVERY_S)
        await looking.step()


def _rule(name: str, ask: Callable[[Any], Any], within_s: float = 5.0) -> user_rules.UserRule:
    return user_rules.UserRule(name, lambda: ask, within_s=within_s)


# --- what is measured


async def test_response_and_wait_are_what_the_store_says_of_tasks_that_have_ended(loops: Loops, world: _World) -> None:
    await loops.deploy()
    looking = world.optimizer()
    await looking.step()
    ids = [await loops.submit() for _ in range(20)]
    for id in ids:
        await loops.scratch.advance(1.0)
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1"))
        await loops.settle()
    seen = await world.collector.look()
    (agent,) = seen.agents
    assert agent.response_s is not None
    assert agent.wait_s is not None
    assert agent.run_s is not None
    assert (agent.response_s.mean, agent.response_s.p50, agent.response_s.p95) == (10.5, 10.5, 19.0)
    assert (agent.wait_s.mean, agent.run_s.mean, agent.attempts, agent.error_pct) == (9.5, 1.0, 20, 0.0)
    # What is older than the window is forgotten; what was never measured is None, not zero.
    for _ in range(int(optimizer.WINDOW_S / EVERY_S)):
        seen = await world.collector.look()
    (agent,) = seen.agents
    assert (agent.attempts, agent.error_pct, agent.response_s, agent.run_s) == (0, None, None, None)


async def test_a_task_that_was_not_to_begin_before_has_not_waited_till_then(loops: Loops) -> None:
    await loops.deploy()
    id = await loops.submit()
    ((response_s, wait_s),) = await _ended(loops, id)
    assert (response_s, wait_s) == (3.0, 0.0)
    later = await loops.submit(not_before=loops.scratch.clock.now() + timedelta(seconds=100))
    await loops.advance(100)
    ((response_s, wait_s),) = await _ended(loops, later)
    assert (response_s, wait_s) == (3.0, 0.0)
    assert await loops.store.tasks.times([await loops.submit(), "unknown"]) == []


async def _ended(loops: Loops, id: str) -> Any:
    await loops.scratch.advance(3)
    loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1"))
    await loops.settle()
    return await loops.store.tasks.times([id])


async def test_errors_cold_starts_idle_time_and_lookups_are_counted(loops: Loops, world: _World) -> None:
    await loops.deploy()
    looking = world.optimizer()
    await looking.step()
    id = await loops.submit()
    loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, error_type="ValueError", error_message="no"))
    await loops.settle()
    await loops.submit()
    await loops.submit()
    await _look(loops, looking)
    loops.engine.die(next(iter(loops.engine.replicas)))
    await loops.advance(30)
    world.loops.told.emit(telemetry.CacheAsked("agent", "hit"))
    world.loops.told.emit(telemetry.CacheAsked("agent", "miss", 9))
    (agent,) = (await world.collector.look()).agents
    assert (agent.attempts, agent.error_pct, agent.cold_starts, agent.queued) == (1, 100.0, 1, 1)
    assert (agent.cache_hits, agent.cache_misses, agent.hit_pct, agent.idle_s) == (1, 9, 10.0, 0.0)


@pytest.mark.parametrize("offered", [0, 1, 7, 19, 20, 21, 1000, 99_999])
def test_what_is_drawn_is_spread_evenly(offered: int) -> None:
    drawn: Drawn[int] = Drawn(DRAWN)
    for number in range(offered):
        drawn.offer(number)
    assert len(drawn.items) == min(offered, DRAWN) or DRAWN / 2 <= len(drawn.items) <= DRAWN
    gaps = {after - before for before, after in zip(drawn.items, drawn.items[1:], strict=False)}
    assert len(gaps) <= 1


# --- advice as rows


async def test_advice_is_opened_and_withdrawn_and_is_only_advice_by_default(loops: Loops, world: _World) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    looking = world.optimizer()
    await _look(loops, looking, 20)
    assert await world.rows() == [("memory-fattest", "open")]
    world.memory_pct = 10.0
    await _look(loops, looking, 10)
    assert await world.rows() == [("memory-fattest", "withdrawn")]
    (row,) = await loops.store.advice.list()
    assert (row.value_before, row.value_after, row.outcome) == (85.0, 10.0, "")
    assert not world.done
    told = [(fact.state, fact.open) for fact in loops.facts if isinstance(fact, telemetry.AdviceChanged)]
    assert told == [("open", 1), ("withdrawn", 0)]


async def test_where_it_may_act_it_does_so_once_and_measures_what_that_has_changed(loops: Loops, world: _World) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    looking = world.optimizer(is_applying=True)
    await _look(loops, looking, 10)
    assert [what[:2] for what in world.done] == [("restart", "agent-1")]
    assert await world.rows() == [("memory-fattest", "applied")]
    await _look(loops, looking, int(optimizer.SETTLE_S / EVERY_S))
    (row,) = await loops.store.advice.list()
    assert (row.state, row.value_before, row.value_after, row.outcome) == ("measured", 85.0, 85.0, "no effect")
    assert len(world.done) == 1  # it did not help: for a while it is not done again
    await _look(loops, looking, int(optimizer.QUIET_S / EVERY_S) + 5)
    assert len(world.done) == 2


async def test_a_bound_on_admission_is_taken_back_when_the_cpu_is_free_again(loops: Loops, world: _World) -> None:
    await loops.deploy()
    for _ in range(25):
        await loops.submit()
    world.cpu_pct = 95.0
    looking = world.optimizer(is_applying=True)
    await _look(loops, looking, 100)
    assert world.done == [("admission", 0.02)]
    world.cpu_pct = 50.0
    await _look(loops, looking, 10)
    assert world.done[1:] == [("admission", 100.0)]
    assert await world.rows() == [("cpu-admission", "measured")]


async def test_agents_are_scaled_only_where_they_are_well_and_there_is_room(loops: Loops) -> None:
    await loops.deploy(replicas=2)
    assert not await scaled(loops.store, "nobody", 3, room=Limits(10, 10))
    assert not await scaled(loops.store, "agent", 11, room=Limits(10, 10))
    assert not await scaled(loops.store, "agent", 1, room=Limits(10, 10))  # its min_replicas is 2
    assert await scaled(loops.store, "agent", 3, room=Limits(10, 10))
    await loops.step(times=2)
    assert len(loops.engine.replicas) == 3
    await loops.deploy(replicas=2, digest="new")
    assert not await scaled(loops.store, "agent", 4, room=Limits(10, 10))  # a rollout is on its way


async def test_what_was_open_stays_open_over_a_restart_and_what_was_applied_is_over(
    loops: Loops, world: _World
) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    await _look(loops, world.optimizer(), 5)
    after = world.optimizer()
    await _look(loops, after, 20)
    assert await world.rows() == [("memory-fattest", "open")]
    await _look(loops, world.optimizer(is_applying=True), 3)
    assert await world.rows() == [("memory-fattest", "applied")]
    await _look(loops, world.optimizer(), 1)
    assert await world.rows() == [("memory-fattest", "withdrawn")]


async def test_what_was_done_is_told_as_it_was_then(loops: Loops, world: _World) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    await _look(loops, world.optimizer(), 5)
    world.memory_pct = 95.0
    world.replicas = [measurements.Replica(id="agent-2", agent="agent", memory_mb=400)]
    looking = world.optimizer(is_applying=True)
    await _look(loops, looking, 3)
    (row,) = await loops.store.advice.list()
    assert (row.state, row.value_before, "agent-2" in row.what) == ("applied", 95.0, True)
    world.memory_pct = 47.5
    await _look(loops, looking, int(optimizer.SETTLE_S / EVERY_S) + 1)
    (row,) = await loops.store.advice.list()
    assert row.outcome == "better by 50 %"


async def test_what_was_done_and_not_written_is_not_done_again(loops: Loops, world: _World) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    await _look(loops, world.optimizer(), 5)
    looking = world.optimizer(is_applying=True)
    faulty = FaultyDatabase(loops.store.db)
    faulty.faults = [Fault.AT_COMMIT]
    loops.store.commits._db = faulty
    with pytest.raises(errors.StoreUnavailable):
        await _look(loops, looking, 5)
    await _look(loops, looking, 5)
    assert await world.rows() == [("memory-fattest", "applied")]
    assert len(world.done) == 1


async def test_weather_opens_nothing_twice(loops: Loops, world: _World) -> None:
    await loops.deploy()
    world.memory_pct = 85.0
    world.replicas = [measurements.Replica(id="agent-1", agent="agent", memory_mb=300)]
    looking = world.optimizer()
    await _look(loops, looking, 2)
    faulty = FaultyDatabase(loops.store.db)
    faulty.faults = [Fault.AFTER_COMMIT]
    loops.store.commits._db = faulty
    with pytest.raises(errors.StoreUnavailable):
        await _look(loops, looking, 3)
    await _look(loops, looking, 10)
    assert await world.rows() == [("memory-fattest", "open")]


# --- rules of users

_GOOD = {"what": "do it", "why": "it is so", "expected": "much", "metric": "memory_pct", "before": 85.0}


def _raises(_: Any) -> Any:
    raise SystemExit(3)


class _Odd:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __bool__(self) -> bool:
        raise self._error


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (_raises, "it raised SystemExit: 3"),
        (lambda seen: seen["nothing"], "it raised KeyError: 'nothing'"),
        (lambda _: "nonsense", "it returned what is no list of advices"),
        (lambda _: [{"what": "do it"}], "it returned what is no list of advices"),
        (lambda _: [_GOOD | {"unknown": 1}], "it returned what is no list of advices"),
        (lambda _: [_GOOD | {"before": float("nan")}], "it returned a number that is none"),
        (lambda _: [_GOOD] * 21, "it returned 21 advices"),
        (lambda _: _Odd(RuntimeError("neither")), "it returned what cannot be read: it raised RuntimeError"),
        (lambda _: _Odd(SystemExit(3)), "it raised SystemExit: 3"),
    ],
)
async def test_a_rule_that_is_broken_is_skipped_with_one_alert_until_it_works_again(
    loops: Loops, world: _World, rule: Callable[[Any], Any], told: str
) -> None:
    await loops.deploy()
    is_broken = True
    own = _rule("mine", lambda seen: rule(seen) if is_broken else None)
    looking = world.optimizer(own, _rule("good", lambda _: [_GOOD]))
    await _look(loops, looking, 5)
    (alert,) = await loops.store.alerts.list()
    assert (alert.id, alert.kind, alert.state, alert.count) == ("optimizer-rule-mine", "rule_broken", "firing", 1)
    assert alert.reason.startswith(f"the optimizer's rule mine is skipped: {told}")
    assert await world.rows() == [("user:good", "open")]  # the others go on
    is_broken = False
    await _look(loops, looking)
    assert [alert.state for alert in await loops.store.alerts.list()] == ["resolved"]


async def test_a_rule_that_cannot_be_loaded_is_skipped_with_an_alert(loops: Loops, world: _World) -> None:
    def load() -> Any:
        raise ImportError("no module named mine")

    await _look(loops, world.optimizer(user_rules.UserRule("mine", load)))
    (alert,) = await loops.store.alerts.list()
    assert "it raised ImportError: no module named mine" in alert.reason


async def test_a_rule_that_does_not_answer_is_left_alone_until_it_does(loops: Loops, world: _World) -> None:
    gate, calls = threading.Event(), []

    def wait(_: Any) -> None:
        calls.append(1)
        gate.wait(60)

    own = _rule("mine", wait, within_s=0.05)
    looking = world.optimizer(own)
    await _look(loops, looking, 3)
    (alert,) = await loops.store.alerts.list()
    assert (alert.state, len(calls)) == ("firing", 1)
    assert "it took longer than 0.05 s" in alert.reason
    gate.set()
    async with asyncio.timeout(10):
        while own._is_running:  # noqa: ASYNC110  # a thread that tells nobody
            await asyncio.sleep(0.001)
    await _look(loops, looking)
    assert [alert.state for alert in await loops.store.alerts.list()] == ["resolved"]


async def test_a_rule_of_a_user_sees_the_measurements_as_plain_data(loops: Loops, world: _World) -> None:
    await loops.deploy()
    told: list[Any] = []
    await _look(loops, world.optimizer(_rule("mine", told.append)))
    ((seen,),) = [told]
    assert (seen["target_response_s"], seen["agents"][0]["name"], seen["agents"][0]["response_s"]) == (
        5.0,
        "agent",
        None,
    )


def test_rules_come_from_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name, value = "mine", "package:mine"

        def load(self) -> Any:
            return len

    monkeypatch.setattr(user_rules, "_points", lambda: [Point(), Point()])
    assert [rule.name for rule in user_rules.installed()] == ["mine", "mine-2"]  # each has an alert of its own


async def test_the_alert_of_a_rule_that_was_uninstalled_is_resolved(loops: Loops, world: _World) -> None:
    await loops.deploy()
    await _look(loops, world.optimizer(_rule("mine", _raises)))
    await _look(loops, world.optimizer(_rule("mine", _raises)))
    (alert,) = await loops.store.alerts.list()
    assert (alert.state, alert.count) == ("firing", 1)
    await _look(loops, world.optimizer())
    (alert,) = await loops.store.alerts.list()
    assert alert.state == "resolved"


@pytest.mark.slow
async def test_tasks_that_wait_get_more_replicas_and_the_gain_is_told_as_it_was(loops: Loops, world: _World) -> None:
    await loops.deploy()
    looking = world.optimizer(is_applying=True)
    await looking.step()
    running = [await loops.submit() for _ in range(12)]  # always so many: each waits for those before it

    async def ten_seconds() -> None:
        for _ in range(10):
            await loops.scratch.advance(1.0)
            busy = [replica for replica in loops.engine.replicas if loops.store.board.busy(replica)]
            for id in [loops.engine.replicas[replica].invocations[-1].task for replica in busy]:
                loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1"))
                running.remove(id)
            await loops.settle()
            while len(running) < 12:
                running.append(await loops.submit())
        replicas = [measurements.Replica(id=id, agent="agent", cpu=0.9) for id in loops.engine.replicas]
        world.replicas = replicas
        await looking.step()
        await loops.step(times=2)

    while not world.done:
        await ten_seconds()
    assert world.done == [("scale", "agent", 2)]
    (row,) = await loops.store.advice.list()
    assert (row.rule, row.state) == ("more-replicas", "applied")
    assert row.value_before == pytest.approx(12, abs=2)
    for _ in range(int(optimizer.SETTLE_S / EVERY_S)):
        await ten_seconds()
    (row,) = await loops.store.advice.list()
    assert row.state == "measured"
    assert row.value_after == pytest.approx(6, abs=0.5)
    assert row.outcome.startswith("better by 4") or row.outcome.startswith("better by 5")
    assert len(loops.engine.replicas) == 2


async def test_the_rule_on_the_optimizers_page_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "optimizer.md").read_text()
    space: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], space)
    agent = measurements.Agent(name="expensive", queued=51, slots=4)
    seen = measurements.Measurements(window_s=300.0, target_response_s=5.0, agents=(agent,))
    (found,), trouble = await _rule("night", space["night"]).ask(user_rules.plain(seen))
    assert (found.rule, found.agent, found.why, trouble) == (
        "user:night",
        "expensive",
        "51 tasks wait for 4 slots",
        None,
    )


async def test_what_waits_for_its_own_session_does_not_wait_for_a_slot(loops: Loops) -> None:
    await loops.deploy()
    ids = [await loops.submit(session="s") for _ in range(3)]
    for id in ids:
        await loops.scratch.advance(3)
        loops.engine.say(loops.replica_of(id), protocol.Ended(id, 1, output=b"1"))
        await loops.settle()
    assert await loops.store.tasks.times(ids) == [(3.0, 0.0), (6.0, 0.0), (9.0, 0.0)]


async def test_a_breaker_that_was_not_closed_is_remembered_for_the_window(loops: Loops, world: _World) -> None:
    await loops.deploy()
    await world.optimizer().step()
    loops.store.board.limit("agent", 0)
    await world.collector.look()
    loops.store.board.limit("agent", None)
    (agent,) = (await world.collector.look()).agents
    assert agent.was_limited
    for _ in range(int(optimizer.WINDOW_S / EVERY_S)):
        (agent,) = (await world.collector.look()).agents
    assert not agent.was_limited


async def test_the_alert_of_a_broken_rule_tells_of_its_last_failure(loops: Loops, world: _World) -> None:
    trouble = "first"

    def broken(_: Any) -> Any:
        raise RuntimeError(trouble)

    looking = world.optimizer(_rule("mine", broken))
    await _look(loops, looking, 2)
    trouble = "second"
    await _look(loops, looking, 2)
    (alert,) = await loops.store.alerts.list()
    assert "it raised RuntimeError: second" in alert.reason
    assert (alert.state, alert.count) == ("firing", 2)
