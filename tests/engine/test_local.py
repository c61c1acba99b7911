"""What only local processes can show: real deaths, orphans, memory, interpreters. The rest is the engine's contract."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from greenroom import clock as clocks
from greenroom import errors
from greenroom.engine import contract, failures, kernel, local, processes, protocol, zygote
from greenroom.testing.engine_contract import Bench, Recorder

_ECHO = "def run(input): return input"
_PID = "import os\ndef run(input): return os.getpid()"

# Leaves a daemon that forked twice, has a session of its own, never called exec and closed what it inherited.
_DAEMON = """
    import os, time
    def run(input):
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                os.closerange(0, 1000)
                while True: time.sleep(1)
            os._exit(0)
        os.wait()
        return int(os.read(read, 100))
"""
# The same by exec: a shell that leaves the group.
_EXECED = """
    import subprocess
    def run(input):
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3)
        return child.pid
"""


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[local.LocalEngine]:
    engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock(), import_deadline_s=5)
    yield engine
    await engine.close()


async def test_a_data_directory_that_was_copied_with_its_links_followed_serves(tmp_path: Path) -> None:
    data = tmp_path / "data"
    link = data / "replica-side" / "greenroom"
    link.mkdir(parents=True)
    (link / "__init__.py").write_text("raise SystemExit('an old copy')\n")
    engine = local.LocalEngine(data, clocks.SystemClock(), import_deadline_s=5)
    await engine.close()
    assert link.readlink() == Path(local.__file__).parent.parent


@pytest.fixture
async def bench(engine: local.LocalEngine, tmp_path: Path) -> Bench:
    return Bench(engine, tmp_path)


def is_there(pid: int) -> bool:
    """Tell whether *pid* exists, be it as a corpse that nobody reaped."""
    return Path(f"/proc/{pid}").exists()


def lives(pid: int) -> bool:
    try:
        return kernel.stat(pid)[0] != "Z"
    except OSError:
        return False


async def until(happened: Callable[[], bool], *, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not happened():  # noqa: ASYNC110  # of processes that tell nobody
            await asyncio.sleep(0.005)


def zygote_pid(engine: local.LocalEngine) -> int:
    (zygote,) = engine._zygotes.values()
    return zygote.pid


# --- death


async def test_sigkill_is_noticed_at_once(bench: Bench) -> None:
    await bench.start(_PID)
    pid = await bench.ask("r1", "t1")
    begun = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    exit = await bench.recorder.exit("r1")
    took_ms = (time.perf_counter() - begun) * 1000
    assert took_ms < 1000
    assert (exit.reason, exit.signal) == ("killed", signal.SIGKILL)


class _StillClock(clocks.SystemClock):
    """Time passes when a test says so."""

    now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s


async def test_a_sigkill_is_for_memory_if_the_kernel_has_killed_for_memory_just_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "vmstat"
    count.write_text("nr_free_pages 5\noom_kill 7\n")
    monkeypatch.setattr(processes.OomKills, "SOURCE", count)
    clock = _StillClock()
    engine = local.LocalEngine(tmp_path / "data", clock)
    bench = Bench(engine, tmp_path)
    try:
        for replica, kills, pause_s, reason in [
            ("unknown", 7, 0, "killed"),
            ("memory", 8, 0, "oom"),
            ("again", 8, processes.OomKills.EVERY_S, "oom"),
            ("later", 8, processes.OomKills.EVERY_S, "killed"),
        ]:
            clock.now_s += pause_s
            engine.observe()
            count.write_text(f"nr_free_pages 5\noom_kill {kills}\n")
            await bench.start(_PID, replica)
            os.kill(await bench.ask(replica, replica), signal.SIGKILL)
            exit = await bench.recorder.exit(replica)
            assert (exit.reason, exit.is_its_own) == (reason, False), replica  # the count may be of another's death
        count.unlink()
        await bench.start(_PID, "blind")
        os.kill(await bench.ask("blind", "blind"), signal.SIGKILL)
        assert (await bench.recorder.exit("blind")).reason == "killed"
    finally:
        await engine.close()


async def test_a_listener_that_raises_keeps_no_other_from_hearing(tmp_path: Path) -> None:
    class Raiser(Recorder):
        def on_exit(self, replica: str, exit: contract.Exit) -> None:  # noqa: ARG002
            raise BrokenPipeError(replica)

    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock())
    engine.subscribe(Raiser())
    bench = Bench(engine, tmp_path)
    await bench.start(_PID)
    os.kill(await bench.ask("r1", "t1"), signal.SIGKILL)
    assert (await bench.recorder.exit("r1")).reason == "killed"
    await until(lambda: not engine.observe())
    await until(lambda: bool(complaints))
    assert isinstance(complaints[0], BrokenPipeError)
    await engine.close()


async def test_a_segmentation_fault_is_a_crash_by_its_signal(bench: Bench) -> None:
    await bench.start("import os, signal\ndef run(input): os.kill(os.getpid(), signal.SIGSEGV)")
    bench.send("r1", "t1")
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.signal, exit.detail) == ("crashed", signal.SIGSEGV, "by SIGSEGV")


async def test_what_was_sent_before_the_death_is_heard(bench: Bench) -> None:
    source = """
        import os, threading
        def run(input):
            if input == "die": os.kill(os.getpid(), 9)
            return "x" * 300_000
    """
    await bench.start(source, concurrency=8)
    for number in range(7):
        bench.send("r1", f"t{number}")
    await bench.recorder.ended("t6")
    bench.send("r1", "last", "die")
    await bench.recorder.exit("r1")
    assert len(bench.recorder.messages) == 7


async def test_an_agent_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench) -> None:
    await bench.start(
        "import asyncio, signal\nasync def run(input):\n"
        "    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    )
    await bench.recorder.until(lambda: bench.send("r1", "t1"))
    await bench.recorder.ended("t1")
    await bench.engine.stop("r1", grace_s=0.1)
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.signal) == ("stopped", signal.SIGKILL)
    assert "did not leave within 0.1 s" in exit.detail


async def test_a_stopped_process_can_be_killed(bench: Bench) -> None:
    await bench.start(_PID)
    os.kill(await bench.ask("r1", "t1"), signal.SIGSTOP)
    bench.engine.kill("r1", "hung")
    assert (await bench.recorder.exit("r1")).reason == "hung"


@pytest.mark.parametrize("nonsense", [b"\x05\x00\x00\x00hello", b"\xff\xff\xff\xff"], ids=["no message", "too large"])
async def test_a_replica_that_sends_nonsense_is_killed(bench: Bench, nonsense: bytes) -> None:
    source = f"""
        import gc, socket, os
        def run(input):
            for fd in range(3, 100):
                try: socket.socket(fileno=os.dup(fd)).send({nonsense!r})
                except OSError: pass
    """
    await bench.start(source)
    bench.send("r1", "t1")
    assert (await bench.recorder.exit("r1")).reason == "protocol"


_REFUSED = protocol.frame(protocol.Refused("x", "no\0pe" + "x" * 10_000, "a\0b\n" * 10_000))
_NOT_IMPORTED = zygote.encode(zygote.Failed("x", "no\0pe" + "x" * 10_000, "a\0b\n" * 10_000))
_TO_ALL_SOCKETS = """
import os, socket, sys
def shout(words):
    for fd in range(3, 100):
        try: socket.socket(fileno=os.dup(fd)).send(words)
        except OSError: pass
