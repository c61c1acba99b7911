"""The composition root: builds store, engine, loops and API, and is the only place that knows them all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from greenroom import __version__, deployments, embeddings, errors, planning, redaction, settings, telemetry
from greenroom import clock as clocks
from greenroom.api.app import App
from greenroom.api.backlog import Backlog
from greenroom.api.dashboard.live import Feeds
from greenroom.api.scrapes import Scrapes
from greenroom.api.services import Services
from greenroom.backups import restoring
from greenroom.control import supervisor
from greenroom.control.autoscaler import Autoscaler
from greenroom.control.breakers import Breakers
from greenroom.control.budgets import Budgets
from greenroom.control.dispatcher import Dispatcher
from greenroom.control.history import History
from greenroom.control.host import Host
from greenroom.control.janitor import Janitor
from greenroom.control.logs import Logs
from greenroom.control.outliers import Outliers
from greenroom.control.reconciler import Reconciler
from greenroom.control.rehearsal import Rehearsal
from greenroom.control.resealing import Resealing
from greenroom.control.webhooks import Webhooks
from greenroom.core import addresses, rollouts, routing
from greenroom.core.permissions import HOME
from greenroom.engine import contract
from greenroom.engine.local import LocalEngine
from greenroom.node import alerts, isolation, optimizer, tls
from greenroom.node.access import NodeAccess
from greenroom.node.backups import NodeBackups
from greenroom.node.controls import Controls
from greenroom.node.health import NodeHealth
from greenroom.node.notifications import NodeNotifications
from greenroom.node.resources import NodeResources, limits
from greenroom.node.security import NodeSecurity
from greenroom.node.tracing import NodeTracing
from greenroom.sdk import models
from greenroom.security import key_sources, secret_file
from greenroom.security.outgoing import Outgoing
from greenroom.security.webhook_secrets import WebhookSecrets
from greenroom.store import database, submissions
from greenroom.store import store as stores
from greenroom.store.deployments import Deployed
from greenroom.store.directory import Entry
from greenroom.store.news import News
from greenroom.store.rollouts import Rollout
from greenroom.store.vault import Mode, Vault

GRACE_S = 20.0  # how long running tasks may go on after SIGTERM
FIRST_ROLLOUTS_S = 10.0  # how long a node is not ready for the sake of the rollouts of its start
LOOK_EVERY_S = 1.0  # wakeups are hints; this is the guarantee
TENANT = HOME


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """*folder* holds the agents' code; *data_dir* the store, the keys and the snapshots. *port* 0 is any free port."""

    settings: settings.Settings
    folder: Path
    data_dir: Path
    store_url: str | None = None
    host: str = "127.0.0.1"
    port: int = 7080


