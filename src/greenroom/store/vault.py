"""The vault: whether a store is encrypted, and where in it values are sealed and opened.

What is sealed is in `store.sealed`, what with in `store.data_keys`, the cryptography in `security.vault`. Who writes
has the `Seals` of its transaction, who reads the `Vault`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from greenroom import errors
from greenroom.security import vault as cryptography
from greenroom.security.key_sources import Found, Source
from greenroom.store import data_keys, database
from greenroom.store.data_keys import DataKeys
from greenroom.store.database import Row, Transaction
from greenroom.store.rows import StoredEvent, Task
from greenroom.store.sealed import SEALED

_INSERT = """
insert into vault (id, kek, wrapped, record, is_stale, rotated_at)
values (1, :kek, :wrapped, :record, :is_stale, :now)"""
_RECORD = "update vault set record = :record, is_stale = :is_stale where kek = :kek"
_ROTATE = """
update vault set kek = :kek, wrapped = :wrapped, record = :record, rotated_at = :now,
    is_stale = case when :retires then true else is_stale end"""
_STALE = "update vault set is_stale = true"
_IS_FILLED = """
select exists (select 1 from task) or exists (select 1 from session) or exists (select 1 from log_line)"""
_IS_SEALED = """
select exists (select 1 from task where substr(input, 1, 1) = :sealed)
    or exists (select 1 from session where substr(state, 1, 1) = :sealed)"""

KEYED = "k"  # begins a keyed digest in the key of a result; no hexadecimal digit


class Mode(enum.StrEnum):
    """How a store stands. What it says of itself is signed, so that who can only write to it cannot say otherwise."""

    OFF = "off"  # nothing was ever encrypted
    SEALING = "sealing"  # what comes is encrypted, some of what was there is not yet
    SEALED = "sealed"  # all of it is, and what is not is refused
    LEFT = "left"  # encryption was on: what was encrypted is read, what comes is not encrypted


class _Unknown(Exception):
    """A data key that is not in memory: of another node, perhaps."""


class Rotation(NamedTuple):
    """Wrap all data keys under *to*, and retire them, too, if *retires*."""

    to: Found
    retires: bool


class Concluded(msgspec.Struct, frozen=True):
    """Nothing stale was found when the vault had seen so many *changes*."""

    changes: int


class Vault:
    """*source* has the key-encryption key; *is_on*: what is written is sealed.

    *damaged* is told of each value that does not open where it is.
    """

    def __init__(self, source: Source | None = None, *, is_on: bool = False) -> None:
        self.is_on, self.mode = is_on, Mode.OFF
        self.keys = DataKeys(source)
        self.changes = 0  # grows when what is stored becomes stale; 0: nothing is
        self.damaged: Callable[[str], None] = lambda _: None
        self._db: database.Database | None = None

    @property
    def is_used(self) -> bool:
        """Whether there may be sealed values."""
        return self.mode is not Mode.OFF

    @property
    def key(self) -> str:
        """The id of the key-encryption key; empty where there is none."""
        return "" if self.keys.kek is None else self.keys.kek.id

    async def start(self, db: database.Database) -> None:
        """Find the keys, or make the first.

        Raises `errors.StartRefused`, and nothing has changed, where the store's key cannot be had, or is another one.
        """
        self._db = db
        rows = await db.lookup(data_keys.READ, {})
        if rows:
            await self._resume(db, rows[0])
        elif not await self.keys.is_empty(db):
            raise errors.StoreDamaged("cannot open the encrypted store: the record of its key is missing")
        elif self.is_on:
            await self._begin(db)

    async def _begin(self, db: database.Database) -> None:
        assert self.keys.source is not None, "encryption needs a source of its key"
        ((is_sealed,),) = await db.read(_IS_SEALED, {"sealed": cryptography.VERSION})
        if is_sealed:
            raise errors.StoreDamaged(
                "cannot open the encrypted store: its data keys and the record of its key are missing; "
                "restore it from a backup"
            )
        found = await self.keys.source.first()
        ((is_filled,),) = await db.lookup(_IS_FILLED, {})
        mode = Mode.SEALING if is_filled else Mode.SEALED
        params = {"kek": found.key.id, "wrapped": found.wrapped, "record": found.key.sign(mode.encode())}
        async with db.transaction() as tx:
            await tx.execute_many(_INSERT, [params | {"is_stale": bool(is_filled), "now": tx.now_us}])
        self.keys.use(found)
        self.mode, self.changes = mode, int(is_filled)

    async def _resume(self, db: database.Database, row: Row) -> None:
        await self.keys.adopt(row)
        recorded = self._recorded(row[2])
        await self.keys.read(db)
        self.mode, is_stale = recorded, bool(row[3])
        if not self.is_on:
            self.mode = Mode.LEFT
        elif recorded is Mode.LEFT:
            self.mode, is_stale = Mode.SEALING, True
        self.changes = int(is_stale)
        if self.mode is not recorded:
            async with db.transaction() as tx:
                await self._record(tx, self.mode, is_stale=is_stale)

    def _recorded(self, record: bytes) -> Mode:
        assert self.keys.kek is not None
        try:
            return Mode(self.keys.kek.verify(record).decode())
        except (cryptography.Unopened, ValueError):
            raise errors.StoreDamaged(
                "cannot open the encrypted store: what it says of its encryption was changed without its key"
            ) from None

    async def _record(self, tx: Transaction, mode: Mode, *, is_stale: bool) -> None:
        kek = self.keys.kek
        assert kek is not None
        await tx.execute_many(_RECORD, [{"record": kek.sign(mode.encode()), "is_stale": is_stale, "kek": kek.id}])

    # --- reading

    def open(self, tenant: str, table: str, column: str, row: tuple[str, ...], value: bytes | None) -> bytes | None:
        """Return what is stored there; raises `errors.StoreDamaged` for what was sealed for another place, or not at
        all where all is.
        """
        if value is None or self.mode is Mode.OFF:
            return value
        if not cryptography.is_sealed(value):
            if self.mode is Mode.SEALED:
                raise self._damage(table, column, row, "it is not encrypted, and all that this store wrote is")
            return value
        key = self.keys.by_id.get(cryptography.key_id(value))
        if key is None:
            raise _Unknown
        if key.tenant != tenant:
            raise self._damage(table, column, row, "it is encrypted with another tenant's key")
        try:
            return key.open(value, table, column, row)
        except cryptography.Unopened:
            raise self._damage(table, column, row, "it was changed, or moved here from another place") from None

    def _damage(self, table: str, column: str, row: tuple[str, ...], why: str) -> errors.StoreDamaged:
        what = f"{column} of {table} {'/'.join(row)[:200]}"
        self.damaged(f"{what}: {why}")
        return errors.StoreDamaged(f"cannot read {what}: {why}")

    async def opened(
        self, tenant: str, table: str, column: str, row: tuple[str, ...], value: bytes | None
    ) -> bytes | None:
        """`open`, also with a key that another node has made."""
        try:
            return self.open(tenant, table, column, row, value)
        except _Unknown:
            await self._read_keys()
        try:
            return self.open(tenant, table, column, row, value)
        except _Unknown:
            raise self._damage(table, column, row, "its key is not in the store") from None

    async def task(self, row: Row) -> Task:
        """Return a task's row as a value, opened."""
        if not self.is_used:
            return Task(*row)
        values, tenant, place = list(row), row[_TENANT], (row[_ID],)
        for index, column in _TASK_COLUMNS:
            if (value := row[index]) is not None:
                values[index] = await self.opened(tenant, "task", column, place, value)
        return Task(*values)

    async def task_or_damage(self, row: Row) -> Task:
        """`task`, and where it does not open, one without what is sealed in it, whose error says so."""
        try:
            return await self.task(row)
        except errors.StoreDamaged as error:
            return without_payload(Task(*row), error)

    def task_at_hand(self, row: Row, *, input: bytes | None) -> Task | None:
        """Return a task's row as a value, opened; None where that cannot be done at once: read it then.

        *input* is the task's, which need not be opened again where somebody has it in the clear.
        """
        if not self.is_used:
            return Task(*row)
        values, tenant, place = list(row), row[_TENANT], (row[_ID],)
        columns = _TASK_COLUMNS
        if input is not None:
            values[_INPUT], columns = input, _BESIDE_INPUT
        try:
            for index, column in columns:
                if (value := row[index]) is not None:
                    values[index] = self.open(tenant, "task", column, place, value)
        except (_Unknown, errors.StoreDamaged):
            return None
        return Task(*values)

    async def event(self, tenant: str, task: str, event: StoredEvent) -> StoredEvent:
        if not self.is_used or is_pause(event.type, event.data):
            return event
        data = await self.opened(tenant, "task_event", "data", (task, str(event.seq)), event.data)
        assert data is not None
        return msgspec.structs.replace(event, data=data)

    async def event_or_damage(self, tenant: str, task: str, event: StoredEvent) -> StoredEvent:
        """`event`, and where it does not open, one whose data say so."""
        try:
            return await self.event(tenant, task, event)
        except errors.StoreDamaged as error:
            return msgspec.structs.replace(event, data=msgspec.json.encode({"error": damage(error)}))

    async def is_same(self, tenant: str, stored: bytes | None, given: bytes | None) -> bool:
        """Whether a fingerprint that is stored is the one *given*."""
        if stored is None or given is None or not cryptography.is_sealed(stored):
            return stored == given
        if tenant not in self.keys.indexes:
            await self._read_keys()
        return stored == self.fingerprint(tenant, given)

    async def _read_keys(self) -> None:
        assert self._db is not None
        await self.keys.read(self._db)

    # --- hashes

    def fingerprint(self, tenant: str, given: bytes) -> bytes:
        return cryptography.VERSION + self.keys.indexes[tenant].digest(b"fingerprint", given)[:16]

    def cache_key(self, tenant: str, given: str) -> str:
        """Return *given*, a key of `core.caching`, with a keyed digest; the revision stays."""
        revision, _, digest = given.partition(".")
        if digest.startswith(KEYED):
            return given
        return f"{revision}.{KEYED}{self.keys.indexes[tenant].digest(b'cache', digest.encode()).hex()}"

    # --- rotation

    async def next_key(self, *, retires: bool) -> Rotation:
        """Return the rotation to the next key; raises `errors.Conflict` where nothing is encrypted."""
        if self.keys.kek is None or self.keys.source is None or not self.is_on:
            raise errors.Conflict("cannot rotate the keys: encryption is off; set security.encryption_at_rest")
        return Rotation(await self.keys.source.next(self.keys.kek.id), retires)

    async def rotate(self, seals: Seals, tx: Transaction, item: Rotation) -> int:
        """Wrap all data keys anew; return how many those are."""
        rewrapped = await self.keys.rewrap(tx, item.to, retires=item.retires)
        params = {"kek": item.to.key.id, "wrapped": item.to.wrapped, "record": item.to.key.sign(self.mode.encode())}
        await tx.execute_many(_ROTATE, [params | {"retires": item.retires, "now": tx.now_us}])
        seals.rotation = item
        return rewrapped

    async def conclude(self, seals: Seals, tx: Transaction, item: Concluded) -> None:
        """Note that all is sealed with today's keys: from now on what is not sealed is refused."""
        if self.changes == item.changes:
            await self._record(tx, Mode.SEALED, is_stale=False)
            seals.concludes = True


