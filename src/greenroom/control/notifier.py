"""The notifier: tells receivers of alerts what the outbox has for them, and writes down how each try went.

Each receiver has one try at once, in a task of its own: who is slow or down holds up nobody else. At least once: who
dies while sending leaves the alerts to be claimed again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.core import notifications
from greenroom.core.notifications import Route, Told
from greenroom.core.webhooks import GivenUp, Retry, Taken
from greenroom.security.outgoing import Answer
from greenroom.store import database
from greenroom.store.notifications import Claimed, Outcome
from greenroom.store.store import Store

POLL_S = 5.0  # facts are hints: what another life of the node has written gives none
LATEST_S = 30.0  # of a try, whatever its sender thinks
MAX_ERROR = 200  # characters

Send = Callable[[Sequence[Told]], Awaitable[Answer]]


class Receiver(msgspec.Struct, frozen=True):
    """Who is told, and how; *send* raises for bugs alone."""

    route: Route
    send: Send


class Notifier:
    """Without *receivers* it forgets what becomes of alerts, so that none of it is told when there are some one day."""

    name = "notifier"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        receivers: Sequence[Receiver],
        *,
        group_wait_s: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._clock, self._facts, self._jitter = store, clock, facts, jitter
        self._receivers = {receiver.route.name: receiver for receiver in receivers}
        self._routes, self._wait_s = [receiver.route for receiver in receivers], group_wait_s
        self.wakeup = asyncio.Event()
        self._sending: dict[asyncio.Task[None], str] = {}
        self._failing: set[str] = set()
        self._is_begun = False
        self._crashed: BaseException | None = None
        facts.subscribe(self._hear, telemetry.AlertChanged)

    async def step(self) -> float:
        if self._crashed is not None:
            crashed, self._crashed = self._crashed, None
            raise crashed
        outbox = self._store.notifications
        if not self._is_begun:
            await outbox.keep(list(self._receivers))
            self._is_begun = True
        await outbox.route(self._routes, wait_s=self._wait_s)
        if not self._receivers:
            return POLL_S
        busy, now_us = set(self._sending.values()), database.microseconds(self._clock.now())
        next_us = [now_us + int(POLL_S * 1e6)]
        for name, due_us in (await outbox.next_due()).items():
            if name not in self._receivers or name in busy:
                continue
            if due_us > now_us:
                next_us.append(due_us)
                continue
            self._begin(self._receivers[name], await outbox.claim(name))
        return max(0.01, (min(next_us) - now_us) / 1e6)

    async def idle(self) -> None:
        """Return when nothing is being sent."""
        while self._sending:
            await asyncio.wait(self._sending)

    async def close(self) -> None:
        """Stop sending; what was on its way is sent again by whoever looks next."""
        for sending in self._sending:
            sending.cancel()
        await self.idle()

    async def test(self, name: str) -> Answer:
        """Send *name* an alert that fires and is over at once; raises `errors.NotFound`."""
        if (receiver := self._receivers.get(name)) is None:
            raise errors.NotFound(f"cannot find the receiver {name[:64]}; there are: {', '.join(self._receivers)}")
        now_us = database.microseconds(self._clock.now())
        reason = "this is a test: somebody wants to know whether alerts arrive"
        told = Told("test", "test", None, "warning", reason, "firing", now_us, now_us + 1_000_000)
        return await self._try(receiver, [told])

    def _begin(self, receiver: Receiver, claimed: Claimed) -> None:
        if claimed.items:
            sending = asyncio.create_task(self._tell(receiver, claimed))
            self._sending[sending] = receiver.route.name
            sending.add_done_callback(self._on_sent)

    def _on_sent(self, sending: asyncio.Task[None]) -> None:
        del self._sending[sending]
        error = None if sending.cancelled() else sending.exception()
        if error is not None and not isinstance(error, errors.StoreUnavailable):
            self._crashed = error
        self.wakeup.set()

    async def _tell(self, receiver: Receiver, claimed: Claimed) -> None:
        answer = await self._try(receiver, [item.told for item in claimed.items])
        verdict = notifications.after(
            answer.status,
            attempt=max(item.attempt for item in claimed.items),
            age_s=(claimed.now_us - min(item.told.owed_at for item in claimed.items)) / 1e6,
            jitter=self._jitter(),
            retry_after_s=answer.retry_after_s,
        )
        self._announce(receiver.route, answer, verdict)
        route = receiver.route
        await self._store.notifications.note(
            Outcome(
                receiver=route.name,
                items=claimed.items,
                delays_us=tuple(_delay_us(route, item.told, verdict) for item in claimed.items),
                is_taken=isinstance(verdict, Taken),
                is_given_up=isinstance(verdict, GivenUp),
                status=answer.status,
                error=None if answer.error is None else answer.error[:MAX_ERROR],
            )
        )

    async def _try(self, receiver: Receiver, told: Sequence[Told]) -> Answer:
        try:
            async with asyncio.timeout(LATEST_S):
                return await receiver.send(told)
        except TimeoutError:
            return Answer(error=f"no answer within {LATEST_S:g} s")

    def _announce(self, route: Route, answer: Answer, verdict: Taken | Retry | GivenUp) -> None:
        outcome = {Taken: "taken", Retry: "retried", GivenUp: "given_up"}[type(verdict)]
        self._facts.emit(telemetry.NotificationTried(route.type, outcome))
        is_taken = isinstance(verdict, Taken)
        if is_taken == (route.name in self._failing):  # once, not with each try
            (self._failing.discard if is_taken else self._failing.add)(route.name)
            why = "" if is_taken else answer.error or f"it answers {answer.status}"
            self._facts.emit(telemetry.ReceiverChanged(route.name, "taking" if is_taken else "failing", why))

    def _hear(self, fact: telemetry.Fact) -> None:  # noqa: ARG002 - that something has changed is enough
        self.wakeup.set()


def _delay_us(route: Route, told: Told, verdict: Taken | Retry | GivenUp) -> int | None:
    """Return when the receiver is told of the alert again; None: not unless it changes."""
    delay_s: float | None = notifications.GIVEN_UP_S
    if isinstance(verdict, Retry):
        delay_s = verdict.delay_s
    elif isinstance(verdict, Taken):
        delay_s = route.again_s(told)
    return None if delay_s is None else int(delay_s * 1e6)
