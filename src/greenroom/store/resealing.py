"""Resealing: what is not sealed with today's keys is sealed with them, a few rows at a time, while the node serves.

A pass looks at the heads of all that is sealed (`store.sealed`) and writes anew what is stale: from before encryption
was switched on, or under a data key that has been retired. Each value is read, opened, sealed and written in one
transaction with its row locked, so that nothing newer is ever overwritten. A pass that was cut off is begun again:
what it has written is not stale any more. When a whole pass has found nothing, all is sealed, and the store says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.security.vault import HEAD_BYTES, VERSION
from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.data_keys import KeysOfTenant
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News
from greenroom.store.rows import IS_OPEN
from greenroom.store.sealed import SEALED, Table
from greenroom.store.vault import KEYED, Concluded, Rotation, Vault, is_pause

MAX_SEEN = 500  # rows that one step looks at
MAX_VALUES = 100  # of one commit
MAX_BYTES = 2 * 1024 * 1024  # ... and of those: bounds how long it holds the event loop
MAX_DROPPED = 500
_LOOK_BYTES = 160  # of a value: enough to tell an event that is stored as it is

_PAGED = {"task": ("seq",), "task_event": ("task", "seq"), "log_line": ("seq",), "session": ("tenant", "agent", "id")}
_FIRST: dict[str, tuple[Any, ...]] = {"task": (0,), "task_event": ("", 0), "log_line": (0,), "session": ("", "", "")}


class Stale(msgspec.Struct, frozen=True):
    """A value that is to be sealed anew. *key* is its row's place, the tenant apart."""

    table: str
    column: str
    tenant: str
    key: tuple[Any, ...]
    size_bytes: int


class StaleHash(msgspec.Struct, frozen=True):
    """A task whose hashes are to be keyed."""

    seq: int
    tenant: str


class Unhashed(msgspec.Struct, frozen=True):
    """Results that are kept under plain hashes: they are dropped."""


class Progress(msgspec.Struct, frozen=True):
    """How far the pass has come: rows *seen* of *rows*, and how much was written anew.

    *unreadable* values do not open: they are left as they are, and the store is not called sealed while there are any.
    """

    seen: int = 0
    rows: int = 0
    resealed: int = 0
    unreadable: int = 0
    is_done: bool = True


def _where(table: str, key: Sequence[str]) -> str:
    names = ("tenant", *key) if table == "session" else key
    return " and ".join(f"{name} = :{name}" for name in names)


def _select_heads(name: str, table: Table) -> str:
    paged = ", ".join(f"{name}.{column}" for column in _PAGED[name])
    heads = ", ".join(
        f"substr({name}.{column}, 1, {_LOOK_BYTES}), coalesce(length({name}.{column}), 0)" for column in table.columns
    )
    place = ", ".join(f"{name}.{column}" for column in table.key)
    kind = "task_event.type" if name == "task_event" else "''"
    tenant = "task.tenant" if name == "task_event" else f"{name}.tenant"
    behind = ", ".join(f":after_{letter}" for letter in "abc"[: len(_PAGED[name])])
    return (
        f"select {paged}, {tenant}, {kind}, {place}, {heads} from {table.source} where ({paged}) > ({behind}) "
        f"order by {paged} limit {MAX_SEEN}"
    )


_HEADS = {name: _select_heads(name, table) for name, table in SEALED.items()}
_COUNT = f"select {' + '.join(f'(select count(*) from {name})' for name in SEALED)}"
_HASHES = f"""
select seq, tenant from task
where (seq) > (:after_a) and (substr(fingerprint, 1, 1) <> :keyed or (cache_key not like '%.{KEYED}%'
    and not ({IS_OPEN}))) order by seq limit {MAX_SEEN}"""
_HASHES_OF = "select fingerprint, cache_key, finished_at from task where seq = :seq for update"
_PUT_HASHES = "update task set fingerprint = :fingerprint, cache_key = :cache_key where seq = :seq"
_DROP_RESULTS = f"""
delete from result_cache where (tenant, agent, key) in (
    select tenant, agent, key from result_cache where key not like '%.{KEYED}%' limit {MAX_DROPPED}) returning key"""


