"""What a fresh child does to itself before an agent's code runs in it. Called by `engine.zygote` after the
fork.

The tier is T0 with limits: own session and group, no core files, no new privileges, a memory ceiling. The
replica's side: standard library only.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

from greenroom.engine import kernel

_OPEN_FILES = 4096
_OOM_SCORE = 500  # the kernel's killer takes a replica before the node, which keeps its own score


def enter(*, memory_mb: int | None) -> None:
    """Confine this process; what cannot be undone by it is done last."""
    os.setsid()
    _reset_signals()
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_NOFILE", _OPEN_FILES)
    if memory_mb is not None:
        _limit("RLIMIT_DATA", data_limit_bytes(memory_mb))
    score = Path("/proc/self/oom_score_adj")
    score.write_text(str(max(int(score.read_text()), _OOM_SCORE)))
    kernel.gain_no_privileges()


def data_limit_bytes(memory_mb: int) -> int:
    """Return the ceiling of private writable *address space* for a limit of *memory_mb* of resident memory.

    It must be well above: a thread's stack counts 8 MB and an allocator's arena 64 MB before a byte of it is
    touched. It is there for a burst that would outrun the poll of the resident size: that one gets a
    MemoryError.
    """
    return (2 * memory_mb + 1024) * 1024 * 1024


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
