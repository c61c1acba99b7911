"""Logs in the store: lines of replicas, tasks and the node about them, written by `control.logs` alone.

Lines are numbered in the order of their commits: who writes holds the row `log_head` until its commit. So whoever has
seen a number misses no smaller one, whatever node it comes from.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from greenroom import errors
from greenroom.store import agent_patterns, database
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News
from greenroom.store.vault import Vault, damage

MAX_DROPPED = 500  # of one commit, of the oldest and of each agent's


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """*of_task*: its task said it, or it is said of its task; *source* is stdout, stderr, event, or greenroom."""

    at: int
    tenant: str
    agent: str
    replica: str = ""
    task: str | None = None
    epoch: int | None = None
    of_task: bool = False
    level: int
    source: str
    logger: str = ""
    text: str


class StoredLine(msgspec.Struct, frozen=True):
    """A row, and of which trace its task is, as long as there is the task."""

    seq: int
    at: int
    tenant: str
    agent: str
    replica: str
    task: str | None
    epoch: int | None
    of_task: bool
    level: int
    source: str
    logger: str
    text: bytes
    trace: str | None  # the task's context


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines of *tenant*: those of tasks of the agents *of_tasks*, and all others of the agents *of_agents*.

    *since* in microseconds.
    """

    tenant: str
    of_tasks: Agents = None
    of_agents: Agents = None
    agent: str | None = None
    task: str | None = None
    replica: str | None = None
    level: int = 0
    since: int | None = None


class Bounds(msgspec.Struct, frozen=True):
    """What is kept: for how long, and so much for each agent and tenant."""

    keep_s: float
    lines: int
    bytes: int


_COLUMNS = tuple(name for name in StoredLine.__struct_fields__ if name != "trace")
_NUMBER = """
insert into log_head (id, seq) values (1, :count)
on conflict (id) do update set seq = log_head.seq + :count returning seq"""
_PUT = f"insert into log_line ({', '.join(_COLUMNS)}) values ({', '.join(f':{name}' for name in _COLUMNS)})"
_COUNT = """
insert into log_size (tenant, agent, lines, bytes) values (:tenant, :agent, :lines, :bytes)
on conflict (tenant, agent) do update set lines = log_size.lines + :lines, bytes = log_size.bytes + :bytes"""
_HEAD = "select seq from log_head where id = 1"
# Asked of the task where a line is shown: a column would cost each line that is written.
_TRACE = "(select trace from task where task.id = log_line.task and task.tenant = log_line.tenant)"
_READ = f"select {', '.join(_COLUMNS)}, {_TRACE} from log_line where {{which}} order by seq {{order}} limit :limit"
# Numbers are in the order of time, near enough: the oldest are looked at, and no index by time is needed.
_DROP_OLD = """
delete from log_line where seq in (select seq from log_line order by seq limit :most) and at < :before
returning tenant, agent, length(text)"""
_TOO_MUCH = "select tenant, agent, lines, bytes from log_size where lines > :lines or bytes > :bytes limit 50"
_DROP_FIRST = """
delete from log_line where seq in (
    select seq from log_line where tenant = :tenant and agent = :agent order by seq limit :most)
returning tenant, agent, length(text)"""
_EMPTY = "delete from log_size where lines <= 0"


async def put(tx: Transaction, news: News, items: Sequence[Line]) -> list[int]:
    """Store *items* in this order; return their numbers. To be late in a commit: it locks what all nodes wait for."""
    await news.seals.take(tx, {item.tenant for item in items})
    ((last,),) = await tx.fetch(_NUMBER, {"count": len(items)})
    rows, sizes = [], Counter[tuple[str, str]]()
    for seq, item in enumerate(items, start=last - len(items) + 1):
        text = news.seals.seal(item.tenant, "log_line", "text", (str(seq),), item.text.encode())
        assert text is not None
        rows.append(msgspec.structs.asdict(item) | {"seq": seq, "text": text})
        sizes[item.tenant, item.agent] += len(text)
    await tx.execute_many(_PUT, rows)
    counts = Counter((item.tenant, item.agent) for item in items)
    await _count(tx, counts, sizes)
    return [row["seq"] for row in rows]


async def _count(tx: Transaction, lines: Counter[tuple[str, str]], sizes: Counter[tuple[str, str]]) -> None:
    keys = sorted(lines)  # in one order for all: two nodes must not wait for each other
    params = [{"tenant": key[0], "agent": key[1], "lines": lines[key], "bytes": sizes[key]} for key in keys]
    await tx.execute_many(_COUNT, params)


async def trim(tx: Transaction, news: News, items: Sequence[Bounds]) -> list[bool]:
    """Drop some of what is beyond the bounds, the oldest first; whether there may be more."""
    return [await _trim(tx, item) for item in items]


