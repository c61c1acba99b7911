"""What a node answers about an agent's health and its SLO, as values; see `sdk.models`."""

from __future__ import annotations

import msgspec

from greenroom.sdk.models import Instant


class ReplicaHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The grade of a replica that is ready, and why."""

    id: str
    grade: str
    reason: str = ""


class RecentTasks(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an agent's tasks in the last *window_s*, by which it is graded *grade* for *reason*.

    *errors* of *judged* attempts speak against it; *measured* tasks took *response_s* from acceptance to the end on
    average, *wait_s* of it for a slot. Of fewer than *min_samples* neither says anything. From *degraded_error_pct* and
    *degraded_response_s* on it is degraded, from the *unhealthy* ones on unhealthy; null: it is not graded by that.
    """

    grade: str
    reason: str = ""
    window_s: float = 0.0
    min_samples: int = 0
    judged: int = 0
    errors: int = 0
    error_pct: float | None = None
    degraded_error_pct: float | None = None
    unhealthy_error_pct: float | None = None
    measured: int = 0
    response_s: float | None = None
    wait_s: float | None = None
    degraded_response_s: float | None = None
    unhealthy_response_s: float | None = None


class BurnRate(msgspec.Struct, frozen=True, kw_only=True):
    """How many times faster than it lasts the budget was spent in a long and in a short window, in seconds.

    It *alerts* where both are at *threshold* or above and enough tasks have ended; *severity* is page or ticket.
    """

    severity: str
    threshold: float
    long_s: float
    long_rate: float
    short_s: float
    short_rate: float
    alerts: bool = False


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """A goal, and how it stands: *missed* of *tasks* did not meet it in the window, so that *met_pct* did.

    *name* is success, or latency: succeeded within *latency_s*, which is measured as *measured_s*. *budget_left_pct* of
    what may be missed is left; below 0 the goal is broken.
    """

    name: str
    target_pct: float
    latency_s: float | None = None
    measured_s: float | None = None
    tasks: int = 0
    missed: int = 0
    met_pct: float | None = None
    budget_left_pct: float = 100.0
    burn_rates: tuple[BurnRate, ...] = ()


class AgentSlo(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's objectives over *window_days*, as they stood *at*; null and empty before they were looked at."""

    window_days: float
    min_tasks: int = 1
    at: Instant | None = None
    objectives: tuple[Objective, ...] = ()


class AgentHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent is: *grade* is the worse of what its *replicas* and its *recent* tasks say. *slo* is null where its
    settings name none.
    """

    agent: str
    grade: str
    reason: str = ""
    replicas: tuple[ReplicaHealth, ...] = ()
    recent: RecentTasks
    slo: AgentSlo | None = None
