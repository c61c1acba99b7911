"""Who is calling: nobody is anonymous, every rejection looks the same, and guessing is slowed down per source.

A request has one credential: what its ``Authorization`` holds (a key of ours, or a token of an issuer that the settings
name), and only without that the cookie of a login (`cookies`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Container, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from greenroom import clock as clocks
from greenroom.api.cookies import Logins
from greenroom.api.keys import Keys, presented_id
from greenroom.api.limits import Limits
from greenroom.core import permissions
from greenroom.core.permissions import Grant, Principal

MAX_PROVEN = 10_000
MAX_TOKEN_BYTES = 8200  # of the header
REJECTION_NS = 40_000  # what each rejection of a key takes: more than any of their reasons does
TOKEN_REJECTION_S = 0.005  # of a token: above what verifying a signature takes

Why = Literal["unknown", "forged"]


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

    async def prove(self, text: str, *, roles: Container[str]) -> Proven | Why:
        """Return whom a token stands for, else why it is rejected."""


class Authenticator:
    def __init__(
        self, keys: Keys, clock: clocks.Clock, limits: Limits, *, logins: Logins, issuers: Issuers | None = None
    ) -> None:
        self._keys, self._clock, self._limits = keys, clock, limits
        self.logins, self.issuers = logins, issuers
        self.create, self.revoke = keys.create, keys.revoke  # without any question of who may
        self._tokens: dict[bytes, Principal] = {}  # by what they presented
        keys.roles.on_change(self.forget_tokens)

    async def authenticate(
        self, headers: Mapping[bytes, bytes], *, source: str, method: str = "GET", is_tls: bool = False
    ) -> Principal:
        """Return who presents a credential in *headers*.

        Raises `errors.Unauthenticated`, the same for every reason and after the same time, or `errors.RateLimited`
        after too many of them in a minute. A valid key is never kept out by the bad ones of its neighbours: 256
        bits are not guessed.
        """
        begun_ns = time.perf_counter_ns()
        authorization = headers.get(b"authorization")
        is_token, why = False, "unknown"
        if authorization is None and b"cookie" in headers:
            principal = await self._principal_of_login(headers, method=method, is_tls=is_tls)
        elif authorization is not None and self.issuers is not None and _is_token(authorization):
            is_token, found = True, await self._principal_of_token(authorization)
            principal, why = (None, found) if isinstance(found, str) else (found, why)
        else:
            principal = self._keys.principal_of(authorization)
        if principal is None:
            refusal = self._limits.reject(
                source, presented_id(authorization), why=why
            )  # first: it takes longer for some
            await _until_all_are_rejected(begun_ns, is_token=is_token)
            raise refusal
        return principal

    def is_valid(self, authorization: bytes) -> bool:
        """Tell whether *authorization* would be accepted; for the node's own files."""
        return self._keys.principal_of(authorization) is not None

    def is_live(self, principal: Principal) -> bool:
        """Tell whether *principal* would be accepted still: what takes long asks again and again."""
        if principal.expires_at_s is not None:
            return self._clock.now().timestamp() < principal.expires_at_s
        return self._keys.is_live(principal.id)

    async def is_current(self, principal: Principal, headers: Mapping[bytes, bytes], *, is_tls: bool) -> bool:
        """Tell whether the credential in *headers* still is what *principal* had: it lives, and may do the same.

        Looking is no use of a login: who only leaves a page open is logged out all the same.
        """
        if principal.kind != "login":
            return self.is_live(principal)
        login = await self.logins.look(headers, is_tls=is_tls)
        known = None if login is None else self._keys.of_id(login.key_id)
        return known is not None and known.rights.layers == principal.rights.layers

    def end_s(self, principal: Principal) -> float | None:
        """Return when the credential of *principal* ends, since 1970; None: never."""
        return principal.expires_at_s if principal.expires_at_s is not None else self._keys.end_s(principal.id)

    def is_of_living_key(self, key_id: str) -> bool:
        return self._keys.is_live(key_id)

    def forget_tokens(self) -> None:
        """Have every token proven again: the key of some may be worthless now, or roles may mean something else."""
        self._tokens.clear()

    async def _principal_of_token(self, authorization: bytes) -> Principal | Why:
        """Return whom a token stands for, else why it is rejected.

        Who was proven once is found by what was presented, while it is good.
        """
        assert self.issuers is not None
        digest = hashlib.sha256(authorization).digest()  # the credential itself is kept nowhere
        if (known := self._tokens.get(digest)) is not None:
            if self.is_live(known):
                return known
            del self._tokens[digest]
        roles = self._keys.roles
        proven = await self.issuers.prove(authorization[7:].decode("ascii").strip(), roles=roles.names)
        if isinstance(proven, str):
            return proven
        rights = roles.rights(proven.role, tenant=proven.tenant, scopes=_scopes(proven))
        principal = Principal(
            proven.id, "token", proven.tenant, proven.name, proven.role, rights, expires_at_s=proven.expires_at_s
        )
        if len(self._tokens) >= MAX_PROVEN:
            self._tokens.clear()
        self._tokens[digest] = principal
        return principal

    async def _principal_of_login(
        self, headers: Mapping[bytes, bytes], *, method: str, is_tls: bool
    ) -> Principal | None:
        login = await self.logins.current(headers, method=method, is_tls=is_tls)
        principal = None if login is None else self._keys.of_id(login.key_id)
        return None if principal is None else msgspec.structs.replace(principal, kind="login")


def _scopes(proven: Proven) -> tuple[Grant, ...] | None:
    """Return the scopes of a token that are ours; where it has others only, it may do nothing."""
    if proven.scopes is None:
        return None
    known = []
    for scope in proven.scopes:  # "openid" and the like are others'
        with contextlib.suppress(ValueError):
            known.append(permissions.parse(scope))
    return tuple(known)


def _is_token(authorization: bytes) -> bool:
    """Tell whether *authorization* has the form of a token: three parts, which no key has."""
    return (
        authorization.count(b".") == 2
        and len(authorization) <= MAX_TOKEN_BYTES
        and authorization[:7].lower() == b"bearer "
        and authorization.isascii()
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
