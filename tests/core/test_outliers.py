"""Outliers: one bad replica is told from its peers, and equal ones are not told apart."""

from __future__ import annotations

import doctest
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import outliers
from greenroom.core.outliers import ALPHA, GRACE, MAX_OUTCOMES, STRETCHES, WINDOW_S, Evidence

A, B, C = REPLICAS = ("a", "b", "c")


def _warm(*replicas: str) -> Evidence:
    evidence = Evidence()
    for replica in replicas:
        for _ in range(GRACE):
            evidence.note(replica, is_failure=True, at_s=0.0)
    assert not evidence.outcomes
    return evidence


def _judged(evidence: Evidence, now_s: float = 1.0, replicas: Iterable[str] = REPLICAS) -> str | None:
    found = outliers.judge(evidence.outcomes, frozenset(replicas), now_s=now_s)
    return None if found is None else found.replica


def _play(evidence: Evidence, rounds: int, fails: Callable[[str, int], bool], *, at_s: float = 1.0) -> None:
    for number in range(rounds):
        for replica in REPLICAS:
            evidence.note(replica, is_failure=fails(replica, number), at_s=at_s)


def test_the_examples_in_the_docstrings_are_true() -> None:
    assert doctest.testmod(outliers).failed == 0


def test_one_that_fails_all_its_tasks_is_found_as_soon_as_there_is_enough_of_both() -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, STRETCHES[0][0] - 1, lambda replica, _: replica == B)
    assert _judged(evidence) is None
    _play(evidence, 1, lambda replica, _: replica == B)
    found = outliers.judge(evidence.outcomes, frozenset(REPLICAS), now_s=1.0)
    assert found == outliers.Outlier(B, "15 of its last 15 tasks failed, and 0 of its peers' 30")


def test_one_that_has_gone_bad_after_long_good_work_is_found_as_soon() -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, 500, lambda *_: False)
    _play(evidence, 15, lambda replica, _: replica == B)
    assert _judged(evidence) == B


def test_one_that_fails_two_tasks_of_three_is_found_later() -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, 30, lambda replica, number: replica == B and number % 3 != 0)
    assert _judged(evidence) is None
    _play(evidence, 30, lambda replica, number: replica == B and number % 3 != 0)
    assert _judged(evidence) == B


@pytest.mark.parametrize("part", [0.3, 0.6, 1.0])
def test_who_fails_as_its_peers_do_is_none(part: float) -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, 200, lambda replica, number: number % 10 < part * 10 or (replica == B and number % 10 == 9))
    assert _judged(evidence) is None


def test_one_run_of_bad_input_that_meets_the_one_free_replica_is_one_sign() -> None:
    """The others are busy for long, so it gets all of it: each task fails at once, and it is free again."""
    evidence = _warm(*REPLICAS)
    _play(evidence, 20, lambda *_: False)
    for _ in range(1000):
        evidence.note(B, is_failure=True, at_s=1.0)
    _play(evidence, 20, lambda *_: False)
    assert _judged(evidence) is None


def test_a_black_hole_between_slow_peers_is_found_by_what_it_does_between_their_ends() -> None:
    evidence = _warm(*REPLICAS)
    for _ in range(16):
        for peer in (A, C):
            for _ in range(100):
                evidence.note(B, is_failure=True, at_s=1.0)
            evidence.note(peer, is_failure=False, at_s=1.0)
    assert len(evidence.outcomes) < 100
    assert _judged(evidence) == B


def test_a_session_whose_state_fails_comes_back_to_the_same_replica_and_is_one_sign() -> None:
    evidence = _warm(*REPLICAS)
    for _ in range(100):
        evidence.note(B, is_failure=True, session="s", at_s=1.0)
        evidence.note(A, is_failure=False, at_s=1.0)
        evidence.note(C, is_failure=False, at_s=1.0)
    assert _judged(evidence) is None


def test_the_first_tasks_of_a_replica_say_nothing() -> None:
    evidence = _warm(A, C)
    for number in range(STRETCHES[0][0] + GRACE):
        assert _judged(evidence) is None
        for replica in REPLICAS:
            evidence.note(replica, is_failure=replica == B, at_s=1.0)
        assert number >= 0
    assert _judged(evidence) == B
    evidence.forget(B)
    before = len(evidence.outcomes)
    evidence.note(B, is_failure=True, at_s=1.0)
    assert len(evidence.outcomes) == before


def test_what_is_stale_and_who_is_gone_count_no_more() -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, 60, lambda replica, _: replica == B)
    assert _judged(evidence) == B
    assert _judged(evidence, 1.0 + WINDOW_S) is None
    assert _judged(evidence, replicas=(A, C)) is None
    assert _judged(evidence, replicas=(B,)) is None


