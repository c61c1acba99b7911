"""A campaign against a node of its own, whose process and database are hit as well as its replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chaos import supervised
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing import databases
from greenroom.testing.chaos import campaign, judging, load, nemesis, schedule, target

REPLICAS = 4
TELL_EVERY_S = 10.0
CALL_WITHIN_S = 10.0
FREEZE_S = (2.0, 20.0)
OF_REPLICAS = ("kill",) * 6 + ("slow",) * 2 + ("stop",) * 2 + ("poison", "lock")
OF_NODES = ("node-kill",) * 2 + ("group-kill", "zygote-kill", "node-freeze", "node-restart")
OF_SQLITE = ("disk-full",)
OF_POSTGRES = ("pg-end", "pg-end", "pg-fast", "pg-immediate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    seed: int
    for_s: float
    tasks: int
    faults: int
    holds_s: Mapping[str, tuple[float, float]]
    settle_s: float = campaign.SETTLE_WITHIN_S


@dataclass(frozen=True, slots=True)
class Proof:
    """*deaths*: what the node did not survive although nobody killed it."""

    report: judging.Report
    deaths: Sequence[str]

    @property
    def passed(self) -> bool:
        return self.report.passed and not self.deaths


def kinds(*, on_postgres: bool) -> tuple[str, ...]:
    return OF_REPLICAS + OF_NODES + (OF_POSTGRES if on_postgres else OF_SQLITE)


def full_holds_s() -> dict[str, tuple[float, float]]:
    return {**target.holds_s(target.HANG_AFTER_S), "node-freeze": FREEZE_S}


async def prove(
    folder: Path,
    server: databases.Server | None,
    size: Size,
    faults: Sequence[str],
    *,
    tell: Callable[[str], None] | None = None,
) -> Proof:
    """Run *size* with *faults* on a node in *folder*, on SQLite or on a database of *server*.

    What happened is left in *folder*: the ledger, the history, the faults and the documents of all tasks,
    the node's log.
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nothing runs yet
    ledger = folder / "ledger"
    async with _database(server) as store_url:
        node = supervised.Supervised(folder / "node", store_url)
        node.folder.manifest(_manifest())
        planned = schedule.plan(size.seed, for_s=size.for_s, kinds=faults, count=size.faults, holds_s=size.holds_s)
        plan = campaign.Plan(
            name="chaos", seed=size.seed, for_s=size.for_s, tasks=size.tasks, faults=planned, settle_s=size.settle_s
        )
        try:
            await node.start()
            async with AsyncClient(data_dir=node.data_dir, timeout_s=CALL_WITHIN_S) as client:
                await campaign.ready(client, supervised.AGENT, replicas=REPLICAS)
                prepared = campaign.Campaign(client, plan, load.BuiltIn(supervised.AGENT, str(ledger)), ledger)
                async with _beside(node.watch(), *([_follow(prepared, tell)] if tell else [])):
                    report = await prepared.run(_injectors(node, prepared, server, store_url))
        finally:
            node.close()
    _keep(folder, prepared, report)
    return Proof(report, node.deaths)


def _keep(folder: Path, run: campaign.Campaign, report: judging.Report) -> None:
    kept = {
        "history": run.history,
        "tasks": run.documents,
        "faults": [] if run.nemesis is None else run.nemesis.injected,
        "report": report,
    }
    for name, value in kept.items():
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(value))


def _injectors(
    node: supervised.Supervised, prepared: campaign.Campaign, server: databases.Server | None, store_url: str | None
) -> dict[str, nemesis.Injector]:
    local = nemesis.LocalFaults(
        prepared.client,
        agents={supervised.AGENT},
        node_pid=node.pid,
        store=store_url or str(node.data_dir / "greenroom.db"),
        hang_after_s=target.HANG_AFTER_S,
        poison=prepared.load.poison,
    )
    whole = supervised.NodeFaults(node, prepared.client, server=server, store_url=store_url)
    return local.injectors() | whole.injectors()


def _manifest() -> str:
    lines = [f"[agents.{supervised.AGENT}]"]
    for name, value in campaign.spec(replicas=REPLICAS).items():
        if isinstance(value, dict):
            lines += [f"{name}.{key} = {msgspec.json.encode(each).decode()}" for key, each in value.items()]
        else:
            lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def _database(server: databases.Server | None) -> AsyncIterator[str | None]:
    if server is None:
        yield None
        return
    async with server.scratch() as scratch:
        yield scratch.url


@contextlib.asynccontextmanager
async def _beside(*work: object) -> AsyncIterator[None]:
    running = [asyncio.ensure_future(each) for each in work]  # type: ignore[call-overload]
    try:
        yield
    finally:
        for each in running:
            each.cancel()
        await asyncio.wait(running)


async def _follow(prepared: campaign.Campaign, tell: Callable[[str], None]) -> None:
    while True:
        tell(prepared.progress())
        await asyncio.sleep(TELL_EVERY_S)
