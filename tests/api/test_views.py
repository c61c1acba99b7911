"""Rows as documents, where no route of a quiet node shows the difference."""

from __future__ import annotations

from greenroom.api import views
from greenroom.store.agents import Replica
from greenroom.store.board import Board


def _replica(id: str, state: str = "ready") -> Replica:
    return Replica(id, "a", 2, "node", 1, state, "healthy", "", 1, None, 0, 0)


def test_a_replica_that_runs_suspects_is_ready_beside_its_agents_number() -> None:
    board = Board()
    board.open("usual", agent="a", revision=2, slots=1)
    board.open("alone", agent="a", revision=2, slots=1, for_suspects=True)
    ready = views.ready([_replica("usual"), _replica("alone"), _replica("late", "starting")], board)
    assert [each.id for each in ready["a", 2]] == ["usual"]
