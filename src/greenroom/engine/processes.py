"""What a node knows and does about processes: readings, death notices, reaping, and finding what carries a
marker.

Called by the engine in the node. Everything that a node's zygotes start carries two variables in
``/proc/<pid>/environ``: `NODE_MARKER`, which names the data directory and the node's process, and
`zygote.REPLICA_MARKER`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import resource
import select
import signal
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import msgspec

from greenroom.engine import kernel, zygote

NODE_MARKER = "GREENROOM_NODE"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MOST_DESCENDANTS = 1000
_ROUNDS = 20  # a process that forks while it is looked for is found in the next round
_engines = itertools.count()

Environment = frozenset[bytes]


class Reading(msgspec.Struct, frozen=True):
    rss_mb: float
    cpu_s: float


def read(pid: int) -> Reading | None:
    """Return what *pid* uses now, pages that it shares with its zygote included; None when it is gone."""
    try:
        fields = kernel.stat(pid)
    except OSError:
        return None
    return Reading(size_mb(fields), (int(fields[11]) + int(fields[12])) / TICKS_PER_S)


def size_mb(fields: Sequence[str]) -> float:
    """Return the resident size that `kernel.stat` has read."""
    return int(fields[21]) * _PAGE_BYTES / 2**20


def held_mb(pid: int, limit_mb: float) -> float:
    """Return the memory that *pid* and what it has started hold, in MB; up to *limit_mb* it may be less than that.

    Of descendants, the first `MOST_DESCENDANTS` of them, only their share of each page counts: after a fork most pages
    are their parent's. The kernel adds it up page by page, for milliseconds where a process is large: it is asked only
    while their sizes leave it open whether they hold too much, and never on the event loop.
    """
    reading = read(pid)
    if reading is None:
        return 0.0
    below = itertools.islice(descendants(pid), MOST_DESCENDANTS)
    sizes_mb = {child: found.rss_mb for child in below if (found := read(child)) is not None}
    most_mb = reading.rss_mb + sum(sizes_mb.values())
    for child in sorted(sizes_mb, key=sizes_mb.__getitem__, reverse=True):
        if most_mb <= limit_mb:
            break
        most_mb += share_mb(child) - sizes_mb[child]
    return most_mb


def first_child(pid: int) -> int:
    """Return what *pid* has started first of what is there; 0: nothing."""
    return next(iter(kernel.children_of(pid)), 0)


def kill_first_child(pid: int) -> bool:
    """Kill what *pid* has started first; False: there is nothing."""
    try:
        pidfd = os.pidfd_open(first_child(pid))
    except OSError:
        return False
    try:
        if not is_child(pidfd, parent=pid):
            return False
        send(pidfd, signal.SIGKILL)
        return True
    finally:
        os.close(pidfd)


def descendants(pid: int) -> Iterator[int]:
    """Yield what *pid* has started, the nearest first."""
    parents = deque([pid])
    while parents:
        children = kernel.children_of(parents.popleft())
        yield from children
        parents += children


def share_mb(pid: int) -> float:
    """Return the memory of *pid* in MB, of each shared page only its part; milliseconds where it is large."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