class Node:
    """Store, engine, loops and API of one process. Made by `opened`."""

    def __init__(self, options: Options, clock: clocks.Clock) -> None:
        self.options, self.clock, self.settings = options, clock, options.settings
        self.url = ""  # while it listens
        self.certificate: tls.Certificate | None = None  # while it listens with TLS
        self.id = f"node-{submissions.new_id()[:12]}"
        self.facts, self.metrics = telemetry.Telemetry(), telemetry.Metrics()
        if self.settings.cluster.metrics:
            self.metrics.listen(self.facts)
        self.tracing = NodeTracing(self.settings, clock, self.facts, self.metrics, node=self.id)
        url = options.store_url or f"sqlite:///{options.data_dir / 'greenroom.db'}"
        restoring.complete(url, options.data_dir)
        self.secrets = secret_file.load_or_make(options.data_dir / "secrets")
        redaction.register(*msgspec.structs.astuple(self.secrets), *_passwords(url))
        self.backups = NodeBackups(
            options.settings,
            clock,
            self.facts,
            folder=options.folder,
            data_dir=options.data_dir,
            store_url=options.store_url,
        )
        try:
            self.store = stores.open(url, clock=clock, owner=self.id, vault=self._vault())
        except errors.StoreDamaged as error:
            raise errors.StoreDamaged(f"{error}; {self.backups.advice()}") from None
        self.store.results.is_on = options.settings.cluster.result_cache
        self.isolation = isolation.decide(options.settings)
        self.engine = LocalEngine(
            options.data_dir,
            clock,
            limits=limits(options.settings.cluster),
            tier=self.isolation.tier,
            means=self.isolation.means,
            closed=isolation.closed(
                options.settings, folder=options.folder, data_dir=options.data_dir, store_url=options.store_url
            ),
            first_user=options.settings.security.first_agent_uid,
        )
        self.walls = isolation.Walls(self.facts)
        self.host = Host(
            self.store,
            self.engine,
            clock,
            self.facts,
            node=self.id,
            revision_of=self._revision_of,
            health_checks=options.settings.cluster.health_checks,
        )
        self.resources = NodeResources(self.store, self.engine, self.host, clock, self.facts)
        self.reconciler = Reconciler(self.store, self.engine, clock, self.facts)
        self.rehearsal = Rehearsal(self.store, self.engine, self.reconciler.trials, clock)
        self.dispatcher = Dispatcher(self.store, self.engine, clock, self.facts)
        self.resealing, self.janitor = Resealing(self.store, self.facts), Janitor(self.store, clock)
        self.breakers, self.budgets, self.outliers = (
            Breakers(self.store, clock, self.facts),
            Budgets(self.store, clock, self.facts),
            Outliers(self.store.board, clock, self.facts, eject=self.host.restart),
        )
        self.autoscaler = Autoscaler(self.store, clock, self.facts, options.settings.cluster, use=self.resources.use)
        self.history = History(
            self.store, clock, self.facts, options.settings.history, node=self.id, spent=self.metrics.spent
        )
        self.health = NodeHealth(
            self.store,
            clock,
            self.facts,
            options.settings,
            data_dir=options.data_dir,
            use_pct=self.resources.use_pct,
            failure=lambda: self.services.failure,
        )
        self.logs = Logs(self.store, clock, self.facts, options.settings.logs, whose=self.dispatcher.whose)
        self.deployments = deployments.Deployments(
            self.store, options.settings, self.facts, folder=options.folder, data_dir=options.data_dir
        )
        self.planning = planning.Planning(self.store, self.deployments, self.rehearsal, folder=options.folder)
        self.access = NodeAccess(
            self.store,
            clock,
            self.facts,
            options.settings,
            secrets=self.secrets,
            folder=options.folder,
            data_dir=options.data_dir,
        )
        self.outgoing = Outgoing(_webhook_policy(self.settings.server), user_agent=f"greenroom/{__version__}")
        webhook_secrets = WebhookSecrets(self.secrets.webhook_key)
        self.webhooks = Webhooks(self.store, clock, self.facts, self.outgoing, webhook_secrets)
        self.notifications = NodeNotifications(self.store, clock, self.facts, options.settings)
        self.security = NodeSecurity(
            self.store,
            self.access.keys,
            clock,
            self.facts,
            options.settings,
            node=self.id,
            seed=self.secrets.audit_key,
            folder=options.folder,
            owner_key=self.access.owner_key,
        )
        self.services = Services(
            store=self.store,
            auth=self.access.auth,
            keys=self.access.keys,
            limits=self.access.limits,
            sources=self.access.sources,
            settings=options.settings,
            clock=clock,
            facts=self.facts,
            metrics=self.metrics,
            scrapes=Scrapes(self.store, clock, self.health, queue_limit=options.settings.server.max_queued_tasks),
            feeds=Feeds(clock, self.store.hub),
            node=self.id,
            started_at_us=database.microseconds(clock.now()),
            deployments=self,
            restart=self.host.restart,
            is_ready=lambda: self.ready.is_set() and self.failure is None,
            backups=self.backups,
            breakers=self.breakers,
            budgets=self.budgets,
            health=self.health,
            receivers=self.notifications,
            webhook_secrets=webhook_secrets,
            security=self.security,
            measures=self.security.measures,
            watch=self.security.watch,
            backlog=Backlog(
                self.store,
                clock,
                limit=options.settings.server.max_queued_tasks,
                per_tenant=options.settings.server.max_queued_tasks_per_tenant,
            ),
            similarity=_similarity(),
            resources=self.resources.state,
            tier=self.isolation.tier,
            isolation=isolation.describe(self.isolation),
            tracing=self.tracing.requests,
            trace_url=options.settings.tracing.ui_url,
            tracing_state=self.tracing.state,
        )
        self.optimizer = optimizer.loops(self.store, self.engine, self.host, self.resources, self.services)
        self.security.controls.insert(0, Controls(self))
        self.app = App(self.services)
        self._moved = asyncio.Event()  # a rollout has
        self.store.hub.subscribe(self._hear)
        self._count_commits()
        self.ready = asyncio.Event()  # every agent has settled, and what has changed since the node's last life serves
        self.failure: BaseException | None = None  # what ended the loops; nothing runs without them
        self._loops: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the store, take over what a dead node left, deploy the manifest's agents, and start the loops."""
        await self.store.claim_alone()
        await self.store.start()
        await self.security.begin()
        self._tell_encryption()
        await self.engine.sweep()
        # One store, one node: whatever another incarnation held is free, and its replicas are gone.
        await self.store.tasks.rescue(not_owner=self.id)
        await self.store.agents.close_nodes(only=self.id)
        await self.access.begin(self.isolation.tier, word=self.services.key_word)
        try:
            begun = await self.deployments.start()
        except errors.StoreDamaged as error:
            raise errors.StoreDamaged(f"{error}; {self.backups.advice()}") from None
        loops: tuple[supervisor.Loop, ...] = (
            self.host,
            self.host.checks,
            self.reconciler,
            self.dispatcher,
            self.janitor,
            self.resealing,
            self.breakers,
            self.budgets,
            self.outliers,
            self.autoscaler,
            self.history,
            *self.health.loops,
            alerts.monitor(self),
            self.logs,
            *self.access.loops,
            self.webhooks,
            self.notifications.loop,
            self.backups.loop,
            self.resources.loop,
            *self.optimizer,
            *self.security.loops,
        )
        self.tracing.begin()
        self.resources.announce()
        self.notifications.announce()
        isolation.announce(self.isolation, self.facts)
        self._loops = asyncio.create_task(self._run(loops, begun), name="greenroom-loops")
        self._loops.add_done_callback(self._on_loops_ended)

    def look_at_certificate(self) -> None:
        """See now whether its files have changed, while the node listens with TLS."""
        if self.certificate is not None:
            self.certificate.wakeup.set()

    def _vault(self) -> Vault:
        """Return the store's vault; its key may have to be found although encryption is off, to read what is there."""
        security = self.settings.security
        self.key_source = key_sources.named(security, folder=self.options.folder, data_dir=self.options.data_dir)
        vault = Vault(self.key_source, is_on=security.encryption_at_rest)
        vault.damaged = lambda what: self.facts.emit(telemetry.ValueDamaged(what))
        return vault

    def _tell_encryption(self) -> None:
        vault = self.store.vault
        if self.key_source.has_made_file:
            self.facts.emit(telemetry.EncryptionKeyMade(str(self.key_source.file)))
        if vault.mode is Mode.LEFT:
            self.facts.emit(telemetry.EncryptionLeft(vault.key))
        elif vault.is_used:
            self.facts.emit(telemetry.EncryptionChanged(vault.mode, vault.key))

    async def _run(self, loops: Sequence[supervisor.Loop], begun: Sequence[int]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._await_ready(begun))
            group.create_task(supervisor.supervise(loops, self.clock, self.facts))
            group.create_task(self.store.commits.ended())
            group.create_task(self._check_store())

    async def _await_ready(self, begun: Sequence[int]) -> None:
        """Be ready when every agent has settled and the rollouts of the start are through, if that is soon.

        Whoever starts a node on changed code wants that code; but a canary may take for as long as it likes.
        """
        await self.host.settled.wait()
        with contextlib.suppress(TimeoutError, errors.StoreUnavailable, errors.NotFound):
            async with asyncio.timeout(FIRST_ROLLOUTS_S):
                for id in begun:
                    await self.rollout_at_rest(id)
        self.ready.set()

    async def _check_store(self) -> None:
        """Look through a large file while the node serves: what is damaged must not be served for long."""
        try:
            await self.store.db.check()
        except errors.StoreDamaged as error:
            raise errors.StoreDamaged(f"{error}; {await asyncio.to_thread(self.backups.advice)}") from None

    def _on_loops_ended(self, loops: asyncio.Task[None]) -> None:
        """Take no more: inside a program nobody awaits `ended`, and what is accepted now would never run."""
        if not loops.cancelled() and (error := loops.exception()) is not None:
            self.failure = error
            causes = _causes(error)
            kinds = ", ".join(sorted({type(cause).__name__ for cause in causes}))
            # Callers are told no more than its kind: the text may hold what only the log's readers may see.
            self.services.failure = f"the node's loops have ended after an error ({kinds})"
            self.services.stopping.set()
            detail = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
            self.facts.emit(telemetry.NodeChanged(self.id, "failed", detail))

    async def stop(self, *, grace_s: float = GRACE_S) -> None:
        """Take no more, let running tasks end within *grace_s*, hand the rest back, and close everything."""
        self.services.stopping.set()
        self.facts.emit(telemetry.NodeChanged(self.id, "draining"))
        self.reconciler.stop()
        self.autoscaler.stop()
        await self.host.drain_all(grace_s=grace_s)
        if self.failure is None:
            await self.host.leave()
        await self.dispatcher.close()
        if self._loops is not None:
            self._loops.cancel()
            await asyncio.wait([self._loops])
        for kept in (self.history, self.logs):
            try:
                await kept.close()
            except errors.GreenroomError as error:  # as with the audit log, below
                self.facts.emit(telemetry.StoreTrouble(kept.name, str(error)))
        await self.webhooks.close()
        await self.notifications.close()
        await self.outgoing.close()
        await self.engine.close()
        await self.access.end()
        try:
            await self.security.end()
        except errors.GreenroomError as error:  # what cannot be written is not to keep the rest from ending well
            self.facts.emit(telemetry.AuditTrouble("the node's end", str(error)))
        await self.tracing.end()
        await self.store.close()
        self.facts.emit(telemetry.NodeChanged(self.id, "stopped"))

    async def ended(self) -> None:
        """Return never, or raise what ended the loops."""
        assert self._loops is not None, "the node has not been started"
        try:
            await asyncio.shield(self._loops)
        except BaseExceptionGroup as group:
            match _causes(group):
                case [errors.GreenroomError() as error]:  # something for people, who need no traceback
                    raise error from None
            raise

    async def deploy(
        self,
        name: str,
        spec: settings.AgentSettings,
        *,
        by: str,
        folder: Path | None = None,
        code: str | None = None,
        rollout: settings.Rollout | None = None,
        is_remote: bool = False,
    ) -> Deployed:
        """Begin to move an agent to *spec*; see `deployments.Deployments.add`."""
        begun = await self.deployments.add(
            name, spec, by=by, folder=folder, code=code, rollout=rollout, is_remote=is_remote
        )
        self._stir()
        return begun

    async def plan(
        self,
        name: str,
        spec: settings.AgentSettings,
        *,
        code: str | None = None,
        is_tried: bool = False,
        rollout: settings.Rollout | None = None,
    ) -> models.Plan:
        """Return what `deploy` would do; see `planning.Planning.plan`."""
        return await self.planning.plan(name, spec, code=code, is_tried=is_tried, rollout=rollout)

    async def undo(self, name: str, *, to: int | None, by: str) -> Rollout | None:
        """Let a revision serve again; see `deployments.Deployments.undo`."""
        rollout = await self.deployments.undo(name, to=to, by=by)
        self._stir()
        return rollout

    async def bring(self, archive: bytes) -> models.Code:
        """Store the code of an archive; see `deployments.Deployments.bring`."""
        return await self.deployments.bring(archive)

    def _stir(self) -> None:
        """Have the loops look: an agent is to become another one."""
        self.host.settled.clear()
        self.host.wakeup.set()
        self.reconciler.wakeup.set()

    async def rollout_at_rest(self, id: int) -> Rollout:
        """Wait until a rollout has ended or is paused, and return it."""
        while True:
            moved = self._moved
            rollout = await self.store.rollouts.get(id)
            if rollout.phase != rollouts.Phase.PROGRESSING:
                return rollout
            await self.clock.sleep(LOOK_EVERY_S, moved)

    def _hear(self, news: News) -> None:
        if news.traffic:
            self._moved.set()
            self._moved = asyncio.Event()
        for (agent, result), count in news.cache.items():
            self.facts.emit(telemetry.CacheAsked(agent, result, count))

    def _count_commits(self) -> None:
        if not self.settings.cluster.metrics:
            return
        self.store.commits.time(self.clock.monotonic_s, self.metrics.committed)
        self.store.hub.subscribe(self._count_ends)

    def _count_ends(self, news: News) -> None:
        for (_, agent, outcome), count in news.endings.items():
            self.metrics.tasks_ended(agent, outcome, count)

    async def _revision_of(self, entry: Entry, number: int) -> contract.Revision:
        """Return what the engine needs to run a revision of *entry* that stands."""
        row = await self.store.agents.revision(entry.agent.name, number)
        return deployments.revision_of(
            row.agent,
            number,
            entry.spec_of(number),
            snapshot=self.deployments.snapshots / row.digest,
            folder=self.options.folder,
        )


