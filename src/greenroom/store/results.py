"""The result cache: tasks that are answered with another's result, and those that wait for one (single flight).

Of the tasks of one key that are open, the oldest may run and the others are blocked, as in a session. The commit that
ends it with success answers them; any other end lets the next one go. Sub-tasks are answered, too, but wait for nobody:
two tasks that call one another would wait for ever. All of it is rows: a restart changes nothing.

Who changes whether a key has open tasks takes its row of `result_cache` first, so that two nodes never let two run.
Called by the commits that store tasks (`submit`, `submit_call`) and at the end of each commit (`conclude`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from greenroom import errors, settings
from greenroom.core import caching, tasks
from greenroom.store import database, submissions
from greenroom.store.commits import Commits, Operation
from greenroom.store.database import Transaction
from greenroom.store.news import KeyedEnd, News
from greenroom.store.rows import IS_OPEN, Accepted, NewTask
from greenroom.store.submissions import CacheKey, Found

MAX_ANSWERED = 1_000  # tasks that one end answers; where more wait, the next one runs
MAX_ANSWERED_BYTES = 32 * 1024 * 1024  # ... and of their results: each gets its own
MAX_DROPPED = 500  # entries that one statement deletes: what commits together stays short

_FIND = """
select task.id, task.revision, task.output from result_cache join task on task.id = result_cache.task
where result_cache.tenant = :tenant and result_cache.agent = :agent and result_cache.key = :key
    and result_cache.expires_at > :now and task.state = 'succeeded'"""
# Who has taken the row is the only one who lets tasks of its key go.
_TAKE = """
insert into result_cache (tenant, agent, key, expires_at) values (:tenant, :agent, :key, :now)
on conflict (tenant, agent, key) do update set expires_at = result_cache.expires_at"""
_PUT = """
insert into result_cache (tenant, agent, key, task, expires_at) values (:tenant, :agent, :key, :task, :expires_at)
on conflict (tenant, agent, key) do update set task = excluded.task, expires_at = excluded.expires_at"""

_OF_KEY = f"""
from task where tenant = :tenant and agent = :agent and cache_key = :key and cache_key is not null and {IS_OPEN}
    and parent is null"""
_LET_GO = f"""
update task set blocked = false where seq = (select seq {_OF_KEY} order by seq limit 1) and blocked returning id"""
# Not by its state, which leads PostgreSQL to an index of all that is queued: who is blocked and open waits.
# Who is waited for by somebody more urgent is as urgent, until it runs.
_LIFT = f"""
update task set priority = :priority where seq = (select seq {_OF_KEY} order by seq limit 1)
    and state = 'queued' and not blocked and priority < :priority"""
_WAITING = f"select seq, id, webhook {_OF_KEY} and blocked order by seq limit :most for update"
_ANSWER = """
update task set state = 'succeeded', reason = 'cached', output = :output, cached_from = :task, revision = :revision,
    finished_at = :now, blocked = false, due_at = null, event_seq = event_seq + 1
