"""The data keys: a table of them, wrapped under the key-encryption key, and those of it that are in memory.

Each tenant has one key that seals, older ones that only open, and one for keyed hashes. They are made in the
transaction that first needs them. How many messages each has sealed is counted ahead, a batch at a time: a crash
counts too many, never too few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.security import vault
from greenroom.security.key_sources import Found, Source
from greenroom.security.vault import INDEX, SEAL, DataKey, IndexKey, KeyEncryptionKey
from greenroom.store import database
from greenroom.store.database import Row, Transaction

LEASED = 2**15  # messages that are counted at a time
RESERVE = 2**14  # more than one operation of a commit can seal for a tenant

READ = "select kek, wrapped, record, is_stale from vault"
_LOCK = f"{READ} for update"
_KEYS = "select id, tenant, purpose, kek, wrapped, retired_at from data_key order by created_at, id"
_LEASE = """
update data_key set messages = messages + :some
where tenant = :tenant and purpose = 'seal' and retired_at is null returning id, kek, wrapped, messages"""
_INDEX = "select id, kek, wrapped from data_key where tenant = :tenant and purpose = 'index' and retired_at is null"
_NEW = """
insert into data_key (id, tenant, purpose, kek, wrapped, messages, created_at)
values (:id, :tenant, :purpose, :kek, :wrapped, 0, :now)
on conflict (tenant, purpose) where retired_at is null do nothing"""
_RETIRE = "update data_key set retired_at = :now where id = :id and retired_at is null"
_RETIRE_ALL = "update data_key set retired_at = :now where purpose = 'seal' and retired_at is null"
_REWRAP = "update data_key set kek = :kek, wrapped = :wrapped where id = :id"
_OF_TENANTS = """
select tenant, cast(sum(case when retired_at is null then 0 else 1 end) as bigint),
    cast(sum(case when retired_at is null then messages else 0 end) as bigint)
