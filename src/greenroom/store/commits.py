"""Group commit: what arrives while one commit is in flight goes together into the next. Nothing waits for a timer.

An *operation* is ``async (transaction, news, items) -> results``, one result for each item; operations of one commit
run in the order of `Commits.__init__`. What it made true (`News`) is told only after the commit, when nothing can
repeat it any more. If a commit fails for a reason of one item's own, its items are committed one by one, so that no
innocent fails with it.

What is an act (`acts_of`) goes to the audit log in the same transaction, last of all: see `store.audit`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from greenroom import errors
from greenroom.store import acting, database
from greenroom.store.news import News
from greenroom.store.vault import PLAIN, Seals, Vault

MAX_ATTEMPTS = 5  # of a commit that other nodes' transactions are in the way of
MAX_ITEMS = 1_000  # of one commit: bounds how long it holds the event loop

Operation = Callable[[database.Transaction, News, Sequence[Any]], Awaitable[Sequence[Any]]]


class _Entry(msgspec.Struct, eq=False):
    """What was written together, and the future that has the result of each item."""

    operation: Operation
    items: Sequence[Any]
    future: asyncio.Future[Any]
    is_one: bool
    actor: acting.Actor | None = None  # of an act

    def resolve(self, results: list[Any]) -> None:
        if self.future.done():
            return
        if not self.is_one:
            self.future.set_result(results)
        elif isinstance(results[0], Exception):
            self.future.set_exception(results[0])
        else:
            self.future.set_result(results[0])


class Commits:
    """The only writer of a store.

    *last* runs at the end of each commit, *settle* after it: with the news, and whether they are stored. *acts_of* says
    for the operations that may be acts what each item was, by its result; *append* writes them, while *is_auditing*.

    *late* are those of *order* that run after *last*: they lock what all nodes wait for, the ends of the logs and
    of the audit log, and who holds these must not wait for anything else.
    """

    is_auditing = False

    def __init__(
        self,
        db: database.Database,
        *,
        order: Sequence[Operation],
        last: Callable[[database.Transaction, News], Awaitable[None]],
        settle: Callable[[News, bool], None],
        has_demand: Callable[[], bool],
        acts_of: Mapping[Operation, Callable[[Any, Any], Any]] = MappingProxyType({}),
        append: Callable[[database.Transaction, News, Sequence[Any]], Awaitable[None]] | None = None,
        late: frozenset[Operation] = frozenset(),
        vault: Vault = PLAIN,
    ) -> None:
        self._late = late
        self._db, self._last, self._settle, self._has_demand = db, last, settle, has_demand
        self._acts_of, self._append, self._vault = acts_of, append, vault
        self._rank = {operation: rank for rank, operation in enumerate(order)}
        self._pending: deque[_Entry] = deque()
        self._in_flight: list[_Entry] = []
        self._wakeup = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # kept: to ask for it costs a system call
        self._closed = False
        self._now_s: Callable[[], float] = lambda: 0.0
        self._tell: Callable[[float, int], None] | None = None

    def time(self, now_s: Callable[[], float], tell: Callable[[float, int], None]) -> None:
        """Have *tell* called after each commit: with its duration, by *now_s*, and how many items went into it."""
        self._now_s, self._tell = now_s, tell

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name="store-commits")

    def write(self, operation: Operation, item: Any) -> asyncio.Future[Any]:
        """Put *item* into the next commit; the future has its result once that is durable.

        Raises (through the future) `errors.StoreUnavailable` when it is unknown whether the item was stored.
        """
        return self._put(operation, [item], is_one=True)

    def write_all(self, operation: Operation, items: Sequence[Any]) -> asyncio.Future[list[Any]]:
        """Put *items* into the next commits; the future has the result of each, or the exception that it met."""
        return self._put(operation, items, is_one=False)

    def _put(self, operation: Operation, items: Sequence[Any], *, is_one: bool) -> asyncio.Future[Any]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        actor = acting.actor.get() if operation in self._acts_of else None
        entry = _Entry(operation, items, self._loop.create_future(), is_one, actor)
        if self._closed:
            entry.resolve([errors.StoreUnavailable("cannot write to the store: it is closed")] * len(items))
        else:
            self._pending.append(entry)
            self._wakeup.set()
        return entry.future

    def unanswered(self, operation: Operation) -> Iterator[Any]:
        """Yield the items of *operation* that have been put but not answered."""
        for entry in (*self._in_flight, *self._pending):
            if entry.operation == operation:
                yield from entry.items

    def nudge(self) -> None:
        """Ask for a commit although nothing new is to be written: the board has changed."""
        self._wakeup.set()

    async def ended(self) -> None:
        """Return never, or raise what stopped the writer: a bug, after which nothing is stored any more."""
        assert self._runner is not None, "the writer has not been started"
        await asyncio.shield(self._runner)

    async def close(self) -> None:
        """Commit what is pending, then stop."""
        self._closed = True
        self._wakeup.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner

    async def _run(self) -> None:
        try:
            await self._serve()
        finally:
            # Also where a listener broke: better nobody writes than that a commit is repeated or nobody answers.
            self._closed = True
            _fail(self._pending, errors.StoreUnavailable("cannot write to the store: its writer has stopped"))

    async def _serve(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            await asyncio.sleep(0)  # no delay, but whoever is ready in this turn of the loop joins the commit
            batch = self._in_flight = self._take()
            if batch or self._has_demand():
                begun_s = self._now_s()
                await self._commit(batch)
                if self._tell is not None:
                    self._tell(self._now_s() - begun_s, sum(len(entry.items) for entry in batch))
            self._in_flight = []
            if self._pending:
                self._wakeup.set()
            elif self._closed:
                return

    def _take(self) -> list[_Entry]:
        """Take what fits one commit; what was written together stays together."""
        batch: list[_Entry] = []
        count = 0
        while self._pending and (not batch or count + len(self._pending[0].items) <= MAX_ITEMS):
            batch.append(self._pending.popleft())
            count += len(batch[-1].items)
        return batch

    async def _commit(self, batch: list[_Entry]) -> None:
        try:
            results, news = await self._attempt_often(batch)
        except errors.StoreUnavailable as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever one item caused must not reach its neighbours
            await self._commit_apart(batch, error)
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.resolve(result)
            self._settle(news, True)

    async def _commit_apart(self, batch: list[_Entry], error: Exception) -> None:
        if not batch:
            raise error  # nobody's item: a bug of what concludes each commit, and nothing can be stored any more
        if len(batch) > 1:
            for entry in batch:
                await self._commit([entry])
        elif len(batch[0].items) == 1:
            _fail(batch, error)
        else:
            (entry,) = batch
            parts = [
                _Entry(entry.operation, [item], asyncio.Future(), is_one=True, actor=entry.actor)
                for item in entry.items
            ]
            for part in parts:
                await self._commit([part])
            entry.resolve([part.future.exception() or part.future.result() for part in parts])

    async def _attempt_often(self, batch: list[_Entry]) -> tuple[list[list[Any]], News]:
        attempt = 1
        while True:
            news = News(Seals(self._vault))
            try:
                return await self._attempt(batch, news), news
            except BaseException as error:
                self._settle(news, False)
                if not isinstance(error, database.RetryTransaction):
                    raise
                if attempt >= MAX_ATTEMPTS:
                    raise errors.StoreUnavailable(f"cannot write to the store: {error}; try again") from error
            attempt += 1

    async def _attempt(self, batch: list[_Entry], news: News) -> list[list[Any]]:
        """Run each operation once, on all its items, and give the results back to the entries that they came from."""
        groups: dict[Operation, list[Any]] = {}
        for entry in batch:
            groups.setdefault(entry.operation, []).extend(entry.items)
        answers: dict[Operation, Iterator[Any]] = {}
        async with self._db.transaction() as tx:
            acts: list[Any] = []
            for operation in sorted(groups.keys() - self._late, key=self._rank.__getitem__):
                results = await operation(tx, news, groups[operation])
                assert len(results) == len(groups[operation])
                answers[operation] = iter(results)
                if self.is_auditing and operation in self._acts_of:
                    acts += self._acts(operation, batch, results)
            await self._last(tx, news)
            for operation in sorted(groups.keys() & self._late, key=self._rank.__getitem__):
                answers[operation] = iter(await operation(tx, news, groups[operation]))
            if acts:
                assert self._append is not None
                await self._append(tx, news, acts)
        return [list(itertools.islice(answers[entry.operation], len(entry.items))) for entry in batch]

    def _acts(self, operation: Operation, batch: list[_Entry], results: Sequence[Any]) -> Iterator[Any]:
        """Yield the acts among the items of *operation*, each with who was acting."""
        act_of, left = self._acts_of[operation], iter(results)
        for entry in batch:
            if entry.operation == operation:
                for item, result in zip(entry.items, left, strict=False):
                    act = act_of(item, result)
                    for each in act if isinstance(act, list) else () if act is None else (act,):
                        if entry.actor is not None or not each.is_routine:
                            yield each, entry.actor


def _fail(batch: Iterable[_Entry], error: Exception) -> None:
    for entry in batch:
        entry.resolve([error] * len(entry.items))
