"""The node's audit log, intrusion detection and security report: built from settings, wired to what they act on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec

from greenroom import __version__, settings, telemetry
from greenroom import clock as clocks
from greenroom.api.keys import Keys
from greenroom.control import supervisor
from greenroom.control.audit_export import AuditExport
from greenroom.control.audit_places import place_of
from greenroom.control.auditor import Auditor
from greenroom.control.intrusion import Intrusion
from greenroom.core import posture
from greenroom.core.measures import Measures
from greenroom.core.permissions import HOME
from greenroom.core.posture import State
from greenroom.sdk import security
from greenroom.sdk.security import Control, Rate
from greenroom.security import audit
from greenroom.security import keys as key_texts
from greenroom.store import database
from greenroom.store.audit import Act
from greenroom.store.store import Store

HOUR_S, DAY_S = 3600.0, 86_400.0
MOST_RATES = 20
FINISH_S = 2.0  # how long the node's end waits for exports


class NodeSecurity:
    """*seed* is that of the key that signs the audit log; relative places of its export are below *folder*."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Settings,
        *,
        node: str,
        seed: bytes,
        folder: Path,
        owner_key: Path,
    ) -> None:
        self._store, self._keys, self._clock, self._settings = store, keys, clock, found
        self._node, self._owner_key = node, owner_key
        wanted = found.security
        store.audit.is_on = wanted.audit_log
        self.measures = Measures()
        signer = audit.Signer(seed)
        self.auditor = Auditor(store, clock, facts, signer=signer, home=HOME)
        places = [place_of(where, folder, signer=signer, clock=clock) for where in wanted.audit_export]
        self.exports = [AuditExport(store, clock, facts, place, tell=self.auditor.tell) for place in places]
        self.intrusion = Intrusion(
            store,
            clock,
            facts,
            is_on=wanted.intrusion_rules,
            policies=wanted.intrusion,
            measures=self.measures,
            spared=self._spared,
            revoke=self._revoke,
        )
        self.watch = self.intrusion.note_request if wanted.intrusion_rules else None
        self.loops: tuple[supervisor.Loop, ...] = (self.auditor, self.intrusion, *self.exports)
        self.controls: list[Callable[[], Iterable[Control]]] = [self._controls]
        """What the report shows; whoever has a control adds a function that tells its state."""
        self._is_begun = False

    # --- the node's life

    async def begin(self) -> None:
        """Write that the node starts, and with which settings: before it does anything that is audited."""
        await self._store.audit.take_pending()
        detail = {
            "settings": _digest(self._settings),
            "environment": str(self._settings.environment),
            "release": __version__,
            "encryption": str(self._store.vault.mode),
        }
        await self._store.audit.note(Act("node.start", f"node:{self._node}", detail=detail))
        self._is_begun = True

    async def end(self) -> None:
        """Write that the node stops, sign it, and give the exports a moment."""
        if not self._is_begun:
            return
        await self.auditor.write(all_of_it=True)
        await self._store.audit.note(Act("node.stop", f"node:{self._node}"))
        await self.auditor.seal()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await asyncio.gather(*(_drain(export) for export in self.exports))

    # --- what intrusion detection may do

    def _spared(self, principal: str) -> str | None:
        """Say why nothing is done to *principal*: somebody has to be able to undo what was done."""
        if principal == self._owners():
            return "it is the owner's key of this node, which undoes everything else"
        admins = [row for row in self._keys.rows(tenant=HOME) if row.role == "admin" and self._is_live(row.expires_at)]
        living = [row.key_id for row in admins if row.revoked_at is None]
        if living == [principal]:
            return "it is the last key of an admin"
        return None

    def _is_live(self, expires_at: int | None) -> bool:
        return expires_at is None or expires_at > database.microseconds(self._clock.now())

    def _owners(self) -> str | None:
        try:
            presented = key_texts.parse(self._owner_key.read_text().strip())
        except (OSError, UnicodeDecodeError):
            return None
        return None if presented is None else presented.id

    async def _revoke(self, principal: str) -> bool:
        row = next((row for row in await self._store.principals.all() if row.key_id == principal), None)
        if row is None or row.revoked_at is not None:
            return False
        await self._keys.revoke(principal, tenant=row.tenant)
        return True

    async def unlock(self, subject: str) -> None:
        """End a lock or a throttle; raises `errors.NotFound`."""
        await self.intrusion.unlock(subject)

    # --- the report

    async def report(self) -> security.SecurityReport:
        controls = [control for tell in self.controls for control in tell()]
        now_s, now = self._clock.monotonic_s(), self._clock.now()
        found = [each for each in reversed(self.intrusion.found) if now_s - each[0] < DAY_S]
        recent = [each for each, at_s in self.intrusion.found_at_s.items() if now_s - at_s < HOUR_S]
        grade, reason = posture.grade([(control.name, control.state) for control in controls], recent)
        rates = self.intrusion.rates()
        requests = dict(rates["requests"])
        now_us = database.microseconds(now)
        return security.SecurityReport(
            grade=grade,
            reason=reason,
            controls=controls,
            found_last_hour=sum(now_s - at_s < HOUR_S for at_s, *_ in found),
            found_last_day=[
                security.Found(
                    at=now - timedelta(seconds=now_s - at_s),
                    rule=finding.rule,
                    subject=str(finding.subject),
                    reason=finding.reason,
                    done=done,
                )
                for at_s, finding, done in found
            ],
            rejected=[_rate(*each) for each in rates["rejected"][:MOST_RATES]],
            refused=[_rate(*each, of=requests.get(each[0])) for each in rates["refused"][:MOST_RATES]],
            requests=[_rate(*each) for each in rates["requests"][:MOST_RATES]],
            measures=[
                security.Measure(
                    subject=row.subject,
                    kind=row.kind,
                    rule=row.rule,
                    reason=row.reason,
                    until=database.instant(row.until_us),
                )
                for row in await self._store.measures.all()
                if row.until_us > now_us
            ],
        )

    def _controls(self) -> Iterator[Control]:
        yield self._audit_log()
        for export in self.exports:
            trouble = export.trouble or export.mismatch
            yield Control(name=export.name, state=State.DEGRADED if trouble else State.ON, why=trouble or "")
        if not self.exports:
            why = "whoever owns the database can cut off the log's end unseen; name a place in security.audit_export"
            yield Control(name="audit export", state=State.OFF, why=why)
        yield self._intrusion_rules()

    def _audit_log(self) -> Control:
        if not self._store.audit.is_on:
            return Control(name="audit log", state=State.OFF, why="security.audit_log is false")
        if self.auditor.trouble is not None:
            return Control(name="audit log", state=State.DEGRADED, why=self.auditor.trouble)
        return Control(
            name="audit log", state=State.ON, why=f"{self.auditor.checked} entries were looked at: all sound"
        )

    def _intrusion_rules(self) -> Control:
        policies = msgspec.structs.asdict(self._settings.security.intrusion)
        del policies["lock_s"]
        off = sorted(rule for rule, policy in policies.items() if policy == "off")
        if not self.intrusion.is_on:
            return Control(name="intrusion rules", state=State.OFF, why="security.intrusion_rules is false")
        if len(off) == len(policies):
            return Control(name="intrusion rules", state=State.OFF, why="each rule's policy is off")
        acting = sorted(f"{rule} = {policy}" for rule, policy in policies.items() if policy not in ("off", "alert"))
        why = f"{len(policies) - len(off)} of {len(policies)} rules; {', '.join(acting) or 'all of them alert only'}"
        return Control(name="intrusion rules", state=State.ON, why=why + (f"; off: {', '.join(off)}" if off else ""))


async def _drain(export: AuditExport) -> None:
    while await export.step() == 0.0:
        pass


def _rate(subject: str, count: int, *, of: int | None = None) -> Rate:
    share = None if not of else round(min(100.0, count * 100 / of), 1)
    return Rate(subject=subject, count=count, per_minute=round(count / 60, 2), share_pct=share)


def _digest(found: settings.Settings) -> str:
    """Return what tells these settings from others; where they came from is no part of them."""
    document = {name: value for name, value in msgspec.to_builtins(found).items() if name != "origins"}
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()
