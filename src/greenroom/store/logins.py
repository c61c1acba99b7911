"""Logins in the store: a one-time link that a key has asked for, and the login that it becomes. Hashes only."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from greenroom.store import database
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

MAX_PER_KEY = 20  # the oldest go first


class NewLink(msgspec.Struct, frozen=True):
    """*id* is the digest of what the link holds."""

    id: str
    key_id: str
    valid_us: int


class Exchange(msgspec.Struct, frozen=True):
    """The link *id* is used, for a login of *valid_us* at most, which *cookie* is the digest of."""

    id: str
    cookie: str
    valid_us: int


class Login(msgspec.Struct, frozen=True):
    """A login's row. Instants in microseconds."""

    id: str
    key_id: str
    created_at: int
    used_at: int
    expires_at: int


class Use(msgspec.Struct, frozen=True):
    """A login was used, by a node's clock."""

    id: str
    used_at: int


class End(msgspec.Struct, frozen=True):
    """Of one login, or of all that *key_id* has where *id* is None."""

    key_id: str
    id: str | None = None


_COLUMNS = ", ".join(Login.__struct_fields__)
_FORGET = "delete from login where expires_at <= :now"
_LINK = """
insert into login (id, key_id, created_at, used_at, expires_at)
values (:id, :key_id, :now, :now, :until)"""
_CROWD = """
delete from login where id in (
    select id from login where key_id = :key_id order by created_at desc, id desc limit 1000 offset :most)"""
_EXCHANGE = f"""
update login set cookie = :cookie, created_at = :now, used_at = :now, expires_at = :until
where id = :id and cookie is null and expires_at > :now returning {_COLUMNS}"""
_USE = "update login set used_at = :used_at where id = :id and used_at < :used_at"
_END = "delete from login where key_id = :key_id and id = :id"
_END_ALL = "delete from login where key_id = :key_id"
_GET = f"select {_COLUMNS} from login where cookie = :cookie"


async def link(tx: Transaction, news: News, items: Sequence[NewLink]) -> list[None]:
    await tx.fetch(_FORGET, {"now": tx.now_us})
    for item in items:
        given = {"id": item.id, "key_id": item.key_id, "now": tx.now_us, "until": tx.now_us + item.valid_us}
        await tx.fetch(_LINK, given)
        await tx.fetch(_CROWD, {"key_id": item.key_id, "most": MAX_PER_KEY})
    return [None] * len(items)


async def exchange(tx: Transaction, news: News, items: Sequence[Exchange]) -> list[Login | None]:
    logins: list[Login | None] = []
    for item in items:
        given = {"id": item.id, "cookie": item.cookie, "now": tx.now_us, "until": tx.now_us + item.valid_us}
        rows = await tx.fetch(_EXCHANGE, given)
        logins.append(Login(*rows[0]) if rows else None)
    return logins


async def use(tx: Transaction, news: News, items: Sequence[Use]) -> list[None]:
    await tx.execute_many(_USE, [msgspec.structs.asdict(item) for item in items])
    return [None] * len(items)


async def end(tx: Transaction, news: News, items: Sequence[End]) -> list[None]:
    for item in items:
        if item.id is None:
            await tx.fetch(_END_ALL, {"key_id": item.key_id})
        else:
            await tx.fetch(_END, {"key_id": item.key_id, "id": item.id})
    return [None] * len(items)


class Logins:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def link(self, new: NewLink) -> None:
        """Store a link; what is over is dropped, and what its key has too many of."""
        await self._commits.write(link, new)

    async def exchange(self, used: Exchange) -> Login | None:
        """Turn a link into a login; None unless it is there, unused and not over."""
        found: Login | None = await self._commits.write(exchange, used)
        return found

    async def use(self, used: Use) -> None:
        await self._commits.write(use, used)

    async def end(self, ended: End) -> None:
        await self._commits.write(end, ended)

    async def get(self, cookie: str) -> Login | None:
        """Return the login whose cookie has that digest; it may be over."""
        rows = await self._db.lookup(_GET, {"cookie": cookie})
        return Login(*rows[0]) if rows else None


ORDER = (link, exchange, use, end)
