"""A task table as small as it can be: what the statements of `greenroom.store.transitions` mean, in plain Python.

Written from the promises, not from the statements; times are seconds since the start of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

OPEN = ("queued", "running", "waiting")
LEASE_S = 15.0


@dataclass
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
    state: str = "queued"
    epoch: int = 0
    charged: int = 0
    owner: str | None = None
    lease_until: float | None = None
    output: bytes | None = None
    error: str | None = None
    events: list[tuple[int, str]] = field(default_factory=list)

    def visible(self) -> tuple[object, ...]:
        return (self.id, self.state, self.epoch, self.charged, self.output, self.error, self.parent, tuple(self.events))

    def is_leased(self, epoch: int) -> bool:
        return self.epoch == epoch and self.state in ("running", "waiting")

    def move(self, state: str) -> None:
        self.state = state
        self.events.append((self.epoch, state))
        if state not in ("running", "waiting"):
            self.owner = self.lease_until = None


class Model:
    def __init__(self) -> None:
        self.now = 0.0
        self.rows: dict[str, Row] = {}
        self.sessions: dict[tuple[str, str], tuple[bytes | None, int]] = {}  # (agent, id): state, tasks

    def visible(self) -> list[tuple[object, ...]]:
        return [row.visible() for row in self.rows.values()]

    # --- the moves

    def submit(self, row: Row, *, timeout_s: float | None = None) -> tuple[str, bool, bool]:
        for other in self.rows.values():
            if row.key is not None and other.key == row.key:
                self._use_session(row)
                return other.id, False, other.body == row.body
        if timeout_s is not None:
            row.deadline_at = max(self.now, row.due_at or 0.0) + timeout_s
        self.rows[row.id] = row
        self._use_session(row)
        return row.id, True, True

    def claim(self, agent: str, slots: int, owner: str) -> list[tuple[str, int, int, bytes | None]]:
        ready = [row for row in self.rows.values() if row.agent == agent and self._is_ready(row)]
        claims = []
        for row in sorted(ready, key=lambda row: -row.priority)[:slots]:
            row.epoch += 1
            row.charged += 1
            row.owner, row.lease_until = owner, self.now + LEASE_S
            row.move("running")
            claims.append((row.id, row.epoch, row.charged, self._session_state(row)))
        return claims

    def finish(
        self, id: str, epoch: int, state: str, *, output: bytes | None, delay_s: float | None, refund: int, saves: bytes
    ) -> bool:
        row = self.rows[id]
        if not row.is_leased(epoch):
            return False
        row.charged -= refund
        row.output = output
        row.due_at = None if delay_s is None else self.now + delay_s
        if state == "failed":
            row.error = "agent_error"
        row.move(state)
        if state == "succeeded" and row.session is not None:
            key = row.agent, row.session
            self.sessions[key] = saves, self.sessions[key][1] + 1
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
        if not parent.is_leased(epoch):
            return None
        answer = self.submit(child)
        if parent.state == "running":
            parent.move("waiting")
        return answer

    def resume(self, id: str, epoch: int) -> bool:
        row = self.rows[id]
        if row.epoch != epoch or row.state not in ("running", "waiting"):
            return False
        if row.state == "waiting":
            row.move("running")
        return True  # one that runs already has its slot

    def cancel(self, id: str) -> str:
        row = self.rows[id]
        before = row.state
        if before in OPEN:
            row.error = "cancelled"
            row.move("cancelled")
            self._cancel_below(row)
        return before

    def renew(self, owner: str) -> set[tuple[str, int]]:
        held = [row for row in self.rows.values() if row.owner == owner]
        for row in held:
            row.lease_until = self.now + LEASE_S
        return {(row.id, row.epoch) for row in held}

    def rescue(self, not_owner: str | None) -> int:
        lost = [row for row in self.rows.values() if self._is_lost(row, not_owner)]
        for row in lost:
            is_last = row.on_loss == "fail" or row.charged >= row.max_attempts
            row.error = "replica_lost" if is_last else None
            row.move("failed" if is_last else "queued")
        for row in lost:
            if row.state == "failed":
                self._cancel_below(row)
        return len(lost)

    def tick(self) -> None:
        expired = [row for row in self.rows.values() if row.state == "queued" and self._is_late(row)]
        for row in self.rows.values():
            if row.state == "queued" and row.due_at is not None and row.due_at <= self.now:
                row.due_at = None
        for row in expired:
            row.error = "timeout"
            row.move("expired")
        for row in expired:
            self._cancel_below(row)

    def forget(self, agent: str, session: str) -> str:
        if any(row.state in OPEN for row in self.rows.values() if (row.agent, row.session) == (agent, session)):
            return "conflict"
        return "not-found" if self.sessions.pop((agent, session), None) is None else "done"

    # --- what they need

    def _use_session(self, row: Row) -> None:
        if row.session is not None:
            self.sessions.setdefault((row.agent, row.session), (None, 0))

    def _session_state(self, row: Row) -> bytes | None:
        return None if row.session is None else self.sessions[row.agent, row.session][0]

    def _is_ready(self, row: Row) -> bool:
        return row.state == "queued" and row.due_at is None and not any(self._before(row, lambda r: r.state in OPEN))

    def _before(self, row: Row, is_it: Callable[[Row], bool]) -> Iterator[Row]:
        for other in self.rows.values():
            if other is row:
                return
            if row.session is not None and (other.agent, other.session) == (row.agent, row.session) and is_it(other):
                yield other

    def _is_late(self, row: Row) -> bool:
        return row.deadline_at is not None and row.deadline_at <= self.now

    def _is_lost(self, row: Row, not_owner: str | None) -> bool:
        if row.lease_until is None:
            return False
        return row.lease_until < self.now or (not_owner is not None and row.owner != not_owner)

    def _cancel_below(self, parent: Row) -> None:
        for row in self.rows.values():
            if row.parent == parent.id:
                if row.state in OPEN:
                    row.error = "cancelled"
                    row.move("cancelled")
                self._cancel_below(row)
