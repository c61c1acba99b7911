"""Webhooks: what is told, how it is signed (Standard Webhooks 1.0), and what follows from an answer. Pure.

A receiver verifies with `sign` what it was sent; the node tries a delivery until it is taken or a day has passed.
"""

from __future__ import annotations

import base64
import binascii
import hmac

import msgspec

from greenroom.core import tasks

EVENTS: tuple[str, ...] = tuple(f"task.{state}" for state in tasks.State if state in tasks.TERMINAL)
TEST = "webhook.test"

TOLERANCE_S = 5 * 60.0  # between a signature's time and a receiver's clock
OVERLAP_S = 24 * 3600.0  # after a rotation both secrets sign
FIRST_DELAY_S, LONGEST_DELAY_S = 5.0, 3600.0
GIVE_UP_AFTER_S = 24 * 3600.0
DISABLE_AFTER_S = 5 * 24 * 3600.0  # of an endpoint that has taken nothing meanwhile

SECRET_PREFIX = "whsec_"  # noqa: S105 - what all of them begin with
SECRET_BYTES = 32
_SHORTEST_SECRET, _LONGEST_SECRET = 24, 64  # bytes, as the standard has it


def secret_text(secret: bytes) -> str:
    """Return *secret* as it is shown."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def secret_bytes(text: str) -> bytes:
    """Return the key that *text* stands for; raises ValueError for what is no secret of a webhook."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not of the form whsec_… in base64") from None
    if not _SHORTEST_SECRET <= len(secret) <= _LONGEST_SECRET:
        raise ValueError(f"has not {_SHORTEST_SECRET} to {_LONGEST_SECRET} bytes")
    return secret


def sign(secret: bytes, *, id: str, timestamp_s: int, body: bytes) -> str:
    """Return the signature of a message, ``v1,`` and base64."""
    digest = hmac.digest(secret, b"%s.%d.%s" % (id.encode(), timestamp_s, body), "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


class Taken(msgspec.Struct, frozen=True):
    """The receiver has it."""


class Retry(msgspec.Struct, frozen=True):
    delay_s: float


class GivenUp(msgspec.Struct, frozen=True):
    """It will not be sent again; *is_gone*: the receiver wants nothing more at all (410)."""

    is_gone: bool = False


def after(
    status: int | None,
    *,
    attempt: int,
    age_s: float,
    jitter: float,
    retry_after_s: float | None = None,
    is_once: bool = False,
) -> Taken | Retry | GivenUp:
    """Decide what follows from the answer to the *attempt*-th try (from 1) of a delivery that is *age_s* old.

    *status* None: there was no answer. *jitter* is from 0 to below 1. *is_once*: it is tried no second time.
    """
    if status is not None and 200 <= status < 300:
        return Taken()
    if status == 410:
        return GivenUp(is_gone=True)
    most_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 30))
    # Half of it at least: those that failed together come apart, and none comes at once.
    delay_s = max(most_s * (1 + jitter) / 2, min(retry_after_s or 0.0, LONGEST_DELAY_S))
    if is_once or age_s + delay_s > GIVE_UP_AFTER_S:
        return GivenUp()
    return Retry(delay_s)