class Seals:
    """The seals of one transaction: `take` the keys of the tenants, then `seal`. `settle` says how it has ended."""

    __slots__ = ("_has_retired", "_leased", "concludes", "rotation", "vault")

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.rotation: Rotation | None = None
        self.concludes = False
        self._leased: set[str] = set()
        self._has_retired = False

    async def take(self, tx: Transaction, tenants: Collection[str]) -> None:
        """Have keys at hand for what one operation seals for *tenants*."""
        if self.vault.is_on:
            keys = self.vault.keys
            for tenant in sorted(tenants):  # in one order for all: two nodes must not wait for each other
                if (lease := keys.leases.get(tenant)) is None or lease.left < data_keys.RESERVE:
                    self._leased.add(tenant)
                    if await keys.lease(tx, tenant):
                        self._has_retired = True
                        await tx.execute_many(_STALE, [{}])

    def seal(self, tenant: str, table: str, column: str, row: tuple[str, ...], value: bytes | None) -> bytes | None:
        """Return *value* as it is to be stored there."""
        if value is None or not self.vault.is_on:
            return value
        lease = self.vault.keys.leases[tenant]
        lease.left -= 1
        assert lease.left >= 0, "more was sealed than was counted"
        return lease.key.seal(value, table, column, row)

    def fingerprint(self, tenant: str, given: bytes | None) -> bytes | None:
        return given if given is None or not self.vault.is_on else self.vault.fingerprint(tenant, given)

    def cache_key(self, tenant: str, given: str) -> str:
        return self.vault.cache_key(tenant, given) if self.vault.is_on else given

    def settle(self, *, committed: bool) -> None:
        vault, keys = self.vault, self.vault.keys
        if not committed:
            keys.forget(self._leased)
            return
        if self.rotation is not None:
            keys.use(self.rotation.to)
            if self.rotation.retires:
                keys.leases.clear()
                keys.active.clear()
                self._has_retired = True
        if self._has_retired:
            vault.changes += 1
        if self.concludes:
            vault.mode = Mode.SEALED


