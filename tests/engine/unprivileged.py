"""Agents in namespaces of their own. `test_namespaces` runs this file as a user who is nobody."""

# ruff: noqa: ASYNC220, ASYNC240 - the files here are looked at, never waited for, and starting a process takes no time

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import isolated
import nodes
from greenroom import clock as clocks
from greenroom.core.isolation import Means, Tier
from greenroom.engine import kernel, local, processes
from greenroom.testing.engine_contract import Bench, EngineContract

PID = "import os\ndef run(input): return os.getpid()"
T2 = {"isolation": "T2"}


def an_engine(folder: Path) -> local.LocalEngine:
    return local.LocalEngine(folder / "data", clocks.SystemClock(), tier=Tier.T2, means=Means.NAMESPACES)


class TestTheContract(EngineContract):
    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[local.LocalEngine]:
        engine = an_engine(tmp_path)
        yield engine
        await engine.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    engine = an_engine(tmp_path)
    yield Bench(engine, tmp_path)
    await engine.close()


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and not processes.is_corpse(pid)


def pid_of(bench: Bench, replica: str = "r1") -> int:
    (pid,) = [each.pid for each in bench.engine.observe() if each.replica == replica]
    assert pid is not None
    return pid


def ancestors(pid: int) -> dict[str, int]:
    """Return those of a replica, the nearest first."""
    found = {}
    for name in ("zygote", "init", "keeper", "node"):
        pid = found[name] = int(kernel.stat(pid)[1])
    del found["node"]
    return found


async def until_gone(*pids: int) -> None:
    async def gone() -> bool:
        return not any(map(lives, pids))

    await nodes.eventually(gone)


async def test_a_hostile_agent_gets_away_with_what_the_table_says(tmp_path: Path) -> None:
    egress = ("127.0.0.1:{port}",)
    found = await isolated.probed(tmp_path, Tier.T2, egress=egress, python=None, means=Means.NAMESPACES)
    table = isolated.expected()["T2 without root"]
    assert set(found) == set(table)
    assert not {name: answer for name, answer in found.items() if answer.partition(" ")[0] != table[name]}


async def test_an_agent_sees_its_own_processes_alone_and_the_node_sees_them_all(bench: Bench) -> None:
    source = """
        import os
        def run(input):
            numbers = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
            return [numbers, os.getpid(), os.getuid(), open("/proc/self/status").read()]
        """
    await bench.start(source)
    numbers, own, user, status = await bench.ask("r1", "t1")
    assert numbers == [1, 2, own]
    assert user == os.getuid()
    assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in status
    pid = pid_of(bench)
    assert isolated.number_inside(pid) == own != pid
    assert processes.share_mb(pid) > 1


async def test_agents_work_with_subprocesses_threads_and_files_of_their_own(bench: Bench, tmp_path: Path) -> None:
    for name in ("read", "write"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    source = f"""
        import multiprocessing, os, subprocess, sys, tempfile, threading
        from pathlib import Path
        read, write = Path({str(tmp_path / "read")!r}), Path({str(tmp_path / "write")!r})
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        def run(input):
            own = Path(tempfile.mkdtemp()) / "file"
            own.write_text("own")
            own.chmod(0o600)
            (write / "file").write_text("new")
            (write / "file").chmod(0o640)
            open(os.devnull, "w").write("x")
            with multiprocessing.Lock():
                pass
            code = "import os; print(os.path.exists(" + repr({str(tmp_path / "data" / "agent-users.json")!r}) + "))"
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
            return [(read / "file").read_text(), own.read_text(), said]
        """
    (tmp_path / "data" / "agent-users.json").write_text("x")
    await bench.start(source, read_paths=(tmp_path / "read",), write_paths=(tmp_path / "write", Path("/dev/shm")))
    assert await bench.ask("r1", "t1") == ["old", "own", "False\n"]
    assert (tmp_path / "write" / "file").read_text() == "new"


@pytest.mark.parametrize("call", ["os.chmod(path, 0o644)", "os.utime(path)", "os.chown(path, -1, -1)"])
async def test_modes_times_and_owners_outside_are_out_of_reach(bench: Bench, tmp_path: Path, call: str) -> None:
    (tmp_path / "file").write_text("x")
    before = (tmp_path / "file").stat()
    await bench.start(f"import os\npath = {str(tmp_path / 'file')!r}\ndef run(input): {call}", read_paths=(tmp_path,))
    assert bench.send("r1", "t1")
    ended = await bench.recorder.ended("t1")
    assert ended.error_type == "OSError"
    assert "the agent's room is closed" in ended.error_message
    assert "`write_paths`" in ended.error_message
    assert (tmp_path / "file").stat() == before


@pytest.mark.parametrize("ancestor", ["zygote", "init", "keeper"])
async def test_replicas_end_with_their_interpreter_which_is_not_held_against_them(bench: Bench, ancestor: str) -> None:
    revision = await bench.start(PID)
    pid = pid_of(bench)
    there = ancestors(pid)
    os.kill(there[ancestor], signal.SIGKILL)
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.is_its_own) == ("killed", False)
    assert "the interpreter that it was forked from" in exit.detail
    await until_gone(pid, *there.values())
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    assert await bench.ask("r2", "t1")


