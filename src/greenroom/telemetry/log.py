"""The log of a node, from what is told."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any

import msgspec
import structlog

from greenroom.telemetry.facts import (
    AdviceChanged,
    AgentDropped,
    AgentFailing,
    AgentRolledBack,
    AgentScaled,
    AlertChanged,
    BackupFailed,
    BackupKeyMade,
    BackupMade,
    BackupsNotDeleted,
    BreakerMoved,
    EncryptionChanged,
    EncryptionKeyMade,
    EncryptionLeft,
    EnvelopeHeld,
    EnvelopeWeak,
    Fact,
    NodeChanged,
    ReplicaEjected,
    ReplicaExited,
    ReplicaGraded,
    ReplicaReady,
    ReplicaRecycled,
    ReplicaSaid,
    RolloutMoved,
    ServiceCrashed,
    StoreRecovered,
    StoreTrouble,
    ValueDamaged,
)

# What becomes of tasks is in the store; a line for each would be noise.
_LEVELS: dict[type[Fact], int] = {
    ReplicaReady: logging.INFO,
    ReplicaExited: logging.INFO,
    ReplicaRecycled: logging.INFO,
    AdviceChanged: logging.INFO,
    EnvelopeHeld: logging.INFO,
    EnvelopeWeak: logging.WARNING,
    ReplicaGraded: logging.INFO,
    ReplicaSaid: logging.DEBUG,
    AgentFailing: logging.ERROR,
    AgentDropped: logging.WARNING,
    AgentScaled: logging.INFO,
    AgentRolledBack: logging.ERROR,
    BreakerMoved: logging.WARNING,
    ReplicaEjected: logging.WARNING,
    RolloutMoved: logging.INFO,
    AlertChanged: logging.ERROR,
    ServiceCrashed: logging.ERROR,
    StoreTrouble: logging.WARNING,
    StoreRecovered: logging.WARNING,  # whoever was told of the trouble is told of its end
    BackupMade: logging.INFO,
    BackupFailed: logging.ERROR,
    BackupsNotDeleted: logging.WARNING,
    BackupKeyMade: logging.WARNING,
    EncryptionChanged: logging.INFO,
    EncryptionKeyMade: logging.WARNING,
    EncryptionLeft: logging.WARNING,
    ValueDamaged: logging.ERROR,
    NodeChanged: logging.INFO,
}


class Log:
    """Facts as lines on stderr: readable ones, or one JSON object each. Lifecycle facts ignore the level.

    A line that cannot be written is dropped: who emits a fact goes on, whatever happened to stderr.
    """

    KINDS = tuple(_LEVELS)

    def __init__(self, *, level: str, as_json: bool) -> None:
        self._level = logging.getLevelNamesMapping()[level]
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        )
        self._logger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def __call__(self, fact: Fact) -> None:
        is_over = isinstance(fact, AlertChanged) and fact.state == "resolved"
        level = logging.WARNING if is_over else _LEVELS[type(fact)]
        if level >= self._level or isinstance(fact, NodeChanged):
            method = getattr(self._logger, logging.getLevelName(level).lower())
            with contextlib.suppress(OSError, ValueError):  # its reader has left, or the stream is closed
                method(_words(type(fact).__name__), **msgspec.structs.asdict(fact))


def _words(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
