"""For those who receive webhooks: whether a message is the node's, whole, of now, and new.

    from greenroom import webhooks

    seen = webhooks.Seen()
    event = webhooks.verify(request.body, request.headers, SECRET, seen=seen)

The bytes of the body as they came, before anything has parsed them. Works with what any sender signs by Standard
Webhooks.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from greenroom import clock, errors, strict_json
from greenroom.core import webhooks

_MAX_SIGNATURES = 20  # of one header
_MAX_ID = 255  # characters
_REPEATED_FOR_S = webhooks.GIVE_UP_AFTER_S + webhooks.TOLERANCE_S


class Seen:
    """The ids of messages that were taken, in this process: for a day, as a delivery is repeated for so long.

    Where there are more than *most*, the oldest are forgotten, but none whose signature is still good. Several
    processes need one memory: derive from it, and let `first` ask a database, or Redis (``SET … NX EX 86400``).
    """

    def __init__(self, *, most: int = 100_000) -> None:
        self._most = most
        self._noted_s: OrderedDict[str, float] = OrderedDict()  # the oldest first

    def first(self, id: str, *, now_s: float) -> bool:
        """Note *id*; False if it was noted already. Raises `errors.WebhookRefused` where there is room for no more."""
        if id in self._noted_s:
            return False
        while self._noted_s:
            oldest, noted_s = next(iter(self._noted_s.items()))
            if now_s - noted_s <= (_REPEATED_FOR_S if len(self._noted_s) < self._most else 2 * webhooks.TOLERANCE_S):
                break
            del self._noted_s[oldest]
        if len(self._noted_s) >= self._most:
            raise errors.WebhookRefused(
                f"cannot take the message: {self._most} have come within minutes; make Seen larger"
            )
        self._noted_s[id] = now_s
        return True

    def forget(self, id: str) -> None:
        """Let *id* come again: what it asked for could not be done."""
        self._noted_s.pop(id, None)


def verify(
    body: bytes,
    headers: Mapping[str, str],
    *secrets: str,
    seen: Seen | None = None,
    now_s: float | None = None,
    tolerance_s: float = webhooks.TOLERANCE_S,
) -> Any:
    """Return what the message says; raises `errors.WebhookRefused` with the reason.

    *secrets* are those that may have signed it, two while one is being rotated. With *seen* the same message is taken
    once, and raises `errors.WebhookRepeated` the second time: deliveries are repeated when an answer got lost.
    *now_s* is the time in seconds since 1970; None: now.
    """
    if not secrets:
        raise ValueError("cannot verify a webhook without a secret")
    keys = [_key(secret) for secret in secrets]
    given = {name.lower(): value for name, value in headers.items()}
    id, timestamp, signatures = (given.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not (0 < len(id) <= _MAX_ID and timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 13):
        raise errors.WebhookRefused("cannot take the message: webhook-id or webhook-timestamp is missing or malformed")
    now_s = clock.SystemClock().now().timestamp() if now_s is None else now_s
    if abs(now_s - int(timestamp)) > tolerance_s:
        raise errors.WebhookRefused(
            f"cannot take the message: it was sent more than {tolerance_s:g} s before or after now"
        )
    if not _is_signed(keys, signatures.split(" ")[:_MAX_SIGNATURES], id=id, timestamp_s=int(timestamp), body=body):
        raise errors.WebhookRefused("cannot take the message: no secret has made any of its signatures")
    if seen is not None and not seen.first(id, now_s=now_s):
        raise errors.WebhookRepeated(f"cannot take the message {id} twice: answer 2xx, and do nothing")
    return strict_json.loads(body)


def _key(secret: str) -> bytes:
    try:
        return webhooks.secret_bytes(secret)
    except ValueError as error:
        raise ValueError(f"cannot verify a webhook: the secret {error}") from None


def _is_signed(keys: Sequence[bytes], signatures: Sequence[str], *, id: str, timestamp_s: int, body: bytes) -> bool:
    """Tell whether any key has made any signature; compares all with all, so that time tells nothing."""
    is_signed = False
    for key in keys:
        expected = webhooks.sign(key, id=id, timestamp_s=timestamp_s, body=body).encode()
        for signature in signatures:
            is_signed |= hmac.compare_digest(expected, signature.encode())
    return is_signed
