"""Every kind of violation, planted in accounts that are otherwise sound, is found; in sound ones there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from greenroom.sdk import models
from greenroom.testing.chaos import agent, judging
from greenroom.testing.chaos.history import End, History, Outcome, Sent
from greenroom.testing.chaos.judging import Report, Seen
from greenroom.testing.chaos.ledger import Run
from greenroom.testing.chaos.recovery import Injection, Sighting

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def at(second: float) -> datetime:
    return NOON + timedelta(seconds=second)


class Accounts:
    """Of a sound run: tasks ``a`` and ``b`` of a session, ``c`` that ran twice, ``r`` that was refused."""

    def __init__(self) -> None:
        self.history = History()
        self.runs: list[Run] = []
        self.tasks: dict[str, models.Task] = {}
        self.seen = Seen(7, 3, {"kill": 1}, (Injection("kill", NOON.timestamp() + 4.5, NOON.timestamp() + 4.5),))
        first = agent.link("", "a")
        self.add("a", begun=0, ended=1, session="s", order=0, link=first)
        self.add("b", begun=2, ended=3, session="s", order=1, link=agent.link(first, "b"))
        self.add("c", begun=4, ended=6)
        self.run("c", epoch=1, begun=4, ended=None)
        self.change("c", attempts=(attempt(1, 4, 4.6, "replica_lost"), attempt(2, 5, 6, "ok")))
        self.change("c", output={"epoch": 2})
        self.runs = [run for run in self.runs if not (run.task == "c" and run.ended_at is not None)]
        self.run("c", epoch=2, begun=5, ended=6)
        self.history.note(Sent(key="r", outcome=Outcome.REFUSED, refusal="invalid-body"))

    def add(self, name: str, *, begun: float, ended: float, link: str | None = None, **sent: Any) -> None:
        self.history.note(Sent(key=name, outcome=Outcome.ACKNOWLEDGED, task=name, **sent))
        self.run(name, epoch=1, begun=begun, ended=ended)
        self.tasks[name] = models.Task(
            id=name,
            state="succeeded",
            output={"epoch": 1, "link": link},
            attempts=(attempt(1, begun, ended, "ok"),),
            finished_at=at(ended + 0.1),
        )

    def run(self, name: str, *, epoch: int, begun: float, ended: float | None) -> None:
        ended_at = None if ended is None else at(ended).timestamp()
        self.runs.append(Run(name, name, epoch, epoch, 42, at(begun).timestamp(), ended_at))

    def change(self, name: str, **fields: Any) -> None:
        self.tasks[name] = msgspec.structs.replace(self.tasks[name], **fields)

    def sent(self, name: str, **fields: Any) -> None:
        self.history.note(dataclasses.replace(self.history.sent[name], **fields))

    def report(self) -> Report:
        return judging.judge(self.history, self.runs, self.tasks, self.seen)


def attempt(epoch: int, begun: float, ended: float, reason: str) -> models.Attempt:
    return models.Attempt(
        epoch=epoch, attempt=epoch, replica=f"r{epoch}", started_at=at(begun), ended_at=at(ended), reason=reason
    )


def test_a_sound_run_passes_with_its_counts() -> None:
    report = Accounts().report()
    assert report.passed, report
    assert (report.submitted, report.acknowledged, report.refused, report.unknown) == (4, 3, 1, 0)
    assert (report.succeeded, dict(report.failed), report.run_twice, report.lost, report.recorded_twice) == (
        3,
        {},
        1,
        0,
        0,
    )


def test_failures_are_counted_by_reason_and_break_no_promise() -> None:
    accounts = Accounts()
    _quarantine(accounts)
    accounts.sent("c", is_poison=True)
    accounts.change("b", state="cancelled", output=None)
    report = accounts.report()
    assert report.passed, report
    assert dict(report.failed) == {"poison": 1, "cancelled": 1}


def _lose(accounts: Accounts) -> None:
    accounts.change("c", state="running", finished_at=None)


def _forget(accounts: Accounts) -> None:
    del accounts.tasks["c"]


def _leave_a_child(accounts: Accounts) -> None:
    accounts.tasks["child"] = models.Task(id="child", state="queued", parent="a")


def _double_a_key(accounts: Accounts) -> None:
    accounts.sent("c", others=("d",))


def _run_a_key_as_two_tasks(accounts: Accounts) -> None:
    accounts.runs.append(dataclasses.replace(accounts.runs[0], task="x"))


def _change_an_end(accounts: Accounts) -> None:
    accounts.history.ends.append(End("c", "failed", 1))


def _revive_a_cancelled(accounts: Accounts) -> None:
    accounts.sent("c", was_cancelled=True)


def _record_a_stale_result(accounts: Accounts) -> None:
    accounts.change("c", output={"epoch": 1})


def _record_what_never_ended(accounts: Accounts) -> None:
    accounts.runs[-1] = dataclasses.replace(accounts.runs[-1], ended_at=None)


def _run_a_refused(accounts: Accounts) -> None:
    accounts.run("r", epoch=1, begun=1, ended=2)


def _run_a_child_of_a_refused(accounts: Accounts) -> None:
    accounts.runs.append(Run("r/1", "child", 1, 1, 42, 1.0, 2.0))


def _begin_out_of_order(accounts: Accounts) -> None:
    accounts.runs[1] = dataclasses.replace(accounts.runs[1], begun_at=at(-1).timestamp())


def _overlap(accounts: Accounts) -> None:
    accounts.runs[1] = dataclasses.replace(accounts.runs[1], begun_at=at(0.5).timestamp())


def _begin_before_the_end_is_recorded(accounts: Accounts) -> None:
    accounts.runs[1] = dataclasses.replace(accounts.runs[1], begun_at=at(1.05).timestamp())


def _break_the_chain(accounts: Accounts) -> None:
    accounts.change("b", output={"epoch": 1, "link": agent.link("", "b")})


def _quarantine(accounts: Accounts) -> None:
    accounts.change("c", state="failed", output=None, error=models.TaskError(type="poison"))


def _quarantine_a_child(accounts: Accounts) -> None:
    accounts.tasks["child"] = models.Task(
        id="child",
        state="failed",
        parent="a",
        error=models.TaskError(type="poison"),
        attempts=(attempt(1, 0, 1, "oom"),),
    )


def _never_replace_a_replica(accounts: Accounts) -> None:
    """The node still counts the dead one."""
    fault = dataclasses.replace(accounts.seen.injected[0], gone=frozenset({"r1"}))
    sightings = [
        Sighting(at(second).timestamp(), frozenset(ready))
        for second, ready in [(0, {"r1", "r2"}), (4.6, {"r2"}), (5, {"r1", "r2"})]
    ]
    accounts.seen = dataclasses.replace(accounts.seen, injected=(fault,), replicas=sightings, desired=2)


def _end_short_of_replicas(accounts: Accounts) -> None:
    sightings = Sighting(at(0).timestamp(), frozenset({"r1", "r2"})), Sighting(at(9).timestamp(), frozenset({"r1"}))
    accounts.seen = dataclasses.replace(accounts.seen, replicas=sightings, desired=2)


@pytest.mark.parametrize(
    ("plant", "found", "count"),
    [
        (_lose, "lost", "lost"),
        (_forget, "lost", "lost"),
        (_leave_a_child, "lost", "lost"),
        (_double_a_key, "recorded twice", "recorded_twice"),
        (_run_a_key_as_two_tasks, "recorded twice", "recorded_twice"),
        (_change_an_end, "recorded twice", "recorded_twice"),
        (_revive_a_cancelled, "recorded twice", "recorded_twice"),
        (_record_a_stale_result, "result of another attempt", None),
        (_record_what_never_ended, "result of another attempt", None),
        (_run_a_refused, "refused, but run", "refused_but_run"),
        (_run_a_child_of_a_refused, "refused, but run", "refused_but_run"),
        (_begin_out_of_order, "out of a session's order", "session_disorders"),
        (_overlap, "at once in a session", "session_overlaps"),
        (_begin_before_the_end_is_recorded, "at once in a session", "session_overlaps"),
        (_break_the_chain, "state of a session broken", "session_states_broken"),
        (_quarantine, "innocent quarantined", None),
        (_quarantine_a_child, "innocent quarantined", None),
        (_never_replace_a_replica, "not ready again", None),
        (_end_short_of_replicas, "not ready again", None),
    ],
)
def test_a_planted_violation_is_found(plant: Callable[[Accounts], None], found: str, count: str | None) -> None:
    accounts = Accounts()
    plant(accounts)
    report = accounts.report()
    assert not report.passed
    assert len(report.violations[found]) == 1
    if count is not None:
        assert getattr(report, count) == 1


def test_a_task_that_a_fault_has_stopped_may_look_as_if_it_hung_and_killed() -> None:
    accounts = Accounts()
    _quarantine(accounts)
    (kill,) = accounts.seen.injected
    for kind, passes in [("stop", True), ("kill", False)]:
        fault = dataclasses.replace(kill, kind=kind, hit=frozenset({"r2"}))
        accounts.seen = dataclasses.replace(accounts.seen, planned={kind: 1}, injected=(fault,))
        assert accounts.report().passed == passes, kind


def test_of_an_agent_without_a_ledger_nobody_knows_what_kills_it() -> None:
    accounts = Accounts()
    _quarantine(accounts)
    assert judging.judge(accounts.history, None, accounts.tasks, accounts.seen).passed


@pytest.mark.parametrize(("lost", "restored"), [(2, 1), (1, 0)])
def test_a_task_that_lost_two_replicas_may_begin_with_the_last_good_state_and_is_counted(
    lost: int, restored: int
) -> None:
    accounts = Accounts()
    good = agent.link("", "a")  # what b began with
    accounts.add("d", begun=8, ended=9, session="s", order=2, link=agent.link(good, "d"))
    attempts = [attempt(epoch, 8, 8.1, "replica_lost") for epoch in range(1, lost + 1)]
    accounts.change("d", attempts=(*attempts, attempt(lost + 1, 8, 9, "ok")))
    accounts.change("d", output={"epoch": lost + 1, "link": agent.link(good, "d")})
    accounts.runs[-1] = dataclasses.replace(accounts.runs[-1], epoch=lost + 1)
    report = accounts.report()
    assert report.passed == bool(restored)
    assert (report.session_states_restored, report.session_states_broken) == (restored, 1 - restored)


def test_what_stays_unknown_is_no_success_and_no_failure() -> None:
    accounts = Accounts()
    accounts.history.note(Sent(key="u", outcome=Outcome.UNKNOWN))
    report = accounts.report()
    assert report.passed, report
    assert (report.unknown, report.succeeded, dict(report.failed)) == (1, 3, {})


def test_a_run_with_fewer_tasks_than_planned_fails() -> None:
    accounts = Accounts()
    accounts.seen = dataclasses.replace(accounts.seen, tasks=4)
    report = accounts.report()
    assert not report.passed
    assert report.shortfalls == ("3 of 4 planned tasks were completed",)


def test_a_run_with_fewer_faults_than_planned_fails_and_says_why() -> None:
    accounts = Accounts()
    refused = Injection("lock", 1.0, 1.0, why_not="the store is not known")
    accounts.seen = dataclasses.replace(
        accounts.seen, planned={"kill": 1, "lock": 1}, injected=(*accounts.seen.injected, refused)
    )
    report = accounts.report()
    assert report.shortfalls == ("lock: 0 of 1 planned faults were injected (the store is not known)",)
    assert (report.faults["lock"].planned, report.faults["lock"].injected) == (1, 0)


def test_kinds_that_were_not_planned_are_told_and_fail_nothing() -> None:
    accounts = Accounts()
    accounts.seen = dataclasses.replace(accounts.seen, unavailable={"disk-full": "it is PostgreSQL"})
    report = accounts.report()
    assert report.passed
    assert dict(report.unavailable) == {"disk-full": "it is PostgreSQL"}


def test_an_agent_without_a_ledger_is_judged_by_the_attempts_of_its_tasks() -> None:
    accounts = Accounts()
    for name in accounts.tasks:
        accounts.change(name, output="what a user's agent says")
    report = judging.judge(accounts.history, None, accounts.tasks, accounts.seen)
    assert report.passed, report
    assert report.run_twice == 1