where seq = :seq and state = 'queued' and blocked"""

_DROP = """
delete from result_cache where (tenant, agent, key) in (
    select tenant, agent, key from result_cache where {which} limit :most) returning key"""
_DROP_EXPIRED = _DROP.format(which="expires_at <= :now order by expires_at")
_DROP_OLDEST = _DROP.format(which="tenant = :tenant and agent = :agent order by expires_at, key")
_DROP_OVER = _DROP.format(
    which="""tenant = :tenant and agent = :agent and (expires_at, key) <= (
        select expires_at, key from result_cache where tenant = :tenant and agent = :agent
        order by expires_at desc, key desc limit 1 offset :max_entries)
    order by expires_at, key"""
)
_COUNTS = "select tenant, agent, count(*) from result_cache group by tenant, agent order by tenant, agent"


class Expired(msgspec.Struct, frozen=True):
    """The entries whose time is over."""


class Oldest(msgspec.Struct, frozen=True):
    """The *most* oldest entries of a tenant and agent."""

    tenant: str
    agent: str
    most: int


class Results:
    """*submit* stores tasks that have no key. *cache_of* tells how an agent caches now; None: it is not known.

    *is_on* is the switch for all agents: without it no task gets a key.
    """

    def __init__(self, *, submit: Operation, cache_of: Callable[[str], settings.Cache | None]) -> None:
        self._submit, self._cache_of = submit, cache_of
        self.is_on = False
        self._untrimmed: Counter[tuple[str, str]] = Counter()  # entries since a tenant's were cut back
        self._trimmed: set[tuple[str, str]] = set()

    def key(self, agent: str, revision: int, input: bytes) -> str | None:
        """Return the key of a submission to *agent*, which *revision* serves; None where nothing is cached."""
        if not self.is_on:
            return None
        cache = self._cache_of(agent)
        return None if cache is None or cache.ttl_s == "off" else caching.key(revision, input)

    async def submit(self, tx: Transaction, news: News, items: Sequence[NewTask]) -> Sequence[Accepted]:
        """Store tasks; those that have a key are answered, or wait, or are the first of their key."""
        keyed = [item for item in items if item.cache_key is not None] if self.is_on else []
        if not keyed:
            return await self._submit(tx, news, items)
        plain = [item for item in items if item.cache_key is None]
        of_plain = iter(await self._submit(tx, news, plain) if plain else ())
        of_keyed = iter(await submit(tx, news, keyed))
        return [next(of_plain if item.cache_key is None else of_keyed) for item in items]

    async def conclude(self, tx: Transaction, news: News) -> None:
        """Keep what tasks with a key came to in this commit, answer who waits for it, and let the next ones go."""
        if not news.keyed:
            return
        ends, news.keyed = news.keyed, []
        keys = {(end.tenant, end.agent, end.key) for end in ends}
        await _take(tx, keys)
        succeeded = {(end.tenant, end.agent, end.key): end for end in ends if end.output is not None}
        for end in succeeded.values():
            await _answer(tx, news, end)
        await self._put(tx, succeeded.values())
        await _let_go(tx, news, keys)

    async def _put(self, tx: Transaction, ends: Iterable[KeyedEnd]) -> None:
        grown: dict[tuple[str, str], int] = {}
        entries: dict[CacheKey, tuple[str, str, str, str, int]] = {}
        for end in ends:
            cache = self._cache_of(end.agent)
            if cache is None or cache.ttl_s == "off":
                continue  # it cached when the task was accepted
            key = caching.made_by(end.key, end.revision)
            expires_at = tx.now_us + int(cache.ttl_s * 1e6)
            entries[end.tenant, end.agent, key] = (end.tenant, end.agent, key, end.task, expires_at)
            grown[end.tenant, end.agent] = cache.max_entries
            self._untrimmed[end.tenant, end.agent] += 1
        await tx.execute_many(_PUT, [entries[key] for key in sorted(entries)])
        for place, max_entries in sorted(grown.items()):
            await self._trim(tx, place, max_entries)

    async def _trim(self, tx: Transaction, place: tuple[str, str], max_entries: int) -> None:
        """Drop the oldest entries that are too many, when enough have come since that was done."""
        is_known = place in self._trimmed  # else a node before this one has counted, or none
        if is_known and self._untrimmed[place] < caching.trims_after(max_entries):
            return
        tenant, agent = place
        params = {"tenant": tenant, "agent": agent, "max_entries": max_entries, "most": MAX_DROPPED}
        if len(await tx.fetch(_DROP_OVER, params)) < MAX_DROPPED:  # else the next entry goes on with it
            self._untrimmed[place] = 0
            self._trimmed.add(place)


async def submit(tx: Transaction, news: News, items: Sequence[NewTask]) -> list[Accepted]:
    """Store tasks that have a key: answered at once, or queued, all of a key but the oldest blocked."""
    items = await _hashed(tx, news, items)
    keys = {_key(item) for item in items}
    found = await _find(tx, news, keys)
    if missed := keys - found.keys():
        await _take(tx, missed)
    accepted = await submissions.submit_keyed(tx, news, items, found)
    let_go = await _let_go(tx, news, missed)
    joined = [item for item in items if item.id not in let_go and _key(item) in missed]
    await tx.execute_many(_LIFT, [(item.priority, *_key(item)) for item in joined])
    answers = []
    for item, answer in zip(items, accepted, strict=True):
        word = "hit" if _key(item) in found else "miss" if item.id in let_go else "joined"
        answers.append(answer)
        if answer.is_new:
            news.cache[item.agent, word] += 1
    return answers


async def submit_call(tx: Transaction, news: News, child: NewTask) -> Accepted:
    """Store a sub-task that has a key: answered at once, or queued; it waits for nobody of its key."""
    (child,) = await _hashed(tx, news, [child])
    found = await _find(tx, news, {_key(child)})
    (accepted,) = await submissions.submit_keyed(tx, news, [child], found)
    if accepted.is_new:
        news.cache[child.agent, "hit" if found else "miss"] += 1
    return accepted


async def _hashed(tx: Transaction, news: News, items: Sequence[NewTask]) -> Sequence[NewTask]:
    """Return *items* with the keys under which their results are kept: in an encrypted store keyed hashes."""
    await news.seals.take(tx, {item.tenant for item in items})
    hashed = []
    for item in items:
        assert item.cache_key is not None
        hashed.append(msgspec.structs.replace(item, cache_key=news.seals.cache_key(item.tenant, item.cache_key)))
    return hashed


def _key(item: NewTask) -> CacheKey:
    assert item.cache_key is not None
    return item.tenant, item.agent, item.cache_key


async def _find(tx: Transaction, news: News, keys: Collection[CacheKey]) -> dict[CacheKey, Found]:
    found = {}
    for key in sorted(keys):
        for id, revision, stored in await tx.fetch(_FIND, (*key, tx.now_us)):
            with contextlib.suppress(errors.StoreDamaged):  # as good as none: the task runs
                output = await news.seals.vault.opened(key[0], "task", "output", (id,), stored)
                assert output is not None
                found[key] = Found(id, revision, output)
    return found


async def _take(tx: Transaction, keys: Collection[CacheKey]) -> None:
    """Take the rows of keys, made if missing; in one order for all, so that two nodes seldom wait for each other."""
    await tx.execute_many(_TAKE, [(*key, tx.now_us) for key in sorted(keys)])


async def _let_go(tx: Transaction, news: News, keys: Collection[CacheKey]) -> set[str]:
    """Let the oldest open task of each key go, if it is blocked; return those that were."""
    let_go = {row[0]: key for key in sorted(keys) for row in await tx.fetch(_LET_GO, key)}
    news.ready.update((agent, tenant) for tenant, agent, _ in let_go.values())
    return set(let_go)


async def _answer(tx: Transaction, news: News, end: KeyedEnd) -> None:
    """Answer the tasks that wait for *end*, the oldest first."""
    assert end.output is not None
    most = max(1, min(MAX_ANSWERED, MAX_ANSWERED_BYTES // max(1, len(end.output))))
    waiting = await tx.fetch(_WAITING, (end.tenant, end.agent, end.key, most))
    await news.seals.take(tx, {end.tenant})
    given = (end.task, end.revision, tx.now_us)
    seal = news.seals.seal
    answers = [(seal(end.tenant, "task", "output", (id,), end.output), *given, seq) for seq, id, _ in waiting]
    await tx.execute_many(_ANSWER, answers)
    news.left[end.tenant] += len(waiting)
    news.hooked += [id for _, id, webhook in waiting if webhook is not None]
    for _, id, _ in waiting:
        news.end(id, end.tenant, end.agent, tasks.State.SUCCEEDED)


async def expire(tx: Transaction, news: News, items: Sequence[Expired]) -> list[int]:
    """Drop entries whose time is over, at most `MAX_DROPPED`; answers how many those were."""
    dropped = await tx.fetch(_DROP_EXPIRED, {"now": tx.now_us, "most": MAX_DROPPED})
    return [len(dropped)] * len(items)


async def drop(tx: Transaction, news: News, items: Sequence[Oldest]) -> list[int]:
    """Drop the oldest entries; answers how many there were to drop."""
    return [len(await tx.fetch(_DROP_OLDEST, msgspec.structs.asdict(item))) for item in items]


class Cache:
    """The cache as the loops see it."""

    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def expire(self) -> int:
        """Drop all entries whose time is over; return how many those were."""
        dropped = 0
        while True:
            count: int = await self._commits.write(expire, Expired())
            dropped += count
            if count < MAX_DROPPED:
                return dropped

    async def trim(self, agent: str | None = None) -> int:
        """Drop the older half of the entries of *agent*, or of all, tenant by tenant; return how many those were."""
        dropped = 0
        for (tenant, name), count in (await self.counts()).items():
            left = count // 2 if agent in (None, name) else 0
            while left:
                some: int = await self._commits.write(drop, Oldest(tenant, name, min(left, MAX_DROPPED)))
                dropped, left = dropped + some, left - some if some else 0
        return dropped

    async def counts(self) -> Mapping[tuple[str, str], int]:
        """Return how many entries there are, by tenant and agent."""
        return {(row[0], row[1]): row[2] for row in await self._db.read(_COUNTS, {})}


ORDER = (expire, drop)
