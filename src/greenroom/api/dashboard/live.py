"""Live pages: each is rendered once for all who may see the same of it, and only what has changed is sent.

A feed renders while somebody watches it: soon after a commit told of news, slowly while nothing happens, and never so
often that all feeds together take more than a share of a core. News are a hint; looking is the guarantee.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping

import msgspec

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store.news import Hub, News

MAX_STREAMS = 200
PACE_S, REST_S = 1.0, 5.0  # between two looks at least, and at most while nothing happens
SHARE = 0.03  # of a core that all rendering may take
LOOK_S = 1.0  # how soon a stream notices that it has to end


class Region(msgspec.Struct, frozen=True):
    """A part of a page that changes: its HTML, and a digest of it."""

    version: str
    html: str


Regions = Mapping[str, Region]
Render = Callable[[], Awaitable[Regions]]


class Seen(msgspec.Struct, frozen=True):
    """What a page is like now; *trouble* says why it cannot be told, and then the regions are those of before."""

    regions: Regions = {}
    trouble: str = ""


class _Feed:
    def __init__(self, render: Render) -> None:
        self.render, self.seen = render, Seen()
        self.begun_s = float("-inf")  # when what is seen began to be looked at
        self.took_s = self.cost_s = 0.0  # of the last time; of the lesser of the last two
        self.hint = asyncio.Event()
        self.watchers: set[asyncio.Event] = set()
        self.task: asyncio.Task[None] | None = None

    def tell(self) -> None:
        for watcher in self.watchers:
            watcher.set()


class Feeds:
    def __init__(self, clock: clocks.Clock, hub: Hub) -> None:
        self._clock, self._hub = clock, hub
        self._feeds: dict[Hashable, _Feed] = {}
        self._is_hinted = False  # every feed's hint is set: a busy node says no more until one looks

    async def watch(self, key: Hashable, render: Render) -> AsyncIterator[Seen]:
        """Yield what there is, at once and then whenever it may have changed, and every `LOOK_S`.

        Whoever has the same *key* sees the same. Raises `errors.Overloaded` where too many watch.
        """
        if sum(len(feed.watchers) for feed in self._feeds.values()) >= MAX_STREAMS:
            raise errors.Overloaded(f"cannot keep more than {MAX_STREAMS} pages live", retry_after_s=10.0)
        joined_s = self._clock.monotonic_s()
        feed = self._joined(key, render)
        watcher = asyncio.Event()
        feed.watchers.add(watcher)
        try:
            while True:
                if feed.task is not None and feed.task.done():
                    feed.task.result()  # it has crashed, and is told as what it is
                # What was seen before may be older than the page that asks.
                yield feed.seen if feed.begun_s >= joined_s else Seen(trouble=feed.seen.trouble)
                await self._clock.sleep(LOOK_S, watcher)
        finally:
            feed.watchers.discard(watcher)
            if not feed.watchers and self._feeds.get(key) is feed:
                self._end(key, feed)

    def _joined(self, key: Hashable, render: Render) -> _Feed:
        if not self._feeds:
            self._hub.subscribe(self._hear)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = _Feed(render)
            feed.task = asyncio.create_task(self._run(feed), name="greenroom-page")
            feed.task.add_done_callback(lambda _: feed.tell())
        feed.hint.set()
        return feed

    def _end(self, key: Hashable, feed: _Feed) -> None:
        del self._feeds[key]
        if feed.task is not None:
            feed.task.cancel()
        if not self._feeds:
            self._hub.unsubscribe(self._hear)
            self._is_hinted = False

    def _hear(self, _: News) -> None:
        if not self._is_hinted:
            self._is_hinted = True
            for feed in self._feeds.values():
                feed.hint.set()

    async def _run(self, feed: _Feed) -> None:
        while True:
            feed.hint.clear()
            self._is_hinted = False
            begun_s = self._clock.monotonic_s()
            try:
                seen = Seen(await feed.render())
            except errors.GreenroomError as error:
                seen = Seen(feed.seen.regions, str(error))
            took_s = self._clock.monotonic_s() - begun_s
            feed.cost_s = min(took_s, feed.took_s)  # what else the node did meanwhile is no cost of the page
            feed.took_s, feed.begun_s = took_s, begun_s
            if seen != feed.seen:
                feed.seen = seen
                feed.tell()
            pace_s = max(PACE_S, sum(each.cost_s for each in self._feeds.values()) / SHARE)
            await self._clock.sleep(pace_s)
            await self._clock.sleep(max(0.0, REST_S - pace_s), feed.hint)
