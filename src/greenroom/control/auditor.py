"""The auditor: signs what was appended to the audit log, looks whether it is still what was written, and writes down
who was refused, many of a kind as one entry.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.control.alerts import Alerts
from greenroom.core.tallies import Tally
from greenroom.security import audit, audit_checks
from greenroom.store.acting import Actor
from greenroom.store.alerts import Raised
from greenroom.store.audit import SEAL_MOST, Act, Broken
from greenroom.store.news import News
from greenroom.store.store import Store

SEAL_EVERY_S = 60.0
CHECK_EVERY_S = 60.0
CHECK_ALL_EVERY_S = 6 * 3600.0
PAGE = 500  # entries that are looked at before others have their turn
KIND = "audit"
ALERT_ID = "audit-broken"
OTHERS = "others"
MAX_DAMAGED = 1_000


class _Refusal(NamedTuple):
    """Of what kind: requests that are alike are one entry."""

    principal: str
    tenant: str
    source: str
    status: int
    why: str


class Auditor:
    """*signer* signs the checkpoints. Nothing is done where the log is off."""

    name = "auditor"

    def __init__(
        self, store: Store, clock: clocks.Clock, facts: telemetry.Telemetry, *, signer: audit.Signer, home: str
    ) -> None:
        self._store, self._clock, self._facts, self._signer, self._home = store, clock, facts, signer, home
        self.wakeup = asyncio.Event()
        self.trouble: str | None = None  # what is wrong with the log
        self.checked = 0  # entries of the last look at all of them, and what came since
        self._alerts = Alerts(store, facts, KIND)
        self._refusals = Tally(_Refusal(OTHERS, home, OTHERS, 0, "too many kinds to tell apart"))
        self._unsealed = 0
        self._seal_at_s = self._check_at_s = self._check_all_at_s = clock.monotonic_s()
        self._reached = audit_checks.Head()
        store.hub.subscribe(self._hear)
        self._acts: list[Act] = []  # what was done already
        self._damaged: set[str] = set()  # values of which an entry tells already
        facts.subscribe(self._note_backup, telemetry.BackupMade)
        facts.subscribe(self._note_policy, telemetry.PolicyChanged, telemetry.PolicyRefused)
        facts.subscribe(self._note_certificate, telemetry.CertificateChanged)
        facts.subscribe(self._note_damage, telemetry.ValueDamaged)
        facts.subscribe(self._note_rejected, telemetry.CredentialRejected)
        facts.subscribe(self._note_refused, telemetry.RequestRefused)

    # --- what is noted

    def _hear(self, news: News) -> None:
        if news.audited:
            self._unsealed += news.audited
            if self._unsealed >= SEAL_MOST:
                self.wakeup.set()

    def _note_backup(self, fact: telemetry.BackupMade) -> None:
        self._put(Act("backup.create", f"backup:{fact.backup}", detail={"bytes": fact.stored_bytes}))

    def _note_policy(self, fact: telemetry.PolicyChanged | telemetry.PolicyRefused) -> None:
        """Somebody has changed the policy file."""
        if isinstance(fact, telemetry.PolicyChanged):
            self._put(Act("policy.reload", "policy", detail={"roles": fact.roles}))
        else:
            self._put(Act("policy.reload", "policy", "refused", {"why": fact.error}))

    def _note_certificate(self, fact: telemetry.CertificateChanged) -> None:
        """Somebody has replaced the certificate's files; that it expires is nobody's act."""
        if fact.state in ("loaded", "refused"):
            outcome = "done" if fact.state == "loaded" else "refused"
            self._put(Act("certificate.reload", fact.file, outcome, {"detail": fact.detail}))

    def _note_damage(self, fact: telemetry.ValueDamaged) -> None:
        """Somebody has written to the database without its key. Each value once: it is read again and again."""
        if fact.what not in self._damaged and len(self._damaged) < MAX_DAMAGED:
            self._damaged.add(fact.what)
            self._put(Act("encryption.damage", "store", "found", {"what": fact.what}))

    def _put(self, act: Act) -> None:
        if self._store.audit.is_on:
            self._acts.append(act)
            self.wakeup.set()

    def _note_rejected(self, fact: telemetry.CredentialRejected) -> None:
        key = f"key:{fact.key_id}" if fact.key_id else ""
        self._note(_Refusal("", self._home, fact.source, 401, fact.why), key)

    def _note_refused(self, fact: telemetry.RequestRefused) -> None:
        if fact.status != 404:  # nobody was kept from anything
            refusal = _Refusal(fact.principal, fact.tenant, fact.source, fact.status, fact.code)
            self._note(refusal, f"{fact.method} {fact.path}")

    def _note(self, refusal: _Refusal, what: str) -> None:
        if self._store.audit.is_on:
            self._refusals.note(refusal, what)
            self.wakeup.set()

    # --- the loop

    async def step(self) -> float:
        if not self._store.audit.is_on:
            return SEAL_EVERY_S
        now_s = self._clock.monotonic_s()
        await self.write()
        if self._unsealed >= SEAL_MOST or now_s >= self._seal_at_s:
            await self.seal()
            self._seal_at_s = now_s + SEAL_EVERY_S
        if now_s >= self._check_at_s:
            await self._check(now_s)
            self._check_at_s = now_s + CHECK_EVERY_S
        waits = (self._seal_at_s - now_s, self._check_at_s - now_s, self._refusals.wait_s(now_s))
        # Each refusal sets the wakeup: at most ten times a second.
        return max(0.1, min(waits))

    async def write(self, *, all_of_it: bool = False) -> None:
        """Write what was noted and is due."""
        now_s = self._clock.monotonic_s()
        self._acts += (_act(*each) for each in self._refusals.due(now_s, all_of_it=all_of_it))
        acts, self._acts = self._acts, []
        try:
            await self._store.audit.note(*acts)
        except errors.StoreUnavailable:
            self._acts = acts + self._acts
            raise
        except errors.AuditBroken as error:
            await self.tell(str(error))

    async def seal(self) -> None:
        """Sign what there is."""
        if not self._store.audit.is_on:
            return
        self._unsealed = 0
        try:
            while await self._store.audit.seal(self._signer):
                pass
        except Broken as broken:
            await self.tell(str(broken))

    async def _check(self, now_s: float) -> None:
        """Look at what came since the last look; now and then at all of it, with its signatures."""
        if now_s >= self._check_all_at_s:
            self._check_all_at_s = now_s + CHECK_ALL_EVERY_S
            finding = await self._check_all()
        else:
            finding = await self._check_new()
        if finding is not None:
            await self.tell(f"the audit log is not what was written: {finding.what}; see greenroom audit verify")
        elif self.trouble is None:
            await self._alerts.resolve(ALERT_ID)  # of a life before, in which it was another one

    async def _check_all(self) -> audit_checks.Finding | None:
        head = await self._store.audit.head()
        checkpoints: list[audit.Checkpoint] = []
        while page := await self._store.audit.checkpoints(after=len(checkpoints)):
            checkpoints += page
            if len(page) < PAGE:
                break
        check = audit_checks.Check([self._signer.public], checkpoints=checkpoints)
        reached, self.checked = audit_checks.Head(), 0
        while entries := await self._store.audit.after(reached.seq, most=PAGE):
            for entry in entries:
                if entry.seq > head.seq:
                    break
                check.add(entry)
            self.checked += len(entries)
            reached = audit_checks.Head(entries[-1].seq, entries[-1].hash)
            await asyncio.sleep(0)
            if entries[-1].seq >= head.seq or check.findings:
                break
        self._reached = reached
        findings = check.end(head)
        return findings[0] if findings else None

    async def _check_new(self) -> audit_checks.Finding | None:
        while True:
            last = self._reached
            entries = await self._store.audit.after(max(0, last.seq - 1), most=PAGE)
            if last.seq and (not entries or (entries[0].seq, entries[0].hash) != (last.seq, last.hash)):
                what = f"entry {last.seq} is gone, or is another one than a minute ago"
                return audit_checks.Finding(last.seq, audit_checks.Kind.REWRITTEN, what)
            new = entries[1:] if last.seq else entries
            if not new:
                return None
            finding = audit_checks.following(new, seq=last.seq, hash=last.hash)
            if finding is not None:
                return finding
            self._reached = audit_checks.Head(new[-1].seq, new[-1].hash)
            self.checked += len(new)
            await asyncio.sleep(0)

    async def tell(self, trouble: str) -> None:
        """Tell what is wrong with the log: for the rest of this life of the node."""
        if self.trouble != trouble:
            self.trouble = trouble
            self._facts.emit(telemetry.AuditTrouble("chain", trouble))
        await self._alerts.tell(Raised(ALERT_ID, KIND, None, "critical", trouble))


def _act(kind: _Refusal, count: int, first: str) -> Act:
    by = Actor(kind.principal or "nobody", kind.tenant, kind.source, "")
    action = "login.reject" if kind.status == 401 else "request.refuse"
    return Act(action, first, "refused", {"count": count, "status": kind.status, "why": kind.why}, by=by)
