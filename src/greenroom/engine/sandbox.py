"""The room that an agent's code runs in: what a zygote closes before it imports that code, and what each replica closes
again for itself after its fork. Called by `engine.zygote`. The replica's side: standard library and msgspec.

The import is the agent's code, too, and could replace every function here. So whatever keeps an agent from the rest of
the machine is done before it, by the zygote, and inherited; what a replica adds keeps the replicas of one agent apart.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from greenroom.engine import kernel, landlock, namespaces, seccomp

SHARED = ".import"  # the private folder of a zygote, which its replicas have in common
MAX_FILE_BYTES = 16 * 2**30
MAX_PROCESSES = 4096  # of a user of its own, threads included
_OPEN_FILES = 4096
_OOM_SCORE = 500  # the kernel's killer takes a replica before the node, which keeps its own score

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
# Of /etc, what a program needs to resolve names, tell the time, and know whom to trust; not the keys beside it.
_FILES = (
    *("/etc/resolv.conf", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/services"),
    *("/etc/protocols", "/etc/passwd", "/etc/group", "/etc/localtime", "/etc/timezone", "/etc/os-release"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/ssl/certs", "/etc/ssl/openssl.cnf"),
    *("/etc/ssl/cert.pem", "/etc/pki/tls/certs", "/etc/pki/tls/cert.pem", "/etc/pki/ca-trust/extracted"),
    *("/etc/ca-certificates", "/etc/mime.types", "/etc/alternatives", "/etc/fonts"),
    *("/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Room(msgspec.Struct, frozen=True):
    """What the replicas of one revision get; in T0 the tier is all that counts.

    *closed* stays closed wherever it is. *ports* are those of TCP that may be connected to; None: all, and UDP. *home*
    is the folder of the private folders. *user* or *has_namespaces* make it T2.
    """

    tier: str = "T0"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    ports: tuple[int, ...] | None = None
    user: int | None = None
    has_namespaces: bool = False
    home: str = ""

    @property
    def is_closed(self) -> bool:
        return self.tier != "T0"


class Doors:
    """What a room leaves open, found once, before any of the agent's code is there to have a say in it."""

    def __init__(self, room: Room, *, own: Sequence[str]) -> None:
        """*own* is opened although it may be in what is closed: the snapshot, and this package."""
        self._room, self._own = room, own
        if not room.is_closed:
            return
        self._read = [*own, *_open(_of_interpreter(), room.closed), *_open((*_SYSTEM, *room.read), room.closed)]
        self._files = [*_FILES, *_behind("/etc/resolv.conf")]
        self._devices = [path for path in room.write if path.startswith("/dev/")]
        self._write = [path for path in room.write if not path.startswith("/dev/")]
        found = (*self._read, *self._files, *_DEVICES, *room.write)
        self._roughly = list(dict.fromkeys(_widened(os.path.realpath(path), room.home) for path in found))

    def enter_namespaces(self) -> None:
        """Go on in namespaces where the room has them; see `namespaces.enter`."""
        room = self._room
        if room.has_namespaces:
            namespaces.enter(cover=room.closed, keep=self._own, write=(*room.write, room.home))

    def close(self) -> None:
        """Close all but those found, and the folder of the private folders."""
        room = self._room
        with landlock.Layer(closes_connect=room.ports is not None, closes_bind=True) as layer:
            layer.open(self._read, landlock.READ)
            layer.open(self._files, landlock.LOOK)
            layer.open(_DEVICES, landlock.USE)
            layer.open(self._devices, landlock.WRITE_DEVICE)
            layer.open((*self._write, room.home), landlock.WRITE)
            if room.ports is None:
                layer.bind(0)
            else:
                layer.connect(room.ports)
            layer.restrict()

    def close_again(self, *private: str) -> None:
        """Close all private folders but *private*, and this process to its siblings.

        What is closed already stays so: this layer is rough, with few rules, for it is made at every fork.
        """
        with landlock.Layer(closes_connect=False, closes_bind=False) as layer:
            layer.open((*self._roughly, *private), landlock.WRITE_DEVICE)
            layer.restrict()