"""


async def test_what_a_replica_says_of_why_it_refuses_is_bounded_and_clean(bench: Bench) -> None:
    await bench.start(f"{_TO_ALL_SOCKETS}\ndef run(input): shout({_REFUSED!r} * 3); os._exit(1)")
    bench.send("r1", "t1")
    _is_bounded_and_clean(await bench.recorder.exit("r1"), bench.recorder)


async def test_what_a_zygote_says_of_a_failed_import_is_bounded_and_clean(bench: Bench) -> None:
    source = f"{_TO_ALL_SOCKETS}\nshout({_NOT_IMPORTED!r})\nos._exit(1)\ndef run(input): pass"
    await bench.engine.start("r1", bench.revision(source))
    _is_bounded_and_clean(await bench.recorder.exit("r1"), bench.recorder)


def _is_bounded_and_clean(exit: contract.Exit, recorder: Recorder) -> None:
    assert exit.reason == "refused"
    assert exit.detail.startswith("no?pe")
    assert len(exit.detail.encode()) <= failures.MAX_MESSAGE_BYTES
    lines = [line for _, _, line in recorder.logs]
    assert lines[0] == "a?b"
    assert sum(map(len, lines)) <= failures.MAX_TRACEBACK_BYTES


async def test_a_zygote_that_sends_what_is_no_text_is_ended(bench: Bench) -> None:
    record = zygote.encode(zygote.Loaded("threads")).replace(b"threads", b"\xff\xfe\xed\xa0\x80ab")
    source = f"{_TO_ALL_SOCKETS}\nimport time\nshout({record!r})\ntime.sleep(1000)\ndef run(input): pass"
    await bench.engine.start("r1", bench.revision(source))
    assert "talks nonsense" in (await bench.recorder.exit("r1")).detail


async def test_what_a_replica_says_that_it_is_is_bounded_and_clean(bench: Bench, engine: local.LocalEngine) -> None:
    class Listener(Recorder):
        def on_ready(self, replica: str, ready: protocol.Ready) -> None:
            heard.append(ready)
            super().on_ready(replica, ready)

    heard: list[protocol.Ready] = []
    engine.subscribe(Listener())
    await engine.start("r1", bench.revision(_ECHO))
    engine._replicas["r1"]._on_message(protocol.Ready("a\0", "b\0" * 10_000))
    assert [ready.adapter for ready in heard] == ["a?"]
    assert heard[0].took.startswith("b?b?")
    assert len(heard[0].took.encode()) <= failures.MAX_MESSAGE_BYTES


def test_the_detail_of_an_exit_is_one_that_every_store_takes() -> None:
    assert contract.Exit("crashed", "a\0b \ud800").detail == "a?b ?"


async def test_a_replica_that_closes_its_channel_does_not_live_on(bench: Bench) -> None:
    # The watchdog of a well-behaved replica ends it; one that got rid of that, too, is killed.
    source = """
        import asyncio, os, socket, time
        def run(input):
            for fd in range(3, 100):
                try: socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_WR)
                except OSError: pass
            time.sleep(1000)
    """
    await bench.start(source)
    bench.send("r1", "t1")
    assert (await bench.recorder.exit("r1")).reason in {"protocol", "crashed"}


# --- memory


class _Family:
    """A process 1 with *children*, each of *size_mb* and parent of none, or of the next one; looks are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, children: int, size_mb: float, is_chain: bool) -> None:
        self.shares = 0
        self._children = list(range(2, children + 2))
        self._is_chain = is_chain
        monkeypatch.setattr(kernel, "children_of", self._children_of)
        monkeypatch.setattr(processes, "read", lambda pid: processes.Reading(size_mb if pid > 1 else 1.0, 0.0))
        monkeypatch.setattr(processes, "share_mb", self._share_mb)

    def _children_of(self, pid: int) -> list[int]:
        if self._is_chain:
            return self._children[pid - 1 : pid]
        return list(self._children) if pid == 1 else []

    def _share_mb(self, pid: int) -> float:
        assert pid > 1
        self.shares += 1
        return 1.0