def without_payload(task: Task, error: errors.StoreDamaged) -> Task:
    """Return *task* as a list shows it where something of it does not open: one bad row is to hide no others."""
    nothing = dict.fromkeys(SEALED["task"].columns)
    return msgspec.structs.replace(task, **nothing | {"input": b"null", "error": msgspec.json.encode(damage(error))})


def damage(error: errors.StoreDamaged) -> dict[str, str]:
    """Return what stands in the place of what does not open: shaped like a task's error."""
    return {"type": "store_damaged", "message": str(error)}


_ID, _TENANT, _INPUT = (Task.__struct_fields__.index(name) for name in ("id", "tenant", "input"))
_TASK_COLUMNS = tuple((Task.__struct_fields__.index(name), name) for name in SEALED["task"].columns)
_BESIDE_INPUT = tuple(column for column in _TASK_COLUMNS if column[0] != _INPUT)
_PAUSES = (b'{"state":"waiting",', b'{"state":"running"}')


class _Waiting(msgspec.Struct, forbid_unknown_fields=True):
    state: str
    waits_for: str = msgspec.field(name="for")


_decode_waiting = msgspec.json.Decoder(_Waiting).decode


def is_pause(type: str, data: bytes) -> bool:
    """Whether an event tells no more than that a task waits for another one, or no longer: ids and states, which are
    stored as they are, and which the statement that lists a task's moves has to tell from the others.
    """
    if type != "state" or not data.startswith(_PAUSES):
        return False
    if data == _PAUSES[1]:
        return True
    try:
        return len(_decode_waiting(data).waits_for) <= 64
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False


PLAIN = Vault()
"""Of a store that nobody encrypts."""
