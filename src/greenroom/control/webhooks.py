"""The webhooks' loop: sends what the outbox has, fairly, and writes down how each try went.

At least once: who dies while sending leaves the delivery to be claimed again, with the same id. Each endpoint has a few
tries at once, one while it fails, each tenant some, so that a slow receiver holds up only itself. The order of
deliveries is not kept.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.core import addresses, traces, webhooks
from greenroom.core.webhooks import GivenUp, Retry, Taken
from greenroom.security.outgoing import Answer
from greenroom.security.webhook_secrets import WebhookSecrets
from greenroom.store import database
from greenroom.store.news import News
from greenroom.store.rows import Task
from greenroom.store.store import Store
from greenroom.store.webhooks import Claimed, Delivery, Due, Endpoint, Outcome

PER_ENDPOINT, PER_TENANT, IN_ALL = 4, 16, 64  # tries at once
POLL_S = 5.0  # wakeups are hints, and other nodes give none
REFRESH_S = 1.0  # which tenants want to be told: another node may have learned it
PRUNE_EVERY_S = 600.0
MAX_OUTPUT_BYTES = 256 * 1024  # larger ones are to be fetched: most receivers take no more
OVERDUE_US = int(webhooks.GIVE_UP_AFTER_S * 1e6)


class Sender(Protocol):
    async def post(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Answer: ...


class Webhooks:
    name = "webhooks"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        sender: Sender,
        secrets: WebhookSecrets,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._clock, self._facts, self._sender, self._secrets = store, clock, facts, sender, secrets
        self._jitter = jitter
        self.wakeup = asyncio.Event()
        self._due: dict[str, tuple[float, str]] = {}  # endpoints with something to be told: from when on, whose
        self._failing: set[str] = set()  # endpoints whose last try went wrong
        self._sending: dict[asyncio.Task[None], tuple[str, str]] = {}  # to an endpoint, of a tenant
        self._crashed: BaseException | None = None
        self._poll_at_s = self._refresh_at_s = self._prune_at_s = clock.monotonic_s()
        store.hub.subscribe(self._hear)

    async def step(self) -> float:
        if self._crashed is not None:
            crashed, self._crashed = self._crashed, None
            raise crashed
        now_s = self._clock.monotonic_s()
        if now_s >= self._refresh_at_s:
            await self._store.webhooks.refresh()
            self._refresh_at_s = now_s + REFRESH_S
        if now_s >= self._poll_at_s:
            await self._poll(now_s)
            self._poll_at_s = now_s + POLL_S
        if now_s >= self._prune_at_s:
            await self._store.webhooks.prune()
            self._prune_at_s = now_s + PRUNE_EVERY_S
        await self._send_due(now_s)
        return min([REFRESH_S, *(at_s - now_s for at_s, _ in self._due.values() if at_s > now_s)])

    async def idle(self) -> None:
        """Return when nothing is being sent."""
        while self._sending:
            await asyncio.wait(self._sending)

    async def close(self) -> None:
        """Stop sending; what was on its way is sent again by whoever looks next."""
        for sending in self._sending:
            sending.cancel()
        await self.idle()

    async def _poll(self, now_s: float) -> None:
        """Learn what is due of what other nodes, or an earlier life of this one, have written."""
        self._due.clear()  # before: what is heard meanwhile counts
        pending = await self._store.webhooks.pending()
        for webhook, tenant in pending.items():  # when it is due, a claim tells, by the database's clock
            self._expect(webhook, tenant, now_s)
        self._failing &= pending.keys()

    def _expect(self, webhook: str, tenant: str, at_s: float) -> None:
        """Note that *webhook* has something to be told at *at_s*, if not before."""
        known = self._due.get(webhook)
        self._due[webhook] = (at_s if known is None else min(at_s, known[0]), tenant)

    async def _send_due(self, now_s: float) -> None:
        held = Counter(webhook for webhook, _ in self._sending.values())
        of_tenant = Counter(tenant for _, tenant in self._sending.values())
        wanted = []
        # Who holds least goes first, then who has waited for longest.
        for webhook in sorted(self._due, key=lambda each: (held[each], self._due[each])):
            at_s, tenant = self._due[webhook]
            room = (1 if webhook in self._failing else PER_ENDPOINT) - held[webhook]
            most = min(room, PER_TENANT - of_tenant[tenant], IN_ALL - of_tenant.total())
            if at_s <= now_s and most > 0:
                of_tenant[tenant] += most
                wanted.append(Due(webhook, most))
                del self._due[webhook]
        for due, claimed in zip(wanted, await self._store.webhooks.claim(wanted) if wanted else (), strict=True):
            self._begin(due.webhook, claimed, now_s)

    def _begin(self, webhook: str, claimed: Claimed, now_s: float) -> None:
        if (endpoint := claimed.endpoint) is None:
            return  # it is disabled, or gone
        if claimed.next_us is not None:
            self._expect(webhook, endpoint.tenant, now_s + claimed.next_us / 1e6)
        for delivery in claimed.deliveries:
            sending = asyncio.create_task(self._deliver(endpoint, delivery, claimed.now_us))
            self._sending[sending] = (webhook, endpoint.tenant)
            sending.add_done_callback(self._on_sent)

    def _on_sent(self, sending: asyncio.Task[None]) -> None:
        del self._sending[sending]
        error = None if sending.cancelled() else sending.exception()
        if error is not None and not isinstance(error, errors.StoreUnavailable):
            self._crashed = error
        self.wakeup.set()

    async def _deliver(self, endpoint: Endpoint, delivery: Delivery, now_us: int) -> None:
        age_us = now_us - delivery.created_at
        is_once = delivery.type == webhooks.TEST
        answer = Answer(error="given up: it is a day old")
        if age_us <= OVERDUE_US:
            answer = await self._try(endpoint, delivery)
        if answer.is_refused and endpoint.id not in self._failing:  # once, not for each that waits
            self._facts.emit(
                telemetry.UrlRefused(endpoint.created_by, endpoint.tenant, addresses.host_of(endpoint.url))
            )
        verdict = webhooks.after(
            answer.status,
            attempt=delivery.attempts,
            age_s=age_us / 1e6,
            jitter=self._jitter(),
            retry_after_s=answer.retry_after_s,
            is_once=is_once,
        )
        await self._note(endpoint, delivery, answer, verdict)

    async def _try(self, endpoint: Endpoint, delivery: Delivery) -> Answer:
        now = self._clock.now()
        keys = self._keys(endpoint, database.microseconds(now))
        if keys is None:
            return Answer(error=f"its secret cannot be read; make a new one: greenroom webhooks rotate {endpoint.id}")
        document, trace = await self._document(endpoint, delivery)
        body = msgspec.json.encode(document)
        timestamp_s = int(now.timestamp())
        signatures = [webhooks.sign(key, id=delivery.id, timestamp_s=timestamp_s, body=body) for key in keys]
        headers = {
            "Content-Type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": " ".join(signatures),
        }
        if trace is not None:
            headers["traceparent"] = traces.read(trace).traceparent
        return await self._sender.post(endpoint.url, headers=headers, body=body)

    def _keys(self, endpoint: Endpoint, now_us: int) -> list[bytes] | None:
        """Return the secrets that sign now, the newest first; None if one of them cannot be read."""
        stored = [endpoint.secret]
        if endpoint.old_secret is not None and now_us < (endpoint.old_until or 0):
            stored.append(endpoint.old_secret)
        keys = [self._secrets.opened(each, tenant=endpoint.tenant, id=endpoint.id) for each in stored]
        return [key for key in keys if key is not None] if keys[0] is not None else None

    async def _document(self, endpoint: Endpoint, delivery: Delivery) -> tuple[dict[str, Any], str | None]:
        """Return what is told, and the trace that it belongs to."""
        data: dict[str, Any] = {}
        trace = None
        if delivery.task is not None:
            data = {"id": delivery.task, "state": delivery.type.removeprefix("task.")}
            try:
                task = await self._store.tasks.get(delivery.task, tenant=delivery.tenant)
            except errors.NotFound:
                pass  # it was deleted meanwhile: that it ended stays true
            else:
                data, trace = _told(task, include_output=endpoint.include_output), task.trace
        document = {"type": delivery.type, "timestamp": database.instant(delivery.created_at), "data": data}
        return document, trace

    async def _note(
        self, endpoint: Endpoint, delivery: Delivery, answer: Answer, verdict: Taken | Retry | GivenUp
    ) -> None:
        state, delay_us = "pending", None
        match verdict:
            case Taken():
                state = "delivered"
            case Retry(delay_s):
                delay_us = int(delay_s * 1e6)
                self._expect(endpoint.id, endpoint.tenant, self._clock.monotonic_s() + delay_s)
            case GivenUp():
                state = "failed"
        (self._failing.discard if state == "delivered" else self._failing.add)(endpoint.id)
        self._facts.emit(telemetry.WebhookTried(endpoint.id, state))
        error = answer.error if answer.status is None else None
        disabled = await self._store.webhooks.note(
            Outcome(
                seq=delivery.seq,
                attempt=delivery.attempts,
                webhook=endpoint.id,
                state=state,
                status=answer.status,
                error=error,
                delay_us=delay_us,
                is_gone=isinstance(verdict, GivenUp) and verdict.is_gone,
            )
        )
        if disabled is not None:
            self._facts.emit(telemetry.WebhookDisabled(disabled.webhook, disabled.reason))

    def _hear(self, news: News) -> None:
        if news.deliveries:
            now_s = self._clock.monotonic_s()
            for webhook, tenant in news.deliveries.items():
                self._expect(webhook, tenant, now_s)
            self.wakeup.set()


def _told(task: Task, *, include_output: bool) -> dict[str, Any]:
    """Return what a receiver is told of *task*: what was said in it only where its endpoint asks for that."""
    told: dict[str, Any] = {
        "id": task.id,
        "state": task.state,
        "agent": task.agent,
        "revision": task.revision,
        "session": task.session,
        "parent": task.parent,
        "reason": task.reason,
        "attempt": task.attempts_charged,
        "created_at": database.instant(task.created_at),
        "finished_at": database.instant_or_none(task.finished_at),
    }
    if include_output:
        is_large = len(task.output or b"") > MAX_OUTPUT_BYTES
        told["output"] = None if task.output is None or is_large else msgspec.Raw(task.output)
        told["output_omitted"] = is_large
        told["error"] = None if task.error is None else msgspec.Raw(task.error)
        told["metadata"] = None if task.metadata is None else msgspec.Raw(task.metadata)
    return told