def test_a_chain_of_forks_is_looked_at_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    family = _Family(monkeypatch, children=5000, size_mb=3.0, is_chain=True)
    assert processes.held_mb(1, 10) == 1 + processes.MOST_DESCENDANTS
    assert family.shares == processes.MOST_DESCENDANTS


def test_the_kernel_is_asked_for_shares_only_while_sizes_leave_the_question_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = _Family(monkeypatch, children=10, size_mb=50.0, is_chain=False)
    assert processes.held_mb(1, 501) == 501
    assert family.shares == 0
    assert processes.held_mb(1, 410) <= 410
    assert family.shares == 2
    assert processes.held_mb(1, 10) == 11


_HOARD = """
    def run(input):
        hoard = b"x" * 300_000_000
        import time; time.sleep(60)
"""


async def test_a_long_look_at_descendants_delays_no_replicas_own_limit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_over = threading.Event()

    def look(pid: int, limit_mb: float) -> float:  # noqa: ARG001
        is_over.wait(60)
        return 0.0

    monkeypatch.setattr(processes, "held_mb", look)
    try:
        await bench.start(_HOARD, memory_mb=200)
        bench.send("r1", "t1")
        assert (await bench.recorder.exit("r1")).reason == "oom"
    finally:
        is_over.set()


@pytest.mark.parametrize("look", ["read", "held_mb"])
async def test_a_look_at_memory_that_fails_is_not_the_last(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context.get("exception")))
    seen = getattr(processes, look)

    def fail_once(*arguments: Any) -> object:  # noqa: ARG001
        monkeypatch.setattr(processes, look, seen)
        raise RecursionError("a test said so")

    monkeypatch.setattr(processes, look, fail_once)
    source = """
        import subprocess, sys
        def run(input):
            subprocess.run([sys.executable, "-c", "import time; hoard = b'x' * 300_000_000; time.sleep(60)"])
    """
    await bench.start(source, memory_mb=200)
    bench.send("r1", "t1")
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.is_its_own) == ("oom", True)
    assert isinstance(complaints[0], RecursionError)