def close(room: Room, doors: Doors) -> None:
    """Close the room around this process, a zygote, and all that it will ever start."""
    doors.enter_namespaces()
    os.umask(0o022)  # the node's own is for its own files
    _limit("RLIMIT_CORE", 0)
    _be_killed_first()
    if not room.is_closed:
        return
    _limit("RLIMIT_NOFILE", _OPEN_FILES)
    _limit("RLIMIT_FSIZE", MAX_FILE_BYTES)
    if room.user is not None or room.has_namespaces:  # where they count for this agent alone
        _limit("RLIMIT_NPROC", MAX_PROCESSES)
    kernel.gain_no_privileges()
    doors.close()
    kernel.bound_no_capabilities()
    if room.user is not None:
        os.setgroups([])
        os.setresgid(room.user, room.user, room.user)
        os.setresuid(room.user, room.user, room.user)
    kernel.drop_capabilities()
    seccomp.restrict("any" if room.ports is None else "tcp" if room.ports else "none")
    live_in(room, SHARED)


def enter(room: Room, doors: Doors, *, replica: str, memory_mb: int | None) -> None:
    """Confine this process, a replica; what cannot be undone by it is done last."""
    os.setsid()
    _reset_signals()
    _limit("RLIMIT_NOFILE", _OPEN_FILES)
    if memory_mb is not None:
        _limit("RLIMIT_DATA", data_limit_bytes(memory_mb))
    kernel.gain_no_privileges()
    if room.is_closed:
        own = live_in(room, replica)
        doors.close_again(own, str(Path(room.home, SHARED)))


def live_in(room: Room, name: str) -> str:
    """Have a private folder for temporary files and whatever libraries write to a home, and return it."""
    own = str(Path(room.home, name))
    Path(own).mkdir(mode=0o700, exist_ok=True)
    os.environ["TMPDIR"] = os.environ["HOME"] = own
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None  # what it found for the zygote
    return own


def data_limit_bytes(memory_mb: int) -> int:
    """Return the ceiling of private writable *address space* for a limit of *memory_mb* of resident memory.

    It must be well above: a thread's stack counts 8 MB and an allocator's arena 64 MB before a byte of it is
    touched. It is there for a burst that would outrun the poll of the resident size: that one gets a
    MemoryError.
    """
    return (2 * memory_mb + 1024) * 1024 * 1024


def _of_interpreter() -> Iterator[str]:
    """Yield where this interpreter has its modules from; nothing of the agent's is on its path yet."""
    yield from {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    yield str(Path(os.path.realpath(sys.executable)).parent)
    yield from (path for path in sys.path if path)


def _open(paths: Iterable[str], closed: Sequence[str]) -> Iterator[str]:
    """Yield *paths*; of those that hold what is closed, everything in them but that."""
    shut = [os.path.realpath(path) for path in closed]
    for path in map(os.path.realpath, paths):
        yield from _around(path, shut)


def _around(path: str, closed: Sequence[str]) -> Iterator[str]:
    if any(_is_in(path, each) for each in closed):
        return
    if not any(_is_in(each, path) for each in closed):
        yield path
        return
    try:
        with os.scandir(path) as entries:
            inside = [entry.path for entry in entries if not entry.is_symlink()]
    except OSError:
        return
    for each in inside:
        yield from _around(each, closed)


def _widened(path: str, home: str) -> str:
    """Return the folder right below the root that *path* is in, unless *home* is in it as well."""
    top = "/" + path.split("/", 2)[1]
    return path if _is_in(home, top) else top


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _behind(link: str) -> Iterator[str]:
    """Yield the folder of the file that *link* leads to: whoever writes it replaces the file."""
    target = os.path.realpath(link)
    if Path(link).is_symlink() and target.startswith("/run/"):
        yield str(Path(target).parent)


def _be_killed_first() -> None:
    score = Path("/proc/self/oom_score_adj")
    score.write_text(str(max(int(score.read_text()), _OOM_SCORE)))


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's; it stops its replicas in order
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _limit(name: str, soft: int) -> None:
    kind = getattr(resource, name)
    _, hard = resource.getrlimit(kind)
    value = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(kind, (value, value))
