"""What an exception of agent code is told as: its type, a bounded message, whether to retry.

Called by `engine.running` in the replica, and by the node on what replicas say. Exceptions are as hostile as any
other value of an agent: ``__str__`` may raise, or return ten megabytes.
"""

from __future__ import annotations

import traceback
from collections.abc import Set

import msgspec

from greenroom.adapters import contract

MAX_MESSAGE_BYTES = 4096
MAX_TRACEBACK_BYTES = 8192
_MAX_TYPE_BYTES = 200
_MAX_WORDS_BYTES = 1024
_MAX_FRAMES = 12


class Description(msgspec.Struct, frozen=True):
    type: str
    message: str
    retryable: bool


def describe(error: BaseException, retry_on: Set[str]) -> Description:
    """Describe *error*; retryable if its ``retryable`` is True, or *retry_on* names its class or a base."""
    error = sole(error)
    if isinstance(error, contract.Failure):
        retryable = error.retryable or not retry_on.isdisjoint(error.names)
        return Description(bounded(error.type, _MAX_TYPE_BYTES), bounded(error.message, MAX_MESSAGE_BYTES), retryable)
    names = {base.__name__ for base in type(error).__mro__}
    return Description(
        bounded(type(error).__name__, _MAX_TYPE_BYTES),
        message_of(error),
        _says_retryable(error) or not names.isdisjoint(retry_on),
    )


def sole(error: BaseException) -> BaseException:
    """Return *error*, or the only one that it groups: a task group around one failure says less than the failure."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def message_of(error: BaseException) -> str:
    """Return ``str(error)``, bounded and clean, whatever ``__str__`` does."""
    try:
        text = str(error)
    except BaseException as another:  # noqa: BLE001 - agent code, too
        text = f"(its text cannot be had: str() raised {type(another).__name__})"
    return bounded(text, MAX_MESSAGE_BYTES)


def followed_by(message: str, words: str) -> str:
    """Return *message* and then *words*, within `MAX_MESSAGE_BYTES`; it is the message that is cut."""
    after = bounded(words, _MAX_WORDS_BYTES)
    kept = bounded(message.removesuffix("."), MAX_MESSAGE_BYTES - len(after.encode()) - 2)
    return f"{kept}; {after}"


def bounded(text: str, limit_bytes: int) -> str:
    """Return *text* as every store takes it: valid UTF-8 without NUL, at most *limit_bytes* of it."""
    encoded = str.encode(text, "utf-8", "replace").replace(b"\0", b"?")
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "…"


def lines(traceback: str) -> list[str]:
    """Return the lines of a *traceback* that a replica has sent: bounded together, and clean."""
    return bounded(traceback, MAX_TRACEBACK_BYTES).splitlines()


def short_traceback(error: BaseException) -> str:
    """Return the innermost frames of agent code; the import system and this package are left out."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen importlib") and not frame.filename.startswith(_OWN_FOLDER)
    ]
    return bounded("".join(traceback.format_list(frames[-_MAX_FRAMES:])), MAX_TRACEBACK_BYTES)


_OWN_FOLDER = __file__.rpartition("/")[0] + "/"


def _says_retryable(error: BaseException) -> bool:
    try:
        return getattr(error, "retryable", False) is True
    except Exception:  # noqa: BLE001 - a property of agent code
        return False
