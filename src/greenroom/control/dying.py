"""Says whose replicas die one after the other: more of them would not help. Of `control.autoscaler`.

Whether one is ready says little: who crashes after readiness is ready again and again. So it goes by the recovery's
record, of deaths after which no task has succeeded yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from greenroom import clock as clocks
from greenroom.core import recovery
from greenroom.store import database
from greenroom.store.agents import Replica
from greenroom.store.directory import Entry
from greenroom.store.store import Store

_decode = msgspec.json.Decoder(recovery.Record).decode


async def dying(
    store: Store, clock: clocks.Clock, entries: Iterable[Entry], replicas: Sequence[Replica]
) -> dict[str, str]:
    """Return those of the agents whose replicas die, and of what."""
    wanted = {entry.agent.name: entry.agent for entry in entries}
    if not wanted:
        return {}
    now_us = database.microseconds(clock.now())
    found = {}
    for name, (stored, written_us) in (await store.recovery.records()).items():
        if name not in wanted:
            continue
        try:
            record = recovery.moved(_decode(stored), (written_us - now_us) / 1e6)
        except msgspec.MsgspecError:  # damaged: the host judges its agent anew
            continue
        if (record.revision, record.generation) != (wanted[name].revision, wanted[name].generation):
            continue
        ready = [each for each in replicas if each.agent == name and each.state == "ready"]
        ages_s = [(now_us - each.started_at) / 1e6 for each in ready if each.revision == record.revision]
        if recovery.is_dying(record, now_s=0.0, oldest_s=max(ages_s, default=0.0)):
            found[name] = f"none has succeeded since {_deaths(record.deaths)}: {record.reason[:200]}"
    return found


def _deaths(count: int) -> str:
    return "one of its replicas has died" if count == 1 else f"its replicas have died {count} times"
