"""The agent contract: how one framework's agents look to a replica.

`engine.replica` calls this; adapters implement it and are found by the entry point group
``greenroom.adapters``. An instance is built by the agent's factory for one session or one task and never
shared between callers: AutoGen agents are stateful and leak one caller's text into another's prompt when
shared. Standard library and msgspec only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from greenroom.sdk import context as sdk_context

MAX_SHORTENED = 8192  # characters of an event that does not fit
MAX_TOKENS = 10**15  # sums of many runs still fit 64 bits


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one run; sums with ``+``. What a model client counts as no whole number is 0: it harms no task."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "input_tokens", _count(self.input_tokens))
        msgspec.structs.force_setattr(self, "output_tokens", _count(self.output_tokens))

    def __add__(self, other: Usage) -> Usage:
        if other is NO_USAGE:  # as plain functions have, each time
            return self
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


def _count(given: object) -> int:
    """Read a count of tokens from a framework, where also None, floats and numpy's integers are met."""
    try:
        return min(max(int(given), 0), MAX_TOKENS)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return 0


NO_USAGE = Usage()


class Failure(Exception):
    """What an adapter raises when its framework told of an exception by text only.

    *type* is the class's name as the framework gave it, *names* are those of the class and its bases where
    they are known (``retry_on`` is compared with them), *retryable* is what the class itself says.
    """

    def __init__(self, type: str, message: str, *, names: tuple[str, ...] = (), retryable: bool = False) -> None:
        super().__init__(message)
        self.type, self.message = str(type), str(message)
        self.names, self.retryable = names or (type,), retryable is True


class Instance(Protocol):
    """One built agent, of one session or one task."""

    @property
    def usage(self) -> Usage:
        """Tokens of `run` so far; what a failed or cancelled run has cost counts too."""

    async def run(self, input: Any, context: sdk_context.Context) -> Any:
        """Do the task and return its output for strict JSON; events go to ``context.emit``.

        asyncio cancellation must end it. Synchronous agent code belongs into ``asyncio.to_thread``.
        """

    def cancel(self) -> None:
        """The framework's own signal to stop, cooperative and allowed to do nothing."""

    async def save_state(self) -> Any:
        """Return the session's state for strict JSON, or None; called after a successful `run`."""

    async def load_state(self, state: Any) -> None: ...

    async def close(self) -> None: ...


class Adapter(Protocol):
    name: str
    took: str  # what it takes an agent for, in words for people: "an AutoGen AgentChat agent or team"

    def recognises(self, agent: object) -> bool:
        """Tell whether *agent* is of this framework, without importing the framework."""

    def parts(self, agent: object) -> Iterable[object]:
        """Return what of *agent* keeps a caller's text, itself above all: the factory must build these anew each time.

        Nothing, where one object may serve many tasks.
        """

    def open(self, agent: object) -> Instance: ...


def publish(context: sdk_context.Context, event: Any, *, type: str, shown: dict[str, Any]) -> None:
    """Emit *event* or, where it is larger than an event may be, *shown* with its ``content`` cut and ``shortened`` set.

    What an agent streams may be as large as what it returns: the task goes on, and its result is whole.
    """
    try:
        context.emit(event, type=type)
    except ValueError as error:
        if getattr(error, "type", None) != "event_too_large":
            raise
        context.emit({**shown, "content": shortened(shown["content"]), "shortened": True}, type=type)


def shortened(content: object) -> str:
    """Return the beginning of *content* as a text that every store takes."""
    text = content if isinstance(content, str) else repr(content)
    return text[:MAX_SHORTENED].replace("\0", "?").encode("utf-8", "replace").decode()