async def test_a_look_that_ends_after_its_replica_judges_nobody(
    bench: Bench, engine: local.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start(_PID, memory_mb=500)
    record = engine._replicas["r1"]
    verdicts: list[tuple[str, str]] = []
    monkeypatch.setattr(record, "kill", lambda *verdict: verdicts.append(verdict))
    looked = threading.Event()

    def look(pid: int, limit_mb: float) -> float:
        os.kill(pid, signal.SIGKILL)
        while record.lives():
            time.sleep(0.001)
        looked.set()
        return limit_mb + 1

    monkeypatch.setattr(processes, "held_mb", look)
    assert (await bench.recorder.exit("r1")).reason == "killed"
    await until(looked.is_set)
    assert engine._descendants_look is not None
    await engine._descendants_look
    assert verdicts == []


# --- nothing is left behind


@pytest.mark.parametrize("source", [_DAEMON, _EXECED], ids=["forked twice", "by exec"])
async def test_a_daemon_that_left_its_group_dies_with_its_replica(bench: Bench, source: str) -> None:
    await bench.start(source, "r1")
    await bench.engine.start("r2", bench.revision(source))
    await bench.recorder.ready("r2")
    mine, others = await bench.ask("r1", "t1"), await bench.ask("r2", "t2")
    assert lives(mine)
    bench.engine.kill("r1", "hung")
    await bench.recorder.exit("r1")
    assert not lives(mine)
    assert lives(others)
    await bench.engine.close()
    assert not lives(others)


async def test_the_dead_are_reaped(bench: Bench, engine: local.LocalEngine) -> None:
    await bench.start(_DAEMON)
    daemon = await bench.ask("r1", "t1")
    (pid,) = [seen.pid for seen in engine.observe() if seen.pid]
    await bench.engine.stop("r1", grace_s=5)
    await until(lambda: not is_there(daemon) and not is_there(pid))
    zygote = zygote_pid(engine)
    await bench.engine.close()
    assert not is_there(zygote)


async def test_what_is_kept_warm_outlives_its_replicas(
    bench: Bench, engine: local.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "IDLE_ZYGOTE_S", 0.0)
    revision = await bench.start(_DAEMON, "r1")
    first = zygote_pid(engine)
    await engine.keep_warm([revision])
    await bench.engine.stop("r1", grace_s=5)
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    assert zygote_pid(engine) == first
    await bench.engine.stop("r2", grace_s=5)
    assert is_there(first)
    await engine.keep_warm([])
    await until(lambda: not is_there(first))


async def test_replicas_outlive_their_zygote_and_others_can_be_started(bench: Bench, engine: local.LocalEngine) -> None:
    revision = await bench.start(_DAEMON, "r1")
    first = zygote_pid(engine)
    os.kill(first, signal.SIGKILL)
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    assert zygote_pid(engine) != first
    daemon = await bench.ask("r1", "t1")  # adopted, and at work
    (pid,) = [seen.pid for seen in engine.observe() if seen.replica == "r1"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.signal) == ("killed", signal.SIGKILL)
    assert not lives(daemon)
    assert not is_there(pid)
    assert await bench.ask("r2", "t2")


async def test_a_zygote_that_hangs_does_not_hide_a_death(bench: Bench, engine: local.LocalEngine) -> None:
    await bench.start(_PID)
    pid = await bench.ask("r1", "t1")
    os.kill(zygote_pid(engine), signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.is_its_own) == ("crashed", False)  # the status is the zygote's to know
    os.kill(zygote_pid(engine), signal.SIGCONT)


_NODE = """
import asyncio, sys
from pathlib import Path
from greenroom import clock
from greenroom.engine import contract, local, protocol

class Listener:
    def on_ready(self, replica, ready): engine.invoke(replica, protocol.Invoke("t", 1, b"null", 1, 60.0))
    def on_message(self, replica, message): print(message.output.decode(), engine.observe()[0].pid, flush=True)
    def on_log(self, replica, line): print(line.text, file=sys.stderr)
    def on_exit(self, replica, exit): print(exit, file=sys.stderr)

async def main():
    global engine
    engine = local.LocalEngine(Path(sys.argv[1]), clock.SystemClock())
    engine.subscribe(Listener())
    await engine.start("r1", contract.Revision("echo", 1, Path(sys.argv[2]), "agent:run"))
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def node(bench: Bench, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a process of its own, whose replica has left a daemon; prints the daemon's and the replica's pids."""
    snapshot = bench.revision(_DAEMON).snapshot
    with subprocess.Popen(
        [sys.executable, "-c", _NODE, str(tmp_path / "other"), str(snapshot)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(local.__file__).parents[2])},
    ) as node:
        yield node
        node.kill()


