"""Landlock, by its three system calls: a process gives up what it does not name, and so do all that it starts.

Layers add up: what one has closed no later one opens. The replica's side: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every machine
_VERSION = 1
_RULE_PATH, _RULE_PORT = 1, 2

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_BLOCK, _TRUNCATE, _IOCTL_DEV = 1 << 6, 1 << 11, 1 << 14, 1 << 15
_ALL = (1 << 16) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
READ = _EXECUTE | _READ_FILE | _READ_DIR
LOOK = _READ_FILE | _READ_DIR
USE = _READ_FILE | _WRITE_FILE  # of a device
WRITE = _ALL & ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)  # and everything that READ has
WRITE_DEVICE = WRITE | _IOCTL_DEV

_BIND, _CONNECT = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def abi() -> int:
    """Return the version of Landlock that the kernel has; 0: none, or it is switched off."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))))


class Layer:
    """One layer in the making; a context manager. Of the file system it closes everything, of TCP what it is told."""

    def __init__(self, *, closes_connect: bool, closes_bind: bool) -> None:
        net = (_CONNECT if closes_connect else 0) | (_BIND if closes_bind else 0)
        attributes = struct.pack("=QQQ", _ALL, net, _ABSTRACT_SOCKETS | _SIGNALS)
        self._fd = _checked(_libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0)))

    def __enter__(self) -> Layer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def open(self, paths: Iterable[str], access: int) -> None:
        """Let *paths* and all below them be used for *access*; those that are not there are left out."""
        for path in paths:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                allowed = access if stat.S_ISDIR(os.fstat(fd).st_mode) else access & _OF_FILES
                self._add(_RULE_PATH, struct.pack("=Qi", allowed, fd))
            finally:
                os.close(fd)

    def connect(self, ports: Sequence[int]) -> None:
        for port in ports:
            self._add(_RULE_PORT, struct.pack("=QQ", _CONNECT, port))

    def bind(self, port: int) -> None:
        """Let *port* be bound to; 0: one that the kernel chooses."""
        self._add(_RULE_PORT, struct.pack("=QQ", _BIND, port))

    def restrict(self) -> None:
        """Close this process; it must have given up new privileges before."""
        _checked(_libc.syscall(_RESTRICT, ctypes.c_int(self._fd), ctypes.c_uint(0)))

    def _add(self, kind: int, rule: bytes) -> None:
        _checked(_libc.syscall(_ADD_RULE, ctypes.c_int(self._fd), ctypes.c_int(kind), rule, ctypes.c_uint(0)))


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return int(answer)
