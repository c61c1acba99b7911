"""The audit log: how many entries a second are verified, and appended beside what they tell of."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.scale import Scale

from greenroom import clock as clocks
from greenroom.security import audit, audit_checks
from greenroom.store import store as stores
from greenroom.store.audit import Act

SIGNER = audit.Signer(b"s" * 32)
CHUNK = 1_000  # acts of one commit
COUNT = 20_000


def audit_log(folder: Path, scale: Scale) -> Iterator[Figure]:
    """Entries of the audit log, appended on SQLite and verified."""
    appended, entries, checkpoints, head = asyncio.run(_written(folder, COUNT))
    yield Figure(f"appended, {CHUNK} in a commit", "entries/s", appended)
    verified = [_verified(entries, checkpoints, head) for _ in range(scale.rounds)]
    yield Figure("verified", "entries/s", verified, aim="≥ 50,000")


async def _written(
    folder: Path, count: int
) -> tuple[list[float], list[audit.Entry], list[audit.Checkpoint], audit_checks.Head]:
    store = stores.open(f"sqlite:///{folder / 'greenroom.db'}", clock=clocks.SystemClock(), owner="node-1")
    await store.start()
    store.audit.is_on = True
    rates = []
    for _ in range(count // CHUNK):
        began_s = time.perf_counter()
        await store.audit.note(*(Act("key.create", f"key:{n}", detail={"role": "user"}) for n in range(CHUNK)))
        rates.append(CHUNK / (time.perf_counter() - began_s))
        while await store.audit.seal(SIGNER):
            pass
    entries: list[audit.Entry] = []
    while page := await store.audit.after(entries[-1].seq if entries else 0):
        entries += page
    checkpoints = list(await store.audit.checkpoints())
    head = await store.audit.head()
    await store.close()
    return rates, entries, checkpoints, head


def _verified(entries: list[audit.Entry], checkpoints: list[audit.Checkpoint], head: audit_checks.Head) -> float:
    began_s = time.perf_counter()
    check = audit_checks.Check([SIGNER.public], checkpoints=checkpoints)
    for entry in entries:
        check.add(entry)
    assert not check.end(head)
    return len(entries) / (time.perf_counter() - began_s)
