"""Keys: who presents one, and what becomes of them.

They are held in memory. What another node creates or revokes is seen within a second, by polling: `step` is a loop of
the node. When a key was used is noted in memory, too, and written down by that loop, never by a request.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Sequence

import msgspec

from greenroom import clock as clocks
from greenroom import errors, settings, telemetry
from greenroom.api.roles import Roles
from greenroom.core import permissions
from greenroom.core.permissions import HOME, Grant, Principal
from greenroom.security import keys
from greenroom.store import database
from greenroom.store import principals as stored

LOOK_EVERY_S = 0.5  # a revocation is effective on every node within a second
USE_EVERY_S = 60.0  # how often a key's last use is written, at most
MAX_PROVEN = 10_000

_read_scopes = msgspec.json.Decoder(list[str]).decode


class Keys:
    name = "keys"

    def __init__(
        self,
        principals: stored.Principals,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        pepper: bytes,
        roles: Roles,
    ) -> None:
        self.wakeup = asyncio.Event()
        self.roles = roles
        self._principals, self._clock, self._pepper = principals, clock, pepper
        self._facts = facts
        self._rows: dict[str, stored.Principal] = {}
        self._version: stored.Version | None = None
        self._proven: dict[bytes, tuple[stored.Principal, Principal]] = {}  # by what they presented
        self._used: set[str] = set()  # since the last step
        self._last_used: dict[str, int] = {}  # of what was used here
        self._written_s: dict[str, float] = {}
        self._refreshing = asyncio.Lock()
        self._revoking = asyncio.Lock()
        self.trouble: str | None = None  # what is wrong with the policy file
        roles.on_change(self._proven.clear)

    async def refresh(self) -> None:
        """Read all keys."""
        async with self._refreshing:  # in turn: an older answer must not come after a newer one
            version = await self._principals.version()  # before the rows: what comes meanwhile is read again
            self._rows = {row.key_id: row for row in await self._principals.all()}
            self._version = version
            self._proven.clear()

    async def step(self) -> float:
        """Take over what other nodes have done to the keys, and write down which were used."""
        try:
            if self.roles.reload():
                self.trouble = None
                self._facts.emit(telemetry.PolicyChanged(", ".join(self.roles.names)))
        except settings.SettingsInvalid as invalid:
            self.trouble = str(invalid)
            self._facts.emit(telemetry.PolicyRefused(str(invalid)))
        if await self._principals.version() != self._version:
            await self.refresh()
        await self._write_uses(every_s=USE_EVERY_S)
        return LOOK_EVERY_S

    async def close(self) -> None:
        """Write down what was used last."""
        await self._write_uses(every_s=0)

    async def _write_uses(self, *, every_s: float) -> None:
        now_s, now_us = self._clock.monotonic_s(), database.microseconds(self._clock.now())
        used, self._used = self._used, set()
        self._last_used.update(dict.fromkeys(used, now_us))
        due = [id for id in self._last_used if self._written_s.get(id, now_s - USE_EVERY_S) <= now_s - every_s]
        uses = [stored.Use(id, self._last_used.pop(id)) for id in due]
        if uses:
            self._written_s.update(dict.fromkeys(due, now_s))  # also where it fails: the next use is written again
            self._rows |= {
                use.key_id: msgspec.structs.replace(self._rows[use.key_id], last_used_at=use.at)
                for use in uses
                if use.key_id in self._rows
            }
            await self._principals.use(uses)

    # --- who presents one

    def principal_of(self, authorization: bytes | None) -> Principal | None:
        """Return who presents a valid, living key (``Bearer gr_…``); any other costs what an unknown one does.

        Who was proven once is found by what was presented, to the byte; that only holders of the key can be quicker
        tells nobody else anything.
        """
        digest = hashlib.sha256(authorization or b"").digest()  # the credential itself is kept nowhere
        known = self._proven.get(digest)
        if known is not None and self._is_live(known[0]):
            self._used.add(known[0].key_id)
            return known[1]
        presented = _presented(authorization)
        row = self._rows.get(presented.id) if presented is not None else None
        is_valid = keys.verify(presented, row.secret_hash if row is not None else None, self._pepper)
        if row is None or not is_valid or not self._is_live(row):
            return None
        principal = self.principal(row)
        if len(self._proven) >= MAX_PROVEN:
            self._proven.clear()
        self._proven[digest] = row, principal
        self._used.add(row.key_id)
        return principal

    def principal(self, row: stored.Principal) -> Principal:
        """Return whom a key stands for."""
        rights = self.roles.rights(row.role, tenant=row.tenant, scopes=_scopes(row))
        return Principal(row.key_id, "key", row.tenant, row.name, row.role, rights)

    def of_id(self, key_id: str) -> Principal | None:
        """Return whom a living key stands for."""
        row = self._rows.get(key_id)
        return self.principal(row) if row is not None and self._is_live(row) else None

    def is_live(self, key_id: str) -> bool:
        """Tell whether a key is neither revoked nor expired; for what a request goes on doing."""
        row = self._rows.get(key_id)
        return row is not None and self._is_live(row)

    def end_s(self, key_id: str) -> float | None:
        """Return when a key ends, since 1970; None: never, as far as is known here."""
        row = self._rows.get(key_id)
        return None if row is None or row.expires_at is None else row.expires_at / 1e6

    def _is_live(self, row: stored.Principal) -> bool:
        if row.revoked_at is not None:
            return False
        return row.expires_at is None or row.expires_at > database.microseconds(self._clock.now())

    # --- what becomes of them

    async def create(
        self,
        *,
        tenant: str,
        name: str,
        role: str,
        word: str,
        expires_in_s: float | None = None,
        scopes: Sequence[Grant] | None = None,
        created_by: str | None = None,
    ) -> keys.Key:
        """Make, store and return a key. Who may is for the caller to know."""
        key = keys.mint(word, self._pepper)
        now_us = database.microseconds(self._clock.now())
        row = stored.Principal(
            key.id,
            tenant,
            name,
            role,
            key.secret_hash,
            now_us,
            None if expires_in_s is None else now_us + int(expires_in_s * 1e6),
            scopes=None if scopes is None else msgspec.json.encode([str(scope) for scope in scopes]),
            created_by=created_by,
        )
        await self._principals.create(row)
        await self.refresh()
        return key

    async def revoke(self, key_id: str, *, tenant: str, spare_last: bool = False) -> None:
        """Make a key worthless: here at once, on other nodes within a second.

        Raises `errors.NotFound`, and with *spare_last* `errors.Conflict` for the last one that may do everything.
        """
        async with self._revoking:  # in turn: of two that are left, two must not go at once
            if spare_last and self._is_last_administrator(key_id):
                raise errors.Conflict(
                    f"cannot revoke the key {key_id}: it is the last one that may do everything, and nobody could "
                    "make another; make one first: greenroom keys create NAME --role admin"
                )
            await self._principals.revoke(key_id, tenant=tenant)
            self._rows.pop(key_id, None)  # at once, whatever becomes of the refresh
            self._proven.clear()
            await self.refresh()

    def _is_last_administrator(self, key_id: str) -> bool:
        everything = permissions.rights("admin", tenant=HOME)
        living = (row for row in self._rows.values() if row.tenant == HOME and self._is_live(row))
        able = {row.key_id for row in living if self.principal(row).rights.covers(everything)}
        return able == {key_id}

    def rows(self, *, tenant: str) -> list[stored.Principal]:
        """Return the keys of *tenant*, with what is known here of their last use."""
        return [
            row if (at := self._last_used.get(row.key_id)) is None else msgspec.structs.replace(row, last_used_at=at)
            for row in self._rows.values()
            if row.tenant == tenant
        ]

    def tenants(self) -> frozenset[str]:
        """Return the tenants that have a living key."""
        return frozenset(row.tenant for row in self._rows.values() if self._is_live(row))


def _scopes(row: stored.Principal) -> tuple[Grant, ...] | None:
    """Return the scopes of a key; those that cannot be read allow nothing."""
    return None if row.scopes is None else _parsed(row.scopes)


@functools.lru_cache(maxsize=1024)
def _parsed(scopes: bytes) -> tuple[Grant, ...]:
    try:
        return tuple(permissions.parse(text) for text in _read_scopes(scopes))
    except (ValueError, msgspec.MsgspecError):
        return ()


def shown_scopes(row: stored.Principal) -> list[str] | None:
    """Return the scopes of a key as text; None for a key that has none."""
    scopes = _scopes(row)
    return None if scopes is None else [str(scope) for scope in scopes]


def presented_id(authorization: bytes | None) -> str | None:
    """Return the id of the key that *authorization* names, whether there is one or not."""
    presented = _presented(authorization)
    return None if presented is None else presented.id


def _presented(authorization: bytes | None) -> keys.Presented | None:
    if authorization is None or authorization[:7].lower() != b"bearer " or len(authorization) > 512:
        return None
    try:
        return keys.parse(authorization[7:].decode("ascii").strip())
    except UnicodeDecodeError:
        return None
