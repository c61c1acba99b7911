"""The board: never more tasks on a replica than it has slots, whatever happens between two steps of a claim."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from greenroom.store.board import MAX_CLAIMS, Board, Demand
from greenroom.store.database import RetryTransaction

AGENT = "research"
SESSION = ("acme", AGENT, "s")


def _board(*slots: int, revision: int = 1) -> Board:
    board = Board()
    for number, count in enumerate(slots):
        board.open(f"r{number}", agent=AGENT, revision=revision, slots=count)
    return board


def _assign(board: Board, *sessions: str | None, homes: dict[str, str] | None = None) -> list[str]:
    (demand,) = board.reserve()
    keys = [None if session is None else ("acme", AGENT, session) for session in sessions]
    try:
        return board.assign(demand, keys, {("acme", AGENT, name): home for name, home in (homes or {}).items()})
    finally:
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


def test_a_home_of_another_revision_is_no_home() -> None:
    board = _board(2)
    board.open("new", agent=AGENT, revision=2, slots=2)
    assert _assign(board, "s", homes={"s": "r0"}) == ["new"]


def test_claims_bind_to_the_newest_revision_that_has_room() -> None:
    board = _board(2)
    board.open("new", agent=AGENT, revision=2, slots=1)
    assert board.reserve() == [Demand(AGENT, 2, 1)]
    assert board.assign(Demand(AGENT, 2, 1), [None], {}) == ["new"]
    assert board.reserve() == [Demand(AGENT, 1, 2)]


def test_a_drained_replica_takes_no_more_but_lets_a_task_resume() -> None:
    board = _board(2)
    _assign(board, None)
    board.drain("r0")
    assert board.reserve() == []
    assert not board.has_demand()
    assert board.try_occupy("r0")
    assert not board.try_occupy("r0")


def test_a_slot_that_a_commit_may_fill_is_not_given_away() -> None:
    board = _board(2)
    (demand,) = board.reserve()
    assert not board.try_occupy("r0")
    board.assign(demand, [None], {})
    assert board.try_occupy("r0")


def test_a_claim_that_was_not_made_gives_its_reservation_back() -> None:
    board = _board(1)
    (demand,) = board.reserve()
    board.settle(demand)
    assert board.try_occupy("r0")


@pytest.mark.parametrize("leave", [Board.close, Board.drain])
def test_where_a_replica_went_away_meanwhile_nothing_is_assigned(leave: object) -> None:
    board = _board(1, 1)
    (demand,) = board.reserve()
    leave(board, "r0")  # type: ignore[operator] # one of the two above
    with pytest.raises(RetryTransaction):
        board.assign(demand, [None, None], {})
    assert (board.busy("r0"), board.busy("r1"), board.attempts("r1")) == (0, 0, 0)


def test_nobody_is_hungry_after_a_claim_that_found_less_than_it_asked_for() -> None:
    board = _board(2)
    _assign(board, None)
    assert not board.has_demand()
    board.mark([AGENT])
    assert board.has_demand()
    _assign(board, None)
    assert not board.has_demand()
    board.release("r0")
    assert board.has_demand()


def test_one_commit_claims_a_bounded_number() -> None:
    board = _board(MAX_CLAIMS * 3)
    assert board.reserve() == [Demand(AGENT, 1, MAX_CLAIMS)]


def test_new_tasks_take_what_is_free_and_are_spread() -> None:
    board = _board(1, 2)
    _assign(board)
    assert board.seat(AGENT, 2) == (["r0", "r1"], 1)
    assert board.seat(AGENT, 2) == (["r1"], 1)
    assert board.seat(AGENT, 1) == ([], 0)
    assert board.seat("unknown", 1) == ([], 0)


def test_new_tasks_take_nothing_where_others_may_be_queued() -> None:
    board = _board(2)
    assert board.seat(AGENT, 1) == ([], 1)
    (demand,) = board.reserve()
    board.assign(demand, [], {})
    board.mark([AGENT])
    assert board.seat(AGENT, 1) == ([], 1)


class BoardMachine(RuleBasedStateMachine):
    """A dispatcher and a committer that take turns at any point."""

    @initialize()
    def start(self) -> None:
        self.board = Board()
        self.slots: dict[str, int] = {}
        self.taken: list[str] = []  # slots held, by replica
        self.demands: list[Demand] = []

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
                self.taken = [replica for replica in self.taken if replica != name]

    @rule()
    def reserve(self) -> None:
        if not self.demands:
            self.demands = self.board.reserve()

    @rule(found=st.integers(0, 6), home=st.integers(0, 9))
    def assign(self, found: int, home: int) -> None:
        for demand in self.demands:
            try:
                replicas = self.board.assign(demand, [SESSION] * min(found, demand.slots), {SESSION: f"r{home}"})
            except RetryTransaction:
                replicas = []
            self.taken += replicas
            self.board.settle(demand)
        self.demands = []

    @rule(count=st.integers(1, 4))
    def seat(self, count: int) -> None:
        self.taken += self.board.seat(AGENT, count)[0]

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if self.taken:
            self.board.release(self.taken.pop(which % len(self.taken)))

    @rule(which=st.integers(0, 9))
    def resume(self, which: int) -> None:
        if self.slots:
            name = list(self.slots)[which % len(self.slots)]
            if self.board.try_occupy(name):
                self.taken.append(name)

    @invariant()
    def no_replica_has_more_than_its_slots(self) -> None:
        for name, slots in self.slots.items():
            assert self.taken.count(name) == self.board.busy(name) <= slots


TestBoard = BoardMachine.TestCase
