"""The filter of system calls of an agent's room, as a program of classic BPF.

It refuses what Landlock does not see: sockets that are not TCP, other processes of the same user, and the wide doors of
the kernel. It reads registers, never memory, so that what it has judged cannot change meanwhile. What it refuses is
answered with an error; a call of another architecture or of x32, whose numbers mean something else, ends the process.

The replica's side: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

Network = Literal["none", "tcp", "any"]
Program = list[tuple[int, int, int, int]]  # code, jump if true, jump if false, operand

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_X32 = 0x40000000

_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_STREAM, _DATAGRAM, _SEQPACKET = 1, 2, 5
_TYPE_MASK = 0xF  # without SOCK_NONBLOCK and SOCK_CLOEXEC
_TCP, _UDP = 6, 17
_FAST_OPEN = 0x20000000  # a connection without `connect`, which Landlock would not see
_NEW_NAMESPACES = 0x7E020000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers from 424 on are the same everywhere.
_COMMON = {
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "clone3": 435, "pidfd_getfd": 438,
    "process_madvise": 440, "mount_setattr": 442, "process_mrelease": 448, "open_tree_attr": 467,
}  # fmt: skip
_X86_64 = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "migrate_pages": 256,
    "move_pages": 279, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
    "delete_module": 176, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "request_key": 249,
    "keyctl": 250, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "open_by_handle_at": 304, "fanotify_init": 300, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163,
    "quotactl": 179, "quotactl_fd": 443, "settimeofday": 164, "clock_settime": 227, "sethostname": 170,
    "setdomainname": 171, "syslog": 103, "iopl": 172, "ioperm": 173, "modify_ldt": 154, "shmget": 29, "shmat": 30,
    "semget": 64, "msgget": 68, "mq_open": 240, "socket": 41, "socketpair": 53, "listen": 50, "sendto": 44,
    "sendmsg": 46, "sendmmsg": 307, "clone": 56, "ioctl": 16, "prlimit64": 302, "setpriority": 141,
    "ioprio_set": 251, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314, "vhangup": 153,
}  # fmt: skip
_AARCH64 = {
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "migrate_pages": 238,
    "move_pages": 239, "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273,
    "delete_module": 106, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "request_key": 218,
    "keyctl": 219, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "unshare": 97, "setns": 268,
    "open_by_handle_at": 265, "fanotify_init": 262, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89,
    "quotactl": 60, "quotactl_fd": 443, "settimeofday": 170, "clock_settime": 112, "sethostname": 161,
    "setdomainname": 162, "syslog": 116, "shmget": 194, "shmat": 196, "semget": 190, "msgget": 186, "mq_open": 180,
    "socket": 198, "socketpair": 199, "listen": 201, "sendto": 206, "sendmsg": 211, "sendmmsg": 269, "clone": 220,
    "ioctl": 29, "prlimit64": 261, "setpriority": 140, "ioprio_set": 30, "sched_setparam": 118,
    "sched_setscheduler": 119, "sched_setattr": 274, "vhangup": 58,
}  # fmt: skip
_NUMBERS: Mapping[str, Mapping[str, int]] = {"x86_64": _X86_64 | _COMMON, "aarch64": _AARCH64 | _COMMON}
_JUDGED = frozenset(
    {"socket", "socketpair", "listen", "sendto", "sendmsg", "sendmmsg", "clone", "clone3", "ioctl", "prlimit64"}
    | {"setpriority", "ioprio_set", "sched_setparam", "sched_setscheduler", "sched_setattr"}
)  # by their arguments; all others of the tables are refused

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_PR_GET_SECCOMP = 21
_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]


def is_there() -> bool:
    """Tell whether the kernel knows filters; asks it for one at an impossible address."""
    if _libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) < 0:
        return False
    _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def program(network: Network, machine: str) -> Program:
    """Return the filter for *network*: no sockets, TCP to where Landlock lets it, or TCP and UDP."""
    numbers = _NUMBERS[machine]
    steps: Program = [
        *_load(_ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _KILL),
        *_load(_NUMBER_AT),
    ]
    if machine == "x86_64":
        steps += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for name, number in sorted(numbers.items()):
        if name not in _JUDGED:
            steps += _when(number, _refuse(errno.EPERM))
    for name, verdict in _verdicts(network):
        steps += _when(numbers[name], verdict)
    return [*steps, *_allow()]


def _verdicts(network: Network) -> Iterator[tuple[str, Program]]:
    yield "socket", _socket(network)
    # A pair of datagram sockets could still send to any path.
    stream = [*_argument(1), (_AND, 0, 0, _TYPE_MASK), *_unless_in((_STREAM, _SEQPACKET), errno.EACCES)]
    yield "socketpair", [*_argument(0), *_unless_in((_AF_UNIX,), errno.EACCES), *stream, *_allow()]
    if network != "any":
        yield "listen", _refuse(errno.EACCES)
        for name, place in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
            yield name, [*_argument(place), (_ANY_BIT, 0, 1, _FAST_OPEN), *_refuse(errno.EPERM), *_allow()]
    yield "clone", [*_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), *_refuse(errno.EPERM), *_allow()]
    yield "clone3", _refuse(errno.ENOSYS)  # its flags are in memory; who is told so takes `clone`
    unwanted = [(_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX)]
    yield "ioctl", [*_argument(1), *unwanted, *_refuse(errno.EPERM), *_allow()]
    # Limits and priorities of other processes are a matter of the user alone: 0 is the caller itself.
    yield "prlimit64", _own_or_read(0, 2)
    for name in ("sched_setparam", "sched_setscheduler", "sched_setattr"):
        yield name, [*_argument(0), *_unless_in((0,), errno.EPERM), *_allow()]
    for name in ("setpriority", "ioprio_set"):
        itself = (0,) if name == "setpriority" else (1,)
        yield (
            name,
            [
                *_argument(0),
                *_unless_in(itself, errno.EPERM),
                *_argument(1),
                *_unless_in((0,), errno.EPERM),
                *_allow(),
            ],
        )


def _socket(network: Network) -> Program:
    if network == "none":
        return _refuse(errno.EACCES)
    kinds = (_STREAM,) if network == "tcp" else (_STREAM, _DATAGRAM)
    protocols = (0, _TCP) if network == "tcp" else (0, _TCP, _UDP)  # neither MPTCP, which Landlock lets pass, nor ICMP
    return [
        *_argument(0),
        *_unless_in((_AF_INET, _AF_INET6), errno.EACCES),
        *_argument(1),
        (_AND, 0, 0, _TYPE_MASK),
        *_unless_in(kinds, errno.EACCES),
        *_argument(2),
        *_unless_in(protocols, errno.EACCES),
        *_allow(),
    ]


def _own_or_read(process: int, value: int) -> Program:
    """Refuse where the argument *process* is not 0 and the pointer *value* is none."""
    return [
        *_argument(process),
        (_EQUAL, 0, 1, 0),
        *_allow(),
        *_argument(value),
        (_EQUAL, 0, 3, 0),
        *_load(_ARGUMENTS_AT + 8 * value + 4),
        (_EQUAL, 0, 1, 0),
        *_allow(),
        *_refuse(errno.EPERM),
    ]


def _when(number: int, verdict: Program) -> Program:
    return [(_EQUAL, 0, len(verdict), number), *verdict]


def _unless_in(values: Sequence[int], error: int) -> Program:
    tests = [(_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [*tests, *_refuse(error)]


def _load(offset: int) -> Program:
    return [(_LOAD, 0, 0, offset)]


def _argument(place: int) -> Program:
    """Load the lower half of an argument: all of what is an ``int`` for the kernel."""
    return _load(_ARGUMENTS_AT + 8 * place)


def _allow() -> Program:
    return [(_RETURN, 0, 0, _ALLOW)]


def _refuse(error: int) -> Program:
    return [(_RETURN, 0, 0, _ERROR | error)]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def restrict(network: Network) -> None:
    """Filter this process's system calls; it must have given up new privileges before."""
    steps = program(network, platform.machine())
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    filter = _Filter(len(steps), code)
    if _libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