async def reseal(tx: Transaction, news: News, items: Sequence[Stale]) -> list[bool]:
    """Seal values anew, where they are still stale; False for those that do not open."""
    await news.seals.take(tx, {item.tenant for item in items})
    groups: dict[tuple[str, str], list[Stale]] = defaultdict(list)
    for item in items:
        groups[item.table, item.column].append(item)
    damaged: set[Stale] = set()
    for (table, column), stale in groups.items():
        key = SEALED[table].key
        where = _where(table, key)
        select = f"select {column} from {table} where {where} for update"
        update = f"update {table} set {column} = :value where {where}"
        changed = []
        for item in stale:
            params = dict(zip(key, item.key, strict=True)) | {"tenant": item.tenant}
            try:
                value = await _again(tx, news, item, select, params)
            except errors.StoreDamaged:
                damaged.add(item)
                continue
            if value is not None:
                changed.append(params | {"value": value})
        await tx.execute_many(update, changed)
    return [item not in damaged for item in items]


async def _again(tx: Transaction, news: News, item: Stale, select: str, params: dict[str, Any]) -> bytes | None:
    found = await tx.fetch(select, params)
    value = found[0][0] if found else None
    vault, place = news.seals.vault, tuple(map(str, item.key))
    if value is None or not vault.keys.is_stale(item.tenant, value):
        return None
    opened = await vault.opened(item.tenant, item.table, item.column, place, value)
    return news.seals.seal(item.tenant, item.table, item.column, place, opened)


async def rehash(tx: Transaction, news: News, items: Sequence[StaleHash]) -> list[None]:
    """Key the hashes of tasks; the key of an open one's result stays: others may wait for it under that name."""
    await news.seals.take(tx, {item.tenant for item in items})
    changed = []
    for item in items:
        for fingerprint, cache_key, finished_at in await tx.fetch(_HASHES_OF, {"seq": item.seq}):
            keyed, keyed_cache_key = fingerprint, cache_key
            if fingerprint is not None and fingerprint[:1] != VERSION:
                keyed = news.seals.fingerprint(item.tenant, fingerprint)
            if cache_key is not None and finished_at is not None:
                keyed_cache_key = news.seals.cache_key(item.tenant, cache_key)
            changed.append({"seq": item.seq, "fingerprint": keyed, "cache_key": keyed_cache_key})
    await tx.execute_many(_PUT_HASHES, changed)
    return [None] * len(items)


async def drop_results(tx: Transaction, news: News, items: Sequence[Unhashed]) -> list[int]:
    return [len(await tx.fetch(_DROP_RESULTS, {}))] * len(items)


async def rotate(tx: Transaction, news: News, items: Sequence[Rotation]) -> list[int]:
    return [await news.seals.vault.rotate(news.seals, tx, item) for item in items]


async def conclude(tx: Transaction, news: News, items: Sequence[Concluded]) -> list[None]:
    for item in items:
        await news.seals.vault.conclude(news.seals, tx, item)
    return [None] * len(items)


