"""Alerts of one kind: raised, told again where reason or severity is another one, and resolved. Used by loops.

What fires is taken up from the store, so that the alerts of the node's life before end when what they tell of is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from greenroom import telemetry
from greenroom.core.alerts import OF_RULES
from greenroom.store.alerts import MAX_REASON, Raised, Resolved
from greenroom.store.store import Store

_Told = tuple[str, str]  # severity and reason


class Alerts:
    def __init__(self, store: Store, facts: telemetry.Telemetry, kind: str) -> None:
        self._store, self._facts, self._kind = store, facts, kind
        self._firing: dict[str, _Told] | None = None  # by id; None: the store is to be asked

    async def firing(self) -> Mapping[str, str]:
        """Return the reasons of those that fire, by their ids."""
        return {id: reason for id, (_, reason) in (await self._load()).items()}

    async def tell(self, alert: Raised) -> None:
        """Let it fire; nothing, if it does for this reason and as this severe."""
        firing, told = await self._load(), (alert.severity, alert.reason[:MAX_REASON])
        if firing.get(alert.id) == told:
            return
        await self._write(alert)
        firing[alert.id] = told
        self._facts.emit(telemetry.AlertChanged(alert.id, "firing", alert.severity, alert.reason))

    async def resolve(self, id: str) -> None:
        """End it; nothing, if it does not fire."""
        firing = await self._load()
        if id in firing:
            await self._write(Resolved(id))
            del firing[id]
            self._facts.emit(telemetry.AlertChanged(id, "resolved"))

    async def only(self, alerts: Iterable[Raised]) -> None:
        """Let these fire, and no others."""
        wanted = {alert.id: alert for alert in alerts}
        for id in [id for id in await self._load() if id not in wanted]:
            await self.resolve(id)
        for alert in wanted.values():
            await self.tell(alert)

    async def _load(self) -> dict[str, _Told]:
        if self._firing is None:
            alerts = [each for each in await self._store.alerts.open() if each.kind == self._kind and each.is_firing]
            self._firing = {
                each.id: (each.severity, each.reason) for each in alerts if not each.id.startswith(OF_RULES)
            }
        return self._firing

    async def _write(self, alert: Raised | Resolved) -> None:
        try:
            await self._store.alerts.tell(alert)
        except BaseException:
            self._firing = None  # it may be stored, or not
            raise