async def first_line(node: subprocess.Popen[bytes]) -> list[int]:
    assert node.stdout is not None
    text = await asyncio.to_thread(node.stdout.readline)
    return [int(word) for word in text.split()]


async def test_nothing_is_left_when_the_node_is_killed(node: subprocess.Popen[bytes]) -> None:
    daemon, replica = await first_line(node)
    zygote = int(kernel.stat(replica)[1])
    assert all(lives(pid) for pid in (daemon, replica, zygote))
    node.kill()
    await until(lambda: not any(lives(pid) for pid in (daemon, replica, zygote)))


async def test_a_dead_node_that_nobody_buries_is_dead() -> None:
    pid = await asyncio.to_thread(os.posix_spawn, "/bin/sleep", ["sleep", "60"], {})
    marker = f"{pid}-{kernel.stat(pid)[19]}-0"
    lived = processes.lives(marker)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: processes.is_corpse(pid))
    assert (lived, processes.lives(marker)) == (True, False)
    await asyncio.to_thread(os.waitpid, pid, 0)


async def test_a_starting_node_sweeps_what_a_killed_one_left(node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    daemon, replica = await first_line(node)
    os.kill(int(kernel.stat(replica)[1]), signal.SIGKILL)  # its zygote can do nothing any more
    await until(lambda: int(kernel.stat(replica)[1]) == node.pid)
    assert processes.kill_leftovers(tmp_path / "other") == 0  # its node lives
    node.kill()
    node.wait()
    await until(lambda: not lives(replica))  # by its own watchdog
    assert lives(daemon)
    next_engine = local.LocalEngine(tmp_path / "other", clocks.SystemClock())
    assert await next_engine.sweep() == 1
    assert not lives(daemon)
    await next_engine.close()


# --- the import


async def test_an_import_that_hangs_is_refused_after_its_deadline(tmp_path: Path) -> None:
    engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock(), import_deadline_s=0.5)
    bench = Bench(engine, tmp_path)
    await engine.start("r1", bench.revision("while True: pass"))
    exit = await bench.recorder.exit("r1")
    assert exit.reason == "refused"
    assert "longer than 0.5 s" in exit.detail
    await engine.close()


async def test_an_import_that_ends_the_interpreter_is_refused_with_what_it_said(bench: Bench) -> None:
    source = "import os; os.write(2, b'no licence\\n'); os._exit(4)"
    await bench.engine.start("r1", bench.revision(source))
    exit = await bench.recorder.exit("r1")
    assert exit.reason == "refused"
    assert "exit code 4" in exit.detail
    assert "no licence" in exit.detail


async def test_an_import_that_starts_threads_is_done_by_every_replica(bench: Bench) -> None:
    source = """
        import os, threading, time
        IMPORTED_IN = os.getpid()
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def run(input): return [IMPORTED_IN == os.getpid(), threading.active_count() > 1]
    """
    await bench.start(source)
    assert await bench.ask("r1", "t1") == [True, True]
    assert any("starts threads" in line for _, _, line in bench.recorder.logs)


