"""The outliers' loop: a replica that fails where its peers do not takes no more work, and another takes its place.

Evidence are the ends of attempts, as the dispatcher says them; `core.outliers` decides. Who is ejected drains: what it
still runs may end, its share goes to the others at once. Until there is evidence enough, one that fails several times
in a row while a peer does not is distrusted: it gets one task for each step, and `control.breakers` does not count it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.core import health, outliers
from greenroom.store.board import Board

STEP_EVERY_S = 0.25
_MAX_EJECTIONS = 1000  # that are kept of one agent: more than there may be in a window


class Outliers:
    """*eject* drains a replica of that id and has another started, for the reason; False if it goes already."""

    name = "outliers"

    def __init__(
        self,
        board: Board,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        eject: Callable[[str, str], bool],
    ) -> None:
        self._board, self._clock, self._facts, self._eject = board, clock, facts, eject
        self.wakeup = asyncio.Event()
        self._evidence: dict[str, outliers.Evidence] = defaultdict(outliers.Evidence)
        self._ejected_s: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_MAX_EJECTIONS))
        self._failed_s: dict[str, float] = {}  # when an attempt of each agent that is watched has failed last
        self._failing: set[str] = set()  # agents of which an attempt has failed since the last step
        self._streaks: dict[str, int] = {}  # failures in a row of each replica that has just failed
        self._distrusted: set[str] = set()
        self._looked_s = clock.monotonic_s()
        facts.subscribe(self._note, telemetry.AttemptEnded)
        facts.subscribe(self._forget, telemetry.ReplicaExited)

    async def step(self) -> float:
        self._looked_s = self._clock.monotonic_s()
        for replica in self._distrusted:
            self._board.distrust(replica, is_resting=False)
        for agent, failed_s in list(self._failed_s.items()):
            if self._looked_s - failed_s > outliers.WINDOW_S:  # what is known is stale, and it is well
                del self._failed_s[agent]
                self._evidence.pop(agent, None)
        failing, self._failing = self._failing, set()
        for agent in sorted(failing):
            self._look_at(agent)
        return STEP_EVERY_S

    def _look_at(self, agent: str) -> None:
        """Eject one replica of *agent* at most."""
        now_s, by_revision = self._looked_s, self._board.replicas(agent)
        ready = sum(map(len, by_revision.values()))
        if not outliers.may_eject(ready, self._ejected_s[agent], now_s=now_s):
            return
        for _, replicas in sorted(by_revision.items()):
            found = outliers.judge(self._evidence[agent].outcomes, frozenset(replicas), now_s=now_s)
            if found is not None and self._eject(found.replica, f"it was ejected: {found.reason}"):
                self._ejected_s[agent].append(now_s)
                self._facts.emit(telemetry.ReplicaEjected(agent, found.replica, found.reason))
                return

    def _note(self, ended: telemetry.AttemptEnded) -> None:
        """Keep it. Each task comes by here."""
        is_failure = health.is_error(ended.reason)
        if is_failure is None:
            return
        if is_failure:
            self._failing.add(ended.agent)
            self._failed_s[ended.agent] = self._looked_s
            self._doubt(ended.agent, ended.replica)
        else:
            if self._streaks and self._streaks.pop(ended.replica, 0) and ended.replica in self._distrusted:
                self._trust(ended.replica)
            if ended.agent not in self._evidence:
                return  # none has failed for long: there is nobody to compare it with
        self._evidence[ended.agent].note(
            ended.replica, is_failure=is_failure, session=ended.session if is_failure else None, at_s=self._looked_s
        )

    def _doubt(self, agent: str, replica: str) -> None:
        streak = self._streaks[replica] = self._streaks.get(replica, 0) + 1
        if streak < outliers.STREAK:
            return
        peers = next((peers for peers in self._board.replicas(agent).values() if replica in peers), [])
        streaks = {peer: self._streaks.get(peer, 0) for peer in peers}
        if outliers.may_distrust(replica, streaks, distrusted=self._distrusted):
            self._distrusted.add(replica)
            self._board.distrust(replica, is_resting=True)
        elif replica in self._distrusted:
            self._trust(replica)

    def _trust(self, replica: str) -> None:
        self._distrusted.discard(replica)
        self._board.trust(replica)

    def _forget(self, exited: telemetry.ReplicaExited) -> None:
        self._streaks.pop(exited.replica, None)
        self._distrusted.discard(exited.replica)
        if (evidence := self._evidence.get(exited.agent)) is not None:
            evidence.forget(exited.replica)
            if not self._board.replicas(exited.agent):  # perhaps for good: agents come and go
                del self._evidence[exited.agent]
                self._failed_s.pop(exited.agent, None)
