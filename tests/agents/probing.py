# ruff: noqa: PTH101, PTH108, PTH110, PTH115, PTH118, PTH120, PTH123, PTH208, PTH211
"""A hostile agent: tries all that its room should keep it from, and says what it got away with."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import socket
import struct
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {"io_uring_setup": 425, "userfaultfd": 323, "bpf": 321, "keyctl": 250, "perf": 298, "handle": 304},
    "aarch64": {"io_uring_setup": 425, "userfaultfd": 282, "bpf": 280, "keyctl": 219, "perf": 241, "handle": 265},
}.get(platform.machine(), {})
REFUSED = {errno.EACCES, errno.EPERM}
HIDDEN = {errno.ENOENT, errno.ESRCH, errno.EROFS}  # what namespaces answer with
FAST_OPEN = 0x20000000
SAFE_READV = 1 << 12


def call(number: int, *arguments: Any) -> None:
    """Raise where the kernel says no; that it does not like the arguments is no no."""
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(number), *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def checked(answer: int) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def read(path: str) -> None:
    with open(path, "rb") as file:
        file.read(1)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))


def make(path: str) -> None:
    with open(path, "xb"):
        pass
    os.unlink(path)


def connect(family: int, address: Any, *, protocol: int = 0) -> None:
    with socket.socket(family, socket.SOCK_STREAM, protocol) as stream:
        stream.setblocking(False)
        stream.connect(address)


def fast_open(port: int) -> None:
    with socket.socket() as stream:
        stream.settimeout(2)
        stream.sendto(b"x", FAST_OPEN, ("127.0.0.1", port))


def bind(port: int) -> None:
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.bind(("127.0.0.1", port))


def unix_datagram(path: str) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        one.sendto(b"x", path)


def in_child(work: Callable[[], None]) -> None:
    """Do what changes the process in one of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise OSError(code, "in the child")


def trace(pid: int) -> None:
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def seize() -> None:
        if libc.ptrace(0x4206, pid, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    in_child(seize)


def vm_read(pid: int, address: int) -> None:
    buffer = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(buffer), 8)
    remote = struct.pack("PN", address, 8)
    if libc.process_vm_readv(pid, local, 1, remote, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")


def join(kind: str) -> None:
    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    try:
        in_child(lambda: checked(libc.setns(fd, 0)))
    finally:
        os.close(fd)


def through_a_link(path: str) -> None:
    link = os.path.join(tempfile.gettempdir(), f"link-{os.getpid()}")
    with contextlib.suppress(FileExistsError):
        os.symlink(path, link)
    try:
        read(link)
    finally:
        os.unlink(link)


def foreign_files() -> None:
    """Whether an open file of somebody else was inherited: there are standard streams, the channel, and its own."""
    kinds = ("socket:", "pipe:", "anon_inode:", "/dev/null", "/proc/")
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if not os.readlink(f"/proc/self/fd/{fd}").startswith(kinds):
                return
    raise PermissionError(errno.EPERM, "none")


def set_uid() -> None:
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        raise PermissionError(errno.EPERM, "no new privileges")


def unbounded(kind: int) -> None:
    if resource.getrlimit(kind)[0] != resource.RLIM_INFINITY and (kind != resource.RLIMIT_NPROC or os.getuid()):
        raise PermissionError(errno.EPERM, "limited")


def limit_of(pid: int) -> None:
    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))


