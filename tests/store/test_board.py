"""The board: never more tasks on a replica than it has slots, whatever happens between two steps of a claim."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from greenroom.store.board import BUCKETS, MAX_CLAIMS, Board, Demand, Traffic
from greenroom.store.database import RetryTransaction

AGENT, TENANT = "research", "acme"
SESSION = (TENANT, AGENT, "s")


def _board(*slots: int, revision: int = 1) -> Board:
    board = Board()
    for number, count in enumerate(slots):
        board.open(f"r{number}", agent=AGENT, revision=revision, slots=count)
    return _listed(board)


def _listed(board: Board, *tenants: str) -> Board:
    """What a commit finds in the table: that these have tasks."""
    board.list_waiting(AGENT, dict.fromkeys(tenants or (TENANT,)))
    return board


def _seat(board: Board, count: int, agent: str = AGENT) -> list[tuple[str, int]]:
    return [seat for seat in board.seat(agent, [TENANT] * count) if seat is not None]


def _assign(board: Board, *sessions: str | None, homes: dict[str, str] | None = None) -> list[str]:
    """What a commit does that finds one task for each of *sessions*, and no more."""
    demand = board.reserve()[0]
    try:
        return board.assign(
            demand,
            [(TENANT, session) for session in sessions],
            {(TENANT, AGENT, name): home for name, home in (homes or {}).items()},
        )
    finally:
        if len(sessions) < demand.slots:
            board.tenants.exhaust(demand.queue, TENANT)
        board.settle(demand)


def test_work_is_spread_over_the_replicas() -> None:
    board = _board(2, 2, 2)
    assert sorted(_assign(board, None, None, None)) == ["r0", "r1", "r2"]


def test_a_larger_replica_gets_more() -> None:
    board = _board(1, 3)
    assert sorted(_assign(board, *[None] * 4)) == ["r0", "r1", "r1", "r1"]


def test_a_session_goes_to_its_home_and_elsewhere_if_that_is_full() -> None:
    board = _board(2, 2)
    assert _assign(board, "s", "s", "s", homes={"s": "r1"}) == ["r1", "r1", "r0"]


def test_no_more_tasks_of_an_agent_run_at_once_than_its_limit_says() -> None:
    board = _board(4, 4)
    board.limit(AGENT, 3)
    assert _seat(board, 2) == []  # what is queued goes first
    _listed(board)
    assert len(_assign(board, None, None)) == 2
    assert _seat(board, 2) == []  # there is room for one: the queue chooses
    board.mark([(AGENT, TENANT)])
    assert [demand.slots for demand in board.reserve()] == [1]
    board.limit(AGENT, 0)
    assert not board.has_demand()
    assert _listed(board).reserve() == []
    board.limit(AGENT, None)
    assert [demand.slots for demand in _listed(board).reserve()] == [6]


def test_the_queues_of_an_agent_with_a_limit_take_turns() -> None:
    board = _two_revisions({1: 50, 2: 50})
    board.open("alone", agent=AGENT, revision=1, slots=1, for_suspects=True)
    board.limit(AGENT, 1)
    served = []
    for _ in range(6):
        first, *others = _listed(board).reserve()
        assert board.left(first) == 1
        (replica,) = board.assign(first, [(TENANT, None)], {})
        assert [board.left(demand) for demand in others] == [0, 0]  # the same commit takes no more
        for demand in (first, *others):
            board.settle(demand)
        served.append(first.queue)
        board.release(replica, TENANT)
    assert Counter(served) == dict.fromkeys(served, 2)


def test_who_resumes_keeps_to_the_limit_but_one_may_always_go_on() -> None:
    board = _board(2, 2)
    board.limit(AGENT, 2)
    replicas = _assign(_listed(board), None, None)
    assert not board.try_occupy("r0", TENANT)
    board.release(replicas[0], TENANT)
    assert board.try_occupy("r0", TENANT)
    board.limit(AGENT, 0)
    board.release("r0", TENANT)
    assert not board.try_occupy("r0", TENANT)
    board.release(replicas[1], TENANT)
    assert board.try_occupy("r0", TENANT)


def test_room_that_a_commit_may_fill_is_not_given_away() -> None:
    board = _two_revisions({1: 50, 2: 50})
    board.limit(AGENT, 1)
    old, new = board.reserve()
    board.settle(old)
    assert not board.try_occupy("r0", TENANT)  # the other revision may take it
    board.settle(new)
    assert board.try_occupy("r0", TENANT)


def test_what_tenants_hold_is_what_they_occupy() -> None:
    board = _board(2, 2)
    board.assign(board.reserve()[0], [("acme", None), ("other", None), ("acme", "s")], {})
    assert board.holding(AGENT) == {"acme": 2, "other": 1}
    board.close("r0")
    board.close("r1")
    board.release("r0", "acme")  # its attempt ends after its replica
    assert board.holding(AGENT) == {}


def test_a_free_slot_is_for_who_holds_least_and_then_for_whose_turn_is_the_longest_ago() -> None:
    board, served = _board(2), []
    _listed(board, "acme", "other", "third")
    for _ in range(6):
        (demand,) = board.reserve()
        (tenant,) = board.share_out(demand.queue, 1)
        board.tenants.note_turns(AGENT, tenant, 1)
        served.append((tenant, board.assign(demand, [(tenant, None)], {})[0]))
        board.settle(demand)
        if len(served) > 1:
            board.release(served[-2][1], served[-2][0])
    assert [tenant for tenant, _ in served] == ["acme", "other", "third"] * 2


def _two_revisions(shares: dict[int, int]) -> Board:
    board = _board(2)
    board.open("new", agent=AGENT, revision=2, slots=2)
    board.route(AGENT, Traffic((1, 1), shares, serving=1))
    return _listed(board)


def test_a_home_of_another_revision_is_no_home() -> None:
    board = _two_revisions({2: 100})
    old, new = board.reserve()
    board.settle(old)
    assert board.assign(new, [(TENANT, "s")], {SESSION: "r0"}) == ["new"]


def test_each_revision_asks_for_its_share_of_the_tasks_and_all_for_those_that_keep_to_it() -> None:
    board = _two_revisions({1: 95, 2: 5})
    assert board.reserve() == [Demand(AGENT, 1, 2, low=5_000, high=BUCKETS), Demand(AGENT, 2, 2, low=0, high=5_000)]
    board.route(AGENT, Traffic((1, 2), {2: 100}))
    assert _listed(board).reserve() == [Demand(AGENT, 1, 2, low=0, high=0), Demand(AGENT, 2, 2)]


def test_what_was_written_earlier_than_what_is_known_changes_no_traffic() -> None:
    board = _two_revisions({2: 100})
    board.route(AGENT, Traffic((1, 0), {1: 100}))
    assert board.ranges(AGENT) == {2: (0, BUCKETS)}
    board.route(AGENT, Traffic((2, 1), {1: 100}))
    assert board.ranges(AGENT) == {1: (0, BUCKETS)}


def test_traffic_that_may_have_been_changed_is_shared_out_to_nobody_until_somebody_has_looked() -> None:
    board = _two_revisions({1: 50, 2: 50})
    board.doubt(AGENT)
    assert board.ranges(AGENT) == {}
    assert _seat(board, 2) == []
    board.route(AGENT, Traffic((1, 1), {1: 50, 2: 50}, serving=1))  # it was not
    assert board.ranges(AGENT).keys() == {1, 2}


def test_what_a_new_revision_without_replicas_would_get_goes_to_the_serving_one() -> None:
    board = _two_revisions({1: 95, 2: 5})
    board.drain("new")
    assert board.ranges(AGENT) == {1: (0, BUCKETS)}


def test_what_is_the_serving_revisions_waits_for_it() -> None:
    board = _two_revisions({1: 95, 2: 5})
    board.drain("r0")
    assert board.ranges(AGENT) == {2: (0, 5_000)}
    board.close("new")
    assert board.ranges(AGENT) == {}


def test_nobody_gets_tasks_before_its_traffic_begins() -> None:
    board = _board(2)
    board.route(AGENT, Traffic((1, 1), {1: 0}))
    assert board.ranges(AGENT) == {}
    board.list_waiting(AGENT, {})
    assert _seat(board, 2) == []


def test_new_tasks_are_spread_over_the_revisions_by_their_shares() -> None:
    board = Board()
    for revision in (1, 2):
        board.open(f"r{revision}", agent=AGENT, revision=revision, slots=1000)
    board.route(AGENT, Traffic((1, 1), {1: 75, 2: 25}))
    board.list_waiting(AGENT, {})
    seats = [seat for _ in range(200) for seat in _seat(board, 1)]
    assert len(seats) == 200
    assert abs(sum(revision == 2 for _, revision in seats) - 50) <= 1


def test_a_full_revision_leaves_its_share_in_the_queue() -> None:
    board = _board(1)
    board.open("new", agent=AGENT, revision=2, slots=100)
    board.route(AGENT, Traffic((1, 1), {1: 50, 2: 50}))
    board.list_waiting(AGENT, {})
    seated = [revision for _, revision in _seat(board, 20)]
    assert set(seated) == {2}  # not even one of the other's: which one that is, the queue says
    assert abs(len(seated) - 10) <= 1


def test_a_drained_replica_takes_no_more_but_lets_a_task_resume() -> None:
    board = _board(2)
    _assign(board, None)
    board.drain("r0")
    assert board.reserve() == []
    assert not board.has_demand()
    assert board.try_occupy("r0", TENANT)
    assert not board.try_occupy("r0", TENANT)


def test_a_slot_that_a_commit_may_fill_is_not_given_away() -> None:
    board = _board(2)
    (demand,) = board.reserve()
    assert not board.try_occupy("r0", TENANT)
    board.assign(demand, [(TENANT, None)], {})
    board.settle(demand)
    assert board.try_occupy("r0", TENANT)


def test_a_claim_that_was_not_made_gives_its_reservation_back() -> None:
    board = _board(1)
    (demand,) = board.reserve()
    board.settle(demand)
    assert board.try_occupy("r0", TENANT)


def _rest(board: Board, replica: str) -> None:
    board.distrust(replica, is_resting=True)


def test_of_replicas_that_are_loaded_alike_the_one_that_has_waited_longest_is_next() -> None:
    board = _board(1, 1, 1)
    seen = []
    for _ in range(6):
        (replica,) = _assign(_listed(board), None)
        board.release(replica, TENANT)
        seen.append(replica)
    assert seen == ["r0", "r1", "r2"] * 2


def test_a_replica_that_is_distrusted_gets_one_task_at_a_time_and_resting_it_gets_none() -> None:
    board = _board(3, 1)
    board.distrust("r0", is_resting=True)
    assert board.is_distrusted("r0")
    assert not board.is_distrusted("r1")
    assert _assign(_listed(board), None) == ["r1"]
    assert not board.has_demand()
    board.distrust("r0", is_resting=False)
    assert _assign(_listed(board), None) == ["r0"]
    assert not board.has_demand()
    board.trust("r0")
    assert [demand.slots for demand in _listed(board).reserve()] == [2]
    assert board.usage(AGENT).slots == 4


def test_a_distrusted_replica_with_more_than_one_task_takes_no_room_from_others() -> None:
    board = _board(4, 1)
    assert len(_assign(board, *[None] * 5)) == 5
    board.distrust("r0", is_resting=False)
    board.release("r1", TENANT)
    assert [demand.slots for demand in _listed(board).reserve()] == [1]


def test_who_runs_and_who_takes_tasks_is_told_by_revision() -> None:
    board = _two_revisions({1: 50, 2: 50})
    board.open("alone", agent=AGENT, revision=1, slots=1, for_suspects=True)
    assert board.replicas(AGENT) == {1: ["r0"], 2: ["new"]}
    board.try_occupy("alone", TENANT)
    board.try_occupy("new", TENANT)
    board.drain("new")
    assert board.replicas(AGENT) == {1: ["r0"]}
    assert board.running(AGENT) == 2
    assert board.replicas("unknown") == {}


@pytest.mark.parametrize("leave", [Board.close, Board.drain, _rest])
def test_where_a_replica_went_away_meanwhile_nothing_is_assigned(leave: object) -> None:
    board = _board(1, 1)
    (demand,) = board.reserve()
    leave(board, "r0")  # type: ignore[operator] # one of the two above
    with pytest.raises(RetryTransaction):
        board.assign(demand, [(TENANT, None)] * 2, {})
    assert (board.busy("r0"), board.busy("r1"), board.attempts("r1")) == (0, 0, 0)


def test_nobody_is_hungry_after_a_claim_that_found_less_than_it_asked_for() -> None:
    board = _board(2)
    _assign(board, None)
    assert not board.has_demand()
    board.mark([(AGENT, TENANT)])
    assert board.has_demand()
    _assign(board, None)
    assert not board.has_demand()
    board.release("r0", TENANT)
    assert board.has_demand()


def test_one_commit_claims_a_bounded_number() -> None:
    board = _board(MAX_CLAIMS * 3)
    assert board.reserve() == [Demand(AGENT, 1, MAX_CLAIMS)]


def test_new_tasks_take_what_is_free_and_are_spread() -> None:
    board = _board(1, 2)
    board.list_waiting(AGENT, {})
    assert board.seat(AGENT, [TENANT] * 2) == [("r0", 1), ("r1", 1)]
    assert board.seat(AGENT, [TENANT] * 2) == [None, None]  # there is one slot: the queue has to choose
    assert board.seat(AGENT, [TENANT]) == [("r1", 1)]
    assert board.seat(AGENT, [TENANT]) == [None]
    assert board.seat("unknown", [TENANT]) == [None]


def test_new_tasks_take_nothing_where_others_may_be_queued() -> None:
    board = Board()
    board.open("r0", agent=AGENT, revision=1, slots=2)
    assert _seat(board, 1) == []  # nobody has looked
    assert board.unlisted() == [AGENT]
    board.list_waiting(AGENT, {})
    assert board.unlisted() == []
    board.mark([(AGENT, "other")])
    assert _seat(board, 1) == []
    board.tenants.exhaust((AGENT, False, 1), "other")
    assert len(_seat(board, 1)) == 1
    board.mark_all()
    assert _seat(board, 1) == []
    assert board.has_demand()


class BoardMachine(RuleBasedStateMachine):
    """A dispatcher and a committer that take turns at any point."""

    @initialize()
    def start(self) -> None:
        self.board = Board()
        self.slots: dict[str, int] = {}
        self.taken: list[tuple[str, str]] = []  # slots held: replica and tenant
        self.demands: list[Demand] = []
        self.version = 0

    @rule(slots=st.integers(1, 3), revision=st.integers(1, 2))
    def open(self, slots: int, revision: int) -> None:
        name = f"r{len(self.slots)}"
        self.slots[name] = slots
        self.board.open(name, agent=AGENT, revision=revision, slots=slots)

    @rule(which=st.integers(0, 9), act=st.sampled_from((Board.drain, Board.close)))
    def leave(self, which: int, act: object) -> None:
        if self.slots:
            name = list(self.slots)[which % len(self.slots)]
            act(self.board, name)  # type: ignore[operator] # one of the two above
            if act is Board.close:
                self.taken = [taken for taken in self.taken if taken[0] != name]

    @rule(which=st.integers(0, 9), how=st.sampled_from(("rest", "distrust", "trust")))
    def doubt(self, which: int, how: str) -> None:
        name = list(self.slots)[which % len(self.slots)] if self.slots else "unknown"
        if how == "trust":
            self.board.trust(name)
        else:
            self.board.distrust(name, is_resting=how == "rest")

    @rule()
    def reserve(self) -> None:
        if not self.demands:
            for agent in self.board.unlisted():
                self.board.list_waiting(agent, {TENANT: None, "other": None})
            self.demands = self.board.reserve()

    @rule(found=st.integers(0, 6), home=st.integers(0, 9), tenant=st.sampled_from((TENANT, "other")))
    def assign(self, found: int, home: int, tenant: str) -> None:
        for demand in self.demands:
            number = min(found, self.board.left(demand))
            try:
                replicas = self.board.assign(demand, [(tenant, "s")] * number, {SESSION: f"r{home}"})
            except RetryTransaction:
                replicas = []
            self.taken += [(replica, tenant) for replica in replicas]
            if number < demand.slots:
                self.board.tenants.exhaust(demand.queue, tenant)
            self.board.settle(demand)
        self.demands = []

    @rule(count=st.integers(1, 4))
    def seat(self, count: int) -> None:
        self.taken += [(replica, TENANT) for replica, _ in _seat(self.board, count)]

    @rule(limit=st.sampled_from((None, 0, 1, 3)))
    def limit(self, limit: int | None) -> None:
        self.board.limit(AGENT, limit)

    @rule(share=st.integers(0, 100))
    def route(self, share: int) -> None:
        self.version += 1
        self.board.route(AGENT, Traffic((1, self.version), {1: 100 - share, 2: share}, serving=1))

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if self.taken:
            self.board.release(*self.taken.pop(which % len(self.taken)))

    @rule(which=st.integers(0, 9))
    def resume(self, which: int) -> None:
        if self.slots:
            name = list(self.slots)[which % len(self.slots)]
            if self.board.try_occupy(name, TENANT):
                self.taken.append((name, TENANT))

    @invariant()
    def every_task_is_for_one_revision_at_most(self) -> None:
        ranges = self.board.ranges(AGENT)
        spans = sorted(ranges.values())
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))
        if 1 in ranges and self.version:
            assert sum(high - low for low, high in spans) == BUCKETS

    @invariant()
    def no_replica_has_more_than_its_slots(self) -> None:
        for name, slots in self.slots.items():
            taken = [replica for replica, _ in self.taken if replica == name]
            assert len(taken) == self.board.busy(name) <= slots

    @invariant()
    def what_tenants_hold_is_what_was_given_to_them(self) -> None:
        assert self.board.holding(AGENT) == Counter(tenant for _, tenant in self.taken)


TestBoard = BoardMachine.TestCase