async def test_an_import_without_threads_is_done_once(bench: Bench) -> None:
    await bench.start("import os\nIMPORTED_IN = os.getpid()\ndef run(input): return IMPORTED_IN")
    await bench.engine.start(
        "r2", bench.revision("import os\nIMPORTED_IN = os.getpid()\ndef run(input): return IMPORTED_IN")
    )
    await bench.recorder.ready("r2")
    assert await bench.ask("r1", "t1") == await bench.ask("r2", "t2")


async def test_what_an_import_prints_is_heard_once(bench: Bench) -> None:
    revision = await bench.start("print('loading')\ndef run(input): pass", "r1")
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    await bench.recorder.until(lambda: bool(bench.recorder.logs))
    await bench.engine.stop("r2", grace_s=5)
    assert [line for _, _, line in bench.recorder.logs] == ["loading"]


async def test_idle_zygotes_are_let_go(
    bench: Bench, engine: local.LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "IDLE_ZYGOTE_S", 0.01)
    revision = await bench.start(_ECHO)
    pid = zygote_pid(engine)
    await bench.engine.stop("r1", grace_s=5)
    await until(lambda: not is_there(pid))
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")


# --- limits and interpreters


async def test_a_sudden_burst_of_memory_fails_inside(bench: Bench) -> None:
    source = """
        def run(input):
            try: bytearray(8 * 2**30)
            except MemoryError: return "refused"
    """
    await bench.start(source, memory_mb=300)
    assert await bench.ask("r1", "t1") == "refused"


async def test_a_replica_holds_no_descriptor_of_the_zygote_or_its_siblings(bench: Bench) -> None:
    source = """
        import os
        def run(input):
            seen = []
            for fd in range(200):
                try: seen.append(os.readlink(f"/proc/self/fd/{fd}"))
                except OSError: pass
            return seen
    """
    await bench.start(source, "r1")
    await bench.start(source, "r2")
    first, second = set(await bench.ask("r1", "t1")), set(await bench.ask("r2", "t2"))
    assert len([name for name in second if name.startswith("socket:")]) == 3  # its channel; its loop's waker has two
    assert first & second <= {"/dev/null", "anon_inode:[eventpoll]"}


async def test_a_flood_of_output_is_bounded_and_stops_nobody(bench: Bench) -> None:
    source = """
        import os
        def run(input):
            for _ in range(2000): os.write(1, b"spam\\n" * 20)
            return "done"
    """
    await bench.start(source)
    assert await bench.ask("r1", "t1") == "done"
    await bench.engine.stop("r1", grace_s=5)
    lines = [line for _, _, line in bench.recorder.logs]
    assert len(lines) < 10_000
    assert any("lines were dropped" in line for line in lines)


async def test_an_interpreter_that_is_not_there_is_an_error_of_the_agent(bench: Bench) -> None:
    with pytest.raises(errors.AgentInvalid, match="/no/python: No such file"):
        await bench.engine.start("r1", bench.revision(_ECHO, python="/no/python"))
    assert bench.engine.observe() == []


@pytest.fixture
def own_python(tmp_path: Path) -> str:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    return str(tmp_path / "venv" / "bin" / "python")


@pytest.mark.slow
async def test_an_interpreter_without_msgspec_is_an_error_with_the_fix(bench: Bench, own_python: str) -> None:
    with pytest.raises(errors.AgentInvalid, match="pip install msgspec"):
        await bench.engine.start("r1", bench.revision(_ECHO, python=own_python))


@pytest.mark.slow
async def test_an_agent_runs_in_an_interpreter_of_its_own_with_msgspec_only(bench: Bench, own_python: str) -> None:
    (packages,) = Path(own_python).parents[1].glob("lib/python*/site-packages")
    assert msgspec.__file__ is not None
    (packages / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    source = """
        import importlib.util, sys
        def run(input): return [sys.prefix, importlib.util.find_spec("httpx") is None]
    """
    await bench.start(source, python=own_python)
    assert await bench.ask("r1", "t1") == [str(Path(own_python).parents[1]), True]


def test_the_engine_is_one(tmp_path: Path) -> None:
    engine: contract.Engine = local.LocalEngine(tmp_path, clocks.SystemClock())
    assert engine.observe() == []
