"""Each rule finds what it is for, once, and leaves alone what only looks like it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from greenroom.core import intrusion
from greenroom.core.intrusion import QUIET_S, Rule, Subject, Watch


def found(watch: Watch) -> list[tuple[str, str]]:
    return [(str(finding.rule), str(finding.subject)) for finding in watch.findings()]


def _guesses(watch: Watch) -> None:
    for n in range(20):
        watch.rejected("192.0.2.1", "", n * 2.0)


def _guesses_at_a_key(watch: Watch) -> None:
    for n in range(10):
        watch.rejected(f"192.0.2.{n}", "a" * 16, n * 2.0)


def _mistypes(watch: Watch) -> None:
    """Somebody mistypes five times; fifty people behind fifty addresses do so once; a job fails once a minute."""
    for n in range(5):
        watch.rejected("192.0.2.1", "a" * 16, n * 5.0)
    for n in range(50):
        watch.rejected(f"198.51.100.{n}", "", 30.0)
    for n in range(100):
        watch.rejected("203.0.113.1", "b" * 16, n * 60.0)


def _is_used_everywhere(watch: Watch) -> None:
    for n in range(4):
        watch.requested("key", f"198.51.{n}.1", 1, n * 10.0)


def _has_copies_and_moves(watch: Watch) -> None:
    """Many copies in inner networks and in one outer one; a laptop that goes from one network to another in a day."""
    for n in range(200):
        watch.requested("job", f"10.{n}.0.1", 5, n * 1.0)
        watch.requested("office", f"198.51.100.{n}", 5, n * 1.0)
        watch.requested("dual", ("198.51.100.7", "2001:db8::7", "::ffff:198.51.100.9")[n % 3], 5, n * 1.0)
        watch.requested("laptop", f"198.51.{n}.1", 5, n * 1800.0)


def _tries_what_it_may(watch: Watch) -> None:
    for n in range(20):
        watch.refused("key", f"DELETE /v1/agents/{n}", n * 1.0)


def _is_refused_now_and_then(watch: Watch) -> None:
    """A dashboard with one tile too many among ten; a job that is set up wrongly, and asks for one thing for ever."""
    for n in range(100):
        watch.requested("dashboard", "10.0.0.1", 10, n * 5.0)
        watch.refused("dashboard", "GET /v1/keys" if n % 2 else f"GET /v1/audit?{n}", n * 5.0)
        watch.refused("job", "POST /v1/tasks", n * 5.0)


def _guesses_ids(watch: Watch) -> None:
    for n in range(20):
        watch.missed("key", f"GET /v1/tasks/{n}", n * 1.0)


def _asks_for_what_is_gone(watch: Watch) -> None:
    """One who polls a task that was removed; one who looks through an old list, among much else."""
    for n in range(100):
        watch.missed("poller", "GET /v1/tasks/1", n * 1.0)
        watch.requested("reader", "10.0.0.1", 10, n * 2.0)
        watch.missed("reader", f"GET /v1/tasks/{n}", n * 2.0)


def _forges(watch: Watch) -> None:
    for n in range(3):
        watch.forged("192.0.2.1", "", "a forged token", n * 60.0)


def _sends_something_odd(watch: Watch) -> None:
    for n in range(50):
        watch.forged("192.0.2.1", "", "a path that climbs", n * 200.0)
        watch.forged(f"198.51.100.{n}", "", "a path that climbs", n * 200.0)


def _agent_breaks_out(watch: Watch) -> None:
    for n in range(3):
        watch.blocked("research", "connect to 169.254.169.254", n * 10.0)


def _agent_stumbles(watch: Watch) -> None:
    for n in range(20):
        watch.blocked("research", "open /etc/shadow", n * 200.0)


def _floods(watch: Watch) -> None:
    for minute in range(12):
        watch.submitted("key", 10, minute * 60.0)
    watch.submitted("key", 300, 12 * 60.0 + 1)


def _has_a_good_day(watch: Watch) -> None:
    """Three times the usual; a busy one's morning; a new one's first import; a quiet one that does a bit more."""
    for minute in range(60):
        watch.submitted("usual", 500, minute * 60.0)
        watch.submitted("quiet", 1, minute * 60.0)
    watch.submitted("usual", 1500, 3601.0)
    watch.submitted("quiet", 200, 3601.0)
    watch.submitted("new", 100_000, 3601.0)


def _clock_goes_back(watch: Watch) -> None:
    watch.clocks(wall_s=-3600.0, steady_s=1.0, now_s=1.0)


def _clock_is_adjusted(watch: Watch) -> None:
    watch.clocks(wall_s=0.2, steady_s=1.0, now_s=1.0)  # slewed
    watch.clocks(wall_s=7200.0, steady_s=1.0, now_s=2.0)  # the machine slept


TRUE: dict[Rule, list[tuple[Callable[[Watch], None], str]]] = {
    Rule.FAILED_LOGINS: [(_guesses, "source:192.0.2.1"), (_guesses_at_a_key, f"key:{'a' * 16}")],
    Rule.MANY_NETWORKS: [(_is_used_everywhere, "principal:key")],
    Rule.SCOPE_PROBING: [(_tries_what_it_may, "principal:key")],
    Rule.FOREIGN_IDS: [(_guesses_ids, "principal:key")],
    Rule.FORGED_REQUESTS: [(_forges, "source:192.0.2.1")],
    Rule.BLOCKED_AGENT: [(_agent_breaks_out, "agent:research")],
    Rule.SUDDEN_LOAD: [(_floods, "principal:key")],
    Rule.BROKEN_AUDIT: [(lambda watch: watch.audit_broken("entry 7 was changed", 0.0), "node:audit")],
    Rule.CLOCK_JUMP: [(_clock_goes_back, "node:clock")],
}
FALSE: dict[Rule, Callable[[Watch], None]] = {
    Rule.FAILED_LOGINS: _mistypes,
    Rule.MANY_NETWORKS: _has_copies_and_moves,
    Rule.SCOPE_PROBING: _is_refused_now_and_then,
    Rule.FOREIGN_IDS: _asks_for_what_is_gone,
    Rule.FORGED_REQUESTS: _sends_something_odd,
    Rule.BLOCKED_AGENT: _agent_stumbles,
    Rule.SUDDEN_LOAD: _has_a_good_day,
    Rule.BROKEN_AUDIT: lambda _: None,  # the auditor's own tests say when it tells of it
    Rule.CLOCK_JUMP: _clock_is_adjusted,
}


def test_each_rule_has_both() -> None:
    assert set(TRUE) == set(FALSE) == set(Rule)


@pytest.mark.parametrize(
    ("rule", "index"), [(rule, index) for rule, cases in TRUE.items() for index in range(len(cases))]
)
def test_a_rule_finds_what_it_is_for_and_no_other_does(rule: Rule, index: int) -> None:
    act, subject = TRUE[rule][index]
    watch = Watch()
    act(watch)
    assert found(watch) == [(rule, subject)]


@pytest.mark.parametrize("rule", FALSE)
def test_what_only_looks_like_it_is_left_alone(rule: Rule) -> None:
    watch = Watch()
    FALSE[rule](watch)
    assert found(watch) == []


def test_who_goes_on_is_one_finding_until_it_has_been_quiet() -> None:
    watch = Watch()
    for n in range(2000):
        watch.rejected("192.0.2.1", "", n * 1.0)
        assert watch.over(n * 1.0) == []
    assert found(watch) == [("failed_logins", "source:192.0.2.1")]
    assert watch.over(1999.0 + QUIET_S) == [(Rule.FAILED_LOGINS, Subject("source", "192.0.2.1"))]
    for n in range(20):
        watch.rejected("192.0.2.1", "", 5000.0 + n)
    assert found(watch) == [("failed_logins", "source:192.0.2.1")]


def test_the_tables_are_bounded_whatever_comes() -> None:
    watch = Watch()
    for n in range(3 * intrusion.MAX_SUBJECTS):
        watch.rejected(f"2001:db8::{n:x}", f"{n:016x}", 1.0)
        watch.requested(f"p{n}", "10.0.0.1", 1, 1.0)
        watch.forged(f"s{n % 7}", "", str(n), 1.0)
    for table in (
        watch._of_source._marks,
        watch._of_key._marks,
        watch._networks._marks,
        watch.rejected_of_source._buckets,
    ):
        assert len(table.items()) <= intrusion.MAX_SUBJECTS
    assert all(len(marks.at_s) <= intrusion.MAX_MARKS for _, marks in watch._forged._marks.items())
    for n in range(2 * intrusion.MAX_OPEN):
        watch._find(Rule.FAILED_LOGINS, Subject("source", str(n)), "why", 1.0)
    assert len(watch._seen_s) <= intrusion.MAX_OPEN + 7


def test_a_flood_of_one_rule_hides_nothing_that_another_finds() -> None:
    watch = Watch()
    for n in range(2 * intrusion.MAX_OPEN):
        watch._find(Rule.FAILED_LOGINS, Subject("source", str(n)), "why", 1.0)
    watch.findings()
    watch.audit_broken("an entry is gone", 2.0)
    assert [finding.rule for finding in watch.findings()] == [Rule.BROKEN_AUDIT]
    watch.over(1.0 + intrusion.QUIET_S)
    watch._find(Rule.FAILED_LOGINS, Subject("source", "after"), "why", 2 + intrusion.QUIET_S)
    assert len(watch.findings()) == 1, "what is over makes room"


def test_rates_are_of_the_last_hour() -> None:
    watch = Watch()
    for minute in range(120):
        watch.rejected("192.0.2.1", "", minute * 60.0)
    watch.rejected("192.0.2.2", "", 7140.0)
    rates = watch.rejected_of_source.all(7140.0)
    assert rates[0][0] == "192.0.2.1"
    assert 55 <= rates[0][1] <= 65
    assert rates[1] == ("192.0.2.2", 1)
    assert watch.rejected_of_source.all(2e4) == []


def test_the_addresses_of_one_ipv6_customer_are_one_source() -> None:
    watch = Watch()
    for number in range(intrusion.REJECTED_OF_SOURCE.count):
        watch.rejected(f"2001:db8:7:1::{number:x}", "", float(number))
    assert [finding.subject.id for finding in watch.findings()] == ["2001:db8:7:1::/64"]
