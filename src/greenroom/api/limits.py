"""How often callers may call: a source before anybody knows who it is, then a principal and its tenant.

Decided in memory, in the request's path; on PostgreSQL the nodes tell each other what was spent in the background
(`settle`). Whoever is limited reads where it stands from each answer (RateLimit fields, draft-10 of the IETF).
"""

from __future__ import annotations

import asyncio
import math
from typing import Protocol

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.core import networks, rates
from greenroom.core.permissions import Principal
from greenroom.settings import Security

TENANT_FACTOR = 10  # of the principal's rate, where the tenant's is not set
SOURCE_FACTOR = 100  # before authentication: many principals may share an address
SETTLE_EVERY_S = 0.25
FORGET_EVERY_S = 60.0


class Ledger(Protocol):
    """What the nodes of one store know together; debts are the seconds until the whole quota is there again."""

    async def settle(self, made_s: dict[str, float]) -> dict[str, float]:
        """Add the debts that were made here; return what the debts of these names are now, all nodes together."""

    async def forget(self) -> None:
        """Drop what is paid off."""


class Limits:
    """*ledger* is None where the store has one node only. *unlimited*: sources and principals of the node itself."""

    name = "limits"

    def __init__(
        self, security: Security, clock: clocks.Clock, facts: telemetry.Telemetry, *, ledger: Ledger | None = None
    ) -> None:
        self._clock, self._facts, self._ledger = clock, facts, ledger
        self._rejections = rates.Rejections()
        self.wakeup = asyncio.Event()
        self.unlimited: frozenset[str] = frozenset()
        self._forget_at_s = clock.monotonic_s() + FORGET_EVERY_S
        each = security.rate_limit_per_minute
        together, at_all = security.tenant_rate_limit_per_minute, security.source_rate_limit_per_minute
        if each != "off":
            together = each * TENANT_FACTOR if together is None else together
            at_all = each * SOURCE_FACTOR if at_all is None else at_all
        self._sources = _limit(at_all, is_shared=False)
        self._principals = _limit(each, is_shared=ledger is not None)
        self._tenants = _limit(together, is_shared=ledger is not None)
        kinds = {"principal": self._principals, "tenant": self._tenants}
        told = {kind: limit.per_minute for kind, limit in kinds.items() if limit is not None}
        policies = ", ".join(f'"{kind}";q={per_minute};w={rates.PERIOD_S:.0f}' for kind, per_minute in told.items())
        standings = ", ".join(f'"{kind}";r=%d;t=%d' for kind in told)
        self._lines = f"ratelimit-policy: {policies}\r\nratelimit: {standings}\r\n".encode()

    @property
    def per_minute(self) -> dict[str, int | None]:
        """How many requests a minute a source, a principal and a tenant may send; None: as many as they like."""
        limits = {"source": self._sources, "principal": self._principals, "tenant": self._tenants}
        return {kind: None if limit is None else limit.per_minute for kind, limit in limits.items()}

    def admit(self, source: str) -> None:
        """Count a request of *source*, whoever it is; raises `errors.RateLimited`."""
        if self._sources is None or source in self.unlimited:
            return
        name = networks.limited_as(source)
        if wait_s := self._sources.take(name, self._clock.monotonic_s()):
            self._facts.emit(telemetry.RateLimited("source", name))
            raise errors.RateLimited(
                f"cannot take more from {name}: {self._sources.per_minute} requests a minute are taken from one address"
                f" (security.source_rate_limit_per_minute); try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )

    def reject(self, source: str, key_id: str | None, *, why: str = "unknown") -> errors.GreenroomError:
        """Count and tell a rejected credential of *source*, for the key *key_id* if it names one; return what to raise.

        After too many in a minute, from the source or for the key, it is `errors.RateLimited`.
        """
        now_s = self._clock.monotonic_s()
        named = [("source", networks.limited_as(source)), *([("key", key_id)] if key_id is not None else [])]
        wait_s = max(self._rejections.wait_s(f"{kind} {name}", now_s) for kind, name in named)
        told = "throttled" if wait_s and why == "unknown" else why
        self._facts.emit(telemetry.CredentialRejected(source, key_id or "", told))
        if wait_s:
            self._facts.emit(telemetry.RateLimited("credentials", named[0][1]))
            return errors.RateLimited("cannot try another credential yet: too many were rejected", retry_after_s=wait_s)
        for kind, name in named:
            if self._rejections.note(f"{kind} {name}", now_s):
                self._facts.emit(telemetry.CredentialsGuessed(kind, name))
        return errors.Unauthenticated("send a valid key as: Authorization: Bearer gr_…")

    def spend(self, principal: Principal, count: int = 1) -> None:
        """Count *count* requests of *principal*, all or none; raises `errors.RateLimited`."""
        each, together = self._principals, self._tenants
        if (each is None and together is None) or principal.id in self.unlimited:
            return
        now_s = self._clock.monotonic_s()
        if each is not None and (wait_s := each.take(principal.id, now_s, count)):
            raise self._refusal("principal", principal.id, each, count, wait_s)
        if together is not None and (wait_s := together.take(principal.tenant, now_s, count)):
            if each is not None:
                each.give_back(principal.id, count)
            raise self._refusal("tenant", principal.tenant, together, count, wait_s)

    def _refusal(self, kind: str, name: str, limit: rates.RateLimit, count: int, wait_s: float) -> errors.RateLimited:
        self._facts.emit(telemetry.RateLimited(kind, name))
        advice = f"try again in {math.ceil(wait_s)} s"
        if 1 < count >= limit.per_minute:  # its request is counted beside
            advice, wait_s = "the batch is larger than that: send it in smaller ones", rates.PERIOD_S
        setting = "rate_limit_per_minute" if kind == "principal" else "tenant_rate_limit_per_minute"
        return errors.RateLimited(
            f"cannot take more: a {kind} may send {limit.per_minute} a minute (security.{setting}), and each task of a "
            f"batch counts; {advice}",
            retry_after_s=wait_s,
        )

    def headers(self, principal: Principal | None) -> bytes:
        """Return the lines that tell *principal* where it stands; none where nobody is limited."""
        each, together = self._principals, self._tenants
        if principal is None or (each is None and together is None) or principal.id in self.unlimited:
            return b""
        now_s = self._clock.monotonic_s()
        told: tuple[int, ...] = ()
        if each is not None:
            told = each.standing(principal.id, now_s)
        if together is not None:
            told += together.standing(principal.tenant, now_s)
        return self._lines % told

    async def step(self) -> float:
        """Tell the other nodes what was spent here, and hear what was spent there."""
        if self._ledger is not None:
            await self._settle(self._ledger)
            if self._clock.monotonic_s() >= self._forget_at_s:
                self._forget_at_s = self._clock.monotonic_s() + FORGET_EVERY_S
                await self._ledger.forget()
        return SETTLE_EVERY_S

    async def _settle(self, ledger: Ledger) -> None:
        shared = {"principal ": self._principals, "tenant ": self._tenants}
        spent = {kind: limit.take_unsettled() for kind, limit in shared.items() if limit is not None}
        made_s = {
            kind + name: limit.debt_s(count)
            for kind, limit in shared.items()
            if limit is not None
            for name, count in spent[kind].items()
        }
        if not made_s:
            return
        try:
            debts_s = await ledger.settle(made_s)
        except errors.StoreUnavailable:  # each node limits by what it knows until the store is back
            for kind, limit in shared.items():
                if limit is not None:
                    limit.put_back(spent[kind])
            raise
        now_s = self._clock.monotonic_s()
        for kind, limit in shared.items():
            if limit is not None:
                own = {name.removeprefix(kind): debt for name, debt in debts_s.items() if name.startswith(kind)}
                limit.settle(own, now_s)


def _limit(per_minute: int | str | None, *, is_shared: bool) -> rates.RateLimit | None:
    return rates.RateLimit(per_minute, is_shared=is_shared) if isinstance(per_minute, int) else None
