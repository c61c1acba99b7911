"""Recovery: when a replica that died is started again, and when its agent is given up.

Pure; `control.host` keeps one `Record` for each agent. Only deaths before readiness or before a first success count: a
replica that was killed from outside after good work is replaced at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

INTENSITY = 5  # counted deaths ...
PERIOD_S = 60.0  # ... within this, and the agent is given up (Erlang/OTP's supervisor has the same two numbers)
BASE_S, CAP_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """What an agent's deaths add up to. Instants are monotonic seconds."""

    deaths_at_s: tuple[float, ...] = ()  # the counted ones of the last period
    start_not_before_s: float = 0.0
    is_given_up: bool = False
    restarts: int = 0


def after_death(record: Record, *, had_proven: bool, now_s: float, jitter: float) -> Record:
    """Note a death. *had_proven*: the replica had succeeded at least once; *jitter* is uniform in [0, 1)."""
    if had_proven:
        return replace(record, restarts=record.restarts + 1, start_not_before_s=now_s)
    deaths = (*(at for at in record.deaths_at_s if at > now_s - PERIOD_S), now_s)
    delay_s = min(CAP_S, BASE_S * 2.0 ** (len(deaths) - 1)) * (0.5 + jitter / 2)
    return Record(deaths, now_s + delay_s, len(deaths) >= INTENSITY, record.restarts + 1)


def after_success(record: Record) -> Record:
    """Note that a replica of the agent has done good work."""
    return replace(record, deaths_at_s=(), is_given_up=False) if record.deaths_at_s else record
