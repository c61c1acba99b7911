"""What every engine does, as tests: subclass `EngineContract` with a fixture ``engine`` that yields an engine
and closes it.

The tests play the host and the dispatcher. They write agents, so they say *what* a replica does, never how it
is made.
"""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom.engine import contract, protocol, said, snapshots

DEADLINE_S = 20.0
_ECHO = "def run(input): return input"


class Recorder:
    """A listener that keeps what it hears, and lets a test wait for it."""

    def __init__(self) -> None:
        self.readies: list[str] = []
        self.exits: list[tuple[str, contract.Exit]] = []
        self.messages: list[protocol.OfAttempt] = []
        self.logs: list[tuple[str, str, str]] = []
        self.alives: list[tuple[str, int]] = []
        self._news = asyncio.Event()

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:  # noqa: ARG002
        self.readies.append(replica)
        self._news.set()

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        assert replica not in [gone for gone, _ in self.exits], "a message after on_exit"
        self.messages.append(message)
        self._news.set()

    def on_log(self, replica: str, line: said.Line) -> None:
        assert replica not in [gone for gone, _ in self.exits], "a line after on_exit"
        self.logs.append((replica, line.stream, line.text))
        self._news.set()

    def on_alive(self, replica: str, number: int) -> None:
        assert replica not in [gone for gone, _ in self.exits], "an answer after on_exit"
        self.alives.append((replica, number))
        self._news.set()

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        self.exits.append((replica, exit))
        self._news.set()

    async def until(self, happened: Callable[[], bool], *, within_s: float = DEADLINE_S) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not happened():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"not in {within_s} s; ready: {self.readies}, exits: {self.exits}, logs: {self.logs[-5:]}")

    async def ready(self, *replicas: str) -> None:
        await self.until(lambda: set(replicas) <= {*self.readies, *(gone for gone, _ in self.exits)})
        assert set(replicas) <= set(self.readies), self.exits

    async def exit(self, replica: str) -> contract.Exit:
        await self.until(lambda: any(gone == replica for gone, _ in self.exits))
        (exit,) = [exit for gone, exit in self.exits if gone == replica]
        return exit

    async def ended(self, task: str) -> protocol.Ended:
        def found() -> list[protocol.Ended]:
            return [seen for seen in self.messages if isinstance(seen, protocol.Ended) and seen.task == task]

        await self.until(lambda: bool(found()))
        (ended,) = found()
        return ended


