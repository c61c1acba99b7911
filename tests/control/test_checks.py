"""The checks: who is silent is probed, who stays silent is killed, and grades follow the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from greenroom import telemetry
from greenroom.control.checks import Checks
from greenroom.core import health, tasks
from greenroom.engine import contract, protocol, said
from greenroom.testing.fake_engine import FakeEngine
from greenroom.testing.fakes import FakeClock

if TYPE_CHECKING:
    from control.conftest import Loops

HANG_AFTER_S = 8.0


@dataclass
class Watch:
    """Checks over a fake engine whose replicas answer at once."""

    is_grading: bool = True
    engine: FakeEngine = field(default_factory=FakeEngine)
    clock: FakeClock = field(default_factory=FakeClock)
    facts: telemetry.Telemetry = field(default_factory=telemetry.Telemetry)
    told: list[telemetry.Fact] = field(default_factory=list)
    regraded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.checks = Checks(
            self.engine, self.clock, self.facts, graded=self.regraded.append, is_grading=self.is_grading
        )
        self.facts.subscribe(self.told.append)

    async def start(self, *replicas: str, hang_after_s: float = HANG_AFTER_S, agent: str = "agent") -> None:
        for replica in replicas:
            await self.engine.start(replica, contract.Revision(agent, 1, Path("/nowhere"), "module:agent"))
            self.engine.ready(replica)
            self.checks.open(replica, agent=agent, revision=1, hang_after_s=hang_after_s)

    async def turn(self, delay_s: float, *, every_s: float = health.LOOK_EVERY_S) -> None:
        """Let time pass, with a look at least every *every_s*."""
        for _ in range(round(delay_s / every_s)):
            self.clock.advance(every_s)
            await self.checks.step()

    def end(self, replica: str, *reasons: tasks.Reason, duration_s: float = 0.1) -> None:
        for reason in reasons:
            self.facts.emit(telemetry.AttemptEnded("agent", "succeeded", reason, duration_s, replica))

    def grade(self, replica: str) -> tuple[str, str]:
        finding = self.checks.finding(replica)
        return finding.grade.value, finding.reason


@pytest.fixture
def watch() -> Watch:
    return Watch()


# Hangs


async def test_who_answers_lives_and_is_asked_once_in_a_while(watch: Watch) -> None:
    await watch.start("r1")
    await watch.turn(60)
    assert not watch.engine.killed
    asked = sum(isinstance(fact, telemetry.ProbeAnswered) for fact in watch.told)
    assert 30 <= asked <= 70


@pytest.mark.parametrize("is_grading", [True, False])
async def test_who_is_silent_after_a_probe_is_killed_with_a_word_on_what_to_do(is_grading: bool) -> None:
    watch = Watch(is_grading)
    await watch.start("r1", "r2")
    await watch.turn(5)
    watch.engine.replicas["r1"].is_hung = True
    await watch.turn(HANG_AFTER_S)
    assert not watch.engine.killed
    await watch.turn(10 - HANG_AFTER_S)
    assert watch.engine.killed == {"r1": "hung"}
    assert health.why_hung(8).startswith("no answer for 8 s")
    assert "raise hang_after_s" in health.why_hung(8)
    await watch.turn(60)
    assert list(watch.engine.replicas) == ["r2"]


async def test_each_agent_has_its_own_deadline(watch: Watch) -> None:
    await watch.start("slow", hang_after_s=60)
    await watch.start("quick", hang_after_s=2)
    for replica in watch.engine.replicas.values():
        replica.is_hung = True
    await watch.turn(4)
    assert watch.engine.killed == {"quick": "hung"}
    await watch.turn(55)
    assert list(watch.engine.replicas) == ["slow"]
    await watch.turn(10)
    assert not watch.engine.replicas


@pytest.mark.parametrize("sign", ["beat", "event", "end"])
async def test_any_frame_is_progress(watch: Watch, sign: str) -> None:
    await watch.start("r1")
    watch.engine.replicas["r1"].is_hung = True  # it has no time for probes
    for _ in range(10):
        await watch.turn(7)
        match sign:
            case "beat":
                watch.engine.alive("r1")
            case "event":
                watch.engine.say("r1", protocol.Emitted("t", 1, "message", b"1"))
            case "end":
                watch.engine.say("r1", protocol.Ended("t", 1, output=b"1"))
    assert not watch.engine.killed


async def test_a_line_in_its_log_is_no_progress(watch: Watch) -> None:
    await watch.start("r1")
    watch.engine.replicas["r1"].is_hung = True
    for _ in range(10):
        await watch.turn(1)
        watch.checks.on_log("r1", said.Line("stdout", "still here"))
    assert watch.engine.killed == {"r1": "hung"}


async def test_a_node_that_stood_still_kills_nobody_for_it(watch: Watch) -> None:
    await watch.start("r1")
    watch.engine.replicas["r1"].is_hung = True
    await watch.turn(7)
    await watch.turn(30, every_s=30)
    await watch.turn(HANG_AFTER_S - 1)
    assert not watch.engine.killed
    await watch.turn(2)
    assert watch.engine.killed == {"r1": "hung"}


async def test_who_is_being_stopped_is_not_judged(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    await watch.start("r1")
    monkeypatch.setattr(watch.engine, "invoke", lambda *_: False)
    await watch.turn(60)
    assert not watch.engine.killed


# Grades


async def test_the_first_answer_makes_it_healthy(watch: Watch) -> None:
    assert watch.grade("nobody")[0] == "unknown"
    await watch.start("r1")
    assert watch.grade("r1") == ("healthy", "it answers")
    assert watch.regraded == ["r1"]
    assert watch.told[-1] == telemetry.ReplicaGraded("agent", "r1", "healthy", "it answers")


async def test_without_an_answer_it_is_unknown_and_then_unhealthy(watch: Watch) -> None:
    await watch.engine.start("r1", contract.Revision("agent", 1, Path("/nowhere"), "module:agent"))
    watch.engine.replicas["r1"].is_hung = True
    watch.checks.open("r1", agent="agent", revision=1, hang_after_s=HANG_AFTER_S)
    await watch.turn(3)
    assert watch.grade("r1")[0] == "unknown"
    await watch.turn(4)
    assert watch.grade("r1") == ("unhealthy", "it has not answered for 4 s")
    watch.engine.replicas["r1"].is_hung = False
    watch.engine.alive("r1")
    await watch.turn(6)
    assert watch.grade("r1")[0] == "unhealthy"
    await watch.turn(6)
    assert watch.grade("r1")[0] == "healthy"


async def test_evidence_goes_stale_while_nobody_looks(watch: Watch) -> None:
    await watch.start("r1")
    await watch.turn(5)
    watch.engine.replicas["r1"].is_hung = True
    await watch.turn(3600, every_s=3600)
    assert watch.grade("r1")[0] == "unknown"


async def test_a_replica_that_fails_what_its_siblings_can_do_is_unhealthy(watch: Watch) -> None:
    await watch.start("sick", "fine", "well")
    watch.end("sick", *[tasks.Reason.AGENT_ERROR] * 5)
    for replica in ("fine", "well"):
        watch.end(replica, *[tasks.Reason.OK] * 5)
    await watch.turn(3)
    assert watch.grade("sick")[0] == "healthy"
    await watch.turn(5)
    assert watch.grade("sick") == (
        "unhealthy",
        "5 of its last 5 tasks ended with an error, and 0 of its siblings' 10: it is this replica",
    )
    assert {watch.grade("fine")[0], watch.grade("well")[0]} == {"healthy"}


async def test_an_agent_that_raises_degrades_all_its_replicas_and_no_other_agents(watch: Watch) -> None:
    await watch.start("r1", "r2")
    await watch.start("other", agent="other")
    for replica in ("r1", "r2"):
        watch.end(replica, *[tasks.Reason.AGENT_ERROR] * 20)
    watch.end("other", *[tasks.Reason.OK] * 20)
    await watch.turn(10)
    assert [watch.grade(replica)[0] for replica in ("r1", "r2", "other")] == ["degraded", "degraded", "healthy"]


async def test_what_says_nothing_about_a_replica_does_not_count(watch: Watch) -> None:
    await watch.start("r1")
    watch.end("r1", *[tasks.Reason.CANCELLED, tasks.Reason.DRAINED, tasks.Reason.NEIGHBOUR] * 10)
    watch.end("unknown", *[tasks.Reason.AGENT_ERROR] * 10)
    await watch.turn(10)
    assert watch.grade("r1")[0] == "healthy"


async def test_a_busy_node_does_not_blame_its_replicas_for_late_answers(watch: Watch) -> None:
    await watch.start("r1")
    for _ in range(10):
        watch.engine.replicas["r1"].is_hung = True
        await watch.turn(1.5)
        number = next(watch.checks._numbers) - 1
        watch.clock.advance(3)  # the answer waits to be read
        watch.engine.replicas["r1"].is_hung = False
        watch.engine.alive("r1", number)
        await watch.checks.step()
    assert watch.grade("r1")[0] == "healthy"
    assert max(fact.round_trip_s for fact in watch.told if isinstance(fact, telemetry.ProbeAnswered)) < 3


async def test_a_replica_that_answers_late_is_degraded(watch: Watch) -> None:
    await watch.start("r1")
    watch.engine.replicas["r1"].is_hung = True
    for _ in range(10):
        await watch.turn(3)
        number = next(watch.checks._numbers) - 1
        watch.engine.alive("r1", number)
    grade, reason = watch.grade("r1")
    assert grade == "degraded"
    assert reason.startswith("its event loop answers after")


async def test_one_that_talks_all_the_time_is_asked_all_the_same(watch: Watch) -> None:
    await watch.start("r1")
    for _ in range(40):
        await watch.turn(0.5)
        watch.engine.alive("r1")
    assert 3 <= sum(isinstance(fact, telemetry.ProbeAnswered) for fact in watch.told) <= 6


async def test_without_health_checks_the_grade_says_so() -> None:
    watch = Watch(is_grading=False)
    await watch.start("r1")
    watch.end("r1", *[tasks.Reason.AGENT_ERROR] * 20)
    await watch.turn(60)
    assert watch.grade("r1") == ("unknown", "health checks are off")
    assert not watch.regraded


async def test_who_is_gone_is_forgotten(watch: Watch) -> None:
    await watch.start("r1")
    watch.engine.die("r1")
    await watch.turn(60)
    assert watch.grade("r1")[0] == "unknown"
    assert not watch.checks._watched


# With the host and the dispatcher


async def test_the_task_of_a_hung_replica_runs_again_and_its_late_word_is_not_heard(loops: Loops) -> None:
    await loops.deploy(retry_backoff_s=0)
    id = await loops.submit()
    hung = loops.replica_of(id)
    loops.engine.replicas[hung].is_hung = True
    for _ in range(40):
        await loops.advance(0.25)
    assert loops.engine.killed == {hung: "hung"}
    fresh = loops.replica_of(id)
    assert fresh != hung
    loops.engine.say(hung, protocol.Ended(id, 1, output=b'"late"'))
    loops.engine.succeed(fresh, b'"once"')
    await loops.settle()
    task = await loops.task(id)
    assert (task.state, task.output, task.attempts_charged) == ("succeeded", b'"once"', 2)
    row = await loops.store.agents.replica(hung)
    assert (row.state, row.grade, row.reason) == ("failed", "unknown", health.why_hung(8))


async def test_a_draining_replica_is_judged_too(loops: Loops) -> None:
    await loops.deploy()
    hung = loops.replica_of(await loops.submit())
    loops.host.restart(hung)
    loops.engine.replicas[hung].is_hung = True
    for _ in range(40):
        await loops.advance(0.25)
    assert loops.engine.killed == {hung: "hung"}


async def test_grades_are_written_to_the_rows(loops: Loops) -> None:
    await loops.deploy()
    (row,) = await loops.store.agents.replicas()
    assert (row.grade, row.reason) == ("healthy", "it answers")
    loops.engine.replicas[row.id].is_hung = True
    for _ in range(32):
        await loops.advance(0.25)
    (row,) = await loops.store.agents.replicas()
    assert (row.grade, row.reason) == ("unhealthy", "it has not answered for 4 s")


async def test_a_starting_replica_is_not_judged_and_has_no_grade(loops: Loops) -> None:
    loops.engine.is_eager = False
    await loops.deploy()
    (replica,) = loops.engine.replicas.values()
    replica.is_hung = True
    for _ in range(80):
        await loops.advance(0.25)
    assert not loops.engine.killed
    (row,) = await loops.store.agents.replicas()
    assert (row.state, row.grade) == ("starting", "unknown")


async def test_probes_and_ends_of_replicas_are_counted_by_agent(loops: Loops) -> None:
    metrics = telemetry.Metrics()
    metrics.listen(loops.host._facts)
    await loops.deploy(replicas=2)
    text = metrics.render().decode()
    assert 'greenroom_probe_seconds_count{agent="agent"} 2.0' in text
    loops.engine.die(next(iter(loops.engine.replicas)), "an odd reason")
    text = metrics.render().decode()
    assert 'greenroom_replica_exits_total{agent="agent",reason="killed"} 1.0' in text
