"""What a replica costs: its start from a warm zygote, its memory, the notice of its death; beside a bare
fork, same run.

Run it as ``python bench/replicas.py [replicas]``. The agent is an AutoGen `AssistantAgent` without a model
call.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from greenroom import clock as clocks
from greenroom.engine import contract, local, protocol, said, snapshots

STARTS = 40
AGENT = """
from autogen_agentchat.agents import AssistantAgent
from autogen_ext.models.replay import ReplayChatCompletionClient

def make():
    return AssistantAgent("assistant", ReplayChatCompletionClient(["done"]))
"""
BARE = """
import asyncio, gc, os, socket, sys, time
import autogen_agentchat.agents, autogen_ext.models.replay
gc.collect(); gc.freeze()

def child(channel):
    async def main():
        reader, writer = await asyncio.open_connection(sock=channel)
        writer.write(b"r")
        await reader.read(1)
    asyncio.run(main())
    os._exit(0)

def pss_kb(pid):
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

channels = []
for _ in range(int(sys.argv[1])):
    ours, theirs = socket.socketpair()
    begun = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        ours.close()
        child(theirs)
    theirs.close()
    ours.recv(1)
    print((time.perf_counter() - begun) * 1000)
    channels.append((pid, ours))
time.sleep(0.5)
print(sum(pss_kb(pid) for pid in [os.getpid(), *(pid for pid, _ in channels)]) / 1024)
"""


class Notices:
    """A listener that notes when it was told."""

    def __init__(self) -> None:
        self.ready_at: dict[str, float] = {}
        self.gone_at: dict[str, float] = {}
        self.ended_at: list[float] = []

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:  # noqa: ARG002
        self.ready_at[replica] = time.perf_counter()

    def are_ready(self, names: Sequence[str]) -> bool:
        return all(name in self.ready_at for name in names)

    def is_gone(self, name: str) -> bool:
        return name in self.gone_at

    def on_message(self, replica: str, message: object) -> None:
        if isinstance(message, protocol.Ended):
            assert b"done" in (message.output or b""), f"{replica}: {message}"
            self.ended_at.append(time.perf_counter())

    def on_log(self, replica: str, line: said.Line) -> None:
        print(f"  {replica} {line.stream}: {line.text}", file=sys.stderr)

    def on_alive(self, replica: str, number: int) -> None:
        """No progress is asked for."""

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        self.gone_at[replica] = time.perf_counter()
        if exit.reason not in {"stopped", "killed"}:
            sys.exit(f"{replica}: {exit}")


async def until(condition: Callable[..., bool], *given: object) -> None:
    async with asyncio.timeout(60):
        while not condition(*given):  # noqa: ASYNC110  # the listener is to cost nothing
            await asyncio.sleep(0.0005)


def pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def line(what: str, values: Sequence[float], unit: str) -> str:
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return (
        f"{what:58} p50 {statistics.median(ordered):8.2f}  p99 {p99:8.2f}  "
        f"range {ordered[0]:.2f} to {ordered[-1]:.2f} {unit}"
    )


async def measure(folder: Path, replicas: int) -> None:
    code = folder / "code"
    code.mkdir()
    (code / "assistant.py").write_text(AGENT)
    snapshot = snapshots.take(code, include=(), into=folder / "data" / "snapshots")
    engine, notices = local.LocalEngine(folder / "data", clocks.SystemClock()), Notices()
    engine.subscribe(notices)
    revision = contract.Revision("assistant", 1, snapshot.path, "assistant:make", concurrency=4)
    try:
        await start_one_by_one(engine, notices, revision)
        await kill_some(engine, notices)
        await start_at_once(engine, notices, revision, replicas)
        await invoke_many(engine, notices)
    finally:
        begun = time.perf_counter()
        await engine.close()
        print(f"{'close with all of them':58} {(time.perf_counter() - begun) * 1000:12.0f} ms")


async def start_one_by_one(engine: local.LocalEngine, notices: Notices, revision: contract.Revision) -> None:
    begun = time.perf_counter()
    await engine.start("first", revision)
    await until(notices.are_ready, ["first"])
    print(f"{'first start: interpreter, import, fork, ready':58} {(notices.ready_at['first'] - begun) * 1000:12.0f} ms")
    took = []
    for number in range(STARTS):
        begun = time.perf_counter()
        await engine.start(f"one-{number}", revision)
        await until(notices.are_ready, [f"one-{number}"])
        took.append((notices.ready_at[f"one-{number}"] - begun) * 1000)
    print(line(f"start from the warm zygote to ready, {STARTS} one by one", took, "ms"))
    await asyncio.sleep(0.5)
    report_memory(engine)


def report_memory(engine: local.LocalEngine) -> None:
    sizes = [pss_mb(seen.pid) for seen in engine.observe() if seen.pid is not None]
    zygotes = sum(pss_mb(zygote.pid) for zygote in engine._zygotes.values())
    print(line(f"proportional set size of each of {len(sizes)} idle replicas", sizes, "MB"))
    print(f"{f'all {len(sizes)} and their zygote':58} {sum(sizes) + zygotes:12.0f} MB")


async def kill_some(engine: local.LocalEngine, notices: Notices) -> None:
    took = []
    for seen in engine.observe()[1:]:
        begun = time.perf_counter()
        os.kill(seen.pid or 0, signal.SIGKILL)
        await until(notices.is_gone, seen.replica)
        took.append((notices.gone_at[seen.replica] - begun) * 1000)
    print(line("SIGKILL to on_exit, everything it left killed", took, "ms"))


async def start_at_once(
    engine: local.LocalEngine, notices: Notices, revision: contract.Revision, replicas: int
) -> None:
    for count in (30, replicas):
        names = [f"burst-{count}-{number}" for number in range(count - len(engine.observe()))]
        begun = time.perf_counter()
        await asyncio.gather(*(engine.start(name, revision) for name in names))
        await until(notices.are_ready, names)
        print(f"{f'{len(names)} more at once, all ready after':58} {(time.perf_counter() - begun) * 1000:12.0f} ms")
        await asyncio.sleep(1)
        report_memory(engine)


async def invoke_many(engine: local.LocalEngine, notices: Notices, *, count: int = 4000) -> None:
    names = [seen.replica for seen in engine.observe()][:4]
    begun, cpu_s = time.perf_counter(), time.process_time()
    for number in range(count):
        assert engine.invoke(names[number % 4], protocol.Invoke(f"t{number}", 1, b'"hello"', 1, 60.0))
    await until(lambda: len(notices.ended_at) == count)
    cpu_us = (time.process_time() - cpu_s) / count * 1e6
    rate_per_s = count / (time.perf_counter() - begun)
    print(f"{f'{count} tasks on 4 of them, an AssistantAgent each':58} {rate_per_s:12.0f} a second")
    print(f"{'CPU of the node for each':58} {cpu_us:12.0f} µs of CPU")


def bare() -> None:
    answer = subprocess.run([sys.executable, "-c", BARE, str(STARTS)], check=True, capture_output=True, text=True)
    *starts, total = map(float, answer.stdout.split())
    print(line(f"bare: fork to ready of an event loop, {STARTS} one by one", starts, "ms"))
    print(f"{f'bare: all {STARTS} and their parent':58} {total:12.0f} MB")


def main() -> None:
    bare()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder), int(sys.argv[1]) if sys.argv[1:] else 200))


if __name__ == "__main__":
    main()