class Bench:
    """An engine, what it tells, and the code it runs."""

    def __init__(self, engine: contract.Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.recorder = Recorder()
        engine.subscribe(self.recorder)

    def revision(self, source: str, *, number: int = 1, **changes: Any) -> contract.Revision:
        """Return a revision whose module ``agent`` is *source*, with ``run`` in it."""
        code = self.folder / f"code-{number}"
        code.mkdir(exist_ok=True)
        (code / "agent.py").write_text(textwrap.dedent(source))
        snapshot = snapshots.take(code, include=(), into=self.folder / "snapshots")
        return contract.Revision("echo", number, snapshot.path, **{"factory": "agent:run", **changes})

    async def start(self, source: str, replica: str = "r1", **changes: Any) -> contract.Revision:
        """Start a replica and wait until it is ready."""
        revision = self.revision(source, **changes)
        await self.engine.start(replica, revision)
        await self.recorder.ready(replica)
        return revision

    def send(self, replica: str, task: str, input: Any = None) -> bool:
        return self.engine.invoke(replica, protocol.Invoke(task, 1, json.dumps(input).encode(), 1, 60.0))

    async def ask(self, replica: str, task: str, input: Any = None) -> Any:
        """Run a task to its end and return its output."""
        assert self.send(replica, task, input)
        ended = await self.recorder.ended(task)
        assert ended.output is not None, ended
        return json.loads(ended.output)


class EngineContract:
    @pytest.fixture
    async def bench(self, engine: contract.Engine, tmp_path: Path) -> Bench:
        return Bench(engine, tmp_path)

    async def test_a_replica_becomes_ready_and_answers(self, bench: Bench) -> None:
        await bench.start(_ECHO)
        assert await bench.ask("r1", "t1", {"question": "why?"}) == {"question": "why?"}
        assert bench.recorder.readies == ["r1"]

    async def test_what_is_kept_warm_can_be_started_and_a_hint_harms_nobody(self, bench: Bench) -> None:
        revision = bench.revision(_ECHO)
        broken = bench.revision("import no_such_module", number=2)
        for _ in range(2):
            await bench.engine.keep_warm([revision, broken])
        await bench.engine.start("r1", revision)
        await bench.recorder.ready("r1")
        assert await bench.ask("r1", "t1", 1) == 1
        await bench.engine.keep_warm([])
        assert await bench.ask("r1", "t2", 2) == 2
        await bench.engine.start("r2", broken)
        assert (await bench.recorder.exit("r2")).reason == "refused"

    async def test_many_tasks_at_once_are_all_answered_with_their_own_output(self, bench: Bench) -> None:
        await bench.start("async def run(input): return input * 2", concurrency=50)
        answers = await asyncio.gather(*(bench.ask("r1", f"t{number}", number) for number in range(50)))
        assert answers == [number * 2 for number in range(50)]

    async def test_a_large_input_and_output_pass(self, bench: Bench) -> None:
        await bench.start(_ECHO)
        assert await bench.ask("r1", "t1", "x" * 4_000_000) == "x" * 4_000_000

    async def test_arguments_reach_the_factory(self, bench: Bench) -> None:
        source = """
            def make(greeting):
                return lambda input: f"{greeting} {input}"
        """
        await bench.start(source, factory="agent:make", arguments={"greeting": "hello"})
        assert await bench.ask("r1", "t1", "Ada") == "hello Ada"

    async def test_thirty_replicas_start_at_once(self, bench: Bench) -> None:
        revision, names = bench.revision(_ECHO), [f"r{number}" for number in range(30)]
        await asyncio.gather(*(bench.engine.start(name, revision) for name in names))
        await bench.recorder.ready(*names)
        assert sorted(bench.recorder.readies) == sorted(names)

    async def test_revisions_with_different_code_of_one_module_run_side_by_side(self, bench: Bench) -> None:
        await bench.start("def run(input): return 'blue'", "r1", number=1)
        await bench.start("def run(input): return 'green'", "r2", number=2)
        assert [await bench.ask("r1", "t1"), await bench.ask("r2", "t2")] == ["blue", "green"]

    async def test_a_check_of_its_own_code_is_answered_and_so_is_the_built_in_one(self, bench: Bench) -> None:
        source = """
            def run(input): return input * 2
            def doubles(agent): assert agent(2) == 4
            def triples(agent): assert agent(2) == 6
        """
        await bench.start(source)
        for task, function in (("c1", None), ("c2", "agent:doubles"), ("c3", "agent:triples")):
            assert bench.engine.invoke("r1", protocol.Check(task, 1, 60.0, function))
        assert [(await bench.recorder.ended(task)).output for task in ("c1", "c2", "c3")] == [b"true", b"true", None]
        assert (
            await bench.recorder.ended("c3")
        ).error_message == "agent.py:4: def triples(agent): assert agent(2) == 6"

    async def test_it_is_tried_whether_a_state_can_be_taken_over(self, bench: Bench) -> None:
        source = """
            def migrate(state, from_revision, to_revision): return {"lines": state["lines"]}
            def run(input): return input
        """
        await bench.start(source, sessions=True, number=2)
        for task, state in (("m1", b'{"lines":[]}'), ("m2", b"{}")):
            assert bench.engine.invoke("r1", protocol.Migrate(task, 1, state, 1, 60.0))
        assert (await bench.recorder.ended("m1")).output == b"true"
        assert (await bench.recorder.ended("m2")).error_type == "state_not_migratable"

    async def test_code_that_cannot_be_imported_is_refused_with_the_reason(self, bench: Bench) -> None:
        await bench.engine.start("r1", bench.revision("import no_such_package"))
        exit = await bench.recorder.exit("r1")
        assert exit.reason == "refused"
        assert "no_such_package" in exit.detail
        assert not bench.recorder.readies

    async def test_a_factory_that_raises_is_refused_with_the_reason(self, bench: Bench) -> None:
        source = "def make(): raise RuntimeError('no key was given')"
        await bench.engine.start("r1", bench.revision(source, factory="agent:make"))
        exit = await bench.recorder.exit("r1")
        assert exit.reason == "refused"
        assert "no key was given" in exit.detail

    async def test_a_refused_revision_can_be_started_again(self, bench: Bench, tmp_path: Path) -> None:
        mark = tmp_path / "there"
        revision = bench.revision(f"import os; assert os.path.exists({str(mark)!r})\ndef run(input): return 1")
        await bench.engine.start("r1", revision)
        assert (await bench.recorder.exit("r1")).reason == "refused"
        mark.touch()
        await bench.engine.start("r2", revision)
        await bench.recorder.ready("r2")

    async def test_a_replica_that_ends_by_itself_has_crashed(self, bench: Bench) -> None:
        await bench.start("import os\ndef run(input): os._exit(3)")
        bench.send("r1", "t1")
        exit = await bench.recorder.exit("r1")
        assert (exit.reason, exit.exit_code) == ("crashed", 3)
        assert not bench.send("r1", "t2")

    async def test_the_reason_of_a_kill_is_told(self, bench: Bench) -> None:
        await bench.start(_ECHO)
        bench.engine.kill("r1", "hung", "no answer for 8 s")
        exit = await bench.recorder.exit("r1")
        assert (exit.reason, exit.detail) == ("hung", "no answer for 8 s")

    async def test_a_probe_is_answered_with_its_number_at_work_and_in_idleness(self, bench: Bench) -> None:
        source = """
            import asyncio
            async def run(input): await asyncio.Event().wait()
        """
        await bench.start(source)
        assert bench.engine.invoke("r1", protocol.Probe(1))
        await bench.recorder.until(lambda: ("r1", 1) in bench.recorder.alives)
        bench.send("r1", "t1")
        assert bench.engine.invoke("r1", protocol.Probe(2))
        await bench.recorder.until(lambda: ("r1", 2) in bench.recorder.alives)
        assert not bench.engine.invoke("nobody", protocol.Probe(3))

    async def test_a_replica_at_work_shows_progress_unasked(self, bench: Bench) -> None:
        source = """
            import time
            def run(input): time.sleep(3600)
        """
        await bench.start(source)
        bench.send("r1", "t1")
        await bench.recorder.until(lambda: bench.recorder.alives == [("r1", 0)])
        bench.engine.kill("r1", "killed")  # it would be given some time to leave

    async def test_a_kill_before_it_is_ready_still_ends_in_one_exit(self, bench: Bench) -> None:
        await bench.engine.start("r1", bench.revision(_ECHO))
        bench.engine.kill("r1", "killed")
        assert (await bench.recorder.exit("r1")).reason == "killed"
        await bench.start(_ECHO, "r2")
        assert [gone for gone, _ in bench.recorder.exits] == ["r1"]

    async def test_a_stopped_replica_is_gone_when_stop_returns(self, bench: Bench) -> None:
        await bench.start(_ECHO)
        await bench.engine.stop("r1", grace_s=DEADLINE_S)
        assert [(gone, exit.reason) for gone, exit in bench.recorder.exits] == [("r1", "stopped")]
        assert bench.engine.observe() == []
        assert not bench.send("r1", "t1")

    async def test_a_replica_that_will_not_leave_is_killed_after_its_grace(self, bench: Bench) -> None:
        source = """
            import time
            async def run(input):
                while True: time.sleep(1)  # blocks its loop
        """
        await bench.start(source)
        bench.send("r1", "t1")
        await bench.engine.stop("r1", grace_s=0.2)
        assert (await bench.recorder.exit("r1")).reason == "stopped"

    async def test_what_code_writes_to_the_descriptors_is_heard_by_line(self, bench: Bench) -> None:
        source = """
            import os
            def run(input):
                os.write(1, b"from native code\\n")
                os.write(2, b"x" * 10_000 + b"\\xff\\n")
        """
        await bench.start(source)
        await bench.ask("r1", "t1")
        await bench.recorder.until(lambda: {stream for _, stream, _ in bench.recorder.logs} == {"stdout", "stderr"})
        assert ("r1", "stdout", "from native code") in bench.recorder.logs
        assert all(len(line) <= 4096 for _, _, line in bench.recorder.logs)

    async def test_only_named_variables_of_the_node_are_seen(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("A_SECRET", "do not tell")
        monkeypatch.setenv("A_SETTING", "blue")
        await bench.start("import os\ndef run(input): return dict(os.environ)", env=("A_SETTING", "NOT_THERE"))
        seen = await bench.ask("r1", "t1")
        assert seen["A_SETTING"] == "blue"
        assert "do not tell" not in seen.values()
        assert "NOT_THERE" not in seen

    async def test_its_working_directory_is_its_snapshot(self, bench: Bench) -> None:
        revision = await bench.start("import os\ndef run(input): return os.getcwd()")
        assert await bench.ask("r1", "t1") == str(revision.snapshot)

    async def test_what_it_uses_is_observed(self, bench: Bench) -> None:
        await bench.start(_ECHO)
        (seen,) = bench.engine.observe()
        assert (seen.replica, seen.ready) == ("r1", True)
        assert seen.rss_mb > 1

    async def test_a_replica_over_its_memory_limit_is_killed(self, bench: Bench) -> None:
        source = """
            import time
            def run(input):
                hoard = []
                while True:
                    hoard.append(b"x" * 20_000_000)
                    time.sleep(0.01)
        """
        await bench.start(source, memory_mb=200)
        bench.send("r1", "t1")
        exit = await bench.recorder.exit("r1")
        assert (exit.reason, exit.is_its_own) == ("oom", True)
        assert "memory_mb is 200" in exit.detail

    async def test_what_its_children_hold_counts_and_what_they_share_with_it_does_not(self, bench: Bench) -> None:
        source = """
            import os, subprocess, sys, time
            HOARD = b"x" * 80_000_000
            HUNGRY = "import time; hoard = b'x' * 150_000_000; time.sleep(60)"
            def run(input):
                if input == "share":
                    for _ in range(4):
                        if os.fork() == 0:
                            time.sleep(60)
                    time.sleep(1)  # some looks at memory
                    return "shared"
                subprocess.run([sys.executable, "-c", HUNGRY])
        """
        await bench.start(source, memory_mb=200)
        assert await bench.ask("r1", "t1", "share") == "shared"
        bench.send("r1", "t2", "hungry")
        assert (await bench.recorder.exit("r1")).reason == "oom"

    async def test_nobody_is_there_under_an_unknown_id(self, bench: Bench) -> None:
        assert not bench.send("nobody", "t1")
        bench.engine.kill("nobody", "hung")
        await bench.engine.stop("nobody", grace_s=1)

    async def test_close_ends_all(self, bench: Bench) -> None:
        await bench.start(_ECHO, "r1")
        await bench.engine.start("r2", bench.revision(_ECHO, number=2))
        await bench.engine.close()
        assert {gone: exit.reason for gone, exit in bench.recorder.exits} == {"r1": "stopped", "r2": "stopped"}
