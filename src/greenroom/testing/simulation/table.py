"""A task table in memory: what the statements of `greenroom.store` mean, in plain Python.

Written from the promises, not from the statements. The differential test holds both databases to it, and the simulation
of the core runs on it. Times are seconds of the database's clock; what is lost is settled by `core.tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from greenroom.core import fairness, tasks
from greenroom.testing.fakes import START

OPEN = ("queued", "running", "waiting")
LEASE_S = 15.0
_GOLDEN = 0.618033988749895


@dataclass(frozen=True, slots=True)
class Guards:
    """The predicates of the statements; a test takes one away, to see that its lack is found."""

    finish_compares_epoch: bool = True
    call_compares_epoch: bool = True
    rescue_compares_lease: bool = True
    ends_are_absorbing: bool = True
    refunds: bool = True
    one_of_a_session: bool = True
    order_of_a_session: bool = True
    state_goes_with_result: bool = True
    keys_are_unique: bool = True
    ends_children: bool = True
    suspects_run_alone: bool = True


ALL = Guards()


@dataclass(slots=True, eq=False)
class Row:
    id: str
    agent: str
    session: str | None
    priority: int
    due_at: float | None
    deadline_at: float | None
    max_attempts: int
    on_loss: str
    parent: str | None
    key: str | None
    body: bytes
    backoff_s: float = 0.0
    seq: int = 0
    place: tuple[int, int] = (0, 0)  # among those of its priority
    is_blocked: bool = False  # an earlier one of its session was open when it came, and none has let it go
    state: str = "queued"
    epoch: int = 0
    charged: int = 0
    kills: int = 0
    restores: bool = False
    owner: str | None = None
    lease_until: float | None = None
    output: bytes | None = None
    error: str | None = None
    events: list[tuple[int, str]] = field(default_factory=list)
    ends: list[tuple[int, str, int]] = field(default_factory=list)  # of its attempts: epoch, reason, refund

    def visible(self) -> tuple[object, ...]:
        counted = self.epoch, self.charged, self.kills
        return self.id, self.state, *counted, self.output, self.error, self.parent, tuple(self.events)

    def is_leased(self, epoch: int) -> bool:
        return self.epoch == epoch and self.state in ("running", "waiting")


def _seq(row: Row) -> int:
    return row.seq


@dataclass(frozen=True, slots=True)
class Claim:
    id: str
    epoch: int
    charged: int
    state: bytes | None  # the session's
    is_restored: bool = False  # it is the last that is known to be good, not the last
    has_good: bool = False  # there is one that is known to be good and is not the last


class Table:
    """*changed* is told of every row that moved, in the order of the moves."""

    def __init__(self, guards: Guards = ALL, *, changed: Callable[[Row], None] = lambda _: None) -> None:
        self._guards, self._changed = guards, changed
        self.now = 0.0
        self.rows: dict[str, Row] = {}
        self.sessions: dict[tuple[str, str], tuple[bytes | None, int]] = {}  # (agent, id): state, tasks
        self.good: dict[tuple[str, str], bytes | None] = {}  # what the last task that succeeded was started with
        self.turns: dict[str, fairness.Turns] = {}  # of each agent's priorities
        self._released = 0  # tasks that their sessions have let go

    def visible(self) -> list[tuple[object, ...]]:
        return [row.visible() for row in self.rows.values()]

    # --- the moves

    def submit(self, row: Row, *, timeout_s: float | None = None) -> tuple[str, bool, bool]:
        for other in self.rows.values() if row.key is not None and self._guards.keys_are_unique else ():
            if other.key == row.key:
                self._use_session(row)
                return other.id, False, other.body == row.body
        if row.id in self.rows:
            return row.id, False, True  # the statement came twice
        if timeout_s is not None:
            row.deadline_at = max(self.now, row.due_at or 0.0) + timeout_s
        row.seq = len(self.rows) + 1
        row.place = row.seq, 0
        row.is_blocked = any(other.state in OPEN for other in self._of_session(row))
        self.rows[row.id] = row
        self._use_session(row)
        self._changed(row)
        return row.id, True, True

    def claim(self, agent: str, slots: int, owner: str, *, is_alone: bool = False) -> list[Claim]:
        """Claim for replicas whose tasks share them, or for one that runs suspects, one by one."""
        claims: list[Claim] = []
        while slots > len(claims):
            ready = [row for row in self._queue(agent, is_alone=is_alone) if self._is_ready(row)]
            chosen = self._in_turns(agent, ready, slots - len(claims), is_alone=is_alone)
            for row in chosen:
                if self._is_late(row):
                    self._expire(row)
                    self._cancel_below(row)
                    continue
                row.epoch += 1
                row.charged += 1
                row.owner, row.lease_until = owner, self.now + LEASE_S
                self._move(row, "running")
                claims.append(Claim(row.id, row.epoch, row.charged, *self._session_state(row)))
            if not chosen:
                break
        return claims

    def _queue(self, agent: str, *, is_alone: bool) -> list[Row]:
        """Return what is queued of an agent, or of its suspects: the first in front."""
        queued = [
            row
            for row in self.rows.values()
            if row.state == "queued" and row.agent == agent and self._is_suspect(row) is is_alone
        ]
        return sorted(queued, key=lambda row: (-row.priority, row.place))

    def _in_turns(self, agent: str, ready: list[Row], slots: int, *, is_alone: bool) -> list[Row]:
        """Choose from *ready*, the first in front: at times of a lower priority than the highest."""
        turns, chosen = self.turns.get(agent, fairness.Turns()), ready[:slots]
        lower = turns.lower(slots) if len(chosen) == slots and not is_alone else 0
        waiting = sorted({row.priority for row in ready if row.priority < ready[0].priority}, reverse=True)
        given = fairness.lower_turns(lower, waiting, turns.last)
        self.turns[agent] = turns.after(len(chosen), fairness.last_turn(lower, given))
        chosen = chosen[: len(chosen) - given.total()]
        for priority, number in given.items():
            chosen += [row for row in ready if row.priority == priority and row not in chosen][:number]
        return chosen

    def finish(
        self,
        id: str,
        epoch: int,
        state: str,
        *,
        reason: str = "ok",
        output: bytes | None = None,
        error: str | None = None,
        delay_s: float | None = None,
        refund: int = 0,
        kills: int = 0,
        restores: bool = False,
        saves: bytes | None = None,
        is_restored: bool = False,
    ) -> bool:
        row = self.rows[id]
        if not row.is_leased(epoch if self._guards.finish_compares_epoch else row.epoch):
            return False
        row.output, row.error = output, error
        row.due_at = None if delay_s is None else self.now + delay_s
        if state == "queued":
            row.kills, row.restores = row.kills + kills, row.restores or restores
        self._end(row, state, reason, refund)
        if state == "succeeded" and row.session is not None:
            key = row.agent, row.session
            before, count = self.sessions[key]
            if not is_restored:
                self.good[key] = before
            self.sessions[key] = saves if self._guards.state_goes_with_result else before, count + 1
        if state in ("failed", "expired") or (state == "succeeded" and epoch > 1):
            self._cancel_below(row)
        return True

    def append(self, id: str, epoch: int) -> bool:
        row = self.rows[id]
        if row.is_leased(epoch):
            row.events.append((epoch, "message"))
        return row.is_leased(epoch)

    def call(self, id: str, epoch: int, child: Row) -> tuple[str, bool, bool] | None:
        parent = self.rows[id]
        if self._guards.call_compares_epoch and not parent.is_leased(epoch):
            return None
        answer = self.submit(child)
        if parent.state == "running":
            self._move(parent, "waiting")
        return answer

    def resume(self, id: str, epoch: int) -> bool:
        row = self.rows[id]
        if not row.is_leased(epoch):
            return False
        if row.state == "waiting":
            self._move(row, "running")
        return True  # one that runs already has its slot

    def cancel(self, id: str) -> str:
        row = self.rows[id]
        before = row.state
        if before in OPEN or not self._guards.ends_are_absorbing:
            self._cancel(row)
            self._cancel_below(row)
        return before

    def renew(self, owner: str) -> set[tuple[str, int]]:
        held = [row for row in self.rows.values() if row.owner == owner]
        for row in held:
            row.lease_until = self.now + LEASE_S
        return {(row.id, row.epoch) for row in held}

    def rescue(self, *, not_owner: str | None = None, spared: str | None = None, jitter: float = 0.0) -> int:
        lost = [row for row in self.rows.values() if row.owner != spared and self._is_lost(row, not_owner)]
        for row in lost:
            verdict = tasks.settle(
                tasks.ReplicaGone(tasks.Reason.FENCED, "its node was lost"),
                attempts_charged=row.charged,
                policy=tasks.Policy(row.max_attempts, row.on_loss, row.backoff_s),
                now=START + timedelta(seconds=self.now),
                jitter=(jitter + row.seq * _GOLDEN) % 1.0,
            )
            row.error = None if verdict.error is None else verdict.error.type
            row.due_at = None if verdict.due_at is None else (verdict.due_at - START).total_seconds()
            self._end(row, verdict.state, verdict.reason, refund=0)
        for row in lost:
            if row.state == "failed":
                self._cancel_below(row)
        return len(lost)

    def tick(self) -> None:
        late = [row for row in self.rows.values() if row.state == "queued" and self._is_late(row)]
        for row in self.rows.values():
            if row.state == "queued" and row.due_at is not None and row.due_at <= self.now:
                row.due_at = None
        for row in late:
            self._expire(row)
        for row in late:
            self._cancel_below(row)

    def forget(self, agent: str, session: str) -> str:
        if any(row.state in OPEN for row in self.rows.values() if (row.agent, row.session) == (agent, session)):
            return "conflict"
        self.good.pop((agent, session), None)
        return "not-found" if self.sessions.pop((agent, session), None) is None else "done"

    # --- what they need

    def _move(self, row: Row, state: str) -> None:
        row.state = state
        if state not in OPEN:
            self._let_go(row)
        row.events.append((row.epoch, state))
        if state not in ("running", "waiting"):
            row.owner = row.lease_until = None
        self._changed(row)

    def _expire(self, row: Row) -> None:
        row.error = "timeout"
        self._move(row, "expired")

    def _let_go(self, row: Row) -> None:
        """The session of *row* goes on: its next task goes behind what waits already."""
        behind = min((other for other in self._of_session(row) if other.state in OPEN), key=_seq, default=None)
        if behind is not None and behind.is_blocked:
            self._released += 1
            behind.is_blocked, behind.place = False, (len(self.rows), self._released)

    def _end(self, row: Row, state: str, reason: str, refund: int) -> None:
        """The row's attempt is over, and with it perhaps the task."""
        row.charged -= refund if self._guards.refunds else 0
        row.ends.append((row.epoch, reason, refund))
        self._move(row, state)

    def _use_session(self, row: Row) -> None:
        if row.session is not None:
            self.sessions.setdefault((row.agent, row.session), (None, 0))

    def _session_state(self, row: Row) -> tuple[bytes | None, bool, bool]:
        if row.session is None:
            return None, False, False
        key = row.agent, row.session
        last, good = self.sessions[key][0], self.good.get(key)
        has_good = good is not None and good != last
        is_restored = row.restores and has_good
        return good if is_restored else last, is_restored, has_good

    def _is_suspect(self, row: Row) -> bool:
        return row.kills >= tasks.SUSPECT_KILLS and self._guards.suspects_run_alone

    def _is_ready(self, row: Row) -> bool:
        if row.due_at is not None:
            return False
        return row.session is None or not any(self._is_in_the_way(row, other) for other in self._of_session(row))

    def _is_in_the_way(self, row: Row, other: Row) -> bool:
        if other.state in ("running", "waiting"):
            return self._guards.one_of_a_session
        return other.state == "queued" and other.seq < row.seq and self._guards.order_of_a_session

    def _of_session(self, row: Row) -> Iterator[Row]:
        for other in self.rows.values():
            is_one = row.session is not None and other.session == row.session and other.agent == row.agent
            if other is not row and is_one:
                yield other

    def _is_late(self, row: Row) -> bool:
        return row.deadline_at is not None and row.deadline_at <= self.now

    def _is_lost(self, row: Row, not_owner: str | None) -> bool:
        if row.lease_until is None:
            return False
        if not self._guards.rescue_compares_lease:
            return True
        return row.lease_until < self.now or (not_owner is not None and row.owner != not_owner)

    def _cancel_below(self, parent: Row) -> None:
        for row in self.rows.values() if self._guards.ends_children else ():
            if row.parent == parent.id:
                if row.state in OPEN:
                    self._cancel(row)
                self._cancel_below(row)

    def _cancel(self, row: Row) -> None:
        row.error = "cancelled"
        if row.state in ("running", "waiting"):
            self._end(row, "cancelled", "cancelled", refund=0)
        else:
            self._move(row, "cancelled")
