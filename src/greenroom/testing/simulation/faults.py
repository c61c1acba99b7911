"""The faults that are injected, and how many of each a run must have had: one that injected fewer proves nothing."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping


class Fault(enum.StrEnum):
    NODE_KILLED = "node killed"
    NODE_PAUSED = "node paused"
    NODE_DRAINED = "node drained"
    NODE_CLOCK = "node's clock jumps"
    CLOCK_AHEAD = "database's clock jumps ahead"
    CLOCK_BACK = "database's clock goes back"
    REPLICA_KILLED = "replica killed"
    REPLICA_HANGS = "replica hangs"
    REPLICA_CRASHES = "replica crashes at its start"
    POISON = "task kills its replica"
    ANSWER_LATE = "answer late"
    ANSWER_TWICE = "answer twice"
    AGENT_FAILS = "agent raises"
    COMMIT_FAILS = "commit fails"
    ANSWER_LOST = "commit's answer lost"
    READ_FAILS = "read fails"
    STATEMENT_LATE = "statement late"
    STATEMENT_TWICE = "statement twice"
    NEWS_LOST = "news lost"
    CANCEL = "cancel"
    DEADLINE = "short deadline"
    DEPLOY = "deploy"
    SCALE = "scale"


FEW = 10  # planned in the whole run: so few say nothing


def too_few(injected: Counter[Fault], planned: Mapping[Fault, float], *, seeds: int) -> list[str]:
    """Return what a run over *seeds* lacks, in words."""
    return [
        f"{fault}: {injected[fault]} injected, {rate * seeds:.0f} planned"
        for fault, rate in planned.items()
        if injected[fault] < rate * seeds >= FEW
    ]
