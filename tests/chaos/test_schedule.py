from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from greenroom.testing.chaos import schedule

HOLDS_S = {"stop": (8.0, 12.0), "lock": (0.5, 10.0)}
KINDS = ("kill", "kill", "stop", "lock")


def plan(seed: int, *, count: int = 40, for_s: float = 100.0) -> tuple[schedule.Planned, ...]:
    return schedule.plan(seed, for_s=for_s, kinds=KINDS, count=count, holds_s=HOLDS_S)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 60), for_s=st.floats(1, 1000))
def test_every_fault_lies_within_the_run_and_is_undone_by_its_end(seed: int, count: int, for_s: float) -> None:
    faults = plan(seed, count=count, for_s=for_s)
    assert len(faults) == count
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    for fault in faults:
        least_s, most_s = HOLDS_S.get(fault.kind, (0.0, 0.0))
        assert 0 <= fault.at_s <= fault.at_s + fault.hold_s <= for_s * 1.000001
        assert 0 <= fault.draw < 1
        assert min(least_s, for_s) <= fault.hold_s <= most_s


@given(seed=st.integers(0, 2**31))
def test_kinds_come_as_often_as_they_are_named(seed: int) -> None:
    assert Counter(fault.kind for fault in plan(seed)) == {"kill": 20, "stop": 10, "lock": 10}


def test_a_seed_says_it_all() -> None:
    assert plan(1) == plan(1)
    assert plan(1) != plan(2)
