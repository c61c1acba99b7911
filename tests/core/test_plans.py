"""Plans: what is started and let go keeps an agent served, whatever is there."""

from __future__ import annotations

import doctest

from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import plans
from greenroom.core.plans import DrainReplica, Seen, StartReplica, Wanted

_SEEN = st.lists(
    st.builds(
        Seen,
        id=st.uuids().map(str),
        revision=st.integers(1, 3),
        is_ready=st.booleans(),
        is_draining=st.booleans(),
        is_moving=st.booleans(),
    ),
    max_size=12,
)
_WANTED = st.builds(
    Wanted, st.just("a"), st.integers(1, 3), st.integers(0, 6), may_start=st.booleans(), one_by_one=st.booleans()
)


def _ready(seen: list[Seen]) -> int:
    return sum(replica.is_ready and not replica.is_draining for replica in seen)


@given(_WANTED, _SEEN)
def test_no_plan_takes_an_agent_below_the_ready_replicas_that_it_should_have(wanted: Wanted, seen: list[Seen]) -> None:
    gone = {action.id for action in plans.plan(wanted, seen) if isinstance(action, DrainReplica)}
    left = [replica for replica in seen if replica.id not in gone]
    assert _ready(left) >= min(_ready(seen), wanted.replicas)


def test_of_too_many_those_go_that_do_least_and_of_these_the_youngest() -> None:
    seen = [
        Seen("busy", 1, True, False, load=2, started_s=9),
        Seen("old", 1, True, False, started_s=1),
        Seen("young", 1, True, False, started_s=5),
        Seen("starting", 1, False, False, started_s=0),
    ]
    gone = [action.id for action in plans.plan(Wanted("a", 1, 1), seen) if isinstance(action, DrainReplica)]
    assert gone == ["starting", "young", "old"]


@given(_WANTED, _SEEN)
def test_nothing_is_started_that_is_not_missing_and_one_by_one_where_it_has_to_be(
    wanted: Wanted, seen: list[Seen]
) -> None:
    starts = [action for action in plans.plan(wanted, seen) if isinstance(action, StartReplica)]
    current = [
        replica
        for replica in seen
        if replica.revision == wanted.revision and not replica.is_draining and not replica.is_moving
    ]
    assert len(starts) <= max(0, wanted.replicas - len(current))
    if not wanted.may_start:
        assert not starts
    if wanted.one_by_one:
        assert len(starts) <= (0 if any(not replica.is_ready for replica in current) else 1)


@given(_WANTED, _SEEN)
def test_a_replica_that_drains_is_left_alone(wanted: Wanted, seen: list[Seen]) -> None:
    gone = {action.id for action in plans.plan(wanted, seen) if isinstance(action, DrainReplica)}
    assert not gone & {replica.id for replica in seen if replica.is_draining}


def test_the_examples_hold() -> None:
    assert doctest.testmod(plans).failed == 0