async def _trim(tx: Transaction, bounds: Bounds) -> bool:
    before_us = tx.now_us - int(bounds.keep_s * 1e6)
    gone = list(await tx.fetch(_DROP_OLD, {"before": before_us, "most": MAX_DROPPED}))
    is_more = len(gone) == MAX_DROPPED
    for tenant, agent, lines, size_bytes in await tx.fetch(_TOO_MUCH, {"lines": bounds.lines, "bytes": bounds.bytes}):
        # By size as many as there would be if all were of one size, until it is enough.
        most = max(lines - bounds.lines, int(lines * (1 - bounds.bytes / max(1, size_bytes))), 1)
        is_more = is_more or most > MAX_DROPPED or size_bytes > bounds.bytes
        first = {"tenant": tenant, "agent": agent, "most": min(most, MAX_DROPPED)}
        gone += await tx.fetch(_DROP_FIRST, first)
    lines_gone, bytes_gone = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for tenant, agent, size_bytes in gone:
        lines_gone[tenant, agent] -= 1
        bytes_gone[tenant, agent] -= size_bytes
    if gone:
        await _count(tx, lines_gone, bytes_gone)
        await tx.execute_many(_EMPTY, [{}])
    return is_more


class Logs:
    """Who follows is woken whenever this node has stored lines."""

    def __init__(self, db: database.Database, commits: Commits, vault: Vault) -> None:
        self._db, self._commits, self._vault = db, commits, vault
        self._followers: set[asyncio.Event] = set()

    async def put(self, lines: Sequence[Line]) -> None:
        """Store *lines*, in order, in one commit. Raises `errors.StoreUnavailable` where it is unknown whether they
        were stored.
        """
        for answer in await self._commits.write_all(put, lines):
            if isinstance(answer, BaseException):
                raise answer
        for follower in self._followers:
            follower.set()

    async def trim(self, bounds: Bounds) -> bool:
        """Drop a batch of what is beyond *bounds*; return whether there may be more."""
        is_more: bool = await self._commits.write(trim, bounds)
        return is_more

    @property
    def followers(self) -> int:
        return len(self._followers)

    @contextmanager
    def followed(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever this node has stored lines."""
        event = asyncio.Event()
        self._followers.add(event)
        try:
            yield event
        finally:
            self._followers.discard(event)

    async def head(self) -> int:
        """Return the number of the last line that was ever stored."""
        found = await self._db.lookup(_HEAD, {})
        return int(found[0][0]) if found else 0

    async def latest(self, which: Filter, *, before: int | None = None, limit: int) -> Sequence[StoredLine]:
        """Return the latest lines, of those numbered below *before*: the latest first."""
        more = ("seq < :before", {"before": before}) if before is not None else ("", {})
        return await self._read(which, more, order="desc", limit=limit)

    async def after(self, which: Filter, seq: int, *, limit: int) -> Sequence[StoredLine]:
        """Return the first lines numbered above *seq*, in their order."""
        return await self._read(which, ("seq > :after", {"after": seq}), order="asc", limit=limit)

    async def _read(
        self, which: Filter, more: tuple[str, dict[str, Any]], *, order: str, limit: int
    ) -> Sequence[StoredLine]:
        conditions, params = _where(which)
        if more[0]:
            conditions.append(more[0])
        sql = _READ.format(which=" and ".join(conditions), order=order)
        rows = [StoredLine(*row) for row in await self._db.read(sql, params | more[1] | {"limit": limit})]
        return [await self._opened(row) for row in rows]

    async def _opened(self, row: StoredLine) -> StoredLine:
        """Return it with its text in the clear; where that does not open, with one that says so."""
        try:
            text = await self._vault.opened(row.tenant, "log_line", "text", (str(row.seq),), bytes(row.text))
        except errors.StoreDamaged as error:
            text = f"({damage(error)['message']})".encode()
        assert text is not None
        return msgspec.structs.replace(row, text=text)


def _where(which: Filter) -> tuple[list[str], dict[str, Any]]:
    params: dict[str, Any] = {"tenant": which.tenant}
    tasks, agents = agent_patterns.condition(which.of_tasks, params), agent_patterns.condition(which.of_agents, params)
    conditions = ["tenant = :tenant"]
    if (tasks, agents) != (None, None):
        conditions.append(f"((of_task and {tasks or '1 = 1'}) or (not of_task and {agents or '1 = 1'}))")
    for name in ("agent", "task", "replica"):
        if (value := getattr(which, name)) is not None:
            conditions.append(f"{name} = :{name}")
            params[name] = value
    if which.level:
        conditions.append("level >= :level")
        params["level"] = which.level
    if which.since is not None:
        conditions.append("at >= :since")
        params["since"] = which.since
    return conditions, params


ORDER = (trim, put)
