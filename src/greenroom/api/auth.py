"""Who is calling: nobody is anonymous, every rejection looks the same, and guessing is slowed down per source."""

from __future__ import annotations

from collections.abc import Mapping

from greenroom import clock as clocks
from greenroom import errors
from greenroom.api.keys import Keys
from greenroom.core import admission
from greenroom.core.permissions import Principal


class Authenticator:
    def __init__(self, keys: Keys, clock: clocks.Clock) -> None:
        self._keys, self._clock = keys, clock
        self.create, self.revoke = keys.create, keys.revoke  # without any question of who may
        self._rejections = admission.Rejections()

    def authenticate(self, headers: Mapping[bytes, bytes], *, source: str) -> Principal:
        """Return who presents the credential in *headers* (``Authorization: Bearer gr_…``).

        Raises `errors.Unauthenticated`, the same for every reason, or `errors.Overloaded` after too many of them from
        *source* in a minute. A valid key is never kept out by the bad ones of its neighbours: 256 bits are not guessed.
        """
        principal = self._keys.principal_of(headers.get(b"authorization"))
        if principal is None:
            raise self._rejection(source)
        return principal

    def _rejection(self, source: str) -> errors.GreenroomError:
        now_s = self._clock.monotonic_s()
        wait_s = self._rejections.wait_s(source, now_s)
        if wait_s:
            return errors.Overloaded("cannot try another credential yet: too many were rejected", retry_after_s=wait_s)
        self._rejections.note(source, now_s)
        return errors.Unauthenticated("send a valid key as: Authorization: Bearer gr_…")

    def is_valid(self, authorization: bytes) -> bool:
        """Tell whether *authorization* would be accepted; for the node's own files."""
        return self._keys.principal_of(authorization) is not None

    def is_live(self, principal: Principal) -> bool:
        """Tell whether *principal* would be accepted still: what takes long asks again and again.

        What is no key cannot be revoked.
        """
        return principal.kind != "key" or self._keys.is_live(principal.id)
