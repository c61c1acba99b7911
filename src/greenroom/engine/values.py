"""What an agent's value is as strict JSON, or why it is none.

Beside JSON's own types it takes dataclasses, pydantic models and msgspec Structs, at any depth. Keys that are
numbers become strings, as `json` does it. What passes can be read back by `strict_json.loads`, here and on
every store.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec

from greenroom import errors, strict_json

_MAX_KEYS = 1_000_000


class Unfit(ValueError):
    """*type* names what is unfit, and how: ``result_not_json``, ``state_too_large``, ``event_…``."""

    def __init__(self, type: str, message: str) -> None:
        super().__init__(message)
        self.type = type


def encode(value: Any, what: str, *, limit_bytes: int) -> bytes:
    """Encode *value*; raises `Unfit`, whatever the value's own code does.

    *what* is the word for it: result, state, event or input.
    """
    if isinstance(value, str | bytes) and len(value) > limit_bytes:
        raise _too_large(what, len(value), limit_bytes)
    try:
        encoded = _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise _not_json(what, "a string holds a lone surrogate") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise _not_json(what, _reason(error)) from None
    except Exception as error:  # agent code: a mapping whose items() raises, a model whose dump fails
        raise _not_json(what, f"{type(error).__name__} while it was read") from error
    if len(encoded) > limit_bytes:
        raise _too_large(what, len(encoded), limit_bytes)
    try:
        read(encoded)
    except errors.JsonRefused as refused:
        raise _not_json(what, str(refused).partition(": ")[2]) from None
    return encoded


def read(encoded: bytes) -> Any:
    """Parse what a node hands to a replica, or an agent's own value: their bytes are bounded, a long chat has many
    keys.
    """
    return strict_json.loads(encoded, max_keys=_MAX_KEYS)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value, builtin_types=(bytes, bytearray))
    if not isinstance(value, type) and callable(getattr(value, "model_dump", None)):
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} is no JSON")


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return f"nested deeper than {strict_json.MAX_DEPTH}"
    try:
        return str(error)[:300]
    except Exception:  # noqa: BLE001 - agent code
        return type(error).__name__


def _not_json(what: str, reason: str) -> Unfit:
    return Unfit(
        f"{what}_not_json",
        f"the {what} is not strict JSON: {reason}; use str, int, float, bool, None, lists and dicts with string keys",
    )


def _too_large(what: str, size: int, limit_bytes: int) -> Unfit:
    return Unfit(
        f"{what}_too_large",
        f"the {what} is too large: {size} bytes, and the limit is {limit_bytes};"
        " store it elsewhere and pass a reference",
    )
