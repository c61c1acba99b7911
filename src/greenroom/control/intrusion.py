"""Intrusion detection's loop: hears what is refused, asks the rules, and does what their policies say.

Each finding is an entry in the audit log, and in its rule's alert until it has been quiet for a while. A policy may
slow its subject down, lock it for a while, or revoke its key: each an act of its own. Never against who could undo it
(*spared*), and never against a key that others are guessing at: that would be their way to keep its owner out.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from greenroom import clock as clocks
from greenroom import errors, settings, telemetry
from greenroom.control.alerts import Alerts
from greenroom.core import intrusion
from greenroom.core.intrusion import Finding, Rates, Rule, Subject, Watch
from greenroom.core.measures import Measures, Standing
from greenroom.store import database, measures
from greenroom.store.alerts import Raised
from greenroom.store.audit import Act
from greenroom.store.store import Store

STEP_EVERY_S = 1.0
REFRESH_EVERY_S = 5.0
KIND = "intrusion"
MAX_PAIRS = 10_000  # of principals and sources between two steps
KEEP_FOUND = 200
MAX_TOLD = 3  # in one alert
PUNISHED = ("source", "principal")


class Intrusion:
    """*is_on* false: nothing is asked of the rules, but who was locked stays locked, and rates are kept.

    *spared* says why nothing is done to a principal, *revoke* revokes its key: False if it has none.
    """

    name = "intrusion"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        is_on: bool,
        policies: settings.Intrusion,
        measures: Measures,
        spared: Callable[[str], str | None],
        revoke: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._store, self._clock, self._facts = store, clock, facts
        self.is_on, self._policies, self._measures = is_on, policies, measures
        self._spared, self._revoke = spared, revoke
        self.wakeup = asyncio.Event()
        self.watch = Watch()
        self.found: deque[tuple[float, Finding, str]] = deque(maxlen=KEEP_FOUND)  # when, what, and what was done
        self.found_at_s: dict[tuple[Rule, str], float] = {}
        """When each rule found something last, about each kind of subject: no flood pushes it out."""
        self._seen: dict[tuple[str, str], int] = {}  # requests since the last step, by principal and source
        self._submitted: dict[str, int] = {}  # tasks since then, by principal
        self._alerts = Alerts(store, facts, KIND)
        self._refresh_at_s = clock.monotonic_s()
        self._pending: list[Finding] = []  # not yet written
        self._open: dict[tuple[Rule, Subject], str] = {}  # what was found and is not over: why, and what was done
        self._inherited_until_s = clock.monotonic_s() + intrusion.QUIET_S
        self._clocks = (clock.now().timestamp(), clock.monotonic_s())
        facts.subscribe(self._note_rejected, telemetry.CredentialRejected)
        facts.subscribe(self._note_refused, telemetry.RequestRefused)
        if is_on:
            facts.subscribe(self._note_forged, telemetry.RequestForged)
            facts.subscribe(self._note_url, telemetry.UrlRefused)
            facts.subscribe(self._note_blocked, telemetry.AgentBlocked)
            facts.subscribe(self._note_accepted, telemetry.TaskAccepted)
            facts.subscribe(self._note_trouble, telemetry.AuditTrouble)

    # --- what is noted

    def note_request(self, principal: str, source: str) -> None:
        """Count a request that was let in. As tasks, each comes by here: what that means is asked once a second."""
        pair = (principal, source)
        count = self._seen.get(pair)
        if count is not None:
            self._seen[pair] = count + 1
        elif len(self._seen) < MAX_PAIRS:
            self._seen[pair] = 1

    def _note_rejected(self, fact: telemetry.CredentialRejected) -> None:
        now_s = self._clock.monotonic_s()
        self.watch.rejected(fact.source, fact.key_id, now_s)
        if fact.why == "forged":
            self.watch.forged(fact.source, "", "a forged token", now_s)

    def _note_refused(self, fact: telemetry.RequestRefused) -> None:
        now_s, what = self._clock.monotonic_s(), f"{fact.method} {fact.path}"
        if fact.status == 403:
            self.watch.refused(fact.principal, what, now_s)
        elif fact.status == 404:
            self.watch.missed(fact.principal, what, now_s)

    def _note_forged(self, fact: telemetry.RequestForged) -> None:
        self.watch.forged(fact.source, fact.principal, fact.what, self._clock.monotonic_s())

    def _note_url(self, fact: telemetry.UrlRefused) -> None:
        self.watch.forged("", fact.principal, f"a webhook to {fact.host}", self._clock.monotonic_s())

    def _note_blocked(self, fact: telemetry.AgentBlocked) -> None:
        self.watch.blocked(fact.agent, fact.what, self._clock.monotonic_s())

    def _note_accepted(self, fact: telemetry.TaskAccepted) -> None:
        if fact.principal in self._submitted:
            self._submitted[fact.principal] += fact.count
        elif fact.principal and len(self._submitted) < MAX_PAIRS:
            self._submitted[fact.principal] = fact.count

    def _note_trouble(self, fact: telemetry.AuditTrouble) -> None:
        if fact.where == "chain":
            self.watch.audit_broken(fact.error, self._clock.monotonic_s())

    # --- the loop

    async def step(self) -> float:
        now_s = self._clock.monotonic_s()
        await self._refresh(now_s)
        if not self.is_on:
            self.watch.findings()
            return REFRESH_EVERY_S
        self._count(now_s)
        self._compare_clocks(now_s)
        self._pending += self.watch.findings()
        while self._pending:
            await self._answer(self._pending[0])
            del self._pending[0]
        for key in self.watch.over(now_s):
            self._open.pop(key, None)
        await self._tell(now_s)
        return STEP_EVERY_S

    async def _tell(self, now_s: float) -> None:
        """Have one alert for each rule that has found something: a flood of sources is no flood of alerts."""
        told: dict[Rule, list[str]] = {}
        serious = {rule for rule, subject in self._open if intrusion.is_serious(rule, subject.kind)}
        for (rule, subject), what in self._open.items():
            told.setdefault(rule, []).append(f"{subject}: {what}")
        alerts = [
            _alert(rule, each, is_serious=rule in serious)
            for rule, each in told.items()
            if rule is not Rule.BROKEN_AUDIT
        ]  # the auditor's
        if now_s >= self._inherited_until_s:  # until then those of the node's life before may still be true
            await self._alerts.only(alerts)
        else:
            for alert in alerts:
                await self._alerts.tell(alert)

    async def _refresh(self, now_s: float) -> None:
        """Take over what stands in the store: of this node's life before, and of other nodes."""
        if now_s < self._refresh_at_s:
            return
        now_us = database.microseconds(self._clock.now())
        rows = await self._store.measures.all()
        if any(row.until_us <= now_us for row in rows):
            await self._store.measures.expire(now_us)
        standings = {
            row.subject: Standing(row.kind, row.reason, now_s + (row.until_us - now_us) / 1e6)
            for row in rows
            if row.until_us > now_us
        }
        self._measures.replace(standings)
        self._refresh_at_s = now_s + REFRESH_EVERY_S

    def _count(self, now_s: float) -> None:
        seen, self._seen = self._seen, {}
        for (principal, source), count in seen.items():
            self.watch.requested(principal, source, count, now_s)
        submitted, self._submitted = self._submitted, {}
        for principal, count in submitted.items():
            self.watch.submitted(principal, count, now_s)

    def _compare_clocks(self, now_s: float) -> None:
        wall_s = self._clock.now().timestamp()
        before_wall_s, before_s = self._clocks
        self._clocks = (wall_s, now_s)
        self.watch.clocks(wall_s=wall_s - before_wall_s, steady_s=now_s - before_s, now_s=now_s)

    # --- what follows

    async def _answer(self, finding: Finding) -> None:
        policy: str = getattr(self._policies, finding.rule)
        if policy == "off":
            return
        try:
            done = await self._do(finding, policy)
            detail = {"rule": str(finding.rule), "reason": finding.reason, "policy": policy, "done": done}
            await self._store.audit.note(Act("intrusion.found", str(finding.subject), detail=detail))
        except errors.AuditBroken:  # nothing can be done, this neither; it is to be told all the more
            done = "nothing was done: the audit log does not take it"
        now_s = self._clock.monotonic_s()
        self.found.append((now_s, finding, done))
        self.found_at_s[finding.rule, finding.subject.kind] = now_s
        self._facts.emit(telemetry.IntrusionFound(finding.rule, str(finding.subject), finding.reason, done))
        self._open[finding.rule, finding.subject] = f"{finding.reason}; {done}"

    async def _do(self, finding: Finding, policy: str) -> str:
        """Do what *policy* says, and return that in words."""
        subject = finding.subject
        if policy == "alert":
            return "nothing was done beside this alert"
        if subject.kind not in PUNISHED:
            return f"nothing was done: a {subject.kind} cannot be locked"
        if subject.kind == "principal" and (why := self._spared(subject.id)) is not None:
            return f"nothing was done: {why}"
        if policy == "revoke":
            if subject.kind == "principal" and await self._revoke(subject.id):
                return "its key was revoked"
            policy = "lock"  # it has no key: what comes next to it
        now_us = database.microseconds(self._clock.now())
        until_us = now_us + int(self._policies.lock_s * 1e6)
        row = measures.Measure(str(subject), policy, finding.rule, finding.reason, now_us, until_us)
        await self._store.measures.take(row)
        until_s = self._clock.monotonic_s() + self._policies.lock_s
        self._measures.put(str(subject), Standing(policy, finding.reason, until_s))
        verb = "locked" if policy == "lock" else "slowed down"
        return f"it is {verb} for {self._policies.lock_s:g} s; end that with: greenroom security unlock {subject}"

    async def unlock(self, subject: str) -> None:
        """End what is done to *subject*; raises `errors.NotFound`."""
        if not await self._store.measures.lift(subject):
            raise errors.NotFound(
                f"cannot unlock {subject[:200]}: nothing is done to it; see greenroom security report"
            )
        self._measures.drop(subject)

    def rates(self) -> dict[str, list[tuple[str, int]]]:
        """Return what was rejected, refused and asked for within the last hour, the most first."""
        now_s = self._clock.monotonic_s()
        tables: dict[str, Rates] = {
            "rejected": self.watch.rejected_of_source,
            "refused": self.watch.refused_of_principal,
            "requests": self.watch.requests_of_principal,
        }
        return {name: table.all(now_s) for name, table in tables.items()}


def _alert(rule: Rule, told: Sequence[str], *, is_serious: bool) -> Raised:
    """Return the alert of *rule*; it names the latest few of those whom it is about."""
    severity = "critical" if is_serious else "warning"
    others = len(told) - MAX_TOLD
    reason = ". ".join(told[: -MAX_TOLD - 1 : -1])
    if others > 0:
        reason += f". And {others} more: greenroom security report"
    return Raised(f"{KIND}-{rule}", KIND, None, severity, reason)
