"""Replays: a queue with an autoscaler, against what can be reckoned by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import replays
from greenroom.core.replays import Bucket
from greenroom.core.scaling import Policy


def _load(*arrivals: int, run_s: float = 1.0, replicas: int = 1) -> list[Bucket]:
    return [
        Bucket(at_s=place * 10.0, arrivals=count, run_s=run_s, start_s=0.1, replicas=replicas)
        for place, count in enumerate(arrivals)
    ]


def test_a_load_that_fits_waits_for_nobody() -> None:
    found = replays.replay(Policy(min_replicas=2, max_replicas=2), _load(*[10] * 30, replicas=2))
    assert (found.wait_p95_s, found.tasks, found.mean_replicas, found.changes) == (0.0, 300, 2.0, 0)


def test_too_few_let_a_queue_grow_and_more_do_not() -> None:
    load = _load(*[50] * 30)
    few, many = (replays.replay(Policy(max_replicas=most), load) for most in (2, 10))
    assert few.wait_p95_s > 60
    assert many.wait_p95_s < 20
    assert few.most_replicas == 2 < many.most_replicas
    assert few.replica_hours < many.replica_hours


def test_a_burst_is_replayed_as_one_and_its_tasks_wait() -> None:
    bursts = [
        Bucket(at_s=place * 10.0, arrivals=60, ends=60, run_s=1.0, start_s=0.1, waiting=57, replicas=10)
        for place in range(12)
    ]
    evenly = replays.replay(Policy(min_replicas=10, max_replicas=10), _load(*[60] * 12, replicas=10))
    found = replays.replay(Policy(min_replicas=10, max_replicas=10), bursts)
    assert evenly.wait_p95_s == 0.0
    assert found.wait_p95_s >= 4.0
    assert found.tasks == 60 * 12


def test_a_queue_that_only_grows_is_no_burst() -> None:
    load = [
        Bucket(at_s=place * 10.0, arrivals=50, ends=20, run_s=1.0, waiting=30 * place + 29, replicas=2)
        for place in range(12)
    ]
    assert not any(replays.at_once(bucket, 30 * place) for place, bucket in enumerate(load))


def test_the_most_replicas_are_those_of_an_instant() -> None:
    load = [Bucket(at_s=0.0, arrivals=60, ends=60, run_s=0.1, waiting=59, replicas=1), *_load(0, run_s=0.1)]
    found = replays.replay(Policy(max_replicas=8, stabilisation_s=1, cooldown_s=0), load[:1])
    assert found.most_replicas == 8 > max(point.replicas for point in found.points)


def test_short_tasks_share_a_slot() -> None:
    found = replays.replay(Policy(max_replicas=1), _load(*[500] * 10, run_s=0.01))
    assert (found.wait_p95_s, found.tasks) == (0.0, 5000)
    assert 0.4 < found.points[5].busy < 0.6


def test_a_time_without_load_lets_an_agent_sleep() -> None:
    load = [*_load(10, 10), Bucket(at_s=1000.0, arrivals=10, run_s=1.0)]
    found = replays.replay(Policy(min_replicas=0, max_replicas=3, idle_s=30), load)
    assert 0 in {point.replicas for point in found.points}
    assert found.tasks == 30


def test_nothing_is_nothing() -> None:
    found = replays.replay(Policy(), [])
    assert (found.points, found.tasks, found.wait_p95_s, found.mean_replicas) == ((), 0, 0.0, 0.0)


@given(
    st.lists(st.integers(0, 80), min_size=1, max_size=30),
    st.sampled_from([0.05, 0.5, 1.0, 7.0]),
    st.integers(0, 2),
    st.integers(2, 12),
)
def test_a_replay_keeps_to_the_bounds_and_loses_no_task(
    arrivals: list[int], run_s: float, least: int, most: int
) -> None:
    found = replays.replay(Policy(min_replicas=least, max_replicas=most), _load(*arrivals, run_s=run_s))
    assert found.tasks == sum(arrivals)
    assert all(least <= point.replicas <= most for point in found.points)
    assert 0 <= found.wait_p50_s <= found.wait_p95_s
