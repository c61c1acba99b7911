"""The log of a node, from what is told: a line each, which holds no secret and commands no terminal.

Texts in it are strangers': line ends, escape sequences and what turns the direction of writing are written as escapes,
and in the lines for people whatever is more than a word is quoted, so that no value can pass for another field.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any

import msgspec
import structlog

from greenroom import redaction
from greenroom.telemetry.facts import (
    AdviceChanged,
    AgentBlocked,
    AgentDropped,
    AgentFailing,
    AgentGraded,
    AgentRolledBack,
    AgentScaled,
    AgentsIsolated,
    AgentsNotIsolated,
    AlertChanged,
    AlertsUndelivered,
    AuditRecovered,
    AuditTrouble,
    BackupFailed,
    BackupKeyMade,
    BackupMade,
    BackupsNotDeleted,
    BreakerMoved,
    CertificateChanged,
    CredentialsGuessed,
    EncryptionChanged,
    EncryptionKeyMade,
    EncryptionLeft,
    EnvelopeHeld,
    EnvelopeWeak,
    Fact,
    IntrusionFound,
    IssuerChanged,
    NodeChanged,
    PolicyChanged,
    PolicyRefused,
    ReceiverChanged,
    ReplicaEjected,
    ReplicaExited,
    ReplicaGraded,
    ReplicaReady,
    ReplicaRecycled,
    ReplicaSaid,
    RequestCrashed,
    RolloutMoved,
    ServiceCrashed,
    SpansLost,
    SpansTaken,
    StoreRecovered,
    StoreTrouble,
    TracingBegan,
    TracingIdle,
    UrlRefused,
    ValueDamaged,
    WebhookDisabled,
)

# What becomes of tasks is in the store, and who was refused in the audit log; a line for each would be noise.
_LEVELS: dict[type[Fact], int] = {
    TracingBegan: logging.INFO,
    TracingIdle: logging.WARNING,
    SpansLost: logging.WARNING,
    SpansTaken: logging.WARNING,
    ReplicaReady: logging.INFO,
    ReplicaExited: logging.INFO,
    ReplicaRecycled: logging.INFO,
    AdviceChanged: logging.INFO,
    AgentsIsolated: logging.INFO,
    AgentsNotIsolated: logging.WARNING,
    AgentBlocked: logging.WARNING,
    EnvelopeHeld: logging.INFO,
    EnvelopeWeak: logging.WARNING,
    ReplicaGraded: logging.INFO,
    AgentGraded: logging.INFO,
    ReplicaSaid: logging.DEBUG,
    AgentFailing: logging.ERROR,
    AgentDropped: logging.WARNING,
    AgentScaled: logging.INFO,
    AgentRolledBack: logging.ERROR,
    BreakerMoved: logging.WARNING,
    ReplicaEjected: logging.WARNING,
    RolloutMoved: logging.INFO,
    AlertChanged: logging.ERROR,
    RequestCrashed: logging.ERROR,
    ServiceCrashed: logging.ERROR,
    StoreTrouble: logging.WARNING,
    StoreRecovered: logging.WARNING,  # whoever was told of the trouble is told of its end
    BackupMade: logging.INFO,
    BackupFailed: logging.ERROR,
    BackupsNotDeleted: logging.WARNING,
    BackupKeyMade: logging.WARNING,
    PolicyChanged: logging.WARNING,
    PolicyRefused: logging.ERROR,
    IssuerChanged: logging.WARNING,
    CredentialsGuessed: logging.WARNING,
    CertificateChanged: logging.WARNING,
    UrlRefused: logging.WARNING,
    WebhookDisabled: logging.WARNING,
    ReceiverChanged: logging.WARNING,
    AlertsUndelivered: logging.WARNING,
    IntrusionFound: logging.ERROR,
    AuditTrouble: logging.ERROR,
    AuditRecovered: logging.WARNING,
    EncryptionChanged: logging.INFO,
    EncryptionKeyMade: logging.WARNING,
    EncryptionLeft: logging.WARNING,
    ValueDamaged: logging.ERROR,
    NodeChanged: logging.INFO,
}


MAX_TEXT = 16_384  # characters of what a library says


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
                _for_programs if as_json else _for_people,
                renderer,
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def hear_libraries(self) -> None:
        """Have what libraries log come here, too: from `logging.WARNING` on, and Python's own warnings."""
        root = logging.getLogger()
        root.addHandler(_Libraries(self._logger))
        root.setLevel(max(logging.WARNING, self._level))
        logging.captureWarnings(capture=True)

    def __call__(self, fact: Fact) -> None:
        is_over = isinstance(fact, AlertChanged) and fact.state == "resolved"
        level = logging.WARNING if is_over else _LEVELS[type(fact)]
        if level >= self._level or isinstance(fact, NodeChanged):
            method = getattr(self._logger, logging.getLevelName(level).lower())
            with contextlib.suppress(OSError, ValueError):  # its reader has left, or the stream is closed
                told = msgspec.structs.asdict(fact)
                if told.get("trace_id", "") is None:
                    del told["trace_id"]  # most are in no trace, and that is nothing to say
                method(_words(type(fact).__name__), **told)


class _Libraries(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # its arguments may not fit its text, nor be what can be printed
            told = {"library": record.name, "message": record.getMessage()[:MAX_TEXT]}
            if record.exc_info is not None and record.exc_info[1] is not None:
                told["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))[-MAX_TEXT:]
            method = getattr(self._logger, logging.getLevelName(record.levelno).lower(), self._logger.warning)
            method("library said", **told)


_PLAIN = re.compile(r"[\w./:@%+#*-]+", re.ASCII)


def _for_programs(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: _sound(redaction.value(value)) for name, value in event.items()}


def _for_people(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    shown = {name: _shown(redaction.value(value)) for name, value in event.items() if name != "event"}
    return {**shown, "event": event["event"]}


def _sound(value: Any) -> Any:
    """Return *value* without lone surrogates, which no strict reader of JSON takes."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class _Quoted:
    """A text that the renderer writes with quotes, and everything in it that is no letter as an escape."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _shown(value: Any) -> Any:
    """Return *value* as one word on a line of words."""
    text = value if isinstance(value, str) else repr(value)
    return text if _PLAIN.fullmatch(text) else _Quoted(text)


def _words(name: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
