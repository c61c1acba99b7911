"""What a hostile agent gets away with in each tier, compared with the table in docs/isolation.md."""

# ruff: noqa: ASYNC240 - the files here are looked at, never waited for

from __future__ import annotations

import asyncio
import os
import platform
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors
from greenroom.core.isolation import CAPABILITIES, Tier, decide
from greenroom.engine import contract, local, processes, rooms
from greenroom.testing.engine_contract import Bench
from isolated import POWERS, a_folder, expected, opened, probed, python_for_others

HAS_T1 = decide("auto", POWERS).tier is Tier.T1


@pytest.fixture
def folder() -> Iterator[Path]:
    with a_folder() as made:
        yield made


def is_free() -> bool:
    """Whether nobody has taken from this process what root has."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return os.geteuid() == 0 and bool(int(status["CapEff"], 16) >> 21 & 1) and status["Seccomp"] == "0"


COLUMNS = {
    "T0": (Tier.T0, ("any",)),
    "T1, any": (Tier.T1, ("any",)),
    "T1, host:port": (Tier.T1, ("127.0.0.1:{port}",)),
    "T1, none": (Tier.T1, ()),
    "T2, host:port": (Tier.T2, ("127.0.0.1:{port}",)),
}


@pytest.mark.parametrize("column", COLUMNS)
async def test_a_hostile_agent_gets_away_with_what_the_table_says(column: str, folder: Path) -> None:
    tier, egress = COLUMNS[column]
    python = None
    if tier is not Tier.T0 and not HAS_T1:
        pytest.skip("; ".join(decide("T1", POWERS).lacks))
    if tier is Tier.T2:
        python = await asyncio.to_thread(python_for_others, folder)
        if not set(CAPABILITIES) <= POWERS.capabilities or python is None or not POWERS.are_uids_mapped:
            pytest.skip("; ".join(decide("T2", POWERS).lacks))
    found = await probed(folder, tier, egress=egress, python=python)
    table = expected()[column]
    assert set(found) == set(table)
    wrong = {
        name: f"{answer}, documented as {table[name]}"
        for name, answer in found.items()
        # What the node itself may not do, agents in T0 may not do either.
        if answer.partition(" ")[0] != table[name] and (table[name] == "closed" or tier is not Tier.T0 or is_free())
    }
    assert not wrong


# --- rooms that agents can work in


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    if not HAS_T1:
        pytest.skip("; ".join(decide("T1", POWERS).lacks))
    async with opened(folder, Tier.T1) as bench:
        yield bench


async def failure(bench: Bench, replica: str, task: str) -> tuple[str | None, str]:
    assert bench.send(replica, task)
    ended = await bench.recorder.ended(task)
    return ended.error_type, ended.error_message


async def test_the_import_is_in_the_room_already(bench: Bench, folder: Path) -> None:
    (folder / "secret").write_text("x")
    source = f"open({str(folder / 'secret')!r})\ndef run(input): return 1"
    await bench.engine.start("r1", bench.revision(source))
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, "PermissionError" in exit.detail) == ("refused", True)
    assert f"the agent's room is closed to {folder / 'secret'}" in exit.detail


async def test_an_interpreter_that_begins_again_for_threads_stays_in_its_room(bench: Bench) -> None:
    source = """
        import threading, time
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def run(input): return open("/etc/shadow").read()
    """
    await bench.start(source)
    assert (await failure(bench, "r1", "t1"))[0] == "PermissionError"


async def test_replicas_have_folders_of_their_own_that_go_with_them(bench: Bench) -> None:
    source = """
        import os, tempfile
        early = tempfile.mkstemp()[1]
        def run(input):
            with open(early, "a") as shared: shared.write("x")
            return [tempfile.mkdtemp(), os.environ["HOME"]]
    """
    revision = await bench.start(source)
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    (one, home), (other, _) = await bench.ask("r1", "t1"), await bench.ask("r2", "t2")
    assert Path(one).parent == Path(home) != Path(other).parent
    await bench.engine.stop("r1", grace_s=5)
    for _ in range(1000):
        if not Path(home).exists():
            break
        await asyncio.sleep(0.005)
    assert not Path(home).exists()
    assert Path(other).exists()
    await bench.engine.close()
    assert not Path(other).parents[2].exists()


async def test_what_is_named_is_open(bench: Bench, folder: Path) -> None:
    for name in ("read", "write"):
        (folder / name).mkdir()
        (folder / name / "file").write_text("old")
    source = f"""
        from pathlib import Path
        read, write = Path({str(folder / "read")!r}), Path({str(folder / "write")!r})
        def run(input):
            (write / "new").write_text("new")
            (write / "file").unlink()
            return [(read / "file").read_text(), sorted(each.name for each in write.iterdir())]
        """
    await bench.start(source, read_paths=(folder / "read",), write_paths=(folder / "write",))
    assert await bench.ask("r1", "t1") == ["old", ["new"]]
    source = f"def run(input): open({str(folder / 'read' / 'new')!r}, 'w')"
    await bench.start(source, "r2", number=2, read_paths=(folder / "read",))
    assert (await failure(bench, "r2", "t2"))[0] == "PermissionError"


async def test_the_nodes_own_stays_closed_in_what_is_opened(bench: Bench, folder: Path) -> None:
    (folder / "data" / "key").write_text("x")
    (folder / "notes").write_text("x")
    source = f"""
        def run(input):
            open({str(folder / "notes")!r}).close()
            open({str(folder / "data" / "key")!r})
        """
    await bench.start(source, read_paths=(folder,))
    kind, message = await failure(bench, "r1", "t1")
    assert kind == "PermissionError"
    assert "data/key" in message


@pytest.mark.parametrize(
    ("key", "name", "words"),
    [
        ("read_paths", "nowhere", "which is not there; make it, or take it out"),
        ("write_paths", "nowhere", "which is not there; make it, or take it out"),
        ("read_paths", "data", "which is in what is the node's own"),
        ("write_paths", "data", "which is in what is the node's own"),
        ("write_paths", ".", "which holds what is the node's own"),
        ("write_paths", tempfile.gettempdir(), "which holds what is the node's own"),
        ("read_paths", "link", "which is in what is the node's own"),
    ],
)
async def test_paths_that_cannot_be_opened_are_refused(
    bench: Bench, folder: Path, key: str, name: str, words: str
) -> None:
    (folder / "link").symlink_to(folder / "data")
    named: dict[str, Any] = {key: (folder / name,)}
    revision = bench.revision("def run(input): return 1", **named)
    with pytest.raises(errors.AgentInvalid, match=words) as caught:
        await bench.engine.start("r1", revision)
    assert f"its {key} names" in str(caught.value)


async def test_names_are_looked_up_by_tcp_where_udp_is_closed(bench: Bench) -> None:
    source = """
        import os, socket
        def run(input): return [os.environ.get("RES_OPTIONS"), socket.getaddrinfo("localhost", 1)[0][4][0]]
    """
    await bench.start(source, egress=("a.example",))
    options, address = await bench.ask("r1", "t1")
    assert (options, address in ("127.0.0.1", "::1")) == ("use-vc", True)


async def test_agents_work_with_subprocesses_threads_and_their_own_loops(bench: Bench) -> None:
    source = """
        import asyncio, subprocess, sys, threading
        async def run(input):
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(6*7)", stdout=-1)
            out, _ = await child.communicate()
            there = []
            thread = threading.Thread(target=lambda: there.append(subprocess.run(["true"]).returncode))
            thread.start(); thread.join()
            return [out.decode().strip(), there]
    """
    await bench.start(source, egress=())
    assert await bench.ask("r1", "t1") == ["42", [0]]


async def test_a_zygote_that_reports_a_process_that_is_not_its_child_is_ended(bench: Bench) -> None:
    """Or the node would kill it, one day."""
    victim = await asyncio.create_subprocess_exec("sleep", "1000")
    source = f"""
        import msgspec, os, socket, sys
        from greenroom.engine import zygote
        real = socket.send_fds
        def send_fds(control, records, fds):
            if fds:
                report = zygote.decode_report(records[0])
                records = [zygote.encode(zygote.Forked(report.replica))]
                fds = [os.pidfd_open({victim.pid})]
            return real(control, records, fds)
        socket.send_fds = send_fds
        def run(input): return 1
    """
    await bench.engine.start("r1", bench.revision(source))
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, "a process that is not its child" in exit.detail) == ("refused", True)
    await bench.engine.close()
    assert victim.returncode is None
    victim.kill()
    await victim.wait()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is of x86_64")
async def test_a_call_by_numbers_that_mean_something_else_ends_the_replica(bench: Bench) -> None:
    await bench.start("import ctypes\ndef run(input): ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))")
    assert bench.send("r1", "t1")
    exit = await bench.recorder.exit("r1")
    assert (exit.reason, exit.signal) == ("crashed", signal.SIGSYS)


# --- secrets


async def test_a_secret_is_in_its_replica_alone_and_a_rotated_one_in_the_next(bench: Bench, folder: Path) -> None:
    (folder / "key").write_text("one\n")
    (folder / "key").chmod(0o600)
    source = """
        import os
        early = os.environ.get("KEY")
        def build(nested, plain):
            def run(input): return [early, os.environ["KEY"], nested, plain]
            return run
    """
    arguments = {"nested": [{"key": {"secret": "KEY"}}], "plain": {"secret": "OTHER"}}
    secrets = {"KEY": f"file:{folder / 'key'}"}
    revision = bench.revision(source, factory="agent:build", arguments=arguments, secrets=secrets)
    await bench.engine.start("r1", revision)
    await bench.recorder.ready("r1")
    (folder / "key").write_text("two")
    await bench.engine.start("r2", revision)
    await bench.recorder.ready("r2")
    assert await bench.ask("r1", "t1") == [None, "one", [{"key": "one"}], {"secret": "OTHER"}]
    assert await bench.ask("r2", "t2") == [None, "two", [{"key": "two"}], {"secret": "OTHER"}]
    pids = {each.replica: each.pid for each in bench.engine.observe()}
    assert b"one" not in Path(f"/proc/{pids['r1']}/cmdline").read_bytes()


async def test_a_secret_may_be_a_variable_of_the_node(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITS_NAME", "value")
    await bench.start(
        "import os\ndef run(input): return [os.environ['KEY'], 'ITS_NAME' in os.environ]",
        secrets={"KEY": "env:ITS_NAME"},
    )
    assert await bench.ask("r1", "t1") == ["value", False]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("file:{folder}/nowhere", "No such file or directory; correct the reference, or let the node read it"),
        ("file:{folder}", "no file of at most 65536 bytes"),
        ("file:/dev/zero", "no file of at most 65536 bytes"),
        ("file:{folder}/large", "no file of at most 65536 bytes"),
        ("file:{folder}/data/secrets", "it is the node's own"),
        ("file:{folder}/link", "it is the node's own"),
        ("env:NOWHERE", "the node does not have that variable"),
    ],
)
async def test_a_reference_that_leads_nowhere_refuses_the_replica(
    bench: Bench, folder: Path, reference: str, words: str
) -> None:
    (folder / "data" / "secrets").write_text("canary")
    (folder / "link").symlink_to(folder / "data" / "secrets")
    (folder / "large").write_text("canary" * 20_000)
    named = reference.format(folder=folder)
    await bench.engine.start("r1", bench.revision("def run(input): return 1", secrets={"KEY": named}))
    exit = await bench.recorder.exit("r1")
    assert exit.reason == "refused"
    assert f"cannot resolve the secret KEY, {named}: " in exit.detail
    assert words in exit.detail
    assert "canary" not in exit.detail


async def test_t2_says_which_folder_keeps_its_users_from_the_code(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    made = rooms.Rooms(private / "data", Tier.T2, marker="m")
    with pytest.raises(errors.AgentInvalid, match=r"other users cannot enter .*; run chmod o\+x"):
        made.check(contract.Revision("a", 1, private / "data" / "snapshots" / "x", "a:b"))


@pytest.mark.parametrize(("tier", "name"), [(Tier.T0, None), (Tier.T1, None), (Tier.T2, "a")])
async def test_a_user_that_the_system_does_not_know_has_the_name_of_its_agent(
    tmp_path: Path, tier: Tier, name: str | None
) -> None:
    made = rooms.Rooms(tmp_path / "data", tier, marker="m").environment(contract.Revision("a", 1, tmp_path, "a:b"))
    assert (made.get("USER"), made.get("LOGNAME")) == (name, name)


async def test_what_a_killed_node_left_is_removed_by_the_next_one_of_its_data_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    home = processes.home(folder / "data").rstrip(":")
    left, others = folder / f"greenroom-{home}-1-2-0~left", folder / "greenroom-other-1-2-0~left"
    lives = folder / f"greenroom-{processes.node_marker(folder / 'data').replace(':', '-')}~lives"
    for each in (left, others, lives):
        each.mkdir()
    async with opened(folder, Tier.T0) as bench:
        assert isinstance(bench.engine, local.LocalEngine)
        await bench.engine.sweep()
    assert (left.exists(), others.exists(), lives.exists()) == (False, True, True)
