"""The store as one value: opened by `node`, passed to the loops and the API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from greenroom import clock as clocks
from greenroom import errors
from greenroom.store import agents, database, directory, news, principals, sessions, tasks, transitions
from greenroom.store.board import Board
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.transitions import Claim

LEASE_TTL_S = 15.0


class Store:
    """Tasks, sessions, agents and principals over one database, with this node's board and hub.

    *owner* is the node's random incarnation id, in whose name tasks are claimed. *claimed* is called with what each
    commit claimed for the board, after it is durable.
    """

    def __init__(self, db: database.Database, *, owner: str, lease_ttl_s: float = LEASE_TTL_S) -> None:
        self.owner = owner
        self.board = Board()
        self.hub = news.Hub()
        self.homes: dict[str, str] = {}  # where a session's warm instance is: session -> replica
        self.claimed: Callable[[Sequence[Claim]], None] = lambda _: None
        self.lease_ttl_us = int(lease_ttl_s * 1e6)
        self.db = db
        self.commits = Commits(
            db,
            order=(*transitions.ORDER, sessions.remove, *agents.ORDER, *principals.ORDER),
            publish=self.hub.publish,
            last=self._conclude,
            has_demand=self.board.has_demand,
        )
        self.tasks = tasks.Tasks(db, self.commits)
        self.sessions = sessions.Sessions(db, self.commits)
        self.agents = agents.Agents(db, self.commits)
        self.directory = directory.Directory(self.agents)
        self.principals = principals.Principals(db, self.commits)

    async def start(self) -> None:
        await self.db.migrate()
        self.commits.start()

    async def claim_alone(self) -> None:
        """Make this the store's only node; raises `errors.StoreInUse`. What only reads and tests do not call it."""
        await self.db.claim_alone()

    async def close(self) -> None:
        try:
            await self.commits.close()
        finally:
            await self.db.close()

    async def _conclude(self, tx: Transaction, facts: news.News) -> Callable[[bool], None]:
        facts.shown = await tasks.shown(tx, self.hub.awaited(facts.ended))
        return await self._claim(tx, facts)

    async def _claim(self, tx: Transaction, facts: news.News) -> Callable[[bool], None]:
        """Fill the board's free slots; the answer tells board and dispatcher how the commit ended."""
        self.board.mark(facts.ready)
        claims: list[Claim] = []
        demands = self.board.reserve()

        def settle(committed: bool) -> None:
            for demand in demands:
                self.board.settle(demand)
            if committed:
                self.claimed(claims)
            else:
                for claim in claims:
                    self.board.vacate(claim.replica)
                self.board.mark(demand.agent for demand in demands)

        try:
            for demand in demands:
                claims += await transitions.claim(
                    tx,
                    facts,
                    demand,
                    board=self.board,
                    homes=self.homes,
                    owner=self.owner,
                    ttl_us=self.lease_ttl_us,
                )
        except BaseException:
            settle(False)
            raise
        return settle


def open(url: str, *, clock: clocks.Clock, owner: str, lease_ttl_s: float = LEASE_TTL_S) -> Store:
    """Open ``sqlite:///PATH`` or a libpq URI; raises `errors.StartRefused` for anything else, or what the database
    says.
    """
    db: database.Database
    if url.startswith("sqlite:///"):
        from greenroom.store import sqlite

        db = sqlite.Sqlite(Path(url.removeprefix("sqlite:///")), clock)
    elif url.startswith(("postgresql://", "postgres://")):
        from greenroom.store import postgres

        db = postgres.Postgres(url, clock)
    else:
        kind = url.partition("://")[0] if "://" in url else "unknown"  # the rest may hold a password
        raise errors.StartRefused(f"cannot open a store of the kind {kind!r}: give sqlite:///PATH or postgresql://…")
    return Store(db, owner=owner, lease_ttl_s=lease_ttl_s)