@contextlib.asynccontextmanager
async def opened(
    options: Options, *, clock: clocks.Clock | None = None, grace_s: float = GRACE_S
) -> AsyncIterator[Node]:
    """A started node, stopped at the end of the block. It serves no socket: see `listening`."""
    make_private_folder(options.data_dir)
    node = Node(options, clock or clocks.SystemClock())
    try:
        await node.start()
        yield node
    finally:
        await node.stop(grace_s=grace_s)


def _passwords(url: str) -> list[str]:
    """Return those that the URL of a store holds."""
    parts = urlsplit(url)
    return [*filter(None, [unquote(parts.password or "")]), *parse_qs(parts.query).get("password", [])]


def _causes(error: BaseException) -> list[BaseException]:
    """Return what was raised, out of the groups that it came in."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for inner in error.exceptions for cause in _causes(inner)]
    return [error]


def _webhook_policy(server: settings.Server) -> addresses.Policy:
    return addresses.Policy(server.webhook_ports, server.webhook_hosts)


def _similarity() -> routing.Similarity | None:
    """Return the embedding model, where the extra that brings it is installed."""
    try:
        return embeddings.Embeddings()
    except embeddings.EmbeddingsMissing:
        return None


def make_private_folder(path: Path) -> None:
    """Make *path* for its owner only; raises `errors.StartRefused` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise errors.StartRefused(
            f"cannot make the folder {path}: {error.strerror}; choose another with --data-dir"
        ) from None
