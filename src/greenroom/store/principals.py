"""Principals in the store: who may call, by key id. Secrets are stored as keyed hashes only."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom import errors
from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News


class Principal(msgspec.Struct, frozen=True):
    """A key's row. Instants in microseconds."""

    key_id: str
    tenant: str
    name: str
    role: str
    secret_hash: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


class Revocation(msgspec.Struct, frozen=True):
    key_id: str
    tenant: str


_COLUMNS = ", ".join(Principal.__struct_fields__)
_PUT = f"""
insert into principal ({_COLUMNS}) values ({", ".join(f":{name}" for name in Principal.__struct_fields__)})"""
_ALL = f"select {_COLUMNS} from principal order by created_at, key_id"
_REVOKE = """
update principal set revoked_at = coalesce(revoked_at, :now) where key_id = :key_id and tenant = :tenant
returning key_id"""


async def create(tx: Transaction, news: News, items: Sequence[Principal]) -> list[None]:
    rows = [msgspec.structs.asdict(item) | {"created_at": item.created_at or tx.now_us} for item in items]
    await tx.execute_many(_PUT, rows)
    return [None] * len(items)


async def revoke(tx: Transaction, news: News, items: Sequence[Revocation]) -> list[bool]:
    return [bool(await tx.fetch(_REVOKE, msgspec.structs.asdict(item) | {"now": tx.now_us})) for item in items]


class Principals:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def create(self, principal: Principal) -> None:
        await self._commits.write(create, principal)

    async def revoke(self, key_id: str, *, tenant: str) -> None:
        if not await self._commits.write(revoke, Revocation(key_id, tenant)):
            raise errors.NotFound(f"cannot find the key {key_id[:64]}")

    async def all(self) -> Sequence[Principal]:
        return [Principal(*row) for row in await self._db.read(_ALL, {})]


ORDER = (create, revoke)
