"""Failures: why a replica died, as one of a few words. Pure.

Engines say it in `engine.contract.Exit.reason`, with words for people beside it; what counts or decides goes by these.
"""

from __future__ import annotations

import enum


class Failure(enum.StrEnum):
    CRASHED = "crashed"  # its process ended by itself
    KILLED = "killed"  # from outside, or by the node to end a task that did not stop
    OOM = "oom"  # over its own limit, or by the kernel for memory
    HUNG = "hung"  # it made no progress: see `core.health`
    REFUSED = "refused"  # its agent cannot be built
    PROTOCOL = "protocol"  # it sent what is no frame
    LATE = "late"  # it was not ready in time
    EVICTED = "evicted"  # all replicas together used too much memory, and it had the most: nobody's fault


MAX_WORDS = 2_000  # characters


def told(text: str) -> str:
    """Return *text* as every store takes it, and no more of it than people read; replicas and kernels say anything."""
    return text.encode(errors="replace").decode().replace("\0", "?")[:MAX_WORDS]


_FAILURES = {failure.value: failure for failure in Failure}


def of(reason: str) -> Failure | None:
    """Return the failure that an exit for *reason* is; None for ``stopped``, which is none.

    >>> of("hung"), of("stopped"), of("a reason that nobody has thought of")
    (<Failure.HUNG: 'hung'>, None, <Failure.KILLED: 'killed'>)
    """
    return None if reason == "stopped" else _FAILURES.get(reason, Failure.KILLED)
