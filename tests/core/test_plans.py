"""Plans: what is served stays served, and what is wanted comes to be."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from greenroom.core import plans

_SEEN = st.builds(
    plans.Seen, id=st.just(""), revision=st.integers(1, 3), is_ready=st.booleans(), is_draining=st.booleans()
)


@hypothesis.given(
    replicas=st.integers(0, 4), revision=st.integers(1, 3), seen=st.lists(_SEEN, max_size=6), may_start=st.booleans()
)
def test_a_plan_takes_no_ready_replica_that_is_needed(
    replicas: int, revision: int, seen: list[plans.Seen], may_start: bool
) -> None:
    seen = [plans.Seen(f"r{n}", each.revision, each.is_ready, each.is_draining) for n, each in enumerate(seen)]
    actions = plans.plan(plans.Wanted("a", revision, replicas, may_start), seen)
    drained = {action.id for action in actions if isinstance(action, plans.DrainReplica)}
    ready = [replica.id for replica in seen if replica.is_ready and not replica.is_draining]
    assert len(set(ready) - drained) >= min(replicas, len(ready))


def test_of_other_revisions_those_go_first_that_are_not_ready() -> None:
    seen = [plans.Seen("r1", 1, True, False), plans.Seen("r2", 1, False, False), plans.Seen("r3", 2, True, False)]
    assert plans.plan(plans.Wanted("a", 2, 2), seen) == [plans.StartReplica("a", 2), plans.DrainReplica("r2")]
