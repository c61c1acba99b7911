"""Rollouts of every strategy, struck at every commit; and that what they lack is found there."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection

import msgspec
import pytest

from greenroom.control.proving import Proving, Wanted
from greenroom.core import analysis, strategies
from greenroom.core import rollouts as machine
from greenroom.store import rollouts as stored
from greenroom.store.board import Board
from greenroom.store.database import Transaction
from greenroom.store.news import News
from greenroom.testing.simulation import __main__ as command
from greenroom.testing.simulation import rollout_runs, rollouts, scenarios, strikes
from greenroom.testing.simulation.checks import Violation
from greenroom.testing.simulation.strikes import Blow, Strike

# Each strategy, each strike, each way to end; `make simulate` runs all scenarios.
STRUCK = {
    "rolling/good/2": {Strike.NODE_AFTER, Strike.ANSWER_LOST, Strike.NEW_KILLED},
    "rolling/errors/2": rollout_runs.EVERY,
    "rolling/aborted@1/2": {Strike.ANSWER_LOST},
    "blue-green/good/1": rollout_runs.EVERY,
    "blue-green/undone/2": {Strike.NODE_BEFORE, Strike.NODE_AFTER, Strike.ANSWER_LOST},
    "canary/aborted@0/2": rollout_runs.EVERY,
    "canary/check-fails/2": rollout_runs.EVERY,
    "canary/good/1": {Strike.NODE_AFTER},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRUCK)
def test_a_rollout_that_is_struck_comes_to_rest_as_it_would_have(name: str) -> None:
    report = rollout_runs.run_every_point(scenarios.named(name), STRUCK[name])
    assert not report.complaints, "\n".join(report.complaints)
    assert report.points >= 5
    assert all(report.struck[strike] for strike in STRUCK[name])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rolling", "blue-green", "canary"])
def test_every_scenario_ends_as_it_has_to(strategy: str) -> None:
    chosen = [scenario for scenario in scenarios.every() if scenario.strategy == strategy and not scenario.in_manifest]
    ends = {scenario.name: rollouts.run(scenario).violation for scenario in chosen}
    assert len(ends) >= 20
    assert {name: violation for name, violation in ends.items() if violation} == {}


@pytest.mark.slow
def test_up_to_the_blow_a_run_is_as_it_was() -> None:
    scenario = scenarios.named("rolling/good/2")
    undisturbed = rollouts.run(scenario, is_traced=True)
    struck = rollouts.run(scenario, Blow(Strike.NODE_AFTER, 9), is_traced=True)
    place = next(place for place, line in enumerate(struck.trace) if "!" in line)
    assert place > 50
    assert struck.trace[:place] == undisturbed.trace[:place]
    assert struck.points[:9] == undisturbed.points[:9]


def test_a_point_that_was_not_struck_fails_the_run() -> None:
    report = rollout_runs.Report(due=Counter({Strike.NODE_AFTER: 7}), struck=Counter({Strike.NODE_AFTER: 6}))
    assert report.complaints == ["node killed after a commit: 6 struck, 7 planned"]


def test_a_broken_promise_says_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rollouts.Run(
        scenarios.named("rolling/aborted@0/2"), Blow(Strike.NODE_AFTER, 3), [], True, 1, Violation("I34", "no"), []
    )
    report = rollout_runs.Report()
    report.add(run)
    (complaint,) = report.complaints
    arguments = complaint.partition("simulation ")[2].split()
    assert arguments == ["rollouts", "--scenario", "rolling/aborted@0/2", "--blow", "node_after@3"]
    assert strikes.parsed(arguments[-1]) == run.blow
    monkeypatch.setattr("sys.argv", ["simulation", *arguments])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("! node killed after a commit" in line for line in lines)
    assert lines[-1] == "rolling/aborted@0/2: every promise is kept"


# --- that it can fail


def _broken(name: str, strike: Strike | None = None) -> str:
    """Return the promise that *name* breaks: undisturbed, or struck at one of its points, the last ones first."""
    scenario = scenarios.named(name)
    undisturbed = rollouts.run(scenario)
    blows = [Blow(strike, point.number) for point in reversed(undisturbed.points) if strike in point.strikes]
    struck = (rollouts.run(scenario, blow) for blow in blows if strike is not None)
    violations = (run.violation for run in itertools.chain([undisturbed], struck))
    return next(violation.promise for violation in violations if violation is not None)


@pytest.mark.slow
def test_a_move_from_what_is_no_longer_so_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = stored._put

    async def put(tx: Transaction, news: News, item: stored.Put, *, alone: bool = True) -> bool:
        row = await stored._by_id(tx, item.id)
        assert row is not None
        return await guarded(tx, news, msgspec.structs.replace(item, version=row.version), alone=alone)

    monkeypatch.setattr(stored, "_put", put)
    assert _broken("rolling/aborted@0/2") == "I37"


@pytest.mark.slow
def test_a_revision_that_has_proven_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(self: Proving, wanted: Wanted, ready: Collection[str]) -> tuple[machine.Proof, None]:
        del self, wanted, ready
        return machine.Proof.PASSED, None

    monkeypatch.setattr(Proving, "look", believe)
    assert _broken("blue-green/good/2") == "I36"
    assert _broken("rolling/check-fails/2") == "I36"


@pytest.mark.slow
def test_a_canary_without_samples_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stages(strategy: strategies.Strategy, desired: int) -> tuple[strategies.Stage, ...]:
        return tuple(msgspec.structs.replace(stage, needs_samples=False) for stage in found(strategy, desired))

    found = strategies.stages
    monkeypatch.setattr(strategies, "stages", stages)
    assert _broken("canary/good/1") == "I36"


@pytest.mark.slow
def test_a_switch_to_a_revision_that_is_half_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def stages(strategy: strategies.Strategy, desired: int) -> tuple[strategies.Stage, ...]:
        return tuple(msgspec.structs.replace(stage, capacity_pct=50) for stage in found(strategy, desired))

    found = strategies.stages
    monkeypatch.setattr(strategies, "stages", stages)
    assert _broken("blue-green/good/4") == "I36"


@pytest.mark.slow
def test_an_old_revision_that_goes_before_the_new_one_is_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def capacity(rollout: machine.Rollout, desired: int) -> dict[int, int]:
        wanted = found(rollout, desired)
        return wanted | {rollout.from_revision: 0} if rollout.from_revision in wanted else wanted

    found = machine.capacity
    monkeypatch.setattr(machine, "capacity", capacity)
    assert _broken("rolling/good/2") == "I34"
    assert _broken("canary/good/1") == "I34"


@pytest.mark.slow
def test_an_old_revision_that_stays_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_wind_up", lambda rollout, _: (rollout, None))
    assert _broken("blue-green/good/1") == "I37"


@pytest.mark.slow
def test_a_deadline_that_never_comes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_wait", lambda rollout, *_: (rollout, None))
    assert _broken("rolling/never-ready/2") == "I37"


@pytest.mark.slow
def test_a_bad_revision_that_nobody_rolls_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "judge", lambda _: analysis.Finding(analysis.Verdict.PASS, "", 100))
    assert _broken("blue-green/errors/2") == "I37"


@pytest.mark.slow
def test_sessions_that_keep_to_what_is_retired_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_UNPIN", stored._UNPIN.replace("set pin = null", "set pin = pin"))
    assert _broken("canary/undone/2/manifest", Strike.NEW_KILLED) == "I7"


@pytest.mark.slow
def test_sessions_that_go_back_to_what_has_to_prove_itself_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_FORGET_PINS", stored._FORGET_PINS.replace("set pin = null", "set pin = pin"))
    assert _broken("canary/redone/2") == "I35"


@pytest.mark.slow
def test_sessions_that_do_not_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "greenroom.store.claims._PIN",
        "update session set pin = null where :revision > 0 and tenant = :tenant and agent = :agent and id = :session",
    )
    assert _broken("blue-green/good/1") == "I15"


@pytest.mark.slow
def test_traffic_that_nobody_is_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "route", lambda self, agent, traffic: self._traffic.setdefault(agent, traffic))
    assert _broken("blue-green/good/1") == "I7"


@pytest.mark.slow
def test_traffic_that_is_not_doubted_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "doubt", lambda *_: None)
    assert _broken("rolling/aborted@1/2", Strike.ANSWER_LOST) == "I35"
