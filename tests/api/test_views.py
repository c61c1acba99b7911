"""Rows as documents, where no route of a quiet node shows the difference."""

from __future__ import annotations

from typing import Any

import hypothesis
import msgspec
from hypothesis import strategies as st

from greenroom.api import views
from greenroom.store.agents import Replica
from greenroom.store.board import Board
from greenroom.store.rows import Accepted, NewTask, Task

_INSTANTS = st.integers(0, 2**50)
_JSON = st.sampled_from([b"1", b'"x"', b'{"a":1}'])
_TASKS = st.builds(
    NewTask,
    input=_JSON,
    not_before=st.none() | _INSTANTS,
    metadata=st.none() | _JSON,
    routing=st.none() | _JSON,
    cache_key=st.none(),
)


def _replica(id: str, state: str = "ready") -> Replica:
    return Replica(id, "a", 2, "node", 1, state, "healthy", "", 1, None, 0, 0)


def test_a_replica_that_runs_suspects_is_ready_beside_its_agents_number() -> None:
    board = Board()
    board.open("usual", agent="a", revision=2, slots=1)
    board.open("alone", agent="a", revision=2, slots=1, for_suspects=True)
    ready = views.ready([_replica("usual"), _replica("alone"), _replica("late", "starting")], board)
    assert [each.id for each in ready["a", 2]] == ["usual"]


@hypothesis.given(given=_TASKS, deadline_at=st.none() | _INSTANTS)
def test_a_task_that_was_accepted_just_now_looks_as_its_row_does(given: NewTask, deadline_at: int | None) -> None:
    accepted = Accepted(given.id, is_new=True, created_at=1, deadline_at=deadline_at)
    known = {name: getattr(given, name) for name in Task.__struct_fields__ if hasattr(given, name)}
    fixed = {"seq": 1, "state": "queued", "due_at": None, "epoch": 0, "event_seq": 1, "attempts_charged": 0, "kills": 0}
    counted = {"input_tokens": 0, "output_tokens": 0, "created_at": 1, "deadline_at": deadline_at}
    columns: dict[str, Any] = {**dict.fromkeys(Task.__struct_fields__), **known, **fixed, **counted}
    row = Task(**columns)
    new, stored = views.new_task(given, accepted), views.task(row, ())
    assert list(new) == list(stored)
    assert msgspec.json.encode(new) == msgspec.json.encode(stored)
