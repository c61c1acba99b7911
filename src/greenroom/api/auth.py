"""Who is calling: nobody is anonymous, every rejection looks the same, and guessing is slowed down per source.

Keys are held in memory, refreshed at start and whenever one is created or revoked.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping

from greenroom import clock as clocks
from greenroom.api.limits import Limits
from greenroom.core import permissions
from greenroom.core.permissions import Principal
from greenroom.security import keys
from greenroom.store import database
from greenroom.store import principals as stored

MAX_PROVEN = 10_000


class Authenticator:
    def __init__(self, principals: stored.Principals, clock: clocks.Clock, limits: Limits, *, pepper: bytes) -> None:
        self._principals, self._clock, self._limits, self._pepper = principals, clock, limits, pepper
        self._rows: dict[str, stored.Principal] = {}
        self._proven: dict[bytes, tuple[stored.Principal, Principal]] = {}  # by what they presented
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        async with self._refreshing:  # in turn: an older answer must not come after a newer one
            self._rows = {row.key_id: row for row in await self._principals.all()}
            self._proven.clear()

    def authenticate(self, headers: Mapping[bytes, bytes], *, source: str) -> Principal:
        """Return who presents the credential in *headers* (``Authorization: Bearer gr_…``).

        Raises `errors.Unauthenticated`, the same for every reason, or `errors.RateLimited` after too many of them in a
        minute. A valid key is never kept out by the bad ones of its neighbours: 256 bits are not guessed.
        """
        authorization = headers.get(b"authorization")
        principal = self._principal_of(authorization)
        if principal is None:
            presented = _presented(authorization)
            raise self._limits.reject(source, None if presented is None else presented.id)
        return principal

    def is_valid(self, authorization: bytes) -> bool:
        """Tell whether *authorization* would be accepted; for the node's own files."""
        return self._principal_of(authorization) is not None

    def _principal_of(self, authorization: bytes | None) -> Principal | None:
        """Return who presents a valid, living key; any other costs what an unknown one does.

        Who was proven once is found by what was presented, to the byte; that only holders of the key can be quicker
        tells nobody else anything.
        """
        digest = hashlib.sha256(authorization or b"").digest()  # the credential itself is kept nowhere
        known = self._proven.get(digest)
        if known is not None and self._is_live(known[0]):
            return known[1]
        presented = _presented(authorization)
        row = self._rows.get(presented.id) if presented is not None else None
        is_valid = keys.verify(presented, row.secret_hash if row is not None else None, self._pepper)
        if row is None or not is_valid or not self._is_live(row):
            return None
        principal = Principal(row.key_id, "key", row.tenant, row.name, row.role, permissions.rights(row.role))
        if len(self._proven) >= MAX_PROVEN:
            self._proven.clear()
        self._proven[digest] = row, principal
        return principal

    async def create(self, *, tenant: str, name: str, role: str, word: str, expires_in_s: float | None) -> keys.Key:
        """Make, store and return a key."""
        key = keys.mint(word, self._pepper)
        now_us = database.microseconds(self._clock.now())
        expires_at = None if expires_in_s is None else now_us + int(expires_in_s * 1e6)
        await self._principals.create(stored.Principal(key.id, tenant, name, role, key.secret_hash, now_us, expires_at))
        await self.refresh()
        return key

    async def revoke(self, key_id: str, *, tenant: str) -> None:
        await self._principals.revoke(key_id, tenant=tenant)
        self._rows.pop(key_id, None)  # at once, whatever becomes of the refresh
        self._proven.clear()
        await self.refresh()

    def rows(self, *, tenant: str) -> list[stored.Principal]:
        return [row for row in self._rows.values() if row.tenant == tenant]

    def _is_live(self, row: stored.Principal) -> bool:
        if row.revoked_at is not None:
            return False
        return row.expires_at is None or row.expires_at > database.microseconds(self._clock.now())


def _presented(authorization: bytes | None) -> keys.Presented | None:
    if authorization is None or authorization[:7].lower() != b"bearer " or len(authorization) > 512:
        return None
    try:
        return keys.parse(authorization[7:].decode("ascii").strip())
    except UnicodeDecodeError:
        return None
