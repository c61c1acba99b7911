"""What holds a fault undoes it: when its time is over, when whoever ordered it is gone, and when its victim is."""

# ruff: noqa: ASYNC220 - the processes here are victims

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

import nodes
from greenroom import errors
from greenroom.engine import kernel
from greenroom.store import postgres
from greenroom.testing import databases
from greenroom.testing.chaos import held, nemesis, processes
from greenroom.testing.chaos.processes import NotInjectable

pytestmark = pytest.mark.slow

WRITES = "import sys\nfor _ in sys.stdin:\n    open(sys.argv[1], 'ab').write(b'x' * 10_000)\n"


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def order(kind: str, process: subprocess.Popen[bytes], *, hold_s: float = 600.0) -> held.Order:
    started = processes.start_of(process.pid)
    return held.Order(kind=kind, hold_s=hold_s, pid=process.pid, started=started, pulse_s=0.01)


def holder_pid() -> int:
    """The one that this process has started."""
    (found,) = (pid for pid in kernel.children() if b"chaos.held" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def state(pid: int) -> str:
    return kernel.stat(pid)[0]


async def until_state(pid: int, *wanted: str) -> None:
    async def ask() -> bool:
        return state(pid) in wanted

    await nodes.eventually(ask)


@contextlib.asynccontextmanager
async def holder_of(order: held.Order) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process that holds, as `nemesis.hold` starts it, once the fault is there."""
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "greenroom.testing.chaos.held", stdin=pipe, stdout=pipe
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdin.write(msgspec.json.encode(order) + b"\n")
        assert await asyncio.wait_for(holder.stdout.readline(), nodes.DEADLINE_S) == held.HELD
        yield holder
    finally:
        holder.stdin.close()
        await asyncio.wait_for(holder.wait(), nodes.DEADLINE_S)


async def test_a_stopped_process_goes_on_when_the_time_is_over(victim: subprocess.Popen[bytes]) -> None:
    holding = asyncio.create_task(nemesis.hold(order("stop", victim, hold_s=0.5)))
    await until_state(victim.pid, "T")
    await holding
    await until_state(victim.pid, "S", "R")


@pytest.mark.parametrize("kind", ["stop", "slow"])
async def test_a_process_goes_on_when_whoever_had_it_stopped_was_killed(
    victim: subprocess.Popen[bytes], kind: str
) -> None:
    async with holder_of(order(kind, victim)) as holder:
        await until_state(victim.pid, "T")
        assert holder.stdin is not None
        holder.stdin.close()  # as the kernel does for a process that is killed
        assert await asyncio.wait_for(holder.wait(), nodes.DEADLINE_S) == 0
    await until_state(victim.pid, "S", "R")


async def test_a_holder_that_is_asked_to_end_undoes_its_fault(victim: subprocess.Popen[bytes]) -> None:
    async with holder_of(order("stop", victim)) as holder:
        holder.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(holder.wait(), nodes.DEADLINE_S) == 0
    await until_state(victim.pid, "S", "R")


async def test_what_a_killed_holder_left_is_undone(victim: subprocess.Popen[bytes]) -> None:
    holding = asyncio.create_task(nemesis.hold(order("stop", victim)))
    await until_state(victim.pid, "T")
    os.kill(holder_pid(), signal.SIGKILL)
    with contextlib.suppress(NotInjectable):  # it died before it could say that it holds
        await asyncio.wait_for(holding, nodes.DEADLINE_S)
    await until_state(victim.pid, "S", "R")


async def test_who_is_cancelled_has_undone_the_fault(victim: subprocess.Popen[bytes]) -> None:
    holding = asyncio.create_task(nemesis.hold(order("stop", victim)))
    await until_state(victim.pid, "T")
    holding.cancel()
    await asyncio.wait([holding])
    assert state(victim.pid) in "SR"


async def test_a_fault_is_over_when_its_victim_is_gone(victim: subprocess.Popen[bytes]) -> None:
    holding = asyncio.create_task(nemesis.hold(order("stop", victim)))
    await until_state(victim.pid, "T")
    victim.kill()
    await asyncio.wait_for(holding, nodes.DEADLINE_S)


async def test_a_full_disk_is_that_of_one_process_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(path)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as victim:
        assert victim.stdin is not None
        before = resource.prlimit(victim.pid, resource.RLIMIT_FSIZE)
        async with holder_of(order("disk-full", victim)):
            assert resource.prlimit(victim.pid, resource.RLIMIT_FSIZE)[0] == 4096
            assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
            victim.stdin.write(b"\n")
            victim.stdin.flush()
            assert await asyncio.to_thread(victim.wait, nodes.DEADLINE_S) == 1
            assert path.stat().st_size <= 4096
    with subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdin=subprocess.PIPE) as victim:
        async with holder_of(order("disk-full", victim)):
            pass
        assert resource.prlimit(victim.pid, resource.RLIMIT_FSIZE) == before
        victim.communicate(b"\n")
        assert victim.returncode == 0


async def test_a_locked_file_takes_nothing_and_then_again(tmp_path: Path) -> None:
    async with databases.sqlite(tmp_path) as scratch:
        store = await scratch.open()
        async with holder_of(held.Order(kind="lock", hold_s=600, store=str(tmp_path / "greenroom.db"))):
            with pytest.raises(errors.StoreUnavailable):
                async with store.db.transaction():
                    pass
        async with store.db.transaction():
            pass


async def test_a_locked_postgresql_takes_no_task_and_then_again(postgres_server: databases.Server) -> None:
    write = "update task set priority = priority where false"
    async with postgres_server.scratch() as scratch:
        store = await scratch.open()
        async with holder_of(held.Order(kind="lock", hold_s=600, store=scratch.url)) as holder:
            async with store.db.transaction() as tx:
                await tx.fetch("set local lock_timeout = 100", {})
                with pytest.raises(Exception, match="lock timeout"):
                    await tx.fetch(write, {})
            assert holder.stdin is not None
            holder.stdin.close()
            await holder.wait()
        async with store.db.transaction() as tx:
            await tx.fetch(write, {})
        assert await postgres.end_connections(scratch.url) == 1


async def test_a_process_that_is_not_what_was_meant_is_left_alone(victim: subprocess.Popen[bytes]) -> None:
    other = msgspec.structs.replace(order("stop", victim), started="1")
    with pytest.raises(NotInjectable, match="is gone"):
        await nemesis.hold(other)
    assert state(victim.pid) in "SR"
    with pytest.raises(NotInjectable, match="not one of the node's"), processes.held(victim.pid, below=1_000_000):
        pass