from data_key where purpose = 'seal' group by tenant order by tenant limit 1000"""


class Lease(msgspec.Struct):
    """Leave to seal *left* messages with *key*."""

    key: DataKey
    left: int


class KeysOfTenant(msgspec.Struct, frozen=True):
    """How many retired data keys a tenant has, and how much the one that seals has sealed at most."""

    tenant: str
    retired: int
    messages: int


class DataKeys:
    """*source* has the key-encryption key; None: nothing is encrypted, or that key cannot be had."""

    def __init__(self, source: Source | None) -> None:
        self.source = source
        self.kek: KeyEncryptionKey | None = None
        self.is_managed = False  # by a key management service
        self.by_id: dict[bytes, DataKey] = {}
        self.indexes: dict[str, IndexKey] = {}
        self.leases: dict[str, Lease] = {}
        self.active: dict[str, bytes] = {}  # the ids of those that seal, by tenant

    def use(self, found: Found) -> None:
        """Take *found* for the key-encryption key, which is stored as such."""
        self.kek, self.is_managed = found.key, found.wrapped is not None

    async def adopt(self, row: Row) -> None:
        """Find the key-encryption key that the row of the vault names; raises `errors.StartRefused`."""
        id, wrapped, *_ = row
        if self.kek is None or self.kek.id != id:
            if self.source is None:
                raise errors.StartRefused("cannot open the store: it is encrypted, and nobody has given its key")
            self.kek = await self.source.find(id, wrapped)
        self.is_managed = wrapped is not None

    async def read(self, db: database.Database) -> None:
        """Read those that are not in memory: at the start, and where another node has made one."""
        rows = await db.lookup(_KEYS, {})
        if any(self.kek is None or row[3] != self.kek.id for row in rows):  # another node has rotated that one
            await self.adopt((await db.lookup(READ, {}))[0])
            rows = await db.lookup(_KEYS, {})
        for id, tenant, purpose, _, wrapped, retired_at in rows:
            if purpose == INDEX:
                self._index(tenant, id, wrapped)
            else:
                key = self._key(tenant, id, wrapped)
                if retired_at is None:
                    self.active[tenant] = key.id

    async def is_empty(self, db: database.Database) -> bool:
        return not await db.lookup(_KEYS, {})

    async def of_tenants(self, db: database.Database) -> Sequence[KeysOfTenant]:
        """Return the first thousand tenants' keys."""
        return [KeysOfTenant(*row) for row in await db.read(_OF_TENANTS, {})]

    def is_stale(self, tenant: str, head: bytes) -> bool:
        """Whether a value that begins with *head* is not sealed with its tenant's key of today."""
        return not vault.is_sealed(head) or vault.key_id(head) != self.active.get(tenant)

    # --- in transactions

    async def lease(self, tx: Transaction, tenant: str) -> bool:
        """Have the keys of *tenant* at hand, and leave to seal with one; whether one has been retired for it."""
        await self._take_index(tx, tenant)
        has_retired = False
        while True:
            rows = await tx.fetch(_LEASE, {"tenant": tenant, "some": LEASED})
            if not rows:
                await self._make(tx, tenant, SEAL)
                continue
            id, kek, wrapped, messages = rows[0]
            if messages > vault.MAX_MESSAGES:
                await tx.execute_many(_RETIRE, [{"id": id, "now": tx.now_us}])
                has_retired = True
                continue
            await self._know(tx, kek)
            key = self._key(tenant, id, wrapped)
            self.leases[tenant], self.active[tenant] = Lease(key, LEASED), key.id
            return has_retired

    def forget(self, tenants: Iterable[str]) -> None:
        """Ask the table again for the keys of *tenants*: whether those of a transaction are stored is not known."""
        for tenant in tenants:
            self.leases.pop(tenant, None)
            self.active.pop(tenant, None)
            self.indexes.pop(tenant, None)

    async def rewrap(self, tx: Transaction, to: Found, *, retires: bool) -> int:
        """Wrap all data keys under *to*, and let none of them seal any more if *retires*; return how many those are."""
        await self.adopt((await tx.fetch(_LOCK, {}))[0])
        rewrapped: list[dict[str, Any]] = []
        for id, tenant, purpose, _, wrapped, _ in await tx.fetch(_KEYS, {}):
            secret = self._unwrap(tenant, purpose, id, wrapped)
            again = to.key.wrap(secret, bytes.fromhex(id), tenant, purpose)
            vault.wipe(secret)
            rewrapped.append({"kek": to.key.id, "wrapped": again, "id": id})
        await tx.execute_many(_REWRAP, rewrapped)
        if retires:
            await tx.execute_many(_RETIRE_ALL, [{"now": tx.now_us}])
        return len(rewrapped)

    async def _take_index(self, tx: Transaction, tenant: str) -> None:
        while tenant not in self.indexes:
            if rows := await tx.fetch(_INDEX, {"tenant": tenant}):
                id, kek, wrapped = rows[0]
                await self._know(tx, kek)
                self._index(tenant, id, wrapped)
            else:
                await self._make(tx, tenant, INDEX)

    async def _know(self, tx: Transaction, kek: str) -> None:
        """Have the key-encryption key *kek*: another node may have rotated it."""
        if self.kek is None or self.kek.id != kek:
            await self.adopt((await tx.fetch(_LOCK, {}))[0])

    async def _make(self, tx: Transaction, tenant: str, purpose: str) -> None:
        """Make a data key, unless another node has just done so. Locked, so that no rotation passes it by."""
        await self.adopt((await tx.fetch(_LOCK, {}))[0])
        assert self.kek is not None
        secret, id = vault.new_secret(), vault.new_id()
        wrapped = self.kek.wrap(secret, id, tenant, purpose)
        vault.wipe(secret)
        params = {"id": id.hex(), "tenant": tenant, "purpose": purpose, "kek": self.kek.id, "wrapped": wrapped}
        await tx.execute_many(_NEW, [params | {"now": tx.now_us}])

    # --- unwrapping

    def _key(self, tenant: str, id: str, wrapped: bytes) -> DataKey:
        key = self.by_id.get(bytes.fromhex(id))
        if key is None:
            secret = self._unwrap(tenant, SEAL, id, wrapped)
            key = DataKey(bytes.fromhex(id), tenant, secret)
            vault.wipe(secret)
            self.by_id[key.id] = key
        return key

    def _index(self, tenant: str, id: str, wrapped: bytes) -> None:
        if tenant not in self.indexes:
            secret = self._unwrap(tenant, INDEX, id, wrapped)
            self.indexes[tenant] = IndexKey(bytes.fromhex(id), tenant, secret)
            vault.wipe(secret)

    def _unwrap(self, tenant: str, purpose: str, id: str, wrapped: bytes) -> bytearray:
        assert self.kek is not None
        try:
            return self.kek.unwrap(wrapped, bytes.fromhex(id), tenant, purpose)
        except (vault.Unopened, ValueError):
            raise errors.StoreDamaged(
                f"cannot use the data key {id[:64]} of the tenant {tenant[:64]}: it was changed, or moved"
            ) from None
