"""Rehearsals: tries a revision before anything is deployed, on a replica that nobody else sees.

The replica is in no row and gets no tasks. It has to become ready and to build an instance; then it is given the states
of the agent's stored sessions, and none of what it makes of them is kept. Asked for by the API, through `node`.
"""

from __future__ import annotations

import asyncio

import msgspec

from greenroom import clock as clocks
from greenroom import errors
from greenroom.control.trials import ReplicaGone, Trials
from greenroom.engine import contract, protocol, said
from greenroom.store import submissions
from greenroom.store.store import Store

START_S = 120.0
MIGRATE_S = 30.0  # for one session
MAX_S = 240.0  # in all
MAX_SESSIONS = 10_000  # those used last
MAX_FAILURES = 100  # told of
PAGE = 100
AT_ONCE = 8


class Rehearsed(msgspec.Struct):
    """*error* says why the revision cannot run at all. *tried* of *stored* sessions were given to it."""

    error: str | None = None
    stored: int = 0
    tried: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = []  # sessions, and what is wrong with them

    def note(self, session: str, wrong: str | None) -> None:
        self.tried += 1
        if wrong is not None:
            self.failed += 1
            if len(self.failures) < MAX_FAILURES:
                self.failures.append((session, wrong))


class Rehearsal:
    def __init__(self, store: Store, engine: contract.Engine, trials: Trials, clock: clocks.Clock) -> None:
        self._store, self._engine, self._trials, self._clock = store, engine, trials, clock
        self._starting: dict[str, asyncio.Future[None]] = {}
        engine.subscribe(self)

    async def run(self, revision: contract.Revision, *, keeps_sessions: bool) -> Rehearsed:
        """Try *revision*, on the agent's stored sessions too where it keeps any."""
        rehearsed = Rehearsed()
        replica = f"{revision.agent}-try-{submissions.new_id()[:8]}"
        started = self._starting[replica] = asyncio.get_running_loop().create_future()
        try:
            await self._engine.start(replica, revision)
            async with asyncio.timeout(START_S):
                await started
            rehearsed.error = await self._trials.probe(replica)
            if rehearsed.error is None and keeps_sessions:
                await self._migrate(replica, revision, rehearsed)
        except TimeoutError:
            rehearsed.error = f"it was not ready within {START_S:g} s"
        except errors.AgentInvalid as error:
            rehearsed.error = str(error)
        except ReplicaGone as error:
            what = "its replica went while it was tried: " if started.done() and not started.exception() else ""
            rehearsed.error = f"{what}{error}"
        finally:
            del self._starting[replica]
            await self._engine.stop(replica, grace_s=0)
        return rehearsed

    async def _migrate(self, replica: str, revision: contract.Revision, rehearsed: Rehearsed) -> None:
        rehearsed.stored = await self._store.sessions.count(revision.agent)
        deadline_s = self._clock.monotonic_s() + MAX_S
        behind = None
        while rehearsed.tried < MAX_SESSIONS:
            page = await self._store.sessions.states(revision.agent, behind=behind, limit=PAGE)
            for start in range(0, len(page), AT_ONCE):
                if self._clock.monotonic_s() >= deadline_s:
                    return
                some = page[start : start + AT_ONCE]
                found = await asyncio.gather(
                    *(
                        self._trials.migrate(replica, each.state, revision=each.revision, timeout_s=MIGRATE_S)
                        for each in some
                    )
                )
                for each, wrong in zip(some, found, strict=True):
                    rehearsed.note(each.id, wrong)
            if len(page) < PAGE:
                return
            behind = page[-1]

    # --- what replicas say (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:  # noqa: ARG002 - that it is
        if (started := self._starting.get(replica)) is not None and not started.done():
            started.set_result(None)

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        if (started := self._starting.get(replica)) is not None and not started.done():
            started.set_exception(ReplicaGone(exit.detail or exit.reason))

    def on_log(self, replica: str, line: said.Line) -> None:
        """Nothing of it counts."""

    def on_alive(self, replica: str, number: int) -> None:
        """Nobody waits for it."""

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        """The trials hear it."""
