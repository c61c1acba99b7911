"""The autoscaler, step by step: what it decides from what is there, and what it writes."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from greenroom import errors, settings, telemetry
from greenroom.api import views
from greenroom.control import bounds
from greenroom.control.autoscaler import Autoscaler
from greenroom.core.resources import Use
from greenroom.sdk import models
from greenroom.store import scaling as rows
from greenroom.store.deployments import Deployment, Limits
from greenroom.testing.fakes import Fault, FaultyDatabase

if TYPE_CHECKING:
    from control.conftest import Loops

SCALING = {"min_replicas": 1, "max_replicas": 8}
CLUSTER = settings.load(environ={}, overrides={"cluster": {"autoscaling": True}}).cluster


@dataclass
class Scaled:
    """The loops with an autoscaler; *use* is what all replicas use."""

    loops: Loops
    use: Use = field(default_factory=lambda: Use(0.0, 10.0))
    cluster: settings.Cluster = CLUSTER

    def __post_init__(self) -> None:
        self.autoscaler = self.fresh()

    def fresh(self) -> Autoscaler:
        clock, store = self.loops.scratch.clock, self.loops.store
        return Autoscaler(store, clock, self.loops.told, self.cluster, use=lambda: self.use)

    def bounded(self, **changes: Any) -> None:
        self.cluster = structs.replace(CLUSTER, **changes)
        self.autoscaler = self.fresh()

    async def deploy(self, name: str = "agent", **spec: Any) -> None:
        spec = {"scaling": SCALING} | spec
        parsed = settings.parse_agent(name, {"factory": "module:agent", **spec})
        item = Deployment(agent=name, digest="d", spec=parsed, by="ann", autoscaled=True)
        await self.loops.store.deployments.deploy(item)
        await self.loops.step(times=2)

    async def queue(self, count: int, name: str = "agent") -> None:
        for _ in range(count):
            await self.loops.submit(name)

    async def look(self, seconds: int = 1) -> None:
        """Let time pass, looking every second."""
        for _ in range(seconds):
            step = asyncio.create_task(self.autoscaler.step())
            await self.loops.until(step.done)
            step.result()
            await self.loops.advance(1.0)

    async def replicas(self, name: str = "agent") -> int:
        return (await self.loops.store.directory.refresh())[name].agent.replicas

    async def last(self, name: str = "agent") -> rows.Decision:
        return (await self.loops.store.scaling.decisions(name, limit=1))[0]


@pytest.fixture
def scaled(loops: Loops) -> Scaled:
    return Scaled(loops)


async def test_a_burst_is_written_with_its_reason_and_its_inputs(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.queue(41)
    await scaled.look()
    decision = await scaled.last()
    assert (decision.from_replicas, decision.to_replicas, decision.rule) == (1, 8, "burst")
    assert decision.reason.startswith("from 1 to 8: 40 tasks wait for 1 ready replica, the target is 5 each, so 8")
    assert b'"waiting":40' in decision.inputs
    assert decision.decided_by == rows.AUTOSCALER
    assert len(scaled.loops.engine.replicas) == 8
    told = [fact for fact in scaled.loops.facts if isinstance(fact, telemetry.AgentScaled)]
    assert [(fact.before, fact.replicas, fact.rule) for fact in told] == [(1, 8, "burst")]


async def test_tasks_that_find_no_slot_wake_it_and_others_do_not(scaled: Scaled) -> None:
    await scaled.deploy(concurrency=2)
    await scaled.look()
    await scaled.queue(2)
    assert not scaled.autoscaler.wakeup.is_set()
    await scaled.queue(1)
    assert scaled.autoscaler.wakeup.is_set()


async def test_under_load_it_is_not_woken_by_each_commit(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.queue(3)
    step = asyncio.create_task(scaled.autoscaler.step())
    await scaled.loops.until(step.done)
    scaled.autoscaler.wakeup.clear()
    await scaled.queue(1)
    assert not scaled.autoscaler.wakeup.is_set()


async def test_it_does_nothing_where_scaling_is_manual(scaled: Scaled) -> None:
    scaled.bounded(autoscaling=False)
    await scaled.deploy()
    await scaled.queue(60)
    await scaled.look(3)
    assert await scaled.replicas() == 1
    assert not await scaled.loops.store.scaling.decisions("agent")


async def test_what_a_person_sets_is_kept_for_the_window(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.look(70)
    room = Limits(10, 10)
    await scaled.loops.store.scaling.set("agent", 5, room=room, by="ann", within_bounds=True)
    await scaled.look(59)
    assert await scaled.replicas() == 5
    await scaled.look(3)
    assert await scaled.replicas() < 5


async def test_what_it_has_written_itself_is_its_own_though_the_answer_was_lost(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.look()
    await scaled.queue(12)
    scaled.loops.store.commits._db = faulty = FaultyDatabase(scaled.loops.store.db)
    faulty.faults = [Fault.AFTER_COMMIT]
    with pytest.raises(errors.StoreUnavailable):
        await scaled.look()
    assert await scaled.replicas() == 3
    await scaled.queue(12)  # more are asked for, and nobody has set another number
    await scaled.look(10)
    assert await scaled.replicas() > 3
    assert not any(row.rule == "set" for row in await scaled.loops.store.scaling.decisions("agent"))


async def test_a_deployment_keeps_what_was_scaled_out_within_its_bounds(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.queue(41)
    await scaled.look()
    await scaled.deploy(description="another one")
    assert await scaled.replicas() == 8
    await scaled.deploy(scaling=SCALING | {"max_replicas": 3})
    assert await scaled.replicas() == 3
    await scaled.deploy(scaling=SCALING | {"min_replicas": 4})
    assert await scaled.replicas() == 4


async def test_a_rollout_ends_with_as_many_as_there_are_then(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.deploy(timeout_s=5, rollout={"scale_down_delay_s": 0})  # another revision
    await scaled.queue(60)
    await scaled.look(8)
    assert await scaled.replicas() == 8
    entry = (await scaled.loops.store.directory.refresh())["agent"]
    assert entry.rollout is not None
    assert (entry.rollout.phase, entry.agent.revision) == ("complete", 2)


async def test_what_its_replicas_died_of_is_not_forgotten_when_it_is_scaled(scaled: Scaled) -> None:
    await scaled.deploy()
    before = (await scaled.loops.store.directory.refresh())["agent"].agent.generation
    await scaled.queue(41)
    await scaled.look()
    assert (await scaled.loops.store.directory.refresh())["agent"].agent.generation == before


async def test_a_quarantined_agent_is_not_scaled_on_its_backlog(scaled: Scaled) -> None:
    scaled.loops.engine.refusal = "cannot import module"
    await scaled.deploy()
    await scaled.look(60)
    await scaled.queue(60)
    await scaled.look(12)
    assert await scaled.replicas() == 1
    decision = await scaled.last()
    assert decision.rule == "failing"
    assert "cannot import module" in decision.reason


async def test_a_backlog_before_the_first_checks_have_passed_brings_no_replicas(scaled: Scaled) -> None:
    scaled.loops.engine.holds_trials = True
    await scaled.deploy(rollout={"checks": ["module:check"]})
    await scaled.queue(60)
    await scaled.look(2)
    assert await scaled.replicas() == 1
    decision = await scaled.last()
    assert (decision.rule, "its checks run" in decision.reason) == ("failing", True)


async def test_a_node_that_stops_decides_nothing_more(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.queue(60)
    scaled.autoscaler.stop()
    await scaled.look(2)
    assert await scaled.replicas() == 1


async def test_a_node_that_stops_while_it_looks_decides_nothing(
    scaled: Scaled, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scaled.deploy()
    await scaled.queue(60)
    replicas = scaled.loops.store.agents.replicas

    async def stopped_meanwhile() -> Any:
        scaled.autoscaler.stop()
        return await replicas()

    monkeypatch.setattr(scaled.loops.store.agents, "replicas", stopped_meanwhile)
    await scaled.look()
    assert await scaled.replicas() == 1


@pytest.mark.parametrize("limit", [0, 1, 4])  # it is open, or half-open
async def test_a_breaker_that_is_not_closed_keeps_more_from_coming(scaled: Scaled, limit: int) -> None:
    await scaled.deploy()
    scaled.loops.store.board.limit("agent", limit)
    await scaled.queue(60)
    await scaled.look(2)
    assert await scaled.replicas() == 1
    assert (await scaled.last()).rule == "breaker"


@pytest.mark.parametrize(("limit", "rule", "word"), [(3, "burst", "max_running"), (1, "max_running", "max_running")])
async def test_no_more_replicas_than_have_slots_for_what_may_run(
    scaled: Scaled, limit: int, rule: str, word: str
) -> None:
    await scaled.deploy(max_running=limit)
    scaled.loops.store.board.limit("agent", limit)
    await scaled.queue(60)
    await scaled.look(2)
    assert await scaled.replicas() == limit
    (first, *_) = reversed(await scaled.loops.store.scaling.decisions("agent"))
    assert (first.rule, word in first.reason) == (rule, True)


async def test_busy_processors_keep_more_from_coming(scaled: Scaled) -> None:
    scaled.bounded(cpu=2.0)
    await scaled.deploy()
    scaled.use = Use(1.9, 10.0)
    await scaled.queue(60)
    await scaled.look(2)
    assert await scaled.replicas() == 1
    decision = await scaled.last()
    assert (decision.rule, "1.9 of 2 CPUs" in decision.reason) == ("cpu", True)
    scaled.use = Use(1.0, 10.0)
    await scaled.look()
    assert await scaled.replicas() == 8


async def test_no_more_are_started_than_memory_holds_whoever_asks_first(scaled: Scaled) -> None:
    scaled.bounded(memory_mb=50)
    for name in ("a", "b"):
        await scaled.deploy(name)
    scaled.use = Use(0.0, 20.0)  # each replica has 10 MB
    for name in ("a", "b"):
        await scaled.queue(60, name)
    await scaled.look()
    assert [await scaled.replicas(name) for name in ("a", "b")] == [3, 1]
    decision = await scaled.last("b")
    assert (decision.rule, "of 50 MB" in decision.reason) == ("memory", True)


async def test_replicas_that_came_since_memory_was_measured_count_as_well(scaled: Scaled) -> None:
    scaled.bounded(memory_mb=60)
    await scaled.deploy()
    scaled.use = Use(0.0, 10.0, {"agent": 1})
    await scaled.queue(16)
    await scaled.look()
    assert await scaled.replicas() == 3
    await scaled.queue(60)
    await scaled.look()
    assert await scaled.replicas() == 5  # of 10 MB each, and from nine tenths on replicas are replaced


async def test_where_the_envelope_is_full_who_has_the_most_gives_one_up(scaled: Scaled) -> None:
    scaled.bounded(memory_mb=100)
    for name in ("a", "b"):
        await scaled.deploy(name)
    await scaled.queue(16, "a")
    await scaled.look()
    assert [await scaled.replicas(name) for name in ("a", "b")] == [3, 1]
    scaled.use = Use(0.0, 96.0, {"a": 3, "b": 1})
    await scaled.look()
    assert [await scaled.replicas(name) for name in ("a", "b")] == [2, 1]
    decision = await scaled.last("a")
    assert (decision.rule, "one has to go" in decision.reason) == ("memory", True)


async def test_one_comes_alone_while_nobody_knows_what_it_takes(scaled: Scaled) -> None:
    scaled.bounded(memory_mb=1000)
    await scaled.deploy(scaling=SCALING | {"min_replicas": 0})
    await scaled.loops.step(times=2)  # what has proven its revision is gone
    await scaled.queue(60)
    await scaled.look()
    assert await scaled.replicas() == 1
    assert "not known yet" in (await scaled.last()).reason
    await scaled.look()
    assert await scaled.replicas() == 8


async def test_scarce_replicas_are_shared_and_each_is_told_who_else_wants_them(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=6)
    for name in ("a", "b"):
        await scaled.deploy(name, scaling=SCALING | {"max_replicas": 6})
        await scaled.queue(60, name)
    await scaled.look()
    assert [await scaled.replicas(name) for name in ("a", "b")] == [3, 3]
    assert "b wants 6" in (await scaled.last("a")).reason


async def test_who_comes_late_gets_a_fair_share_from_who_has_more(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=6)
    for name in ("a", "b"):
        await scaled.deploy(name, scaling=SCALING | {"max_replicas": 6})
    await scaled.queue(60, "a")
    await scaled.look(2)
    assert [await scaled.replicas(name) for name in ("a", "b")] == [5, 1]
    await scaled.queue(60, "b")
    await scaled.look(2)
    assert [await scaled.replicas(name) for name in ("a", "b")] == [3, 3]
    assert (await scaled.loops.store.scaling.decisions("a"))[0].rule == "cluster"


async def test_more_agents_than_replicas_take_turns(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=2)
    names = ("a", "b", "c")
    for name in names:
        await scaled.deploy(name, scaling={"min_replicas": 0, "max_replicas": 2, "stabilisation_s": 10})
        await scaled.queue(5, name)
    awake = []
    for _ in range(60):
        await scaled.look()
        for id in list(scaled.loops.engine.replicas):  # who goes ends what it has
            if scaled.loops.store.board.attempts(id) and id not in scaled.loops.store.board.replicas(id[0]).get(1, []):
                scaled.loops.engine.succeed(id)
        awake.append(tuple([name for name in names if await scaled.replicas(name)]))
    assert all(len(each) <= 2 for each in awake)
    shares = [sum(name in each for each in awake) for name in names]
    assert min(shares) >= 20, shares  # of 40, if it came out even
    turns = sum(before != after for before, after in itertools.pairwise(awake))
    assert turns <= 2 * 60 / 10  # and none is cut more than once in its window


async def test_a_node_that_starts_keeps_the_number_and_looks_first(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.queue(41)
    await scaled.look()
    for replica in list(scaled.loops.engine.replicas):
        while scaled.loops.engine.replicas[replica].invocations:
            scaled.loops.engine.succeed(replica)
            break
    scaled.autoscaler = scaled.fresh()
    await scaled.look(50)
    assert await scaled.replicas() == 8


async def test_an_agent_sleeps_is_kept_warm_and_is_woken_by_a_task(scaled: Scaled) -> None:
    await scaled.deploy(scaling={"min_replicas": 0, "max_replicas": 4, "idle_s": 5})
    assert await scaled.replicas() == 0  # it has proven itself, and nothing waits
    await scaled.loops.step(times=2)
    assert not scaled.loops.engine.replicas
    agent = (await scaled.loops.store.directory.refresh())["agent"].agent
    assert (agent.state, "asleep" in agent.reason) == ("ready", True)
    assert [(each.agent, each.number) for each in scaled.loops.engine.warm] == [("agent", 1)]
    await scaled.look(2)
    id = await scaled.loops.submit()
    await scaled.look()
    assert await scaled.replicas() == 1
    assert (await scaled.last()).rule == "wake"
    room = Limits(10, 10)
    await scaled.loops.store.scaling.set("agent", 0, room=room, by="ann", within_bounds=True)
    await scaled.loops.step(times=2)
    agent = (await scaled.loops.store.directory.refresh())["agent"].agent
    assert (agent.state, "when its last replicas have done" in agent.reason) == ("ready", True)
    scaled.loops.engine.succeed(scaled.loops.replica_of(id))
    await scaled.look(8)
    assert await scaled.replicas() == 0
    assert not scaled.loops.engine.replicas


async def test_a_dropped_agent_is_left_alone(scaled: Scaled) -> None:
    await scaled.deploy()
    store = scaled.loops.store
    await store.agents.scale("agent", 0)
    await store.agents.observe("agent", state="dropped", reason="it left the manifest")
    await scaled.queue(3)
    await scaled.look(3)
    assert await scaled.replicas() == 0


async def test_what_holds_a_number_is_noted_when_it_changes_and_not_each_second(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.look(30)
    assert len(await scaled.loops.store.scaling.decisions("agent")) == 1


async def test_the_load_is_recorded_every_ten_seconds_where_there_is_any(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.look(21)
    assert not await scaled.loops.store.scaling.loads("agent", after_us=0)
    id = await scaled.loops.submit()
    await scaled.look(2)
    scaled.loops.engine.succeed(scaled.loops.replica_of(id))
    await scaled.look(20)
    loads = await scaled.loops.store.scaling.loads("agent", after_us=0)
    assert (sum(load.arrivals for load in loads), sum(load.ends for load in loads)) == (1, 1)


async def test_what_waits_when_a_node_starts_again_does_not_arrive_again(scaled: Scaled) -> None:
    await scaled.deploy()
    await scaled.look()
    await scaled.queue(30)
    await scaled.look(11)
    scaled.autoscaler = scaled.fresh()
    await scaled.look(11)
    loads = await scaled.loops.store.scaling.loads("agent", after_us=0)
    assert sum(load.arrivals for load in loads) == 30


async def test_who_sleeps_and_cannot_be_woken_is_told_of(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=2)
    await scaled.deploy("nap", scaling={"min_replicas": 0, "max_replicas": 2, "idle_s": 5})
    await scaled.look(2)
    for name in ("a", "b"):
        await scaled.deploy(name, scaling={"min_replicas": 1})
    await scaled.queue(1, "nap")
    await scaled.look(59)
    assert [row.kind for row in await scaled.loops.store.alerts.list()] == []
    decision = await scaled.last("nap")
    assert (decision.rule, decision.to_replicas) == ("cluster", 0)
    assert "1 task waits" in decision.reason
    assert "the minimums of the others are 2" in decision.reason
    entries = await scaled.loops.store.directory.refresh()
    reasons = [
        views.agent_status(
            entries["nap"],
            ready=views.ready([], scaled.loops.store.board),
            tasks={"queued": queued},
            breaker=models.BreakerState(),
            full=views.full(entries, most),
        ).reason
        for queued, most in ((1, 2), (0, 2), (1, 3))
    ]
    asleep = "it is asleep: the first task starts a replica"
    told = "1 task waits, and cluster.max_replicas (2) leaves no replica: see greenroom scale explain nap"
    assert reasons == [told, asleep, asleep]
    await scaled.look(3)
    (alert,) = await scaled.loops.store.alerts.list()
    assert (alert.id, alert.kind, alert.severity, alert.state) == ("starved-nap", "starved", "warning", "firing")
    assert "cluster.max_replicas is 2" in alert.reason
    scaled.autoscaler = scaled.fresh()  # another node finds it, and resolves it
    scaled.bounded(max_replicas=3)
    await scaled.look(2)
    assert await scaled.replicas("nap") == 1
    assert [row.state for row in await scaled.loops.store.alerts.list()] == ["resolved"]


async def test_what_refuses_to_wake_one_again_is_stored_though_the_same_has_sent_it_to_sleep(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=2)
    await scaled.deploy("nap", scaling={"min_replicas": 0, "max_replicas": 2})
    await scaled.look(2)
    await scaled.queue(1, "nap")
    await scaled.look(2)
    scaled.loops.engine.succeed(next(iter(scaled.loops.engine.replicas)))
    assert await scaled.replicas("nap") == 1
    await scaled.deploy("a", scaling={"min_replicas": 1})
    await scaled.deploy("b", scaling={"min_replicas": 1})
    await scaled.look(20)
    assert ((await scaled.last("nap")).from_replicas, (await scaled.last("nap")).rule) == (1, "cluster")
    await scaled.queue(3, "nap")
    await scaled.look(12)
    decision = await scaled.last("nap")
    assert (decision.from_replicas, decision.to_replicas, decision.rule) == (0, 0, "cluster")
    assert "3 tasks wait for an agent that is asleep" in decision.reason


async def test_who_is_awake_under_a_light_load_lets_another_one_wake(scaled: Scaled) -> None:
    scaled.bounded(max_replicas=1)
    for name in ("a", "b"):
        await scaled.deploy(name, scaling={"min_replicas": 0, "max_replicas": 1, "stabilisation_s": 10})
        await scaled.look()
    awake: list[str] = []
    for second in range(40):
        await scaled.queue(1, "a")
        if second == 5:
            await scaled.queue(1, "b")
        await scaled.look()
        for id in list(scaled.loops.engine.replicas):
            if scaled.loops.store.board.attempts(id):
                scaled.loops.engine.succeed(id)
        awake += [name for name in ("a", "b") if await scaled.replicas(name)]
    assert "b" in awake[5:17]
    assert "a" in awake[20:]


async def test_a_burst_brings_no_more_of_what_dies_after_it_was_ready(scaled: Scaled) -> None:
    await scaled.deploy()
    for _ in range(3):
        for id in list(scaled.loops.engine.replicas):
            scaled.loops.engine.die(id, "exited", "it exited with 1")
        await scaled.loops.advance(5.0)  # and another one is ready
        await scaled.look()
    assert scaled.loops.store.board.usage("agent").replicas == 1
    await scaled.queue(46)
    await scaled.look()
    assert await scaled.replicas() == 1
    await scaled.look(11)
    decision = await scaled.last()
    assert decision.rule == "failing"
    assert "its replicas have died" in decision.reason
    assert "exited with 1" in decision.reason
    scaled.loops.engine.succeed(next(iter(scaled.loops.engine.replicas)))
    await scaled.loops.step(times=2)
    await scaled.look(2)
    assert await scaled.replicas() == 8


async def test_one_death_among_replicas_that_work_holds_nothing(scaled: Scaled) -> None:
    await scaled.deploy(scaling={"min_replicas": 2, "max_replicas": 8})
    await scaled.look(70)
    scaled.loops.engine.die(next(iter(scaled.loops.engine.replicas)), "exited")
    await scaled.loops.advance(5.0)
    await scaled.queue(46)
    await scaled.look()
    assert await scaled.replicas() == 8


def test_who_shares_names_the_greatest_and_counts_the_others() -> None:
    wants = {name: (1, place) for place, name in enumerate("abcdef", 1)}
    assert bounds.sharing("a", 1, wants, most=10) == (
        "cluster.max_replicas is 10, f wants 6, e wants 5, d wants 4 and 2 more do, and its fair share is 1"
    )
