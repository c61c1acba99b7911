"""Who is told of the node's alerts: receivers of the settings with their secrets, loop, and the API's answers."""

from __future__ import annotations

import os
from collections.abc import Mapping

from greenroom import __version__, errors, redaction, settings, telemetry
from greenroom import clock as clocks
from greenroom.control import apprise_process
from greenroom.control.notifier import Notifier, Receiver
from greenroom.control.receivers import Senders
from greenroom.core import webhooks
from greenroom.core.notifications import Route
from greenroom.sdk import models
from greenroom.security.outgoing import Outgoing
from greenroom.store import database
from greenroom.store.notifications import State
from greenroom.store.store import Store

NO_RECEIVER = "cluster.alert_delivery is on, and alerts.receivers has none: nobody is told of alerts"
OFF = "alerts.receivers has some, and cluster.alert_delivery is off: nobody is told of alerts"


class NodeNotifications:
    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Settings,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._store, self._clock, self._facts = store, clock, facts
        self._is_on, self._wanted = found.cluster.alert_delivery, found.alerts.receivers
        urls = {name: _url(wanted, environ) for name, wanted in self._wanted.items()} if self._is_on else {}
        policy = settings.receiver_policy([url for url in urls.values() if url.startswith("http")])
        self._outgoing = Outgoing(policy, user_agent=f"greenroom/{__version__}")
        senders = Senders(self._outgoing, clock, link=found.alerts.link)
        receivers = [_receiver(senders, name, self._wanted[name], url, environ) for name, url in urls.items()]
        self.loop = Notifier(store, clock, facts, receivers, group_wait_s=found.alerts.group_wait_s)

    @property
    def summary(self) -> str:
        """Who is told, in words."""
        if self._is_on and self._wanted:
            return f"on, to {', '.join(self._wanted)}"
        if self._is_on:
            return "on, but there is no receiver: nobody is told"
        return "off, though there are receivers: nobody is told" if self._wanted else "off"

    def announce(self) -> None:
        """Say so where the settings look as if somebody were told of alerts, and nobody is."""
        if self._is_on != bool(self._wanted):
            self._facts.emit(telemetry.AlertsUndelivered(NO_RECEIVER if self._is_on else OFF))

    async def all(self) -> list[models.Receiver]:
        states = await self._store.notifications.states(now_us=database.microseconds(self._clock.now()))
        return [_shown(name, wanted, states.get(name), is_on=self._is_on) for name, wanted in self._wanted.items()]

    async def test(self, name: str) -> models.ReceiverTest:
        """Send a test alert to a receiver; raises `errors.NotFound`, and `errors.Conflict` while delivery is off."""
        if name not in self._wanted:
            there = ", ".join(self._wanted) or "none"
            raise errors.NotFound(f"cannot find the receiver {name[:64]}; there are: {there}")
        if not self._is_on:
            raise errors.Conflict(
                "cannot test a receiver: delivery of alerts is off; set cluster.alert_delivery = true"
            )
        answer = await self.loop.test(name)
        is_taken = answer.status is not None and 200 <= answer.status < 300
        return models.ReceiverTest(receiver=name, is_taken=is_taken, status=answer.status, error=answer.error)

    async def close(self) -> None:
        await self.loop.close()
        await self._outgoing.close()


def _url(wanted: settings.Receiver, environ: Mapping[str, str]) -> str:
    if wanted.url is not None:
        return wanted.url
    url = environ.get(wanted.url_env or "", "")
    redaction.register(url)
    return url


def _receiver(senders: Senders, name: str, wanted: settings.Receiver, url: str, environ: Mapping[str, str]) -> Receiver:
    if not url:  # it was there when the settings were read
        raise errors.StartRefused(f"cannot tell {name} of alerts: the variable {wanted.url_env} is not set")
    if wanted.type in ("email", "apprise") and not apprise_process.is_there():
        raise errors.StartRefused(
            f"cannot tell {name} of alerts: {wanted.type} needs apprise; pip install 'greenroom[notifications]'"
        )
    secret = None
    if wanted.secret_env is not None:
        text = environ.get(wanted.secret_env, "")
        redaction.register(text)
        try:
            secret = webhooks.secret_bytes(text)
        except ValueError as error:
            raise errors.StartRefused(f"cannot tell {name} of alerts: what {wanted.secret_env} holds {error}") from None
    route = Route(
        name=name,
        type=wanted.type,
        severities=wanted.severities,
        kinds=wanted.kinds,
        agents=wanted.agents,
        acknowledged=wanted.acknowledged,
        repeat_s=wanted.repeat_s,
    )
    return senders.receiver(route, url=url, secret=secret)


def _shown(name: str, wanted: settings.Receiver, state: State | None, *, is_on: bool) -> models.Receiver:
    known = state or State(name)
    return models.Receiver(
        name=name,
        type=wanted.type,
        state="off" if not is_on else "failing" if known.failures else "taking" if known.told_at else "untried",
        waiting=known.waiting,
        failures=known.failures,
        status=known.status,
        error=known.error,
        tried_at=database.instant_or_none(known.tried_at),
        told_at=database.instant_or_none(known.told_at),
        failing_since=database.instant_or_none(known.failing_since),
    )