def probes(at: dict[str, Any]) -> dict[str, Callable[[], object]]:
    node, sibling, port = at["node"], at["sibling_pid"], at["port"]
    return {
        "read the node's secrets": lambda: read(at["secrets"]),
        "read them through a symbolic link": lambda: through_a_link(at["secrets"]),
        "read the owner's key": lambda: read(at["key"]),
        "read the database": lambda: read(at["database"]),
        "read its write-ahead log": lambda: read(at["wal"]),
        "write to the database": lambda: write(at["database"]),
        "change the mode of the node's secrets": lambda: os.chmod(at["secrets"], 0o600),
        "list the data directory": lambda: os.listdir(os.path.dirname(at["secrets"])),
        "read the private files of another replica": lambda: os.listdir(at["sibling_home"]),
        "read the private files of another agent": lambda: os.listdir(at["other_home"]),
        "read the home of the node's user": lambda: os.listdir(at["home"]),
        "read /etc/shadow": lambda: read("/etc/shadow"),
        "write to /tmp": lambda: make(f"/tmp/greenroom-probe-{os.getpid()}"),
        "write to its own code": lambda: make(os.path.join(at["snapshot"], "added.py")),
        "leave a .pth file for every interpreter": lambda: make(
            os.path.join(sysconfig.get_path("purelib"), f"probe-{os.getpid()}.pth")
        ),
        "write to Greenroom's own code": lambda: write(at["package"]),
        "see the node's command line": lambda: read(f"/proc/{node}/cmdline"),
        "read the node's environment": lambda: read(f"/proc/{node}/environ"),
        "read the node's memory": lambda: (
            read(f"/proc/{node}/mem")
            if at["address"] is None
            else os.pread(os.open(f"/proc/{node}/mem", os.O_RDONLY), 8, at["address"])
        ),
        "see where the node's memory is": lambda: read(f"/proc/{node}/maps"),
        "see the node's open files": lambda: os.readlink(f"/proc/{node}/fd/0"),
        "read another replica's memory": lambda: read(f"/proc/{sibling}/maps"),
        "trace the node": lambda: trace(node),
        "trace another replica": lambda: trace(sibling),
        "read the node's memory by process_vm_readv": lambda: vm_read(node, at["address"]),
        "use an open file of the node's": foreign_files,
        "signal the node": lambda: os.kill(node, 0),
        "signal its zygote": lambda: os.kill(os.getppid(), 0),
        "signal another replica": lambda: os.kill(sibling, 0),
        "change the node's limits": lambda: limit_of(node),
        "change the node's priority": lambda: os.setpriority(os.PRIO_PROCESS, node, 0),
        "connect to the node's API": lambda: connect(socket.AF_INET, ("127.0.0.1", port)),
        "connect to another port of this machine": lambda: connect(socket.AF_INET, ("127.0.0.1", at["other_port"])),
        "connect past Landlock by MPTCP": lambda: connect(socket.AF_INET, ("127.0.0.1", port), protocol=262),
        "connect past Landlock by TCP Fast Open": lambda: fast_open(port),
        "connect to the cloud's metadata": lambda: connect(socket.AF_INET, ("169.254.169.254", 80)),
        "connect to a destination of its egress": lambda: connect(socket.AF_INET, ("127.0.0.1", at["egress_port"])),
        "take a port of the machine": lambda: bind(at["free_port"]),
        "connect to a Unix socket": lambda: connect(socket.AF_UNIX, at["unix"]),
        "connect to an abstract Unix socket": lambda: connect(socket.AF_UNIX, "\0" + at["abstract"]),
        "send to a Unix socket from a pair": lambda: unix_datagram(at["unix_datagram"]),
        "send UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
        "send raw packets": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close(),
        "speak netlink": lambda: socket.socket(16, socket.SOCK_RAW, 0).close(),
        "mount": lambda: in_child(lambda: checked(libc.mount(b"none", b"/nowhere", b"tmpfs", 0, None))),
        "enter a new namespace": lambda: in_child(lambda: checked(libc.unshare(0x20000000))),
        "join a namespace": lambda: join("net"),
        "change its root": lambda: in_child(lambda: os.chroot("/")),
        "read the machine's memory or the kernel's log": lambda: read(
            "/dev/mem" if os.path.exists("/dev/mem") else "/dev/kmsg"
        ),
        "use io_uring": lambda: call(NUMBERS["io_uring_setup"], 1, ctypes.create_string_buffer(120)),
        "use userfaultfd": lambda: call(NUMBERS["userfaultfd"], 0),
        "use bpf": lambda: call(NUMBERS["bpf"], 0, ctypes.create_string_buffer(120), 120),
        "use the kernel's key rings": lambda: call(NUMBERS["keyctl"], 0, -3, 0),
        "use perf events": lambda: call(NUMBERS["perf"], None, 0, -1, -1, 0),
        "open files by handle": lambda: call(NUMBERS["handle"], -100, ctypes.create_string_buffer(8), 0),
        "share memory with other processes (System V)": lambda: checked(min(0, libc.shmget(0, 4096, 0o1600))),
        "gain privileges by a set-uid program": set_uid,
        "leave a core file": lambda: unbounded(resource.RLIMIT_CORE),
        "write files without end": lambda: unbounded(resource.RLIMIT_FSIZE),
        "start processes without end": lambda: unbounded(resource.RLIMIT_NPROC),
    }


def run(input: dict[str, Any]) -> dict[str, str]:
    """Answer with "open" or "closed" for each probe."""
    found = {}
    closed = REFUSED | HIDDEN if input["hides"] else REFUSED
    for name, probe in probes(input).items():
        try:
            probe()
            found[name] = "open"
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None)
            found[name] = "closed" if number in closed else "open"
            if number not in closed | {errno.EINPROGRESS}:
                found[name] = f"open ({error!r})"
    return found


def where(input: Any) -> dict[str, Any]:  # noqa: ARG001
    return {"pid": os.getpid(), "home": tempfile.gettempdir()}
