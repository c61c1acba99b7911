"""Namespaces of an agent's own (users, mounts, processes, IPC, host name): what a node that is not root closes beyond
Landlock, which does not cover modes and times of files nor what ``/proc`` tells of others. Called by `engine.zygote`
before any of the agent's code is there.

Everything is mounted read-only but what may be written, so that modes and times are fixed, too; folders of the node's
own are covered by empty ones. The user inside is the one outside: files are who they are.

The replica's side: standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from greenroom.engine import kernel

TRIED = "in"  # what `try_out` says where it has moved in

_NEW_MOUNTS, _NEW_NAMES, _NEW_IPC, _NEW_USERS, _NEW_PIDS = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000
_NOSUID, _NODEV, _NOEXEC, _RECURSIVE, _PRIVATE = 2, 4, 8, 0x4000, 1 << 18
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # the same on every machine
_HERE, _EMPTY_PATH, _WHOLE_TREE, _CLONE, _FROM_EMPTY_PATH = -100, 0x1000, 0x8000, 1, 4
_READ_ONLY = 1
_BY_SIGNAL = 128
_COVER = b"size=1m,mode=0555"  # holds names of folders to mount on, never a file's content

_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


def enter(*, cover: Sequence[str], keep: Sequence[str], write: Sequence[str]) -> None:
    """Go on in new namespaces, with all capabilities there; this process stays behind as their keeper.

    Between the two is process 1 inside, init, to which the kernel lets nobody inside do anything. Init ends with the
    keeper, whatever agents do, and the kernel then ends all that is inside; both end as the one that goes on does.

    Folders in *cover* become empty, but for what of *keep* and *write* is in them; what is not in *write* is read-only.
    Raises OSError in one of the three.
    """
    keeper = os.pidfd_open(os.getpid())
    files = [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 - names are all it needs
    _unshare()
    init = os.fork()
    if init:
        _keep(init, files)
    kernel.die_with_parent(signal.SIGKILL)
    if select.select([keeper], [], [], 0)[0]:  # the number of a parent that is outside is 0, dead or alive
        os._exit(0)
    os.chdir("/")  # the folder it came from would lead below the covers
    _furnish(cover, keep, write)
    inside = os.fork()
    if inside:
        _be_init(inside, files)
    os.close(keeper)
    os.setsid()


def _unshare() -> None:
    user, group = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_NEW_USERS | _NEW_MOUNTS | _NEW_PIDS | _NEW_IPC | _NEW_NAMES), "unshare")
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise OSError(error.errno, f"uid_map: {error.strerror}") from None


def _keep(init: int, files: Sequence[int]) -> NoReturn:
    """Wait for init, and end as it says."""
    _let_go(files, "keeper")
    code = os.waitstatus_to_exitcode(os.waitpid(init, 0)[1])
    number = -code if code < 0 else code - _BY_SIGNAL
    if number > 0:
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(code)


def _be_init(inside: int, files: Sequence[int]) -> NoReturn:
    """Bury orphans until *inside* is dead, and say how it ended."""
    _let_go(files, "init")
    while True:
        pid, status = os.wait()
        if pid == inside:
            code = os.waitstatus_to_exitcode(status)
            os._exit(_BY_SIGNAL - code if code < 0 else code)  # no signal from inside can end init


def _let_go(files: Sequence[int], name: str) -> None:
    """Wait with nothing in hand."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for fd in files:
        with contextlib.suppress(OSError):  # the listing's own
            os.close(fd)
    kernel.gain_no_privileges()
    kernel.bound_no_capabilities()
    kernel.drop_capabilities()
    kernel.be_called(name)


def _furnish(cover: Sequence[str], keep: Sequence[str], write: Sequence[str]) -> None:
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)  # what the machine mounts later would be writable here
    _set(_HERE, b"/", _WHOLE_TREE, read_only=True)
    kept = {path: _clone(path) for path in dict.fromkeys(map(os.path.realpath, (*keep, *write))) if Path(path).exists()}
    for path in map(os.path.realpath, write):
        if path in kept:
            _let_write(kept[path])
    covered = [path for path in dict.fromkeys(map(os.path.realpath, cover)) if Path(path).is_dir()]
    covered = [path for path in covered if not any(_is_in(path, other) for other in covered if other != path)]
    for path in covered:
        _mount(b"cover", path, b"tmpfs", _NOSUID | _NODEV | _NOEXEC, _COVER)
    for path in sorted(kept):  # outer ones first
        _put(kept[path], path)
    for path in covered:
        _set(_HERE, os.fsencode(path), 0, read_only=True)
    _mount(b"proc", "/proc", b"proc", _NOSUID | _NODEV | _NOEXEC)


def _clone(path: str) -> int:
    """Return an open copy of what is mounted at and below *path*, that no cover hides."""
    flags = ctypes.c_uint(_CLONE | _WHOLE_TREE | os.O_CLOEXEC)
    return _checked(_libc.syscall(_OPEN_TREE, ctypes.c_int(_HERE), os.fsencode(path), flags), f"open_tree {path}")


def _let_write(tree: int) -> None:
    """Make a copy writable again, as far as it was so outside."""
    for whole in (_WHOLE_TREE, 0):
        try:
            _set(tree, b"", _EMPTY_PATH | whole, read_only=False)
        except PermissionError:  # the machine itself has mounted it, or something in it, read-only
            continue
        return


def _put(tree: int, path: str) -> None:
    if not Path(path).exists():  # in a cover, where only folders are kept
        Path(path).mkdir(parents=True)
    arguments = (ctypes.c_int(tree), b"", ctypes.c_int(_HERE), os.fsencode(path), ctypes.c_uint(_FROM_EMPTY_PATH))
    _checked(_libc.syscall(_MOVE_MOUNT, *arguments), f"move_mount {path}")
    os.close(tree)


def _set(folder: int, path: bytes, flags: int, *, read_only: bool) -> None:
    attributes = _Attributes(_READ_ONLY, 0) if read_only else _Attributes(0, _READ_ONLY)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    arguments = (ctypes.c_int(folder), path, ctypes.c_uint(flags), ctypes.byref(attributes), size)
    _checked(_libc.syscall(_MOUNT_SETATTR, *arguments), "mount_setattr")


def _mount(source: bytes | None, path: str, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _checked(_libc.mount(source, os.fsencode(path), kind, ctypes.c_ulong(flags), options), f"mount {path}")


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _checked(answer: int, call: str) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return int(answer)


def try_out(cover: str) -> NoReturn:
    """Enter, say so on standard output, and wait for the end of standard input; or say what went wrong."""
    kernel.die_with_parent(signal.SIGKILL)
    try:
        enter(cover=[cover], keep=[], write=[])
    except OSError as error:
        sys.exit(error.strerror)
    os.write(1, TRIED.encode())
    os.read(0, 1)
    os._exit(0)