class OomKills:
    """The kernel's count of processes that it has killed for memory: anywhere on this machine, or in one group.

    A SIGKILL says nothing of who sent it; that the count has grown within the last seconds makes the kernel likely.
    """

    EVERY_S = 5.0
    SOURCE = Path("/proc/vmstat")

    def __init__(self, now_s: float, source: Path | None = None) -> None:
        self._source = source or self.SOURCE
        self._before = self._latest = self._read()
        self._latest_s = now_s

    def look(self, now_s: float) -> None:
        """Note the count, if the last note is `EVERY_S` old; the one before it is what `has_grown` compares with."""
        if now_s >= self._latest_s + self.EVERY_S:
            self._before, self._latest, self._latest_s = self._latest, self._read(), now_s

    def has_grown(self) -> bool:
        return self._read() > self._before

    def _read(self) -> int:
        try:
            lines = self._source.read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def prepare_node() -> None:
    """Adopt the replicas of zygotes that die, and allow as many open files as the system does: a replica takes four.

    And keep what is in this process's memory, keys above all, from other processes and out of core files.
    """
    kernel.become_subreaper()
    kernel.be_unreadable()
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def home(data_dir: Path) -> str:
    """Return what the markers of all nodes of this data directory begin with."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16] + ":"


def node_marker(data_dir: Path) -> str:
    """Return a marker for one engine of this process."""
    return f"{home(data_dir)}{os.getpid()}-{kernel.stat(os.getpid())[19]}-{next(_engines)}"


def send(pidfd: int, number: int) -> None:
    """Signal a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def is_child(pidfd: int, *, parent: int) -> bool:
    """Tell whether *pidfd* is of a child of *parent*; one that is gone already is taken for it."""
    pid = kernel.pid_of(pidfd)
    if pid:
        with contextlib.suppress(OSError):
            if int(kernel.stat(pid)[1]) == parent:
                return True
        pid = kernel.pid_of(pidfd)  # it may be buried just now
    return pid is None


def reap(pid: int, pidfd: int) -> int | None:
    """Bury a dead replica that this node has adopted, its group first; None if it is another process's to
    reap.

    A status is an exit code, or minus the signal's number.
    """
    try:
        if os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        kill_group(pid)
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status)


def kill_group(pid: int) -> None:
    """Kill what is left of the group of *pid*, whose number is still taken (by itself, or by its corpse)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def is_corpse(pid: int) -> bool:
    try:
        return kernel.stat(pid)[0] == "Z"
    except OSError:
        return False


def kill_replicas(marker: str, replicas: Collection[str]) -> int:
    """Kill what descends from *replicas* of the engine with *marker*, wherever it went; return how many it was."""
    node = f"{NODE_MARKER}={marker}".encode()
    wanted = {f"{zygote.REPLICA_MARKER}={replica}".encode() for replica in replicas}
    return _kill(lambda environment: node in environment and not wanted.isdisjoint(environment))


def kill_marked(marker: str) -> int:
    """Kill all that carries exactly *marker*."""
    node = f"{NODE_MARKER}={marker}".encode()
    return _kill(lambda environment: node in environment)


def kill_leftovers(data_dir: Path) -> int:
    """Kill what the dead nodes of this data directory left; a node that lives keeps what is its own."""
    prefix = f"{NODE_MARKER}={home(data_dir)}".encode()
    return _kill(
        lambda environment: any(
            entry.startswith(prefix) and not lives(entry.removeprefix(prefix).decode()) for entry in environment
        )
    )


def lives(marker: str) -> bool:
    """Tell whether the process that made *marker*, or what follows its home, lives; what is no marker does not."""
    try:
        pid, start, _ = marker.split("-")[-3:]
        fields = kernel.stat(int(pid))
        return fields[19] == start and fields[0] != "Z"  # in a container, nobody may bury it
    except (OSError, ValueError):
        return False


def _kill(is_meant: Callable[[Environment], bool]) -> int:
    killed = 0
    for _ in range(_ROUNDS):
        found = [pid for pid in kernel.pids() if pid != os.getpid() and is_meant(_environment(pid))]
        if not found:
            break
        killed += sum(_kill_one(pid, is_meant) for pid in found)
    return killed


def _environment(pid: int) -> Environment:
    block = kernel.environment(pid)
    if NODE_MARKER.encode() not in block:
        return frozenset()
    return frozenset(block.split(b"\0"))


def _kill_one(pid: int, is_meant: Callable[[Environment], bool]) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_meant(_environment(pid)):  # the number went to another process meanwhile
            return False
        send(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 1.0)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
        return True
    finally:
        os.close(pidfd)
