"""The real loops over a real SQLite file, in worlds in which everything fails; and that what they lack is found."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from greenroom import errors
from greenroom.control import attempts
from greenroom.control.dispatcher import Dispatcher
from greenroom.control.host import Host
from greenroom.control.hosted import Hosted
from greenroom.core import tasks
from greenroom.engine.contract import Exit
from greenroom.store import claims, transitions
from greenroom.store.directory import Entry
from greenroom.store.rows import Claim
from greenroom.testing.simulation import loops, runs
from greenroom.testing.simulation.virtual import VirtualLoop

SEEDS, PARTS = 40, 2
ENOUGH = 300  # seeds: what is missing is found before


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_promise_holds_in_every_world(part: int) -> None:
    report = runs.run("loops", range(part, SEEDS, PARTS))
    assert not report.complaints, "\n".join(report.complaints)
    assert (report.counts.lost, report.counts.duplicated) == (0, 0)


@pytest.mark.slow
def test_a_seed_is_its_run() -> None:
    for seed in (3, 4):  # kills and restarts, pauses and jumps of the clock among them
        first, second = (loops.run(seed, is_traced=True) for _ in range(2))
        assert first.trace == second.trace
        assert len(first.trace) > 50


def _broken_promises(first: int = 0) -> set[str]:
    """Run seeds until one breaks a promise; from *first* on, where those that do are rare."""
    violations = (loops.run(seed).violation for seed in range(first, first + ENOUGH))
    return {next(violation.promise for violation in violations if violation is not None)}


@pytest.mark.slow
def test_the_simulation_finds_a_drain_that_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    def loss_of(exit: Exit, claim: Claim, *, attempts: int, suspects: int, is_suspect: bool) -> tasks.ReplicaGone:
        del claim, attempts, suspects, is_suspect
        return tasks.ReplicaGone(tasks.Reason.DRAINED, exit.detail)

    monkeypatch.setattr(attempts, "loss_of", loss_of)
    assert _broken_promises() == {"I6"}


@pytest.mark.slow
def test_the_simulation_finds_a_result_without_its_sessions_state(monkeypatch: pytest.MonkeyPatch) -> None:
    without = transitions._SAVE_SESSION.replace("state = :state", "state = state")
    monkeypatch.setattr(transitions, "_SAVE_SESSION", without)
    assert _broken_promises() == {"I16"}


@pytest.mark.slow
def test_the_simulation_finds_claims_that_nobody_gives_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def renew(self: Dispatcher) -> None:
        await self._store.tasks.renew(self._store.claims.owner, ttl_us=self._store.claims.lease_ttl_us)

    monkeypatch.setattr(Dispatcher, "_renew", renew)
    assert _broken_promises() == {"I7"}


@pytest.mark.slow
def test_the_simulation_finds_sessions_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ITS_OWN", "_ITS_SHARE"):
        monkeypatch.setattr(claims, name, getattr(claims, name).replace(" and not blocked", ""))
    assert _broken_promises() == {"I15"}


@pytest.mark.slow
def test_the_simulation_finds_a_ghost_of_a_replica_whose_revision_could_not_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = Host._start

    async def leave_a_ghost(self: Host, entry: Entry, number: int, *, for_suspects: bool = False) -> None:
        try:
            await start(self, entry, number, for_suspects=for_suspects)
        except errors.StoreUnavailable:
            agent, at_s = entry.agent, self._clock.monotonic_s()
            self._replicas["ghost"] = Hosted(
                "ghost",
                agent.name,
                agent.revision,
                slots=1,
                timeout_s=1.0,
                max_attempts=1,
                hang_after_s=8.0,
                started_at_us=0,
                started_s=at_s,
                for_suspects=for_suspects,
            )
            raise

    monkeypatch.setattr(Host, "_start", leave_a_ghost)
    assert _broken_promises(first=160) == {"I7"}


def test_time_goes_on_when_everybody_waits_and_threads_are_none() -> None:
    done: list[tuple[str, float]] = []

    async def sleep(name: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        done.append((name, asyncio.get_running_loop().time()))

    async def work() -> Any:
        await asyncio.gather(sleep("a day", 86_400.0), sleep("an hour", 3_600.0))
        return await asyncio.get_running_loop().run_in_executor(None, lambda: done[-1])

    with asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.5)) as runner:
        assert runner.run(work()) == ("a day", 86_400.0)
        assert runner.get_loop().time() == 86_400.5
    assert all(earlier[1] < later[1] for earlier, later in itertools.pairwise(done))


def test_nobody_waits_for_nothing() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with (
        pytest.raises(RuntimeError, match="everybody waits"),
        asyncio.Runner(loop_factory=lambda: VirtualLoop(lambda: 0.0)) as runner,
    ):
        runner.run(wait())


@pytest.mark.slow
def test_the_simulation_finds_suspects_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ITS_OWN", "_ITS_SHARE"):
        monkeypatch.setattr(claims, name, claims._READY.format(whose="true"))
    assert _broken_promises() == {"I22"}
