"""The envelope of all replicas: what holds it where, and that it does."""

# ruff: noqa: ASYNC240 - the files here are looked at, never waited for

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom import clock as clocks
from greenroom.engine import envelope, kernel, local, processes
from greenroom.engine.envelope import How, Limits
from greenroom.testing.engine_contract import Bench

MARKER = "0123456789abcdef:1-1-0"
V1 = """
30 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
31 30 0:29 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
32 30 0:30 /docker/x {root}/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:31 / {root}/unified rw,relatime - cgroup2 cgroup2 rw"""
V2 = "33 30 0:31 / {root} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
_SPIN = """
    def run(input):
        while True: pass
"""
_HOARD = """
    import time
    def run(input):
        hoard = []
        for _ in range(input):
            hoard.append(bytearray(1 << 20))
            time.sleep(0.001)
        time.sleep(600)
"""


def _source(tmp_path: Path, mounts: str, membership: str) -> Path:
    source = tmp_path / "self"
    source.mkdir()
    (source / "mountinfo").write_text(mounts.format(root=tmp_path).strip())
    (source / "cgroup").write_text(membership)
    return source


def _group(folder: Path, *files: str, **values: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).touch()
    for name, value in values.items():
        (folder / name.replace("_", ".", 1)).write_text(value)
    return folder


