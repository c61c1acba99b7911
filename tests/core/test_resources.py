"""Who has to go when memory runs short, and what is a leak and what is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import resources
from greenroom.core.failures import Failure
from greenroom.core.resources import Bounds, Evict, Limits, Recycle, Replica, Sample, Trend, Use

EVERY_S = 5.0
MEASURED, HELD = Limits(memory_mb=1000), Limits(memory_mb=1000, kernel_holds_memory=True)


def _replica(id: str, share_mb: float, **given: Any) -> Replica:
    return Replica(id, "agent", 2 * share_mb, share_mb, **given)


def _trend(sizes_mb: list[float]) -> Trend:
    trend = Trend()
    for place, size_mb in enumerate(sizes_mb):
        trend = trend.noted(Sample(place * EVERY_S, size_mb))
    return trend


FAT, THIN = _replica("fat", 500), _replica("thin", 400)


@pytest.mark.parametrize(
    ("limits", "used_mb", "replicas", "wanted"),
    [
        (MEASURED, 900, [FAT, THIN], None),
        (MEASURED, 901, [FAT, THIN], (Recycle, "fat")),
        (HELD, 901, [THIN, FAT], (Recycle, "fat")),
        (MEASURED, 1000, [FAT, THIN], (Recycle, "fat")),
        (MEASURED, 1001, [FAT, THIN], (Evict, "fat")),
        (HELD, 1001, [FAT, THIN], (Recycle, "fat")),  # the kernel kills by itself
        (MEASURED, 950, [_replica("fat", 500, is_recycled=True), THIN], None),  # one at a time
        (MEASURED, 1001, [_replica("fat", 500, is_recycled=True), THIN], (Evict, "fat")),
        (MEASURED, 950, [_replica("fat", 500, is_ready=False), THIN], (Recycle, "thin")),
        (MEASURED, 950, [_replica("fat", 500, is_ready=False)], None),
        (MEASURED, 950, [_replica("fat", 500, successor_mb=49), THIN], (Recycle, "fat")),
        (MEASURED, 950, [_replica("fat", 500, successor_mb=50), THIN], (Recycle, "thin")),  # it has no room beside it
        (MEASURED, 950, [_replica("as new", 40, successor_mb=33)], None),  # it would be in vain
        (MEASURED, 2000, [], None),
        (Limits(), 1e9, [FAT], None),
    ],
)
def test_memory_is_made_room_in(
    limits: Limits, used_mb: float, replicas: list[Replica], wanted: tuple[type, str] | None
) -> None:
    found = resources.relieve(limits, Use(memory_mb=used_mb), replicas)
    done = found if isinstance(found, list) else [] if found is None else [found]
    assert [(type(each), each.replica) for each in done] == ([] if wanted is None else [wanted])


def test_one_that_is_too_much_all_alone_is_to_blame() -> None:
    found = resources.relieve(MEASURED, Use(memory_mb=1900), [_replica("fat", 1001), THIN])
    assert found == [Evict("fat", "it alone used 1001 MB, and cluster.memory_mb is 1000", Failure.OOM)]
    found = resources.relieve(MEASURED, Use(memory_mb=1900), [_replica("fat", 1000), THIN])
    assert isinstance(found, list)
    assert [each.failure for each in found] == [Failure.EVICTED]


def test_as_many_go_at_once_as_have_to_and_not_all() -> None:
    replicas = [_replica(f"r{place}", 300 + place) for place in range(6)]

    def evicted(used_mb: float) -> list[str]:
        found = resources.relieve(MEASURED, Use(memory_mb=used_mb), replicas)
        assert isinstance(found, list)
        return [each.replica for each in found]

    assert evicted(1815) == ["r5", "r4", "r3"]
    assert evicted(9000) == ["r5", "r4", "r3", "r2", "r1"]  # the rest is not theirs


def test_a_replica_that_was_as_large_when_it_was_new_is_not_replaced_for_that() -> None:
    def why(new_mb: float | None) -> str | None:
        return resources.why_recycled(Bounds(recycle_mb=400), memory_mb=450, tasks=1, trend=Trend(), new_mb=new_mb)

    assert (why(401), why(400) is None, why(None) is None) == (None, False, False)


def test_where_all_use_what_they_need_one_is_replaced_now_and_then() -> None:
    use = Use(memory_mb=950)
    assert resources.relieve(MEASURED, use, [FAT], since_s=resources.REST_S - 1) is None
    assert resources.relieve(MEASURED, use, [FAT], since_s=resources.REST_S) is not None
    assert isinstance(resources.relieve(MEASURED, Use(memory_mb=1001), [FAT], since_s=0.0), list)


@pytest.mark.parametrize(
    ("bounds", "memory_mb", "tasks", "is_recycled"),
    [
        (Bounds(), 1e6, 10**6, False),
        (Bounds(memory_mb=500), 450, 0, False),
        (Bounds(memory_mb=500), 451, 0, True),
        (Bounds(memory_mb=500, recycle_mb=300), 301, 0, True),
        (Bounds(recycle_mb=300), 300, 0, False),
        (Bounds(tasks=10), 1, 9, False),
        (Bounds(tasks=10), 1, 10, True),
    ],
)
def test_a_replica_has_had_enough_at_its_bounds(
    bounds: Bounds, memory_mb: float, tasks: int, is_recycled: bool
) -> None:
    reason = resources.why_recycled(bounds, memory_mb=memory_mb, tasks=tasks, trend=Trend())
    assert (reason is not None) == is_recycled


@given(
    start_mb=st.floats(20, 200),
    growth_mb=st.floats(100, 5_000),
    samples=st.integers(resources.LEAK_SAMPLES * 2 + 1, 2_000),
    noise=st.lists(st.floats(0, 1), min_size=7, max_size=97),
)
def test_memory_that_only_grows_is_a_leak_whatever_the_noise_on_top(
    start_mb: float, growth_mb: float, samples: int, noise: list[float]
) -> None:
    growth_mb = max(growth_mb, start_mb) * 1.5  # the last part's least is less than its end
    rise_mb = growth_mb / samples
    sizes = [start_mb + rise_mb * n + noise[n % len(noise)] * growth_mb / 50 for n in range(samples)]
    found = resources.leak(_trend(sizes))
    assert found is not None
    assert found.mb_per_hour == pytest.approx(rise_mb * 3600 / EVERY_S, rel=0.25)
    reason = resources.why_recycled(Bounds(), memory_mb=sizes[-1], tasks=0, trend=_trend(sizes))
    assert reason == str(found)


@given(
    level_mb=st.floats(20, 2_000),
    noise=st.lists(st.floats(0, 1), min_size=1, max_size=400),
    samples=st.integers(1, 1_500),
)
def test_noise_around_a_level_is_no_leak(level_mb: float, noise: list[float], samples: int) -> None:
    sizes = [level_mb * (1 + 5 * noise[n % len(noise)]) for n in range(samples)]
    repeats = samples // len(noise)
    if repeats >= resources.SEGMENTS:  # else the noise may be a rise
        assert resources.leak(_trend(sizes)) is None


@given(steps=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 5_000)), max_size=3), samples=st.integers(1, 1_500))
def test_a_few_steps_are_no_leak(steps: list[tuple[float, float]], samples: int) -> None:
    sizes = [50 + sum(by_mb for at, by_mb in steps if n >= at * samples) for n in range(samples)]
    assert resources.leak(_trend(sizes)) is None


@given(
    period=st.integers(2, 600),
    height_mb=st.floats(100, 5_000),
    teeth=st.floats(1.2, 20),
    start_mb=st.floats(10, 100),
)
def test_a_saw_is_no_leak_once_a_tooth_has_fallen(period: int, height_mb: float, teeth: float, start_mb: float) -> None:
    samples = int(period * teeth) + 1
    sizes = [start_mb + height_mb * (n % period) / period for n in range(samples)]
    assert resources.leak(_trend(sizes)) is None


@given(st.integers(1, 20_000))
def test_a_trend_keeps_few_samples_spread_over_all_of_the_time(samples: int) -> None:
    trend = _trend([float(n) for n in range(samples)])
    kept = trend.samples
    assert len(kept) <= resources.MAX_SAMPLES
    assert kept[0].at_s == 0.0
    assert kept[-1].at_s >= (samples - 1) * EVERY_S - trend.every_s
    if samples > resources.MAX_SAMPLES:
        assert len(kept) >= resources.MAX_SAMPLES / 2 - 1


def test_what_is_too_young_or_has_grown_too_little_is_no_leak() -> None:
    rises = [50 + 2.0 * n for n in range(200)]
    assert resources.leak(_trend(rises)) is not None
    assert resources.leak(_trend(rises[: int(resources.LEAK_S / EVERY_S)])) is None
    assert resources.leak(_trend([50 + 0.4 * n for n in range(200)])) is None  # by 80 MB
    assert resources.leak(_trend([500 + 2.0 * n for n in range(200)])) is None  # not to twice as much
    assert resources.leak(Trend(_trend(rises).samples[::5])) is None  # 40 samples


def test_cpus_are_what_all_trees_have_spent() -> None:
    assert resources.cpus({1: 10.0, 2: 5.0}, {1: 12.0, 3: 1.0}, elapsed_s=2.0) == 1.5
    assert resources.cpus({1: 10.0}, {1: 4.0}, elapsed_s=2.0) == 0.0
    assert resources.cpus({}, {1: 4.0}, elapsed_s=0.0) == 0.0
