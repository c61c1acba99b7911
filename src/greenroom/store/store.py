"""The store as one value: opened by `node`, passed to the loops and the API."""

from __future__ import annotations

import functools
from pathlib import Path

from greenroom import clock as clocks
from greenroom import errors, settings
from greenroom.store import (
    advice,
    agents,
    alerts,
    audit,
    audited,
    database,
    deployments,
    directory,
    history,
    logins,
    logs,
    measures,
    news,
    notifications,
    principals,
    rates,
    recovery,
    resealing,
    results,
    rollouts,
    scaling,
    sessions,
    tasks,
    transitions,
    webhooks,
)
from greenroom.store import vault as vaults
from greenroom.store.claims import Claims
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction

LEASE_TTL_S = 15.0


class Store:
    """Tasks, sessions, agents and principals over one database, with this node's board and hub."""

    def __init__(
        self,
        db: database.Database,
        *,
        owner: str,
        lease_ttl_s: float = LEASE_TTL_S,
        vault: vaults.Vault = vaults.PLAIN,
    ) -> None:
        self.db, self.vault = db, vault
        self.hub = news.Hub()
        self.claims = Claims(owner=owner, lease_ttl_us=int(lease_ttl_s * 1e6))
        self.board = self.claims.board
        self.results = results.Results(submit=self.claims.submit, cache_of=self._cache_of)
        self._recorder = webhooks.Recorder()
        self.commits = Commits(
            db,
            order=(
                self.results.submit,
                *transitions.ORDER,
                sessions.remove,
                *agents.ORDER,
                *deployments.ORDER,
                *rollouts.ORDER,
                *principals.ORDER,
                *logins.ORDER,
                *recovery.ORDER,
                *alerts.ORDER,
                *advice.ORDER,
                *scaling.ORDER,
                *history.ORDER,
                *logs.ORDER,
                *results.ORDER,
                *rates.ORDER,
                *webhooks.ORDER,
                *notifications.ORDER,
                *measures.ORDER,
                *audit.ORDER,
                *resealing.ORDER,
            ),
            last=self._conclude,
            settle=self._settle,
            has_demand=self.board.has_demand,
            acts_of=audited.AUDITED,
            late=frozenset({logs.put, audit.seal}),
            append=functools.partial(audit.append, node=owner),
            vault=vault,
        )
        self.tasks = tasks.Tasks(db, self.commits, vault, submit=self.results.submit)
        self.cache = results.Cache(db, self.commits)
        self.sessions = sessions.Sessions(db, self.commits, vault)
        self.agents = agents.Agents(db, self.commits)
        self.recovery = recovery.Recovery(db, self.commits)
        self.alerts = alerts.Alerts(db, self.commits)
        self.advice = advice.Advices(db, self.commits)
        self.rollouts = rollouts.Rollouts(db, self.commits)
        self.scaling = scaling.Scaling(db, self.commits)
        self.history = history.History(db, self.commits)
        self.logs = logs.Logs(db, self.commits, vault)
        self.deployments = deployments.Deployments(db, self.commits)
        self.directory = directory.Directory(db, route=self.board.route)
        self.audit = audit.Audit(db, self.commits)
        self.measures = measures.Measures(db, self.commits)
        self.principals = principals.Principals(db, self.commits)
        self.logins = logins.Logins(db, self.commits)
        self.rates = rates.Rates(db, self.commits)
        self.webhooks = webhooks.Webhooks(db, self.commits, self._recorder)
        self.notifications = notifications.Notifications(db, self.commits)
        self.resealing = resealing.Resealing(db, self.commits, vault)

    async def start(self) -> None:
        await self.db.migrate()
        await self.vault.start(self.db)
        await self.webhooks.refresh()
        self.commits.start()

    async def claim_alone(self) -> None:
        """Make this the store's only node; raises `errors.StoreInUse`. What only reads and tests do not call it."""
        await self.db.claim_alone()

    async def close(self) -> None:
        try:
            await self.commits.close()
        finally:
            await self.db.close()

    async def _conclude(self, tx: Transaction, facts: news.News) -> None:
        await self.results.conclude(tx, facts)
        await self.claims.fill(tx, facts)
        if facts.keyed:  # they were late, as their claim has found: the next of their keys are for another commit
            await self.results.conclude(tx, facts)
            self.board.mark(facts.ready)
            self.commits.nudge()
        await self._recorder.conclude(tx, facts)
        await transitions.count(tx, facts)

    def _cache_of(self, agent: str) -> settings.Cache | None:
        entry = self.directory.entries.get(agent)
        return None if entry is None else entry.spec.cache

    def _settle(self, facts: news.News, committed: bool) -> None:
        facts.seals.settle(committed=committed)
        self.claims.settle(facts, committed=committed)
        for agent, traffic in facts.traffic.items():
            if committed:
                self.board.route(agent, traffic)
            else:  # it may be stored all the same, and then a revision that is retired must get nothing more
                self.board.doubt(agent)
        if committed:
            self.hub.publish(facts)


def open(
    url: str,
    *,
    clock: clocks.Clock,
    owner: str,
    lease_ttl_s: float = LEASE_TTL_S,
    vault: vaults.Vault = vaults.PLAIN,
) -> Store:
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
    return Store(db, owner=owner, lease_ttl_s=lease_ttl_s, vault=vault)