async def test_a_replica_that_is_killed_takes_nobody_with_it(bench: Bench) -> None:
    revision = await bench.start(PID)
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    os.kill(pid_of(bench), signal.SIGKILL)
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.signal) == ("killed", signal.SIGKILL)
    assert await bench.ask("r2", "t1")


async def test_an_interpreter_that_is_given_up_leaves_no_corpse(tmp_path: Path) -> None:
    engine = local.LocalEngine(
        tmp_path / "data", clocks.SystemClock(), tier=Tier.T2, means=Means.NAMESPACES, import_deadline_s=0.5
    )
    bench = Bench(engine, tmp_path)
    before = set(kernel.children())
    await engine.start("r1", bench.revision("import time\ntime.sleep(1000)"))
    assert "took longer than 0.5 s" in (await bench.recorder.exit("r1")).detail
    assert set(kernel.children()) == before
    await engine.close()


async def test_an_import_that_kills_its_interpreter_is_told_of_by_its_signal(bench: Bench) -> None:
    await bench.engine.start("r1", bench.revision("import ctypes\nctypes.string_at(0)"))
    exit = await bench.recorder.exit("r1")
    assert exit.reason == "refused"
    assert "the interpreter ended (signal SIGSEGV)" in exit.detail


NODE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import unprivileged

async def main():
    bench = unprivileged.Bench(unprivileged.an_engine(Path(sys.argv[2])), Path(sys.argv[2]))
    await bench.start(Path(sys.argv[3]).read_text())
    await bench.ask("r1", "t1")
    print(unprivileged.pid_of(bench), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
DAEMON = """
import subprocess
def run(input):
    subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
"""


# Whoever cannot leave when its node is dead: orphans, and code that takes back what was asked for on its behalf.
HOSTILE = (
    """
import ctypes, os, signal
libc = ctypes.CDLL(None)
libc.prctl(1, 0, 0, 0, 0)
libc.prctl(36, 0, 0, 0, 0)
from greenroom.engine import zygote
zygote._kill_everything_below = signal.pause
"""
    + DAEMON
)


@pytest.mark.parametrize("source", [DAEMON, HOSTILE], ids=["daemon", "hostile"])
async def test_nothing_is_left_when_the_node_is_killed(tmp_path: Path, source: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "source").write_text(source)
    command = [sys.executable, "-c", NODE, str(Path(__file__).parent), str(other), str(tmp_path / "source")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        pid = int(await asyncio.to_thread(node.stdout.readline))
        there = ancestors(pid)
        assert int(kernel.stat(there["keeper"])[1]) == node.pid
        mine = {pid, *there.values(), *processes.descendants(pid)}
        assert len(mine) == 5
        assert all(map(lives, mine))
        node.kill()
        try:
            await until_gone(*mine)
        finally:
            for each in mine:
                nodes.kill(each)


async def test_a_closed_engine_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    engine = an_engine(tmp_path)
    bench = Bench(engine, tmp_path)
    await bench.start(DAEMON)
    await bench.ask("r1", "t1")
    pid = pid_of(bench)
    home = next(Path(tempfile.gettempdir()).glob(f"greenroom-{processes.home(tmp_path / 'data').rstrip(':')}-*"))
    await engine.close()
    await until_gone(pid)
    assert not home.exists()


async def test_a_node_says_how_it_isolates_and_runs_a_task_again_whose_interpreter_dies(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    agents = {"gated": nodes.agent("gated", write_paths=[str(shared)])}
    async with nodes.opened(tmp_path / "data", agents, security=T2) as api:
        assert "namespaces of its own" in (await api.get("/v1/status"))["node"]["isolation"]
        task = await api.submit("gated", {"ledger": str(shared / "ledger"), "gate": str(shared / "gate")})
        await nodes.lines_of(shared / "ledger")
        (replica,) = await api.replicas("gated")
        os.kill(ancestors(replica["pid"])["zygote"], signal.SIGKILL)
        await nodes.lines_of(shared / "ledger", 2)
        (shared / "gate").touch()
        assert (await api.end_of(task["id"]))["state"] == "succeeded"
