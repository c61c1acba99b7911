"""``make chaos``: the long run, half of it on SQLite and half on PostgreSQL. Run as ``python -m chaos.long``.

Exits with 0 if nothing was lost on either and everything planned was done. What happened is left in a folder: see
`proving.prove`.
"""

# ruff: noqa: T201 - it is a script

from __future__ import annotations

import argparse
import asyncio
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from chaos import proving
from greenroom.cli import chaos_report
from greenroom.testing import databases

STORES = ("sqlite", "postgresql")
QUIET_S = 120.0  # of each store's share: start, and until everything has ended


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background, too, it leaves no node behind
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, help="in all")
    parser.add_argument("--faults", type=int, default=500, help="in all")
    parser.add_argument("--minutes", type=float, default=28.0, help="for everything")
    parser.add_argument("--seed", type=int, help="what happens when; drawn if not given")
    parser.add_argument("--store", action="append", choices=STORES, help="one of them only")
    parser.add_argument("--folder", type=Path, help="where what happened is left")
    asked = parser.parse_args()
    stores = asked.store or STORES
    seed = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="greenroom-chaos-"))
    share_s = asked.minutes * 60 / len(stores)
    size = proving.Size(
        seed=seed,
        for_s=max(share_s - QUIET_S, share_s / 2),
        tasks=asked.tasks // len(stores),
        faults=asked.faults // len(stores),
        holds_s=proving.full_holds_s(),
        settle_s=QUIET_S,
    )
    print(f"seed {seed}; what happens is left in {folder}", flush=True)
    proofs = [_prove(folder / store, size, store) for store in stores]
    return 0 if all(proofs) else 1


def _prove(folder: Path, size: proving.Size, store: str) -> bool:
    print(f"{store}: {size.tasks} tasks and {size.faults} faults in {size.for_s:.0f} s", flush=True)
    if store == "sqlite":
        proof = asyncio.run(proving.prove(folder, None, size, proving.kinds(on_postgres=False), tell=_tell))
    else:
        with databases.postgres() as server:
            proof = asyncio.run(proving.prove(folder, server, size, proving.kinds(on_postgres=True), tell=_tell))
    chaos_report.show(proof.report)
    for death in proof.deaths:
        print(death)
    return proof.passed


def _tell(progress: str) -> None:
    print(progress, flush=True)


if __name__ == "__main__":
    sys.exit(main())