class _Fake:
    """Makes the kernel's files in each folder that is made, as its file system does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
        self.made: list[Path] = []
        mkdir, rmdir = Path.mkdir, Path.rmdir

        def make(path: Path, *arguments: Any, **options: Any) -> None:
            mkdir(path, *arguments, **options)
            if path.name.startswith(envelope.PREFIX):
                self.made.append(path)
                for name in files:
                    (path / name).touch()

        def remove(path: Path) -> None:
            for each in path.iterdir():
                each.unlink()
            rmdir(path)

        monkeypatch.setattr(Path, "mkdir", make)
        monkeypatch.setattr(Path, "rmdir", remove)


def test_in_version_1_the_groups_are_below_the_nodes_own_of_each_hierarchy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(tmp_path, V1, "4:memory:/docker/x/me\n1:cpu,cpuacct:/\n0::/")
    _group(tmp_path / "cpu")
    _group(tmp_path / "memory" / "me")
    files = ("cgroup.procs", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes")
    fake = _Fake(monkeypatch, *files, "memory.memsw.limit_in_bytes")
    made = envelope.Envelope(Limits(1.5, 512), marker=MARKER, source=source)
    assert made.how == envelope.Enforcement(How.CGROUP_V1, How.CGROUP_V1)
    cpu, memory = tmp_path / "cpu" / fake.made[0].name, tmp_path / "memory" / "me" / fake.made[0].name
    assert fake.made == [cpu, memory]
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        assert (memory / name).read_text() == str(512 * 2**20)
    assert made.entry() == envelope.Entry((str(cpu / "cgroup.procs"), str(memory / "cgroup.procs")), ())
    (memory / "memory.usage_in_bytes").write_text(str(300 * 2**20))
    (memory / "memory.stat").write_text(
        f"inactive_file 5\ntotal_inactive_file {40 * 2**20}\ntotal_active_file {10 * 2**20}"
    )
    assert made.held_mb() == 250.0
    assert made.kills == memory / "memory.oom_control"
    cpu.rmdir()
    assert made.entry().groups[0] == str(cpu / "cgroup.procs")  # it is made again
    assert (cpu / "cpu.cfs_quota_us").read_text() == "150000"
    made.close()
    assert not cpu.exists()
    assert not memory.exists()


def test_in_version_2_controllers_are_switched_on_for_one_group_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(tmp_path, V2, "0::/me")
    own = _group(tmp_path / "me", "cgroup.procs", cgroup_controllers="cpu memory io", cgroup_subtree_control="cpu")
    fake = _Fake(monkeypatch, "cgroup.procs", "cpu.max", "memory.max", "memory.swap.max")
    made = envelope.Envelope(Limits(0.5, 512), marker=MARKER, source=source)
    assert made.how == envelope.Enforcement(How.CGROUP_V2, How.CGROUP_V2)
    group = own / fake.made[0].name
    assert (own / "cgroup.subtree_control").read_text() == "+memory"
    values = {name: (group / name).read_text() for name in ("cpu.max", "memory.max", "memory.swap.max")}
    assert values == {"cpu.max": "50000 100000", "memory.max": str(512 * 2**20), "memory.swap.max": "0"}
    assert made.entry().groups == (str(group / "cgroup.procs"),)
    assert made.kills == group / "memory.events"


def test_in_version_2_a_group_beside_the_nodes_own_is_made_only_in_one_that_was_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(tmp_path, V2, "0::/service/node")
    both = {"cgroup_controllers": "cpu memory", "cgroup_subtree_control": "cpu memory"}
    service = _group(tmp_path / "service", "cgroup.procs", **both)
    _group(service / "node", "cgroup.procs", cgroup_controllers="", cgroup_subtree_control="")
    _Fake(monkeypatch, "cgroup.procs", "cpu.max", "memory.max")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    given: dict[str, bytes] = {}

    def attribute(path: Path, name: str) -> bytes:
        if name in given and path == service:
            return given[name]
        raise OSError(name)

    monkeypatch.setattr(os, "getxattr", attribute)
    # It would be outside of what is set for the node: an escape from its limits.
    assert envelope.Envelope(Limits(None, 512), marker=MARKER, source=source).how.memory is How.MEASURED
    given["trusted.delegate"] = b"1"
    made = envelope.Envelope(Limits(None, 512), marker=MARKER, source=source)
    assert made.how.memory is How.CGROUP_V2
    assert Path(made.entry().groups[0]).parents[1] == service


def test_without_groups_cpus_are_set_apart_and_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    nowhere = tmp_path / "nowhere"
    for cpu, cpus, is_warned in [(2.0, (2, 3), False), (1.5, (2, 3), True), (4.0, (), False), (64, (), False)]:
        made = envelope.Envelope(Limits(cpu, 512), marker=MARKER, source=nowhere)
        assert (made.how.cpu, made.how.memory, made.entry().cpus) == (How.AFFINITY, How.MEASURED, cpus)
        assert [warning.startswith("cluster.cpu = 1.5 is enforced as 2") for warning in made.how.warnings] == (
            [True] if is_warned else []
        )
        assert (made.held_mb(), made.kills) == (None, None)
        made.close()
    off = envelope.Envelope(Limits(), marker=MARKER, source=nowhere)
    assert off.how == envelope.Enforcement(How.OFF, How.OFF)


def test_what_cannot_be_enforced_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    made = envelope.Envelope(Limits(1.0, None), marker=MARKER, source=tmp_path / "nowhere")
    assert made.how.cpu is How.OFF
    (warning,) = made.how.warnings
    assert warning.startswith("cluster.cpu = 1 is not enforced")


def test_groups_of_dead_nodes_are_removed_and_those_of_the_living_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _source(tmp_path, V1, "4:memory:/docker/x\n1:cpu,cpuacct:/\n0::/")
    _group(tmp_path / "cpu")
    mine = processes.node_marker(tmp_path).partition(":")[2]
    dead = ["greenroom-aa-1-1-0", "greenroom-aa-4194305-7-0", "greenroom-no-marker-at-all"]
    for name in (*dead, f"greenroom-bb-{mine}", "somebody-elses"):
        _group(tmp_path / "cpu" / name)
    _Fake(monkeypatch, "cpu.cfs_period_us", "cpu.cfs_quota_us")
    made = envelope.Envelope(Limits(1.0, None), marker=processes.node_marker(tmp_path), source=source)
    made.sweep()
    left = {path.name for path in (tmp_path / "cpu").iterdir() if path.is_dir()}
    assert left == {f"greenroom-bb-{mine}", "somebody-elses", made._name}


# --- real processes


def _engine(tmp_path: Path, limits: Limits, monkeypatch: pytest.MonkeyPatch, *, how: str) -> local.LocalEngine:
    """An engine with *limits*, held by what *how* says; skips where this machine has no such thing."""
    if how != "cgroup":
        monkeypatch.setattr(envelope.Envelope.__init__, "__kwdefaults__", {"source": tmp_path / "nowhere"})
    engine = local.LocalEngine(tmp_path / "data", clocks.SystemClock(), limits=limits)
    held = [engine.enforcement.cpu] if limits.cpu is not None else [engine.enforcement.memory]
    if how == "cgroup" and held[0] not in (How.CGROUP_V1, How.CGROUP_V2):
        pytest.skip(f"no control group can be written to here: {held[0]}")
    return engine


async def _until(happened: Callable[[], bool], *, within_s: float = 20.0) -> None:
    async with asyncio.timeout(within_s):
        while not happened():  # noqa: ASYNC110  # of processes that tell nobody
            await asyncio.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cgroup", "affinity"])
async def test_two_busy_replicas_share_the_one_cpu_of_the_envelope(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this machine has one CPU")
    engine = _engine(tmp_path, Limits(cpu=1.0), monkeypatch, how=how)
    bench = Bench(engine, tmp_path)
    try:
        for replica in ("r1", "r2"):
            await bench.start(_SPIN, replica)
            bench.send(replica, replica)

        async def spent_s() -> float:
            usage = await engine.measure(enough_mb=1e9, each_mb={})
            return sum(usage.cpu_s.values())

        await asyncio.sleep(0.5)
        begun_s, before_s = time.monotonic(), await spent_s()
        await asyncio.sleep(1)
        used = (await spent_s() - before_s) / (time.monotonic() - begun_s)
        assert used <= 1.2
    finally:
        for replica in ("r1", "r2"):
            engine.kill(replica, "killed")  # they would be given some time to leave
        await engine.close()


@pytest.mark.slow
async def test_who_fills_the_group_is_killed_by_the_kernel_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path, Limits(memory_mb=200), monkeypatch, how="cgroup")
    bench = Bench(engine, tmp_path)
    groups = list(engine._envelope._groups.values())
    try:
        await bench.start(_HOARD, "small")
        await bench.start(_HOARD, "large")
        bench.send("small", "t1", 20)
        bench.send("large", "t2", 400)
        exit = await bench.recorder.exit("large")
        told = "the kernel killed it: all replicas together had come to cluster.memory_mb, 200 MB"
        # The fattest is who is killed, and need not be who was to blame: no proof against anybody.
        assert (exit.reason, exit.detail, exit.is_its_own) == ("oom", told, False)
        usage = await engine.measure(enough_mb=0, each_mb={})
        assert set(usage.replicas) == {"small"}
        assert 10 < usage.memory_mb < 150
    finally:
        await engine.close()
    assert not any(group.exists() for group in groups)


@pytest.mark.slow
async def test_what_forks_share_counts_once_and_is_looked_into_only_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path, Limits(memory_mb=4096), monkeypatch, how="measured")
    bench = Bench(engine, tmp_path)
    looked: list[int] = []
    share_mb = processes.share_mb

    def look(pid: int) -> float:
        looked.append(pid)
        return share_mb(pid)

    monkeypatch.setattr(processes, "share_mb", look)
    try:
        source = "shared = bytearray(b'x') * 200_000_000\ndef run(input): return len(shared)"
        for replica in ("r1", "r2", "r3"):
            await bench.start(source, replica)
        rough = await engine.measure(enough_mb=1e9, each_mb={})
        assert not looked
        assert rough.memory_mb > 4 * 190  # with the zygote
        exact = await engine.measure(enough_mb=0, each_mb={})
        assert len(looked) == 4
        assert 190 < exact.memory_mb < 300
        assert all(held.memory_mb > 190 and held.share_mb < 100 for held in exact.replicas.values())
    finally:
        await engine.close()


@pytest.mark.slow
async def test_what_a_replica_leaves_behind_is_counted_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path, Limits(memory_mb=4096), monkeypatch, how="measured")
    bench = Bench(engine, tmp_path)
    try:
        source = """
            import os, time
            def run(input):
                read, write = os.pipe()
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        hoard = bytearray(os.urandom(1024) * 1024 * 150)
                        os.write(write, b"x")
                        time.sleep(600)
                    os._exit(0)
                os.read(read, 1)
        """
        await bench.start(source)
        before = await engine.measure(enough_mb=0, each_mb={})
        await bench.ask("r1", "t1")
        after = await engine.measure(enough_mb=0, each_mb={})
        assert after.memory_mb > before.memory_mb + 140
        assert sum(after.cpu_s.values()) > sum(before.cpu_s.values())
    finally:
        await engine.close()


async def test_nobody_but_zygotes_and_what_they_fork_is_in_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path, Limits(cpu=2.0), monkeypatch, how="cgroup")
    bench = Bench(engine, tmp_path)
    try:
        source = """
            import os, subprocess
            subprocess.Popen(["sleep", "600"])  # of the import
            def run(input):
                subprocess.Popen(["sleep", "600"], start_new_session=True)
                return os.getpid()
        """
        await bench.start(source)
        replica = await bench.ask("r1", "t1")
        (zygote,) = engine._zygotes.values()
        (group,) = engine._envelope._groups.values()
        inside = set(map(int, (group / "cgroup.procs").read_text().split()))
        assert {replica, zygote.pid} < inside
        assert inside == {zygote.pid, *processes.descendants(zygote.pid)}
        assert len(inside) == 4
        assert os.getpid() not in inside
    finally:
        await engine.close()
    assert not group.exists()
    assert not any(Path(f"/proc/{pid}").exists() and kernel.stat(pid)[0] != "Z" for pid in inside)


async def test_interpreters_that_nobody_needs_are_let_go_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(tmp_path, Limits(memory_mb=4096), monkeypatch, how="measured")
    bench = Bench(engine, tmp_path)
    try:
        await bench.start("def run(input): return 1", "r1")
        await bench.start("def run(input): return 2", "r2")
        idle, _ = engine._zygotes.values()
        assert (engine.spares, engine.drop_spares()) == (0, 0)
        await engine.stop("r1", grace_s=5)
        assert (engine.spares, engine.drop_spares()) == (1, 1)
        await asyncio.wait_for(idle.gone.wait(), 10)
        assert engine.spares == 0
        assert await bench.ask("r2", "t") == 2
    finally:
        await engine.close()
