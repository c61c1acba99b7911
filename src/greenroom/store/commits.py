"""Group commit: what arrives while one commit is in flight goes together into the next. Nothing waits for a timer.

An *operation* is ``async (transaction, items) -> results``, one result for each item; operations of one commit run in
the order of `Commits.__init__`. News (`Transaction` facts worth waking somebody for) are published only after the
commit, when nothing can repeat it any more. If a commit fails for a reason of one item's own, its items are committed
one by one, so that no innocent fails with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from greenroom import errors
from greenroom.store import database
from greenroom.store.news import News

MAX_ATTEMPTS = 5  # of a commit that other nodes' transactions are in the way of
MAX_ITEMS = 1_000  # of one commit: bounds how long it holds the event loop

Operation = Callable[[database.Transaction, News, Sequence[Any]], Awaitable[Sequence[Any]]]
_Entry = tuple[Operation, Any, "asyncio.Future[Any]"]


class Commits:
    """The only writer of a store. *last* runs at the end of each commit: the standing claim of the board."""

    def __init__(
        self,
        db: database.Database,
        *,
        order: Sequence[Operation],
        publish: Callable[[News], None],
        last: Callable[[database.Transaction, News], Awaitable[Callable[[bool], None]]],
        has_demand: Callable[[], bool],
    ) -> None:
        self._db, self._publish, self._last, self._has_demand = db, publish, last, has_demand
        self._rank = {operation: rank for rank, operation in enumerate(order)}
        self._pending: list[_Entry] = []
        self._wakeup = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        self._runner = asyncio.create_task(self._run(), name="store-commits")

    def write(self, operation: Operation, item: Any) -> asyncio.Future[Any]:
        """Put *item* into the next commit; the future has its result once that is durable.

        Raises (through the future) `errors.StoreUnavailable` when it is unknown whether the item was stored.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._closed:
            future.set_exception(errors.StoreUnavailable("cannot write to the store: it is closed"))
            return future
        self._pending.append((operation, item, future))
        self._wakeup.set()
        return future

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
            batch = self._take()
            if batch or self._has_demand():
                await self._commit(batch)
            if self._pending:
                self._wakeup.set()
            elif self._closed:
                return

    def _take(self) -> list[_Entry]:
        batch, self._pending = self._pending[:MAX_ITEMS], self._pending[MAX_ITEMS:]
        return batch

    async def _commit(self, batch: list[_Entry]) -> None:
        try:
            results, settle = await self._attempt_often(batch)
        except errors.StoreUnavailable as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever one item caused must not reach its neighbours
            if len(batch) <= 1:
                _fail(batch, error)
            else:
                for entry in batch:
                    await self._commit([entry])
        else:
            for (_, _, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
            settle()

    async def _attempt_often(self, batch: list[_Entry]) -> tuple[list[Any], Callable[[], None]]:
        attempt = 1
        while True:
            try:
                return await self._attempt(batch)
            except database.RetryTransaction as error:
                if attempt >= MAX_ATTEMPTS:
                    raise errors.StoreUnavailable(f"cannot write to the store: {error}; try again") from error
            attempt += 1

    async def _attempt(self, batch: list[_Entry]) -> tuple[list[Any], Callable[[], None]]:
        groups: dict[Operation, list[int]] = {}
        for index, (operation, _, _) in enumerate(batch):
            groups.setdefault(operation, []).append(index)
        results: list[Any] = [None] * len(batch)
        news = News()
        settle_last: Callable[[bool], None] | None = None
        try:
            async with self._db.transaction() as tx:
                for operation in sorted(groups, key=self._rank.__getitem__):
                    indices = groups[operation]
                    answers = await operation(tx, news, [batch[index][1] for index in indices])
                    for index, answer in zip(indices, answers, strict=True):
                        results[index] = answer
                settle_last = await self._last(tx, news)
        except BaseException:
            if settle_last is not None:
                settle_last(False)
            raise

        def settle() -> None:
            settle_last(True)
            self._publish(news)

        return results, settle


def _fail(batch: list[_Entry], error: Exception) -> None:
    for _, _, future in batch:
        if not future.done():
            future.set_exception(error)
