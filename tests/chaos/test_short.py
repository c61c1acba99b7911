"""The short form of ``make chaos``: every kind of fault once, on each store, while tasks run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from chaos import proving
from greenroom.testing import databases

pytestmark = pytest.mark.slow

HOLDS_S = {
    "slow": (1.0, 1.5),
    "stop": (0.5, 1.5),
    "lock": (0.5, 1.0),
    "disk-full": (0.5, 1.0),
    "node-freeze": (0.5, 1.5),
}


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[databases.Server | None]:
    if request.param == "sqlite":
        yield None
        return
    with databases.postgres() as running:  # of its own: it is restarted
        yield running


@pytest.mark.parametrize("server", ["sqlite", "postgresql"], indirect=True)
def test_nothing_is_lost_while_everything_is_killed_stopped_and_filled(
    server: databases.Server | None, tmp_path: Path
) -> None:
    import asyncio

    kinds = tuple(dict.fromkeys(proving.kinds(on_postgres=server is not None)))
    size = proving.Size(seed=20, for_s=7.0, tasks=600, faults=len(kinds), holds_s=HOLDS_S)
    proof = asyncio.run(proving.prove(tmp_path / "proof", server, size, kinds))
    assert proof.passed, msgspec.json.format(msgspec.json.encode(proof.report)).decode() + "\n".join(proof.deaths)
    assert proof.report.acknowledged >= 600
    assert proof.report.run_twice > 0, "the faults hit nothing"