class Resealing:
    """One pass after another; `step` goes on with the one that there is."""

    def __init__(self, db: database.Database, commits: Commits, vault: Vault) -> None:
        self._db, self._commits, self._vault = db, commits, vault
        self._progress = Progress()
        self._changes = 0  # of the vault when the last pass that found nothing was begun
        self._begun_at = 0
        self._place: list[tuple[str, tuple[Any, ...]]] = []  # tables to look at, and how far that has come
        self._found = 0

    @property
    def progress(self) -> Progress:
        is_done = not self._vault.is_on or self._changes == self._vault.changes
        return msgspec.structs.replace(self._progress, is_done=is_done)

    async def rotate(self, *, retires: bool) -> int:
        """Wrap all data keys under the next key, and retire them, too, if *retires*; return how many those are.

        Raises `errors.Conflict` where encryption is off, and `errors.StoreUnavailable` where the next key cannot be
        had.
        """
        try:
            rotation = await self._vault.next_key(retires=retires)
        except errors.StartRefused as error:
            raise errors.StoreUnavailable(f"cannot rotate the keys, nothing has changed: {error}") from None
        rewrapped: int = await self._commits.write(rotate, rotation)
        return rewrapped

    async def keys(self) -> Sequence[KeysOfTenant]:
        return await self._vault.keys.of_tenants(self._db)

    async def step(self) -> bool:
        """Look at the next rows and write anew what of them is stale; False: nothing is left to do for now."""
        if not self._vault.is_on or self._changes == self._vault.changes:
            return False
        if not self._place or self._begun_at != self._vault.changes:
            await self._begin()
        (table, after), *rest = self._place
        if table == "hashes":
            await self._rehash(after)
        else:
            await self._look(table, after)
        if self._place[0] == (table, after):  # no more of it
            self._place = rest
        if self._place:
            return True
        return await self._end()

    async def _begin(self) -> None:
        ((rows,),) = await self._db.read(_COUNT, {})
        self._begun_at, self._found = self._vault.changes, 0
        self._place = [*_FIRST.items(), ("hashes", (0,))]
        self._progress = msgspec.structs.replace(self._progress, seen=0, rows=rows, unreadable=0)

    async def _end(self) -> bool:
        if self._found:
            return True  # what was written anew is looked at again
        if not self._progress.unreadable:
            await self._commits.write(conclude, Concluded(self._begun_at))
            await self._db.truncate_log()  # which has what was written over
        self._changes = self._begun_at
        self._progress = msgspec.structs.replace(self._progress, seen=self._progress.rows)
        return False

    async def _look(self, name: str, after: tuple[Any, ...]) -> None:
        params = {f"after_{letter}": value for letter, value in zip("abc", after, strict=False)}
        rows = await self._db.read(_HEADS[name], params)
        stale = [each for row in rows for each in self._stale(name, row)]
        unreadable = await self._write(stale)
        self._note(len(rows), len(stale) - unreadable, unreadable)
        if len(rows) == MAX_SEEN:
            self._place[0] = name, tuple(rows[-1][: len(after)])

    def _stale(self, name: str, row: Row) -> list[Stale]:
        paged, table = len(_PAGED[name]), SEALED[name]
        tenant, kind, *rest = row[paged:]
        key, heads = tuple(rest[: len(table.key)]), rest[len(table.key) :]
        return [
            Stale(name, column, tenant, key, size_bytes)
            for column, head, size_bytes in zip(table.columns, heads[::2], heads[1::2], strict=True)
            if head is not None and self._vault.keys.is_stale(tenant, head[:HEAD_BYTES]) and not is_pause(kind, head)
        ]

    async def _write(self, stale: Sequence[Stale]) -> int:
        """Seal values anew, a commit after another; return how many do not open."""
        batch: list[Stale] = []
        size_bytes = unreadable = 0
        for each in stale:
            if batch and (len(batch) == MAX_VALUES or size_bytes + each.size_bytes > MAX_BYTES):
                unreadable += await self._put(batch)
                batch, size_bytes = [], 0
            batch.append(each)
            size_bytes += each.size_bytes
        return unreadable + (await self._put(batch) if batch else 0)

    async def _put(self, batch: Sequence[Stale]) -> int:
        answers = await self._commits.write_all(reseal, batch)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers.count(False)

    async def _rehash(self, after: tuple[Any, ...]) -> None:
        rows = await self._db.read(_HASHES, {"after_a": after[0], "keyed": VERSION})
        for start in range(0, len(rows), MAX_VALUES):
            batch = [StaleHash(*row) for row in rows[start : start + MAX_VALUES]]
            for answer in await self._commits.write_all(rehash, batch):
                if isinstance(answer, Exception):
                    raise answer
        dropped = await self._commits.write(drop_results, Unhashed())
        self._note(0, len(rows) + dropped)
        if len(rows) == MAX_SEEN:
            self._place[0] = "hashes", (rows[-1][0],)

    def _note(self, seen: int, resealed: int, unreadable: int = 0) -> None:
        self._found += resealed
        was = self._progress
        self._progress = msgspec.structs.replace(
            was, seen=was.seen + seen, resealed=was.resealed + resealed, unreadable=was.unreadable + unreadable
        )


ORDER = (reseal, rehash, drop_results, rotate, conclude)