def test_evidence_is_bounded() -> None:
    evidence = _warm(*REPLICAS)
    _play(evidence, MAX_OUTCOMES, lambda _, number: number % 2 == 0)
    assert len(evidence.outcomes) == MAX_OUTCOMES


@pytest.mark.parametrize(("ready", "most"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 1), (6, 2), (8, 2), (9, 3), (100, 33)])
def test_at_most_a_third_is_ejected_in_a_window_and_never_the_only_one(ready: int, most: int) -> None:
    ejected_s: list[float] = []
    while outliers.may_eject(ready, ejected_s, now_s=10.0):
        ejected_s.append(10.0)
    assert len(ejected_s) == most
    assert outliers.may_eject(ready, ejected_s, now_s=10.0 + WINDOW_S) == (ready > 1)


DISTRUST = """
# failures in a row of a   of b   of c   distrusted are   b is
0                          4      0      -                trusted
0                          5      0      -                distrusted
0                          50     0      b                distrusted
4                          5      4      -                distrusted
5                          5      5      -                trusted
5                          5      0      a                trusted
9                          9      9      b                trusted
0                          5      0      x                distrusted
"""


@pytest.mark.parametrize("line", [line for line in DISTRUST.splitlines() if line and not line.startswith("#")])
def test_who_fails_while_a_peer_does_not_is_distrusted(line: str) -> None:
    a, b, c, distrusted, expected = line.split()
    streaks = {A: int(a), B: int(b), C: int(c)}
    assert outliers.may_distrust(B, streaks, distrusted=set(distrusted)) == (expected == "distrusted")


def test_the_only_one_is_never_distrusted() -> None:
    assert not outliers.may_distrust(A, {A: 100}, distrusted=set())
    assert not outliers.may_distrust(A, {}, distrusted=set())


@given(st.dictionaries(st.sampled_from("abcdefghi"), st.integers(0, 9)), st.lists(st.sampled_from("abcdefghi")))
def test_never_more_than_a_third_is_distrusted_and_never_all(streaks: dict[str, int], order: list[str]) -> None:
    distrusted: set[str] = set()
    for replica in order:
        if outliers.may_distrust(replica, streaks, distrusted=distrusted):
            distrusted.add(replica)
    assert len(distrusted) <= max(1, len(streaks) // 3)
    assert not distrusted or len(distrusted) < len(streaks)


@given(st.lists(st.tuples(st.floats(0, WINDOW_S / 2), st.integers(0, 12)), max_size=60))
def test_in_no_window_more_are_ejected_than_a_third_of_the_most_that_were_ready(
    looks: list[tuple[float, int]],
) -> None:
    now_s, ejected_s = 0.0, list[float]()
    ready_s: list[tuple[float, int]] = []
    for delay_s, ready in looks:
        now_s += delay_s
        ready_s.append((now_s, ready))
        if outliers.may_eject(ready, ejected_s, now_s=now_s):
            assert ready > 1
            ejected_s.append(now_s)
        most = max(count for at_s, count in ready_s if at_s > now_s - WINDOW_S)
        recent = sum(at_s > now_s - WINDOW_S for at_s in ejected_s)
        assert recent <= max(1, most // outliers.LARGEST_PART)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 80), st.integers(1, 80))
def test_a_chance_is_one_and_falls_with_each_failure(failed: int, ended: int, peers_failed: int, peers: int) -> None:
    failed, peers_failed = min(failed, ended), min(peers_failed, peers)
    own = outliers.chance(failed, ended, peers_failed, peers)
    assert 0 <= own <= 1 + 1e-9
    if failed < ended and peers_failed:  # the same number of failures, one more of them its own
        assert outliers.chance(failed + 1, ended, peers_failed - 1, peers) <= own


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("replicas", [2, 3, 10])
def test_equal_replicas_are_not_told_apart_in_ten_thousand_tasks(rate: float, replicas: int) -> None:
    """A look after every twentieth task; who is free first gets the next one, and failures end sooner."""
    draw = random.Random(f"{rate} {replicas}")
    names = [f"r{number}" for number in range(replicas)]
    free_s, evidence = dict.fromkeys(names, 0.0), _warm(*names)
    for number in range(10_000):
        name = min(names, key=free_s.__getitem__)
        is_failure = draw.random() < rate
        free_s[name] += draw.expovariate(20.0 if is_failure else 1.0)
        evidence.note(name, is_failure=is_failure, at_s=free_s[name])
        if number % 20 == 0:
            assert _judged(evidence, free_s[name], names) is None


def test_the_bound_that_is_promised_is_what_alpha_gives() -> None:
    assert 10_000 * len(REPLICAS) * len(STRETCHES) * ALPHA <= 1e-3
