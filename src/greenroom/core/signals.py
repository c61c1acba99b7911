"""Signals, and the rules of alerts over them: what is looked at, and when that is too much or too little. Pure.

Called by `control.monitor`, which reads what a signal is made of.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping

import msgspec

from greenroom.core import history
from greenroom.core.alerts import Condition
from greenroom.core.history import Counts, Histogram
from greenroom.core.permissions import matches


class Signal(enum.StrEnum):
    RUN_P95_S = "run_p95_s"  # attempts, as their agent ran them
    RUN_MEAN_S = "run_mean_s"
    WAIT_P95_S = "wait_p95_s"  # tasks, until a slot was theirs
    RESPONSE_P95_S = "response_p95_s"  # tasks, from acceptance to the end
    FAILURE_PCT = "failure_pct"  # of the attempts that speak for or against their agent
    ATTEMPTS = "attempts"
    RETRIES = "retries"
    TOKENS = "tokens"
    RESTARTS = "restarts"  # replicas that died
    QUEUED = "queued"  # now
    OLDEST_WAIT_S = "oldest_wait_s"  # now
    REPLICAS = "replicas"  # that are ready now
    CERTIFICATE_DAYS = "certificate_days"  # until it expires
    DISK_FREE_PCT = "disk_free_pct"  # of the file system that the data directory is on
    DISK_FREE_MB = "disk_free_mb"  # of it, too
    BACKUP_OVERDUE_S = "backup_overdue_s"  # beyond backups.every_s


OF_NODE = frozenset({Signal.CERTIFICATE_DAYS, Signal.DISK_FREE_PCT, Signal.DISK_FREE_MB, Signal.BACKUP_OVERDUE_S})
"""Those of no agent."""
OF_HISTORY = frozenset(
    {
        Signal.RUN_P95_S,
        Signal.RUN_MEAN_S,
        Signal.WAIT_P95_S,
        Signal.RESPONSE_P95_S,
        Signal.FAILURE_PCT,
        Signal.ATTEMPTS,
        Signal.RETRIES,
        Signal.TOKENS,
    }
)
OVER_WINDOW = OF_HISTORY | {Signal.RESTARTS}
WITH_VOLUME = OF_HISTORY - {Signal.ATTEMPTS, Signal.RETRIES, Signal.TOKENS}
"""Shares and durations: of how many they are says how much they say."""


class Rule(msgspec.Struct, frozen=True):
    """Exactly one of *above* and *below* is given, or its alerts never fire."""

    name: str
    signal: Signal
    agents: tuple[str, ...] = ("*",)  # patterns
    except_agents: tuple[str, ...] = ()
    above: float | None = None
    below: float | None = None
    window_s: float = 300.0
    min_volume: int = 1
    for_s: float = 60.0
    keep_s: float = 300.0
    severity: str = "warning"

    def is_about(self, agent: str) -> bool:
        return is_about(agent, agents=self.agents, except_agents=self.except_agents)

    def condition(self, reading: Reading | None) -> Condition:
        """Tell whether it holds; None is unknown. What there is too little of is clear."""
        if reading is None:
            return Condition.UNKNOWN
        if reading.volume is not None and reading.volume < self.min_volume:
            return Condition.CLEAR
        too_much = self.above is not None and reading.value > self.above
        too_little = self.below is not None and reading.value < self.below
        return Condition.HOLDS if too_much or too_little else Condition.CLEAR

    def reason(self, agent: str | None, reading: Reading) -> str:
        """Say for people why it fires."""
        whose = "" if agent is None else f" of {agent}"
        over = f" over {self.window_s:g} s" if self.signal in OVER_WINDOW else ""
        seen = f" ({reading.volume} seen)" if reading.volume is not None else ""
        bound = f"over {self.above:g}" if self.above is not None else f"under {self.below:g}"
        return f"{WORDS[self.signal]}{whose} is {reading.value:.4g}{over}{seen}, {bound}"


WORDS: Mapping[Signal, str] = {
    Signal.RUN_P95_S: "the 95th percentile of run times in seconds",
    Signal.RUN_MEAN_S: "the mean run time in seconds",
    Signal.WAIT_P95_S: "the 95th percentile of waits in seconds",
    Signal.RESPONSE_P95_S: "the 95th percentile of response times in seconds",
    Signal.FAILURE_PCT: "the percentage of attempts that fail",
    Signal.ATTEMPTS: "the number of attempts",
    Signal.RETRIES: "the number of retries",
    Signal.TOKENS: "the number of tokens",
    Signal.RESTARTS: "the number of replicas that died",
    Signal.QUEUED: "the number of queued tasks",
    Signal.OLDEST_WAIT_S: "the longest wait in the queue in seconds",
    Signal.REPLICAS: "the number of ready replicas",
    Signal.CERTIFICATE_DAYS: "the number of days until the certificate expires",
    Signal.DISK_FREE_PCT: "the percentage of the data directory's disk that is free",
    Signal.DISK_FREE_MB: "what is free of the data directory's disk in MB",
    Signal.BACKUP_OVERDUE_S: "the time in seconds for which a backup is overdue",
}


class Reading(msgspec.Struct, frozen=True):
    """What a signal said; *volume* is of how many, None where that means nothing."""

    value: float
    volume: int | None = None


Sums = Mapping[float, Mapping[str, Counts]]


def summed(records: Iterable[tuple[str, int, bytes]], windows_s: Iterable[float], *, now_us: int) -> Sums:
    """Add *records* of the history, each of an agent and with its begin, up over each of the windows that end now."""
    begun = {window_s: now_us - int(window_s * 1e6) for window_s in windows_s}
    sums: dict[float, dict[str, Counts]] = {window_s: {} for window_s in begun}
    for agent, at_us, record in records:
        counts = history.decode(record)
        for window_s, begun_us in begun.items():
            if at_us >= begun_us:
                sums[window_s].setdefault(agent, Counts()).merge(counts)
    return sums


def read(signal: Signal, counts: Counts) -> Reading:
    """Return what *counts* of an agent over a window say; of a signal of `OF_HISTORY`."""
    match signal:
        case Signal.RUN_P95_S | Signal.RUN_MEAN_S:
            return _duration(counts.run, is_mean=signal is Signal.RUN_MEAN_S)
        case Signal.WAIT_P95_S:
            return _duration(counts.wait)
        case Signal.RESPONSE_P95_S:
            return _duration(counts.response)
        case Signal.FAILURE_PCT:
            judged = counts.judged
            return Reading(100 * counts.errors / judged if judged else 0.0, judged)
        case Signal.ATTEMPTS:
            return Reading(counts.attempts)
        case Signal.RETRIES:
            return Reading(counts.retries)
        case Signal.TOKENS:
            return Reading(counts.tokens)
        case _:
            raise ValueError(f"{signal} is not in the history")


def _duration(seen: Histogram, *, is_mean: bool = False) -> Reading:
    spread = seen.spread()
    if spread is None:
        return Reading(0.0, 0)
    return Reading(spread.mean if is_mean else spread.p95, spread.count)


def is_about(agent: str, *, agents: Iterable[str], except_agents: Iterable[str]) -> bool:
    """Tell whether *agent* matches a pattern of *agents*, and none of *except_agents*."""
    if any(matches(pattern, agent) for pattern in except_agents):
        return False
    return any(matches(pattern, agent) for pattern in agents)
