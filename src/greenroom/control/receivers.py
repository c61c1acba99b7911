"""How each type of receiver is told of alerts. Their URLs are the operator's, so inner addresses are allowed.

Of the answer only the status and ``Retry-After`` are looked at. URLs and secrets are in no error and no log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from greenroom import clock as clocks
from greenroom.control import apprise_process
from greenroom.control.notifier import Receiver, Send
from greenroom.core import messages, webhooks
from greenroom.core.notifications import Route, Told
from greenroom.security.outgoing import Answer, Outgoing
from greenroom.store import database

_JSON = {"Content-Type": "application/json"}


class Senders:
    """Makes receivers. *link* is where people see the alerts, if anywhere."""

    def __init__(self, outgoing: Outgoing, clock: clocks.Clock, *, link: str | None) -> None:
        self._outgoing, self._clock, self._link = outgoing, clock, link

    def receiver(self, route: Route, *, url: str, secret: bytes | None = None) -> Receiver:
        send: Send
        match route.type:
            case "alertmanager":
                send = partial(self._alertmanager, f"{url.rstrip('/')}/api/v2/alerts")
            case "slack":
                send = partial(self._slack, url)
            case "webhook":
                assert secret is not None, "settings have no webhook without a secret"
                send = partial(self._webhook, url, secret)
            case "email" | "apprise":
                send = partial(self._apprise, url)
        return Receiver(route, send)

    async def _alertmanager(self, url: str, told: Sequence[Told]) -> Answer:
        now_us = database.microseconds(self._clock.now())
        return await self._post(url, messages.alertmanager(told, now_us=now_us, url=self._link))

    async def _slack(self, url: str, told: Sequence[Told]) -> Answer:
        return await self._post(url, messages.slack(told, url=self._link))

    async def _webhook(self, url: str, secret: bytes, told: Sequence[Told]) -> Answer:
        now = self._clock.now()
        body = msgspec.json.encode(messages.webhook(told, now_us=database.microseconds(now), url=self._link))
        # The same on each try of what is owed, so that a receiver can tell what it has had; a repetition is another.
        changes = repr([(each.id, each.event, each.begun_at, each.ended_at, each.by, each.owed_at) for each in told])
        id, timestamp_s = f"alert_{hashlib.sha256(changes.encode()).hexdigest()[:32]}", int(now.timestamp())
        headers = _JSON | {
            "webhook-id": id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": webhooks.sign(secret, id=id, timestamp_s=timestamp_s, body=body),
        }
        return await self._outgoing.post(url, headers=headers, body=body)

    async def _apprise(self, url: str, told: Sequence[Told]) -> Answer:
        return await apprise_process.send(url, messages.title(told), messages.text(told, url=self._link))

    async def _post(self, url: str, document: Any) -> Answer:
        return await self._outgoing.post(url, headers=_JSON, body=msgspec.json.encode(document))
