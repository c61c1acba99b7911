"""What a room costs: the start of a zygote, and of a replica from a warm one, in T0, T1 and T2 in turns; T2 by
namespaces, where they can be had.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure
from bench.scale import Scale

from greenroom import clock as clocks
from greenroom.core.isolation import Means, Tier
from greenroom.engine import contract, local, rooms, snapshots
from greenroom.testing.engine_contract import Recorder

REPLICAS, ZYGOTES = 60, 12
_CODE = "def run(input): return input"


def isolation(folder: Path, scale: Scale) -> Iterator[Figure]:  # noqa: ARG001 - all benches are called alike
    """The start of replicas and of interpreters, T1 and T2 beside T0."""
    replicas_ms, zygotes_ms = asyncio.run(_measure(folder))
    for tier in sorted(replicas_ms.keys() - {Tier.T0}):
        for what, taken, aim in (("a replica", replicas_ms, "+1 ms"), ("an interpreter", zygotes_ms, "+20 ms")):
            yield Figure(f"start of {what} in {tier}, beside T0", "ms", taken[tier], taken[Tier.T0], aim=aim)


async def _measure(folder: Path) -> tuple[dict[Tier, list[float]], dict[Tier, list[float]]]:
    code = folder / "code"
    code.mkdir(parents=True)
    (code / "agent.py").write_text(_CODE)
    tiers = [Tier.T0, Tier.T1]
    if rooms.powers(tries_namespaces=True).without_namespaces is None:
        tiers.append(Tier.T2)
    replicas_ms: dict[Tier, list[float]] = {tier: [] for tier in tiers}
    zygotes_ms: dict[Tier, list[float]] = {tier: [] for tier in tiers}
    engines, recorders = {}, {}
    for tier in tiers:
        engines[tier] = local.LocalEngine(folder / tier, clocks.SystemClock(), tier=tier, means=Means.NAMESPACES)
        recorders[tier] = Recorder()
        engines[tier].subscribe(recorders[tier])
    try:
        for number in range(ZYGOTES + REPLICAS):
            for tier in tiers:
                snapshot = snapshots.take(code, include=(), into=folder / tier / "snapshots").path
                fresh = number if number < ZYGOTES else 0
                revision = contract.Revision("agent", 1, snapshot, "agent:run", interpreter=fresh)
                begun_s = time.perf_counter()
                await engines[tier].start(f"r{number}", revision)
                await recorders[tier].ready(f"r{number}")
                taken = zygotes_ms if number < ZYGOTES else replicas_ms
                taken[tier].append((time.perf_counter() - begun_s) * 1000)
    finally:
        for engine in engines.values():
            await engine.close()
    return replicas_ms, zygotes_ms


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        replicas_ms, zygotes_ms = asyncio.run(_measure(Path(folder)))
    for what, taken in (("replica", replicas_ms), ("interpreter", zygotes_ms)):
        for tier, values in taken.items():
            ordered = sorted(values)
            print(
                f"start of a {what} in {tier}: median {ordered[len(ordered) // 2]:.2f} ms, "
                f"from {ordered[0]:.2f} to {ordered[-1]:.2f}, {len(ordered)} starts"
            )


if __name__ == "__main__":
    main()
