"""The engine port: what runs replicas. Six verbs: start, stop, observe, invoke, keep_warm, close.

`control.host` starts and stops, `control.dispatcher` invokes; both hear of what happened as a `Listener`. An
engine knows neither store nor loops. `greenroom.testing.engine_contract.EngineContract` is the behaviour that
every engine must show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from greenroom.engine import failures, protocol, said


class Revision(msgspec.Struct, frozen=True):
    """What an engine needs to run an agent's revision; content-addressed, so equal digests are equal code."""

    agent: str
    number: int
    snapshot: Path  # the folder of code; replicas have it as working directory and first on sys.path
    factory: str  # "module:attribute", or "file.py:attribute" for code of a script that was running
    arguments: dict[str, Any] = {}
    env: tuple[str, ...] = ()  # the only variables of the node that the replica sees
    secrets: Mapping[str, str] = {}  # variable -> "file:PATH" or "env:NAME"
    read_paths: tuple[Path, ...] = ()  # absolute; beside what every replica may read
    write_paths: tuple[Path, ...] = ()
    egress: tuple[str, ...] = ("any",)  # see `core.isolation.egress`
    concurrency: int = 1
    sessions: bool = False
    memory_mb: int | None = None
    python: str | None = None  # an interpreter of the agent's own
    retry_on: tuple[str, ...] = ()  # exception class names that the agent declares retryable
    interpreter: int = 0  # another number: a fresh interpreter, which imports the code anew


class Exit(msgspec.Struct, frozen=True):
    """How a replica ended. *reason*: stopped, or one of `core.failures`; *detail* is for people.

    A replica may have written the detail: what is kept of it is bounded, and of a kind that every store takes.
    """

    reason: str
    detail: str = ""
    exit_code: int | None = None
    signal: int | None = None
    is_certain: bool = True  # else *reason* is the likeliest one, and somebody may have ended it

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "detail", failures.bounded(self.detail, failures.MAX_MESSAGE_BYTES))

    @property
    def is_its_own(self) -> bool:
        """Whether it certainly crashed or broke its bounds; else somebody may have ended it."""
        return self.is_certain and self.reason in _ITS_OWN


_ITS_OWN = frozenset({"crashed", "oom", "hung", "protocol"})


class Observation(msgspec.Struct, frozen=True):
    """What the engine sees of a replica right now."""

    replica: str
    pid: int | None
    ready: bool
    rss_mb: float
    cpu_s: float  # of the whole process so far


class Held(msgspec.Struct, frozen=True):
    """What a replica and all that it has started hold.

    *memory_mb* is what its limit is compared with: pages that it shares with its zygote count in full. Of *share_mb*
    they count in part, where that was read.
    """

    memory_mb: float
    share_mb: float
    cpu_s: float  # so far


class Usage(msgspec.Struct, frozen=True):
    """What all replicas hold together, with the interpreters that they are forked from.

    *memory_mb* is exact above what was enough to know, and may be too much below. *cpu_s* is by the process at the root
    of each tree: what ends is counted there.
    """

    replicas: Mapping[str, Held]
    memory_mb: float
    cpu_s: Mapping[int, float]


class Meter(Protocol):
    async def measure(self, *, enough_mb: float, each_mb: Mapping[str, float]) -> Usage:
        """Look at all processes, off the event loop.

        Up to *enough_mb* together, and up to *each_mb* of a replica, nobody needs to know exactly.
        """


class Listener(Protocol):
    """Who wants to know. Called on the event loop; must not block or raise."""

    def on_ready(self, replica: str, ready: protocol.Ready) -> None: ...

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None: ...

    def on_log(self, replica: str, line: said.Line) -> None:
        """A line that was written to the process's own stdout or stderr, of no known task."""

    def on_alive(self, replica: str, number: int) -> None:
        """It has answered `protocol.Probe(number)`; 0 is a heartbeat of its own."""

    def on_exit(self, replica: str, exit: Exit) -> None:
        """The process is gone (and its group with it); called exactly once for each replica that was started."""


class Engine(Protocol):
    def subscribe(self, listener: Listener) -> None: ...

    async def start(self, replica: str, revision: Revision) -> None:
        """Begin to start a replica; `Listener.on_ready` or `on_exit` follows. *replica* is a new id each
        time.

        Raises `errors.AgentInvalid` when the revision's code cannot even be prepared (no interpreter, no
        msgspec …).
        """

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        """Send *message*; False if the replica is gone (its `on_exit` has come or is about to)."""

    async def stop(self, replica: str, *, grace_s: float) -> None:
        """End the replica: SIGTERM, to end what runs and say so; after *grace_s* SIGKILL. Returns when it is gone."""

    def kill(self, replica: str, reason: str, detail: str = "") -> None:
        """SIGKILL now, with *reason* and *detail* in its `Exit`; unknown ids are ignored."""

    def observe(self) -> list[Observation]: ...

    async def keep_warm(self, revisions: Sequence[Revision]) -> None:
        """Be ready to start replicas of *revisions* at once, though none runs; of all others, no longer than useful.

        A hint that costs nobody anything but memory: one that cannot be prepared is found out when it is started.
        """

    async def close(self) -> None:
        """Stop everything that is left, zygotes too."""
