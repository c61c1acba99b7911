"""What routes take and give, as msgspec structs: decoding is the validation, and OpenAPI is drawn from them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from greenroom import errors, strict_json

Name = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}\Z", description="a name of at most 63 of a-z, 0-9, _ and -")
]
SessionId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}\Z")]
MAX_BATCH = 1_000
MAX_WAIT_S = 300.0


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task to run. Without ``agent`` it is routed by its text."""

    input: Any
    agent: Name | None = None
    session: SessionId | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    timeout_s: Annotated[float, Meta(gt=0, le=604_800)] | None = None
    not_before: datetime | None = None
    metadata: dict[str, Any] | None = None
    webhook: None = None  # not yet built
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tasks to run, each as in a single submission; each has its own ``idempotency_key``."""

    tasks: Annotated[list[Any], Meta(min_length=1, max_length=MAX_BATCH)]


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many replicas an agent should have."""

    replicas: Annotated[int, Meta(ge=0, le=1000)]  # 0 is refused by the route, in words of its own


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to create; its text is in the answer, once."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    role: str = "user"
    expires_in_s: Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)] | None = None


Body = TypeVar("Body")


def read(body: bytes, schema: type[Body]) -> Body:
    """Decode strict JSON of *schema*; raises `errors.JsonRefused` (400) or `errors.BodyInvalid` (422)."""
    return convert(strict_json.loads(body), schema)


def convert(value: Any, schema: type[Body]) -> Body:
    try:
        converted = msgspec.convert(value, schema, strict=True)
    except msgspec.ValidationError as error:
        raise errors.BodyInvalid(f"cannot take the body: {error}") from None
    if isinstance(converted, Submission) and converted.not_before is not None:
        _check_instant(converted.not_before)
    return converted


def _check_instant(not_before: datetime) -> None:
    if not_before.tzinfo is None:
        raise errors.BodyInvalid("cannot take the body: not_before needs a time zone, for example a Z at its end")
    if not 1970 <= not_before.year < 9000:  # what is added to it must have a date, too
        raise errors.BodyInvalid("cannot take the body: not_before is no instant from the years 1970 to 8999")
