"""Who is calling: nobody is anonymous, every rejection looks the same, and guessing is slowed down per source.

A request has one credential: what its ``Authorization`` holds (a key of ours, or a token of an issuer that the settings
name), and only without that the cookie of a login (`cookies`). Keys are held in memory, refreshed at start and whenever
one is created or revoked.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Container, Mapping, Sequence
from typing import Protocol

from greenroom import clock as clocks
from greenroom import errors
from greenroom.api.cookies import Logins
from greenroom.core import admission, permissions
from greenroom.core.permissions import Principal
from greenroom.security import keys
from greenroom.store import database
from greenroom.store import principals as stored

MAX_PROVEN = 10_000
MAX_KEY_BYTES, MAX_TOKEN_BYTES = 512, 8200  # of the header
REJECTION_NS = 40_000  # what each rejection of a key takes: more than any of their reasons does
TOKEN_REJECTION_S = 0.005  # of a token: above what verifying a signature takes


class Proven(Protocol):
    """Whom a token stands for; see `security.tokens.Proven`."""

    @property
    def id(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str] | None: ...
    @property
    def expires_at_s(self) -> int: ...


class Issuers(Protocol):
    """The issuers of tokens that the settings name; see `security.issuers`."""

    async def prove(self, text: str, *, roles: Container[str]) -> Proven | None: ...


class Authenticator:
    def __init__(
        self,
        principals: stored.Principals,
        clock: clocks.Clock,
        *,
        pepper: bytes,
        logins: Logins,
        issuers: Issuers | None = None,
    ) -> None:
        self._principals, self._clock, self._pepper = principals, clock, pepper
        self.logins, self.issuers = logins, issuers
        self._rows: dict[str, stored.Principal] = {}
        self._proven: dict[bytes, tuple[stored.Principal, Principal]] = {}  # by what they presented
        self._tokens: dict[bytes, tuple[int, Principal]] = {}  # likewise; until when, in seconds since 1970
        self._rejections = admission.Rejections()
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        async with self._refreshing:  # in turn: an older answer must not come after a newer one
            self._rows = {row.key_id: row for row in await self._principals.all()}
            self._proven.clear()

    async def authenticate(
        self, headers: Mapping[bytes, bytes], *, source: str, method: str = "GET", is_tls: bool = False
    ) -> Principal:
        """Return who presents a credential in *headers*.

        Raises `errors.Unauthenticated`, the same for every reason and after the same time, or `errors.Overloaded` after
        too many of them from *source* in a minute. A valid key is never kept out by the bad ones of its neighbours: 256
        bits are not guessed.
        """
        begun_ns = time.perf_counter_ns()
        authorization = headers.get(b"authorization")
        is_token = False
        if authorization is None and b"cookie" in headers:
            principal = await self._principal_of_login(headers, method=method, is_tls=is_tls)
        else:
            principal = self._principal_of(authorization)
            if principal is None and (is_token := self.issuers is not None and _is_token(authorization)):
                principal = await self._principal_of_token(authorization or b"")
        if principal is None:
            await _until_all_are_rejected(begun_ns, is_token=is_token)
            raise self.rejection(source)
        return principal

    def rejection(self, source: str) -> errors.GreenroomError:
        """Return what to raise for a credential that was rejected, and count it."""
        now_s = self._clock.monotonic_s()
        wait_s = self._rejections.wait_s(source, now_s)
        if wait_s:
            return errors.Overloaded("cannot try another credential yet: too many were rejected", retry_after_s=wait_s)
        self._rejections.note(source, now_s)
        return errors.Unauthenticated("send a valid key as: Authorization: Bearer gr_…")

    def is_valid(self, authorization: bytes) -> bool:
        """Tell whether *authorization* would be accepted; for the node's own files."""
        return self._principal_of(authorization) is not None

    def is_of_living_key(self, key_id: str) -> bool:
        row = self._rows.get(key_id)
        return row is not None and self._is_live(row)

    def _principal_of(self, authorization: bytes | None) -> Principal | None:
        """Return who presents a valid, living key; any other costs what an unknown one does.

        Who was proven once is found by what was presented, to the byte; that only holders of the key can be quicker
        tells nobody else anything. So are those whom a token has proven.
        """
        digest = hashlib.sha256(authorization or b"").digest()  # the credential itself is kept nowhere
        known = self._proven.get(digest)
        if known is not None and self._is_live(known[0]):
            return known[1]
        if self._tokens and (token := self._tokens.get(digest)) is not None:
            if self._clock.now().timestamp() < token[0]:
                return token[1]
            del self._tokens[digest]
        presented = _presented(authorization)
        row = self._rows.get(presented.id) if presented is not None else None
        is_valid = keys.verify(presented, row.secret_hash if row is not None else None, self._pepper)
        if row is None or not is_valid or not self._is_live(row):
            return None
        principal = _principal(row, "key")
        if len(self._proven) >= MAX_PROVEN:
            self._proven.clear()
        self._proven[digest] = row, principal
        return principal

    async def _principal_of_token(self, authorization: bytes) -> Principal | None:
        assert self.issuers is not None
        proven = await self.issuers.prove(authorization[7:].decode("ascii").strip(), roles=permissions.ROLES)
        if proven is None:
            return None
        scopes = None if proven.scopes is None else [permissions.Grant(scope) for scope in proven.scopes]
        rights = permissions.rights(proven.role, scopes)
        principal = Principal(proven.id, "token", proven.tenant, proven.name, proven.role, rights)
        if len(self._tokens) >= MAX_PROVEN:
            self._tokens.clear()
        self._tokens[hashlib.sha256(authorization).digest()] = proven.expires_at_s, principal
        return principal

    def forget_tokens(self) -> None:
        """Have every token proven again: the key of some may be worthless now."""
        self._tokens.clear()

    async def _principal_of_login(
        self, headers: Mapping[bytes, bytes], *, method: str, is_tls: bool
    ) -> Principal | None:
        login = await self.logins.current(headers, method=method, is_tls=is_tls)
        row = None if login is None else self._rows.get(login.key_id)
        return _principal(row, "login") if row is not None and self._is_live(row) else None

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


def _principal(row: stored.Principal, kind: str) -> Principal:
    return Principal(row.key_id, kind, row.tenant, row.name, row.role, permissions.rights(row.role))


def _presented(authorization: bytes | None) -> keys.Presented | None:
    if authorization is None or not _is_bearer(authorization) or len(authorization) > MAX_KEY_BYTES:
        return None
    try:
        return keys.parse(authorization[7:].decode("ascii").strip())
    except UnicodeDecodeError:
        return None


def _is_bearer(authorization: bytes) -> bool:
    return authorization[:7].lower() == b"bearer "


def _is_token(authorization: bytes | None) -> bool:
    """Tell whether *authorization* has the form of a token: three parts, which no key has."""
    return (
        authorization is not None
        and len(authorization) <= MAX_TOKEN_BYTES
        and _is_bearer(authorization)
        and authorization.isascii()
        and authorization.count(b".") == 2
    )


async def _until_all_are_rejected(begun_ns: int, *, is_token: bool) -> None:
    """Return when a rejection is due: at one time after it came, whatever the reason. So no reason can be told by it.

    A key's takes microseconds, which no timer can wait for; the limit of rejections bounds what that costs.
    """
    if is_token:
        passed_s = (time.perf_counter_ns() - begun_ns) / 1e9
        await asyncio.sleep(TOKEN_REJECTION_S - passed_s)  # at once, where it waited for its issuer
        return
    due_ns = begun_ns + REJECTION_NS
    while time.perf_counter_ns() < due_ns:
        pass
