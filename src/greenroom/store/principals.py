"""Principals in the store: who may call, by key id. Secrets are stored as keyed hashes only.

No row is ever removed, and none comes back from being revoked. So two numbers, how many there are and how many are
revoked, tell whether anything has changed, whatever order the commits of other nodes become visible in.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom import errors
from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News


class Principal(msgspec.Struct, frozen=True):
    """A key's row. Instants in microseconds; *scopes* is a JSON list of grants as text."""

    key_id: str
    tenant: str
    name: str
    role: str
    secret_hash: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    scopes: bytes | None = None
    created_by: str | None = None
    last_used_at: int | None = None


class Revocation(msgspec.Struct, frozen=True):
    key_id: str
    tenant: str


class Use(msgspec.Struct, frozen=True):
    """A key was used, last at the instant *at*."""

    key_id: str
    at: int


class Version(msgspec.Struct, frozen=True):
    """Changes whenever a key is created or revoked, by whomever; not when one is used."""

    created: int
    revoked: int


_COLUMNS = ", ".join(Principal.__struct_fields__)
_PUT = f"""
insert into principal ({_COLUMNS}) values ({", ".join(f":{name}" for name in Principal.__struct_fields__)})"""
_ALL = f"select {_COLUMNS} from principal order by created_at, key_id"
_VERSION = "select count(*), count(revoked_at) from principal"
_REVOKE = """
update principal set revoked_at = coalesce(revoked_at, :now) where key_id = :key_id and tenant = :tenant
returning key_id"""
_USE = """
update principal set last_used_at = :at
where key_id = :key_id and (last_used_at is null or last_used_at < :at)"""


async def create(tx: Transaction, news: News, items: Sequence[Principal]) -> list[None]:
    rows = [msgspec.structs.asdict(item) | {"created_at": item.created_at or tx.now_us} for item in items]
    await tx.execute_many(_PUT, rows)
    return [None] * len(items)


async def revoke(tx: Transaction, news: News, items: Sequence[Revocation]) -> list[bool]:
    return [bool(await tx.fetch(_REVOKE, msgspec.structs.asdict(item) | {"now": tx.now_us})) for item in items]


async def use(tx: Transaction, news: News, items: Sequence[Use]) -> list[None]:
    in_order = sorted(items, key=lambda item: item.key_id)  # so that two nodes seldom wait for each other
    await tx.execute_many(_USE, [msgspec.structs.asdict(item) for item in in_order])
    return [None] * len(items)


class Principals:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def create(self, principal: Principal) -> None:
        await self._commits.write(create, principal)

    async def revoke(self, key_id: str, *, tenant: str) -> None:
        if not await self._commits.write(revoke, Revocation(key_id, tenant)):
            raise errors.NotFound(f"cannot find the key {key_id[:64]}")

    async def use(self, uses: Sequence[Use]) -> None:
        """Note when keys were used last; an earlier instant than the stored one changes nothing."""
        await self._commits.write_all(use, uses)

    async def version(self) -> Version:
        return Version(*(await self._db.lookup(_VERSION, {}))[0])

    async def all(self) -> Sequence[Principal]:
        return [Principal(*row) for row in await self._db.read(_ALL, {})]


ORDER = (create, revoke, use)
