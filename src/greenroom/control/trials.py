"""Trials: tries replicas of a new revision without users' tasks, for `control.reconciler`.

Each replica is asked to build an instance of its agent, as it would for a task; the checks of the manifest run on one
of them: functions of the agent's own code, and example tasks whose outputs are held against what is expected of them.
All of it runs in the replica, within a time; nothing of it is stored but how it ended.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec

from greenroom import clock as clocks
from greenroom import settings
from greenroom.control import patterns
from greenroom.core import examples, failures
from greenroom.engine import contract, protocol, said

PROBE_S = 30.0  # to build one instance: it does no work
GRACE_S = 5.0  # the replica itself ends what takes too long; who is silent for longer has no answer

Answer = protocol.Ended


class ReplicaGone(Exception):
    """The replica went away while it was tried: nothing is known of its revision by that."""


class Trials:
    def __init__(self, engine: contract.Engine, clock: clocks.Clock) -> None:
        self._engine, self._clock = engine, clock
        self._numbers = itertools.count(1)
        self._open: dict[str, tuple[str, asyncio.Future[Answer]]] = {}
        engine.subscribe(self)

    # --- what replicas say (engine.contract.Listener)

    def on_ready(self, replica: str, ready: protocol.Ready) -> None:
        """The host writes it down."""

    def on_log(self, replica: str, line: said.Line) -> None:
        """Nothing of it counts."""

    def on_alive(self, replica: str, number: int) -> None:
        """The checks of health look after that."""

    def on_message(self, replica: str, message: protocol.OfAttempt) -> None:
        if isinstance(message, protocol.Ended) and message.task in self._open:
            at, future = self._open[message.task]
            if at == replica and not future.done():
                future.set_result(message)

    def on_exit(self, replica: str, exit: contract.Exit) -> None:
        for at, future in self._open.values():
            if at == replica and not future.done():
                future.set_exception(ReplicaGone(exit.detail or exit.reason))

    # --- trials

    async def probe(self, replica: str) -> str | None:
        """Have *replica* build an instance; return what is wrong, or None. Raises `ReplicaGone`."""
        ended = await self._ask(replica, lambda task: protocol.Check(task, 0, PROBE_S), PROBE_S)
        return None if ended is not None and ended.output is not None else f"it cannot build its agent: {_why(ended)}"

    async def check(self, replica: str, wanted: settings.Rollout, *, timeout_s: float) -> str | None:
        """Run all checks of *wanted* on *replica*; return which of them failed and why. Raises `ReplicaGone`."""
        for function in wanted.checks:
            ended = await self._ask(replica, _check(function, timeout_s), timeout_s)
            if ended is None or ended.output is None:
                return f"its check {function} failed: {_why(ended)}"
        for place, example in enumerate(wanted.examples, 1):
            if (wrong := await self._try(replica, example, timeout_s=timeout_s)) is not None:
                return f"its example {place} failed: {wrong}"
        return None

    async def migrate(self, replica: str, state: bytes, *, revision: int, timeout_s: float) -> str | None:
        """Try whether *replica* takes over a session's *state* of *revision*; return what is wrong, or None."""
        ended = await self._ask(replica, lambda task: protocol.Migrate(task, 0, state, revision, timeout_s), timeout_s)
        return None if ended is not None and ended.output is not None else _why(ended)

    async def _try(self, replica: str, example: settings.Example, *, timeout_s: float) -> str | None:
        began_s = self._clock.monotonic_s()
        ended = await self._ask(replica, _example(example, timeout_s), timeout_s)
        if ended is None or ended.output is None:
            return _why(ended)
        wrong = examples.mismatch(
            ended.output,
            self._clock.monotonic_s() - began_s,
            equals=example.equals,
            contains=example.contains,
            not_contains=example.not_contains,
            within_s=example.within_s,
        )
        if wrong is not None or example.matches is None:
            return wrong
        is_found = await patterns.is_found(example.matches, examples.searched(ended.output))
        return None if is_found else examples.unmatched(example.matches, ended.output, is_known=is_found is not None)

    async def _ask(self, replica: str, message: Callable[[str], protocol.ToReplica], timeout_s: float) -> Answer | None:
        """Send a message that `Ended` answers; None where there is no answer in time."""
        task = f"check-{next(self._numbers)}"
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._open[task] = replica, future
        try:
            if not self._engine.invoke(replica, message(task)):
                raise ReplicaGone("it is gone")
            async with asyncio.timeout(timeout_s + GRACE_S):
                return await future
        except TimeoutError:
            return None
        finally:
            del self._open[task]
            if not future.done() or future.cancelled():
                self._engine.invoke(replica, protocol.Cancel(task, 0))


def _check(function: str, timeout_s: float) -> Callable[[str], protocol.ToReplica]:
    return lambda task: protocol.Check(task, 0, timeout_s, function)


def _example(example: settings.Example, timeout_s: float) -> Callable[[str], protocol.ToReplica]:
    encoded = msgspec.json.encode(example.input)
    return lambda task: protocol.Invoke(task, 0, encoded, 1, timeout_s, is_check=True)


def _why(ended: Answer | None) -> str:
    if ended is None:
        return "there was no answer in time"
    if ended.cancelled:
        return "it was cancelled"
    said = ended.error_message
    return failures.told(said if said.startswith(str(ended.error_type)) else f"{ended.error_type}: {said}")
