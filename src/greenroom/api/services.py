"""What routes need, in one value that the node builds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.api.auth import Authenticator
from greenroom.api.backlog import Backlog
from greenroom.api.dashboard.live import Feeds
from greenroom.api.grading import Health
from greenroom.api.keys import Keys
from greenroom.api.limits import Limits
from greenroom.api.scrapes import Scrapes
from greenroom.api.sources import Sources
from greenroom.core import isolation, routing
from greenroom.core.measures import Measures
from greenroom.sdk import models, security
from greenroom.security.webhook_secrets import WebhookSecrets
from greenroom.settings import AgentSettings, Settings
from greenroom.settings import Rollout as WantedRollout
from greenroom.store.deployments import Deployed
from greenroom.store.rollouts import Rollout
from greenroom.store.store import Store
from greenroom.telemetry.tracing import Requests


class Backups(Protocol):
    """What the node does about backups, for the API: it knows no loop."""

    def state(self) -> models.Backups: ...

    async def all(self) -> list[models.Backup]:
        """Return those there are, newest first."""

    def ask(self) -> bool:
        """Have one made now; False while one is."""


class Breakers(Protocol):
    """What the node knows of agents' circuit breakers, for the API: it knows no loop."""

    def state(self, agent: str) -> models.BreakerState: ...

    def release(self, agent: str) -> None:
        """Close it."""


class Receivers(Protocol):
    """Who is told of alerts, for the API: it knows no loop."""

    @property
    def summary(self) -> str:
        """Who is told, in words."""

    async def all(self) -> list[models.Receiver]: ...

    async def test(self, name: str) -> models.ReceiverTest:
        """Send a test alert; raises `errors.NotFound`, and `errors.Conflict` while delivery is off."""


class Budgets(Protocol):
    """What agents have spent today, for the API: it knows no loop."""

    def check(self, agent: str) -> None:
        """Raise `errors.BudgetSpent` where nothing more of *agent* is to be taken."""


class Security(Protocol):
    """What the node does about its security, for the API: it knows no loop."""

    async def report(self) -> security.SecurityReport: ...

    async def unlock(self, subject: str) -> None:
        """End a lock or a throttle; raises `errors.NotFound`."""


class Deployments(Protocol):
    """What the node does about deployments.

    *code* is a digest; None: the code of the node's own folder. *rollout* goes before the spec's for this time.
    """

    async def deploy(
        self,
        name: str,
        spec: AgentSettings,
        *,
        by: str,
        code: str | None = None,
        rollout: WantedRollout | None = None,
        is_remote: bool = False,
    ) -> Deployed:
        """Begin to move an agent to a spec, in the name of *by*; *is_remote*: it comes from outside of the node."""

    async def plan(
        self,
        name: str,
        spec: AgentSettings,
        *,
        code: str | None = None,
        is_tried: bool = False,
        rollout: WantedRollout | None = None,
    ) -> models.Plan:
        """Return what `deploy` would do; have the revision tried, too, if *is_tried*."""

    async def undo(self, name: str, *, to: int | None, by: str) -> Rollout | None:
        """Let the revision before serve again, or *to*; None where it does."""

    async def bring(self, archive: bytes) -> models.Code:
        """Store the code that an archive holds."""


class Services(msgspec.Struct, kw_only=True):
    """What routes need.

    *restart* replaces a replica of this node; False if it has none of that id, or it goes already. *stopping* is set
    when nothing new is taken; *failure* says why where nobody asked the node to stop.
    """

    store: Store
    auth: Authenticator
    keys: Keys
    limits: Limits
    sources: Sources
    settings: Settings
    clock: clocks.Clock
    facts: telemetry.Telemetry
    metrics: telemetry.Metrics
    scrapes: Scrapes
    feeds: Feeds
    node: str
    started_at_us: int
    deployments: Deployments
    restart: Callable[[str], bool]
    is_ready: Callable[[], bool]
    backlog: Backlog
    backups: Backups
    breakers: Breakers
    budgets: Budgets
    health: Health
    receivers: Receivers
    webhook_secrets: WebhookSecrets
    security: Security
    measures: Measures
    watch: Callable[[str, str], None] | None = None  # a principal was let in, from a source
    similarity: routing.Similarity | None = None  # of the optional embedding model
    resources: Callable[[], models.Resources] = models.Resources
    tier: isolation.Tier = isolation.Tier.T0  # how far replicas are kept apart
    isolation: str = ""  # the tier, and what it is, in words
    tracing: Requests | None = None  # where nothing is traced, there is none
    trace_url: str | None = None  # the template of links to traces
    tracing_state: Callable[[], str] = lambda: "off"  # in words
    ask_to_stop: Callable[[], None] | None = None  # as SIGTERM does; None: who has made the node stops it
    stopping: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    failure: str | None = None  # what ended the node's loops, for good

    @property
    def key_word(self) -> str:
        return {"development": "dev", "staging": "stage", "production": "prod"}[self.settings.environment]

    @property
    def refusal(self) -> errors.GreenroomError | None:
        """Why nothing new is taken; None while it is."""
        if self.failure is not None:
            return errors.NodeFailed(f"cannot take this: {self.failure}; start the node again, its log says more")
        if self.stopping.is_set():
            return errors.StoreUnavailable("cannot take this now: the node is stopping")
        return None
