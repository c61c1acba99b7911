"""A hostile agent beside what it should not get at, and the table in docs/isolation.md that says what it gets."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from greenroom import clock as clocks
from greenroom.core.isolation import Means, Tier
from greenroom.engine import contract, kernel, local, rooms, snapshots
from greenroom.security import secret_file
from greenroom.testing.engine_contract import Bench

TABLE = Path(__file__).parents[1] / "docs" / "isolation.md"
AGENTS = Path(__file__).parent / "agents"
POWERS = rooms.powers()
CANARY = b"canary-" + os.urandom(24)  # in this process's memory alone


def expected() -> dict[str, dict[str, str]]:
    """Return the documented table: by column, what each probe gives."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    start = next(number for number, line in enumerate(lines) if line.startswith("| An agent tries to"))
    columns = [cell.strip() for cell in lines[start].strip("|").split("|")][1:]
    found: dict[str, dict[str, str]] = {column: {} for column in columns}
    for line in lines[start + 2 :]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for column, cell in zip(columns, cells, strict=True):
            found[column][name] = cell
    return found


@contextlib.contextmanager
def a_folder() -> Iterator[Path]:
    """Make a folder that other users may pass through, which those of pytest are not."""
    path = Path(tempfile.mkdtemp(prefix="greenroom-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def python_for_others(folder: Path) -> str | None:
    """Return an interpreter that other users may run, with msgspec; None where there is none."""
    if not any("/python" in each or "/.pyenv" in each or "/root" in each for each in POWERS.unreachable):
        return sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    import msgspec

    site = Path(msgspec.__file__).parents[1]
    if found is None or not site.stat().st_mode & 1:
        return None
    made = folder / "interpreter"
    subprocess.run([found, "-m", "venv", "--without-pip", str(made)], check=True)
    (made / "lib" / f"python{version}" / "site-packages" / "others.pth").write_text(f"{site}\n")
    return str(made / "bin" / "python")


def listener(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(family, kind)
    made.bind(address)
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@contextlib.asynccontextmanager
async def opened(folder: Path, tier: Tier, means: Means | None = None) -> AsyncIterator[Bench]:
    engine = local.LocalEngine(folder / "data", clocks.SystemClock(), tier=tier, means=means)
    try:
        yield Bench(engine, folder)
    finally:
        await engine.close()


def revision(folder: Path, factory: str, *, agent: str = "hostile", **changes: Any) -> contract.Revision:
    code = folder / "code"
    code.mkdir(exist_ok=True)
    shutil.copy(AGENTS / "probing.py", code)
    snapshot = snapshots.take(code, include=(), into=folder / "data" / "snapshots")
    return contract.Revision(agent, 1, snapshot.path, factory, **changes)


async def probed(
    folder: Path, tier: Tier, *, egress: tuple[str, ...], python: str | None, means: Means | None = None
) -> dict[str, str]:
    """Run the probes on one of two replicas of an agent, beside one of another agent."""
    data = folder / "data"
    data.mkdir(mode=0o700)
    secret_file.load_or_make(data / "secrets")
    secret_file.write_private(data / "local.key", b"key")
    database = sqlite3.connect(data / "greenroom.db")
    database.execute("pragma journal_mode = wal")
    database.execute("create table held (x)")
    held = ctypes.create_string_buffer(CANARY)
    with contextlib.ExitStack() as stack:
        port, other, allowed = (
            stack.enter_context(listener(socket.AF_INET, ("127.0.0.1", 0))).getsockname()[1] for _ in range(3)
        )
        for path, kind in ((folder / "s", socket.SOCK_STREAM), (folder / "d", socket.SOCK_DGRAM)):
            stack.enter_context(listener(socket.AF_UNIX, str(path), kind))
            path.chmod(0o777)
        abstract = f"greenroom-{os.getpid()}-{tier}"
        stack.enter_context(listener(socket.AF_UNIX, "\0" + abstract))
        with listener(socket.AF_INET, ("127.0.0.1", 0)) as free:
            free_port = free.getsockname()[1]
        wanted = tuple(each.format(port=allowed) for each in egress)
        async with opened(folder, tier, means) as bench:
            hostile = revision(folder, "probing:run", egress=wanted, python=python)
            told = revision(folder, "probing:where", egress=wanted, python=python, interpreter=1)
            others = revision(folder, "probing:where", agent="other", python=python)
            await bench.engine.start("h1", hostile)
            await bench.engine.start("h2", hostile)
            await bench.engine.start("w1", told)
            await bench.engine.start("o1", others)
            await bench.recorder.ready("h1", "h2", "w1", "o1")
            pids = {each.replica: each.pid for each in bench.engine.observe()}
            other_home = (await bench.ask("o1", "t2"))["home"]
            sibling_home = str(Path((await bench.ask("w1", "t1"))["home"]))
            if tier is not Tier.T0:
                (own,) = Path(sibling_home).parents[1].glob("hostile-1-*/h2")
                sibling_home = str(own)
            found = await bench.ask(
                "h1",
                "t3",
                {
                    "hides": means is Means.NAMESPACES,
                    "node": os.getpid(),
                    "sibling_pid": number_inside(pids["h2"]),
                    "sibling_home": sibling_home,
                    "other_home": other_home,
                    "secrets": str(data / "secrets"),
                    "key": str(data / "local.key"),
                    "database": str(data / "greenroom.db"),
                    "wal": str(data / "greenroom.db-wal"),
                    "home": str(Path.home()),
                    "snapshot": str(hostile.snapshot),
                    "package": str(Path(kernel.__file__)),
                    "address": ctypes.addressof(held),
                    "port": port,
                    "other_port": other,
                    "egress_port": allowed,
                    "free_port": free_port,
                    "unix": str(folder / "s"),
                    "unix_datagram": str(folder / "d"),
                    "abstract": abstract,
                },
            )
            assert_absent(CANARY, pids["h1"])
            assert_absent(secret_file.load_or_make(data / "secrets").pepper, pids["h1"])
    database.close()
    return dict(found)


def number_inside(pid: int | None) -> int:
    """Return the number that a process has for itself."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))


def assert_absent(secret: bytes, pid: int | None) -> None:
    """Look through all the memory of a process for *secret*."""
    assert pid is not None
    seen = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - a file that is seeked in
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            if line.split()[1].startswith("r") and end < 1 << 63:
                with contextlib.suppress(OSError):
                    memory.seek(begin)
                    held = memory.read(end - begin)
                    seen += len(held)
                    assert secret not in held, f"the replica has the node's secret at {line}"
    assert seen > 1 << 20, "nothing was looked at"
