"""A replica, as the host of its node has it: from its start to its exit."""

from __future__ import annotations

import msgspec

from greenroom.core import health
from greenroom.store.agents import Replica


class Hosted(msgspec.Struct, eq=False):
    """A replica of this node."""

    id: str
    agent: str
    revision: int
    slots: int
    timeout_s: float  # of an attempt
    max_attempts: int  # of a task that loses its replica
    hang_after_s: float
    started_at_us: int
    started_s: float
    runs_once: bool = False  # no task of it may run twice
    for_suspects: bool = False  # beside the agent's number: it runs what is suspected to kill, one by one
    replaces: str | None = None  # the replica whose death it is started for
    state: str = "starting"
    reason: str = ""
    memory_mb: float | None = None
    ready_at_s: float | None = None
    has_answered: bool = False  # a task, with success
    drain_until_s: float | None = None
    is_stopping: bool = False
    recycled_for: str = ""  # why another is to take its place, though nothing has failed

    def serves(self, agent: str, revision: int) -> bool:
        """Whether it is one of those that *agent* should have, and ready."""
        is_one = self.agent == agent and self.revision == revision and not self.for_suspects
        return is_one and self.state == "ready"

    def row(self, node: str, pid: int | None, found: health.Finding, *, restarts: int, now_us: int) -> Replica:
        """Return what the store is to know of it; *found* tells how it is, while it is there."""
        has_ended = self.state in ("stopped", "failed")
        is_graded = not has_ended and self.state != "starting"
        is_let_go = self.state == "draining" and self.reason  # that is what people want to know of it
        return Replica(
            id=self.id,
            agent=self.agent,
            revision=self.revision,
            node=node,
            pid=pid,
            state=self.state,
            grade=found.grade if is_graded else health.Grade.UNKNOWN,
            reason=self._reason(found.reason if is_graded and not is_let_go else self.reason),
            slots=self.slots,
            memory_mb=self.memory_mb,
            restarts=restarts,
            started_at=self.started_at_us,
            ended_at=now_us if has_ended else None,
        )

    def _reason(self, usual: str) -> str:
        """Why it is replaced says more than how it is, and what it died of more than both."""
        return self.reason if self.state == "failed" else self.recycled_for or usual
