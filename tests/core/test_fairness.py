"""Whose task a free slot is for: nobody who waits is passed over for ever, and slots are shared max-min fair."""

from __future__ import annotations

import doctest
import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import fairness
from greenroom.core.fairness import LOWER_EVERY, Turns

TENANTS = ("a", "b", "c", "d", "e")
_HOLDING = st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 6))
_TURNS = st.permutations(TENANTS).flatmap(
    lambda order: st.integers(0, 5).map(lambda count: {tenant: n for n, tenant in enumerate(order[:count])})
)
_WAITING = st.lists(st.sampled_from(TENANTS), unique=True)


def test_the_examples_are_right() -> None:
    assert doctest.testmod(fairness).failed == 0


@given(st.integers(0, 20), _WAITING, _HOLDING, _TURNS)
def test_slots_are_shared_max_min_fair(
    slots: int, waiting: list[str], holding: dict[str, int], turns: dict[str, int]
) -> None:
    shares = fairness.share_out(slots, waiting, holding=holding, turns=turns)
    assert shares.keys() <= set(waiting)
    assert sum(shares.values()) == (slots if waiting else 0)  # never more than there are, and none is left
    after = {tenant: holding.get(tenant, 0) + shares.get(tenant, 0) for tenant in waiting}
    # Nobody who got one could have given it to somebody who holds two less.
    assert all(after[tenant] <= least + 1 for tenant in shares for least in after.values())


@given(_WAITING, _HOLDING, _TURNS)
def test_a_slot_goes_to_who_holds_least_and_then_to_whose_turn_is_the_longest_ago(
    waiting: list[str], holding: dict[str, int], turns: dict[str, int]
) -> None:
    (first, *_) = [*fairness.share_out(1, waiting, holding=holding, turns=turns), None]
    for other in waiting:
        assert first is not None
        mine, its = ((holding.get(tenant, 0), turns.get(tenant, -1)) for tenant in (first, other))
        assert mine <= its


@given(st.data())
def test_nobody_who_waits_is_passed_over_twice_by_the_same_one(data: st.DataObject) -> None:
    """Slots are taken and freed in any order; who is there comes and goes, but one, who waits and holds nothing."""
    number = itertools.count(10)
    turns: dict[str, int] = data.draw(_TURNS)
    holding: Counter[str] = Counter()
    before: Counter[str] = Counter()
    for _ in range(40):
        waiting = ["a", *data.draw(_WAITING.map(lambda names: [name for name in names if name != "a"]))]
        (tenant,) = fairness.share_out(1, waiting, holding=holding, turns=turns)
        turns[tenant] = next(number)
        if tenant == "a":
            return
        before[tenant] += 1
        assert before[tenant] == 1
        if data.draw(st.booleans()):
            holding[tenant] += 1
    raise AssertionError("it never had a turn")


@given(st.integers(1, 12), st.integers(0, 20), _WAITING, _HOLDING, _TURNS)
def test_sharing_out_at_once_is_sharing_out_one_by_one(
    slots: int, extra: int, waiting: list[str], holding: dict[str, int], turns: dict[str, int]
) -> None:
    at_once = fairness.share_out(slots, waiting, holding=holding, turns=turns)
    known, held, number, given_out = dict(turns), Counter(holding), itertools.count(100 + extra), Counter[str]()
    for _ in range(slots):
        for tenant in fairness.share_out(1, waiting, holding=held, turns=known):
            held[tenant] += 1
            given_out[tenant] += 1
            known[tenant] = next(number)
    assert at_once == given_out
    assert list(at_once) == sorted(at_once, key=known.__getitem__)  # in the order of their last turns


_COMING = st.lists(st.tuples(st.integers(1, 40), st.sets(st.integers(-3, 3), max_size=6)), min_size=1, max_size=30)


@given(st.integers(-3, 3), _COMING)
def test_no_priority_starves(priority: int, rounds: list[tuple[int, set[int]]]) -> None:
    """There is always more of all that wait; *priority* is among them, whatever else comes and goes."""
    turns, passed_over, most = Turns(), 0, 0
    for slots, others in rounds * 8:
        waiting = sorted({priority, *others}, reverse=True)
        lower = turns.lower(slots)
        given_out = fairness.lower_turns(lower, waiting[1:], turns.last)
        assert given_out.total() == (lower if waiting[1:] else 0)
        turns = turns.after(slots, fairness.last_turn(lower, given_out))
        if given_out[priority] or (waiting[0] == priority and slots > lower):
            most, passed_over = max(most, passed_over), 0
        elif waiting[0] != priority:
            passed_over += slots
    # Of seven priorities six may be lower ones, each with its turn; and the turns of one commit are given together.
    assert max(most, passed_over) <= LOWER_EVERY * 7 + 40


@given(st.lists(st.integers(0, 30), max_size=30))
def test_one_of_eight_turns_is_a_lower_priority_s(claims: list[int]) -> None:
    turns, lower = Turns(), 0
    for slots in claims:
        lower += turns.lower(slots)
        turns = turns.after(slots, None)
    assert lower == sum(claims) // LOWER_EVERY


def test_lower_priorities_take_turns_and_go_on_where_they_were() -> None:
    order, turns = [], Turns()
    for _ in range(5 * LOWER_EVERY):
        given_out = fairness.lower_turns(turns.lower(1), [0, -1, -2], turns.last)
        order += list(given_out)
        turns = turns.after(1, fairness.last_turn(turns.lower(1), given_out))
    assert order == [0, -1, -2, 0, -1]
