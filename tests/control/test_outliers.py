"""The outliers' loop: who fails where its peers do not goes, and few at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from greenroom import telemetry
from greenroom.control.outliers import Outliers
from greenroom.core import outliers, tasks
from greenroom.store.board import Board
from greenroom.testing.fakes import FakeClock


@dataclass
class Ward:
    """The loop over a board, with nobody but it."""

    board: Board = field(default_factory=Board)
    clock: FakeClock = field(default_factory=FakeClock)
    facts: telemetry.Telemetry = field(default_factory=telemetry.Telemetry)
    ejected: list[str] = field(default_factory=list)
    told: list[telemetry.Fact] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loop = Outliers(self.board, self.clock, self.facts, eject=self.eject)
        self.facts.subscribe(self.told.append, telemetry.ReplicaEjected)

    def eject(self, replica: str, reason: str) -> bool:
        assert reason.startswith("it was ejected: ")
        self.board.drain(replica)
        self.ejected.append(replica)
        return True

    def open(self, *replicas: str, revision: int = 1) -> None:
        for replica in replicas:
            self.board.open(replica, agent="agent", revision=revision, slots=1)

    def reserved(self) -> list[int]:
        """Return how many tasks the next commit would take, if one of them waits."""
        self.board.list_waiting("agent", {"acme": None})
        return [demand.slots for demand in self.board.reserve()]

    def end(self, replica: str, reason: tasks.Reason) -> None:
        self.facts.emit(telemetry.AttemptEnded("agent", "succeeded", reason, 0.1, replica))

    async def play(self, *bad: str, replicas: str, rounds: int = 20 + outliers.GRACE) -> None:
        for _ in range(rounds):
            for replica in replicas:
                self.end(replica, tasks.Reason.AGENT_ERROR if replica in bad else tasks.Reason.OK)
        self.clock.advance(1.0)
        await self.loop.step()


@pytest.fixture
def ward() -> Ward:
    return Ward()


async def test_a_bad_one_among_three_is_ejected_with_its_reason(ward: Ward) -> None:
    ward.open(*"abc")
    await ward.play("b", replicas="abc")
    assert ward.ejected == ["b"]
    assert ward.told == [
        telemetry.ReplicaEjected("agent", "b", "15 of its last 15 tasks failed, and 0 of its peers' 30")
    ]
    await ward.play("b", replicas="abc")
    assert ward.ejected == ["b"]


async def test_a_timeout_counts_and_what_is_nobodys_fault_does_not(ward: Ward) -> None:
    ward.open(*"abc")
    for reason in tasks.Reason:
        for _ in range(30 if reason in (tasks.Reason.DRAINED, tasks.Reason.REPLICA_LOST) else 0):
            ward.end("b", reason)
    await ward.play(replicas="ac")
    assert not ward.ejected
    for _ in range(30):
        ward.end("b", tasks.Reason.TIMEOUT)
        for peer in "ac":
            ward.end(peer, tasks.Reason.OK)
    await ward.loop.step()
    assert ward.ejected == ["b"]


@pytest.mark.parametrize("bad", ["abc", ""])
async def test_a_bad_revision_or_a_good_one_loses_nobody(ward: Ward, bad: str) -> None:
    ward.open(*"abc")
    await ward.play(*bad, replicas="abc", rounds=100)
    assert not ward.ejected


async def test_a_new_revision_is_not_compared_with_the_old_one(ward: Ward) -> None:
    ward.open("a", "b")
    ward.open("c", revision=2)
    await ward.play("c", replicas="abc")
    assert not ward.ejected
    ward.open("d", revision=2)
    await ward.play("c", "d", replicas="abcd", rounds=100)
    assert not ward.ejected


async def test_the_only_one_stays(ward: Ward) -> None:
    ward.open("a")
    await ward.play("a", replicas="a", rounds=100)
    ward.open("b")
    ward.board.drain("b")
    await ward.play("a", replicas="ab", rounds=100)
    assert not ward.ejected


async def test_one_goes_in_a_step_and_a_third_in_a_window(ward: Ward) -> None:
    ward.open(*"abcdefghi")
    for expected in (1, 2, 2, 2):
        await ward.play("a", "b", "c", replicas="abcdefghi", rounds=70)
        assert len(ward.ejected) == expected  # of seven that are left, a third is two
    ward.clock.advance(outliers.WINDOW_S)
    await ward.loop.step()
    await ward.play("a", "b", "c", replicas="abcdefghi", rounds=70)
    assert sorted(ward.ejected) == ["a", "b", "c"]


async def test_one_that_fails_in_a_row_gets_one_task_for_each_step_until_it_succeeds(ward: Ward) -> None:
    ward.open(*"abc")
    for _ in range(outliers.STREAK):
        assert not ward.board.is_distrusted("b")
        ward.end("b", tasks.Reason.AGENT_ERROR)
    assert ward.board.is_distrusted("b")
    assert ward.reserved() == [2]
    await ward.loop.step()
    assert ward.reserved() == [3]
    ward.end("b", tasks.Reason.AGENT_ERROR)
    assert ward.reserved() == [2]
    ward.end("b", tasks.Reason.OK)
    assert not ward.board.is_distrusted("b")
    await ward.loop.step()
    assert not ward.board.is_distrusted("b")


async def test_one_that_succeeds_after_a_long_rest_is_trusted_again(ward: Ward) -> None:
    ward.open(*"abc")
    for _ in range(outliers.STREAK):
        ward.end("b", tasks.Reason.AGENT_ERROR)
    for seconds in (0.0, outliers.WINDOW_S + 1):
        ward.clock.advance(seconds)
        await ward.loop.step()
    ward.end("b", tasks.Reason.OK)
    assert not ward.board.is_distrusted("b")
    ward.end("b", tasks.Reason.AGENT_ERROR)
    assert not ward.board.is_distrusted("b")


async def test_where_all_fail_nobody_is_distrusted(ward: Ward) -> None:
    ward.open(*"abc")
    for _ in range(10):
        for replica in "abc":
            ward.end(replica, tasks.Reason.AGENT_ERROR)
    assert not any(map(ward.board.is_distrusted, "abc"))


async def test_what_was_of_an_agent_that_is_gone_is_forgotten(ward: Ward) -> None:
    ward.open(*"abc")
    await ward.play(replicas="abc")
    for replica in "abc":
        ward.board.close(replica)
        ward.facts.emit(telemetry.ReplicaExited("agent", replica, "stopped"))
    assert not ward.loop._evidence
