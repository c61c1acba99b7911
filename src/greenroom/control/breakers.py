"""The breakers: how many tasks of each agent may run at once, by its spec and by whether what it calls is down.

The only caller of `board.limit`. Attempts are counted where they end, and what opens a breaker takes effect there,
before another task is claimed; the loop's steps bring what time brings, take over changes of specs, and tell people:
one alert for each agent whose breaker is not closed. What is known is of this node's life: after a restart all are
closed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta

import msgspec

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.control.alerts import Alerts
from greenroom.core import breaker, failures, tasks
from greenroom.core.breaker import Breaker, State
from greenroom.sdk import models
from greenroom.store.alerts import Raised
from greenroom.store.directory import Entry
from greenroom.store.news import News
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
_KIND = "breaker"


class _Guarded(msgspec.Struct, eq=False):
    """An agent. Without a *policy* its breaker is off."""

    policy: breaker.Policy | None
    window: breaker.Window
    max_running: int | None
    timeout_s: float
    revisions: frozenset[int]  # that get its tasks
    breaker: Breaker = msgspec.field(default_factory=Breaker)
    before: int = 0  # of the tasks that run, those that began before it was half-open; at most


class Breakers:
    name = "breakers"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._clock, self._facts, self._jitter = store, clock, facts, jitter
        self.wakeup = asyncio.Event()
        self._guarded: dict[str, _Guarded] = {}
        self._alerts = Alerts(store, facts, _KIND)
        self._is_stale = False  # a rollout has moved since the directory was read
        facts.subscribe(self._note, telemetry.AttemptEnded)
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        now_s = self._clock.monotonic_s()
        for name, guarded in self._guarded.items():  # first, for the store may not answer
            guarded.window.counts(now_s)  # what succeeds from now on counts as of now
            self._become(name, guarded, breaker.after_time(guarded.breaker, now_s=now_s))
            self._limit(name, guarded)
        if self._is_stale:
            self._is_stale = False
            await self._store.directory.refresh()  # where it fails, the host's next one will do
        entries = self._store.directory.entries
        for name, entry in entries.items():
            self._take_over(name, entry, now_s)
        for gone in self._guarded.keys() - entries.keys():
            del self._guarded[gone]
            self._store.board.limit(gone, None)
        await self._tell()
        waits_s = [each.breaker.until_s - now_s for each in self._guarded.values() if each.breaker.state is State.OPEN]
        return max(0.0, min([STEP_EVERY_S, *waits_s]))

    def state(self, agent: str) -> models.BreakerState:
        """Return how the breaker of *agent* is, for people."""
        guarded = self._guarded.get(agent)
        if guarded is None:  # it was deployed a moment ago
            return models.BreakerState()
        if guarded.policy is None:
            return models.BreakerState(state="off")
        known, until = guarded.breaker, None
        if known.state is State.OPEN:
            until = self._clock.now() + timedelta(seconds=max(0.0, known.until_s - self._clock.monotonic_s()))
        return models.BreakerState(state=known.state, reason=known.reason or None, until=until)

    def release(self, agent: str) -> None:
        """Close the breaker of *agent*, and count anew."""
        if (guarded := self._guarded.get(agent)) is not None:
            guarded.window.clear()
            self._become(agent, guarded, breaker.released(guarded.breaker, now_s=self._clock.monotonic_s()))

    # --- attempts end

    def _note(self, ended: telemetry.AttemptEnded) -> None:
        """Count it. Each task comes by here: a success of an agent that is well reads no clock and makes no object."""
        guarded = self._guarded.get(ended.agent)
        if guarded is None or guarded.policy is None:
            return
        if guarded.breaker.state is State.CLOSED and type(ended.end) is tasks.Succeeded:
            guarded.window.note_success()
            return
        is_failure = breaker.is_failure(ended.end, timeout_s=guarded.timeout_s)
        if is_failure and self._store.board.is_distrusted(ended.replica):
            is_failure = None  # it is this replica, as far as one can see, and not what they all call
        if guarded.breaker.state is State.CLOSED and not is_failure:
            return
        now_s = self._clock.monotonic_s()
        if is_failure is not None:
            guarded.window.note(is_failure=is_failure, now_s=now_s)
            self._judge(guarded.policy, guarded, ended, is_failure=is_failure, now_s=now_s)
        if guarded.breaker.state is State.HALF_OPEN and now_s - ended.duration_s < guarded.breaker.since_s:
            guarded.before = max(0, guarded.before - 1)
        self._limit(ended.agent, guarded)

    def _judge(
        self,
        policy: breaker.Policy,
        guarded: _Guarded,
        ended: telemetry.AttemptEnded,
        *,
        is_failure: bool,
        now_s: float,
    ) -> None:
        known, jitter = guarded.breaker, self._jitter()
        last = failures.told(breaker.told(ended.end)) if is_failure else ""
        if known.state is State.CLOSED:
            counts = guarded.window.counts(now_s)
            after = breaker.after_failures(known, policy, counts, last=last, now_s=now_s, jitter=jitter)
        else:
            after = breaker.after_trial(
                known,
                policy,
                is_failure=is_failure,
                began_s=now_s - ended.duration_s,
                slots=self._slots(ended.agent, guarded),
                last=last,
                now_s=now_s,
                jitter=jitter,
            )
        self._become(ended.agent, guarded, after)

    def _slots(self, agent: str, guarded: _Guarded) -> int:
        """Return how many tasks of *agent* run at once when all is well."""
        slots = max(1, self._store.board.usage(agent).slots)
        return slots if guarded.max_running is None else min(slots, guarded.max_running)

    # --- what follows

    def _become(self, agent: str, guarded: _Guarded, after: Breaker) -> None:
        before, guarded.breaker = guarded.breaker, after
        if after.state is before.state:
            return
        if after.state is State.HALF_OPEN:
            guarded.before = self._store.board.running(agent)
        if after.state is State.CLOSED:
            guarded.window.clear()  # what was before is over: it is not to open it again
        self._limit(agent, guarded)
        self._facts.emit(telemetry.BreakerMoved(agent, after.state, after.reason))
        self.wakeup.set()

    def _limit(self, agent: str, guarded: _Guarded) -> None:
        board = self._store.board
        if guarded.breaker.state is State.HALF_OPEN and guarded.before:
            guarded.before = min(guarded.before, board.running(agent))
        running = breaker.limit(guarded.breaker, guarded.max_running, before=guarded.before)
        if running != board.limit_of(agent):
            board.limit(agent, running)
            self._store.commits.nudge()

    def _take_over(self, name: str, entry: Entry, now_s: float) -> None:
        """Follow the spec of *name*; where other revisions get its tasks, what was seen of those before is void."""
        spec = entry.spec
        shares = {entry.agent.revision: 100} if entry.rollout is None else entry.rollout.state.shares
        revisions, policy = frozenset(shares), _policy(spec.breaker)
        guarded = self._guarded.get(name)
        if guarded is None or guarded.window.window_s != spec.breaker.window_s:
            known = Breaker() if guarded is None else guarded.breaker
            window = breaker.Window(spec.breaker.window_s)
            guarded = _Guarded(policy, window, spec.max_running, spec.timeout_s, revisions, known)
            self._guarded[name] = guarded
        guarded.policy, guarded.max_running, guarded.timeout_s = policy, spec.max_running, spec.timeout_s
        if policy is None or guarded.revisions != revisions:
            guarded.revisions = revisions
            guarded.window.clear()
            self._become(name, guarded, breaker.released(guarded.breaker, now_s=now_s))
        self._limit(name, guarded)

    async def _tell(self) -> None:
        """Write the alerts that are not as they should be, those of the node's life before among them."""
        # What is tried again fires on with the reason that it opened for.
        reasons = {name: each.breaker.reason for name, each in self._guarded.items() if each.breaker.reason}
        await self._alerts.only(_alert(agent, reason) for agent, reason in sorted(reasons.items()))

    def _hear(self, news: News) -> None:
        """Look at what was deployed before its replicas are ready."""
        if news.traffic:
            self._is_stale = True
            self.wakeup.set()


def _policy(spec: settings.Breaker) -> breaker.Policy | None:
    if spec.failure_pct == "off":
        return None
    return breaker.Policy(spec.failure_pct, spec.min_attempts, spec.window_s, spec.open_s)


def _alert(agent: str, reason: str) -> Raised:
    what = f"the circuit breaker of {agent} is open, its tasks wait: {reason}; it is tried again by itself, "
    what += f"or at once by: greenroom agents release {agent}"
    return Raised(f"{_KIND}-{agent}", _KIND, agent, "warning", what)
