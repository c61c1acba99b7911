"""The few Linux calls that Python lacks, and what ``/proc`` says. For both sides: standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_CAPBSET_DROP = 1, 4, 15, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CLEAR_ALL = 36, 38, 47, 4
_CAPABILITIES_V3 = 0x20080522
_MOST_CAPABILITIES = 64
_ARGUMENTS_BEGIN = 45  # of `stat`
_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_PTRACE": 19,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.getenv.argtypes, _libc.getenv.restype = [ctypes.c_char_p], ctypes.c_void_p


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become_subreaper() -> None:
    """Make this process the parent of every descendant whose own parent dies, instead of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(signal: int) -> None:
    """Ask for *signal* when the *thread* that started this process ends; 0 takes it back. Forks do not inherit it."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def gain_no_privileges() -> None:
    """From now on no exec of this process or its descendants gains privileges (set-uid programs)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def be_unreadable() -> None:
    """Keep other processes of this user from this one's memory, and the kernel from writing it into a core file."""
    _prctl(_PR_SET_DUMPABLE, 0)


def hide_in_command_line(secret: str) -> None:
    """Blank *secret* in what ``ps`` shows of this process, wherever it stands there."""
    line, begin = Path("/proc/self/cmdline").read_bytes(), int(stat(os.getpid())[_ARGUMENTS_BEGIN])
    at = line.find(secret.encode()) if secret else -1
    while at >= 0:
        ctypes.memset(begin + at, ord("*"), len(secret.encode()))
        at = line.find(secret.encode(), at + 1)


def bound_no_capabilities() -> None:
    """Give up for good what root may do beyond its own files, also for programs that are executed later."""
    with contextlib.suppress(OSError):  # past the last one, or there is none to give up
        for number in range(_MOST_CAPABILITIES):
            _prctl(_PR_CAPBSET_DROP, number)
    with contextlib.suppress(OSError):
        _prctl(_PR_CAP_AMBIENT, _CLEAR_ALL)


def drop_capabilities() -> None:
    """Give up what this process may do beyond its user's own files."""
    header, none = struct.pack("=Ii", _CAPABILITIES_V3, 0), bytes(24)
    if _libc.capset(header, none) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def capabilities() -> frozenset[str]:
    """Return those of `core.isolation.CAPABILITIES` that this process has."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for name, number in _CAPABILITIES.items() if mask >> number & 1)
    return frozenset()


def are_mapped(first: int, count: int) -> bool:
    """Tell whether *count* users from *first* on exist in this user namespace, with groups of the same numbers."""
    return all(_maps(Path(f"/proc/self/{name}"), first, count) for name in ("uid_map", "gid_map"))


def _maps(table: Path, first: int, count: int) -> bool:
    try:
        ranges = [line.split() for line in table.read_text().splitlines()]
    except OSError:
        return False
    return any(int(begin) <= first and first + count <= int(begin) + int(size) for begin, _, size in ranges)


def be_called(name: str) -> None:
    """Name this process, in at most 15 bytes."""
    encoded = ctypes.create_string_buffer(name.encode()[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(encoded))


class Marker:
    """A variable of this process's *initial* environment whose bytes can be changed in place.

    ``/proc/<pid>/environ`` shows the initial block, which a fork copies and `os.environ` never changes.
    Changing it in place marks every descendant, also one that forks twice, starts a session of its own and
    never calls exec.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._size = len(os.environ[name].encode())
        self._address: int = _libc.getenv(name.encode())

    def write(self, value: str) -> None:
        """Set the variable to *value*, which is not longer than the placeholder was."""
        encoded = value.encode()
        if len(encoded) > self._size:
            raise ValueError(f"{value!r} is longer than {self._size} bytes")
        ctypes.memmove(self._address, encoded.ljust(self._size, b"\0"), self._size)
        os.environ[self._name] = value  # for those who exec


def pids() -> Iterator[int]:
    """Yield every process that can be seen."""
    return (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208  # names are all it needs


def stat(pid: int) -> list[str]:
    """Return ``/proc/<pid>/stat`` from its third field, the state, on: [1] is the parent, [19] the start in
    ticks.

    Raises OSError when the process is gone.
    """
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def environment(pid: int) -> bytes:
    """Return the initial environment of *pid*, as it is in its memory; nothing where it is gone or may not be seen."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def pid_of(pidfd: int) -> int | None:
    """Return whose *pidfd* is, None where it is nobody's any more; 0: it is no pidfd."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    pid = next((int(line.split()[1]) for line in lines if line.startswith("Pid:")), 0)
    return None if pid == -1 else pid


def children() -> Iterator[int]:
    """Yield this process's children, dead ones that were not waited for included."""
    me = str(os.getpid())
    for pid in pids():
        with contextlib.suppress(OSError):
            if stat(pid)[1] == me:
                yield pid


def children_of(pid: int) -> list[int]:
    """Return the processes that *pid* has started; none where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    children: list[int] = []
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as tasks:
        for task in tasks:
            children += map(int, Path(task.path, "children").read_text().split())
    return children


def threads() -> list[str]:
    """Return the names of this process's threads, the main one first."""
    tasks = Path("/proc/self/task")
    return [(task / "comm").read_text().strip() for task in sorted(tasks.iterdir(), key=lambda task: int(task.name))]
