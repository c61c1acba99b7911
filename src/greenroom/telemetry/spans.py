"""A span as the node exports it, and what of it may leave: bounded, without secrets, without what was said.

Spans that replicas tell of are strangers': whatever they hold comes by here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from greenroom import redaction
from greenroom.core import traces

Value = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, Value]

KINDS = ("internal", "server", "client", "producer", "consumer")  # their numbers are the API's
MAX_NAME = 200  # characters
MAX_KEY = 128
MAX_TEXT = 1024  # of a value
MAX_CONTENT = 8192  # of a value, where content is exported
MAX_ATTRIBUTES = 64  # of a span, or of an event
MAX_EVENTS = 128
MAX_ITEMS = 64  # of a value that is a list
_LARGEST = 2**63 - 1

# Where instrumentations write what was said: the GenAI conventions, older and others' names of the same.
_CONTENT = re.compile(
    r"(?i)(?:^|[._])(?:messages?|content|prompts?|completions?|instructions?|system_instructions|arguments|results?"
    r"|inputs?|outputs?|body|text|payload|statement|parameters|documents|value|stacktrace|query|reasoning)$"
    r"|[._]headers?(?:[._]|$)"
)
_URL = re.compile(r"(?i)^(?:url\.full|http\.url|http\.target|url\.original)$")


class Event(msgspec.Struct, frozen=True):
    name: str
    at_ns: int
    attributes: Attributes = {}


class Span(msgspec.Struct, frozen=True):
    """*error* is the type of what it failed with. *scope* is what has made it."""

    context: traces.Context
    parent_id: str | None
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: Attributes = {}
    events: Sequence[Event] = ()
    error: str | None = None
    scope: str = "greenroom"


class Told(Protocol):
    """What a replica tells of a span: `engine.protocol.Span`."""

    @property
    def span_id(self) -> str: ...
    @property
    def parent_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> int: ...
    @property
    def start_ns(self) -> int: ...
    @property
    def end_ns(self) -> int: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...
    @property
    def events(self) -> Sequence[tuple[str, int, Mapping[str, Any]]]: ...
    @property
    def error(self) -> str | None: ...
    @property
    def scope(self) -> str: ...


class Screen:
    """Lets through what may be exported; *content*: what was said, too."""

    def __init__(self, *, content: bool = False) -> None:
        self._content = content
        self._most = MAX_CONTENT if content else MAX_TEXT

    def span(self, told: Told, context: traces.Context, *, extra: Attributes) -> Span:
        """Return a replica's span as one of the trace of *context*, which the replica does not choose."""
        events = [
            Event(text(name, MAX_NAME), min(abs(at_ns), _LARGEST), self.attributes(attributes))
            for name, at_ns, attributes in told.events[:MAX_EVENTS]
            if self._content or not _CONTENT.search(name)
        ]
        start_ns = min(abs(told.start_ns), _LARGEST)
        return Span(
            context.at(told.span_id),
            told.parent_id,
            text(told.name, MAX_NAME) or "span",
            KINDS[told.kind],
            start_ns,
            max(start_ns, min(abs(told.end_ns), _LARGEST)),
            {**self.attributes(told.attributes), **extra},
            events,
            None if told.error is None else text(told.error, MAX_KEY),
            text(told.scope, MAX_KEY) or "unknown",
        )

    def attributes(self, given: Mapping[str, Any]) -> Attributes:
        kept: dict[str, Value] = {}
        for key, value in given.items():
            if len(kept) >= MAX_ATTRIBUTES:
                break
            if not 0 < len(key) <= MAX_KEY or (not self._content and _CONTENT.search(key)):
                continue
            screened = self._value(value)
            if screened is not None:
                kept[text(key, MAX_KEY)] = self._without_query(key, screened)
        return kept

    def _without_query(self, key: str, value: Value) -> Value:
        if self._content or not isinstance(value, str) or not _URL.fullmatch(key):
            return value
        return value.partition("?")[0].partition("#")[0]

    def _value(self, value: Any) -> Value | None:
        if isinstance(value, str):
            return text(value, self._most)
        if isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if -_LARGEST <= value <= _LARGEST else str(value)[:MAX_KEY]
        if isinstance(value, list | tuple):
            items = value[:MAX_ITEMS]
            for kind in (bool, int, float):
                if all(type(item) is kind for item in items):
                    return [item for item in map(self._value, items) if not isinstance(item, str | None)]  # type: ignore[return-value]
            return [text(str(item), self._most) for item in items]
        return None


def size_of(told: Told) -> int:
    """Return about how many characters a replica's span holds."""
    values = [*told.attributes.values(), *(value for _, _, kept in told.events for value in kept.values())]
    return 500 + sum(len(value) if isinstance(value, str) else 16 for value in values)


def text(given: str, most: int) -> str:
    """Return *given* without secrets, cut."""
    # Redacted before it is cut: half a secret is none that `redaction` knows.
    masked = redaction.text(given[: 4 * most])
    return masked if len(masked) <= most else masked[: most - 1] + "…"
