"""Tries an agent without a user's task: a rollout's checks, and whether a session's state can be taken over.

Called by `engine.replica`, one `Trial` per `protocol.Check` or `protocol.Migrate`. A trial ends on time whatever the
agent's code does, unless it blocks the loop; nothing of it is emitted or kept.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import threading
import traceback
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from greenroom.adapters import contract
from greenroom.engine import advice, factories, failures, output, protocol, running, task_context, values
from greenroom.sdk import context as sdk_context

_PASSED = b"true"
_TIMEOUT_GRACE_S = 0.5  # for what is under way to end after the trial's time
_GRACE_S = 2.0  # for a run of the agent that its check has given up
_MAX_SOURCE_BYTES = 300


class Trial(running.Attempt):
    """An attempt that no user asked for; *what* says in words for people what has *remaining_s*."""

    __slots__ = ("_remaining_s", "_what")

    def __init__(
        self,
        invoke: protocol.Invoke,
        settings: running.AgentSettings,
        *,
        factory: factories.Factory,
        send: Callable[[protocol.ToNode], None],
        what: str,
    ) -> None:
        super().__init__(invoke, settings, factory=factory, send=send)
        self._remaining_s, self._what = invoke.remaining_s, what

    async def run(self) -> protocol.Ended | None:
        attempt = asyncio.create_task(super().run())
        done, _ = await asyncio.wait({attempt}, timeout=self._remaining_s)
        if done or self._cancel_grace_s is not None:
            return await attempt
        self.cancel(_TIMEOUT_GRACE_S)
        await asyncio.wait({attempt}, timeout=_TIMEOUT_GRACE_S)
        self.context.close()
        had = f"{self._what} did not end in the {self._remaining_s:g} s that it had"
        message = f"{had}; make it quicker, or give it more time"
        return self._ended(error_type="check_timeout", error_message=message)


class Migration(Trial):
    """Takes a session's state over, as a task of that session would."""

    __slots__ = ()

    def __init__(
        self,
        migrate: protocol.Migrate,
        settings: running.AgentSettings,
        *,
        factory: factories.Factory,
        send: Callable[[protocol.ToNode], None],
    ) -> None:
        invoke = protocol.Invoke(
            migrate.task,
            migrate.epoch,
            b"null",
            1,
            migrate.remaining_s,
            state=migrate.state,
            state_revision=migrate.state_revision,
            is_check=True,
        )
        what = f"taking over a state that revision {migrate.state_revision} wrote"
        super().__init__(invoke, settings, factory=factory, send=send, what=what)

    async def _work(self) -> tuple[bytes, bytes | None]:
        agent = await self._factory.make()
        instance = self._instance = self._factory.open(agent)
        try:
            await self._load(instance, agent, self._invoke.state or b"null")
        finally:
            await instance.close()
        return _PASSED, None


class Check(Trial):
    """Calls a function of the revision's code, or builds an instance and closes it."""

    __slots__ = ("_asked", "_begun", "_function", "_loop", "_numbers", "_runs", "_send", "_thread")

    def __init__(
        self,
        check: protocol.Check,
        settings: running.AgentSettings,
        *,
        factory: factories.Factory,
        send: Callable[[protocol.ToNode], None],
    ) -> None:
        invoke = protocol.Invoke(check.task, check.epoch, b"null", 1, check.remaining_s, is_check=True)
        what = "building the agent" if check.function is None else f"the check {check.function}"
        super().__init__(invoke, settings, factory=factory, send=send, what=what)
        self._function, self._send = check.function, send
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._numbers = itertools.count(1)
        self._asked, self._begun = 0, 0  # runs of the agent
        self._runs: dict[running.Attempt, asyncio.Task[protocol.Ended | None]] = {}  # but for those that have ended

    def cancel(self, grace_s: float) -> None:
        super().cancel(grace_s)
        for attempt in list(self._runs):
            attempt.cancel(grace_s)

    async def _work(self) -> tuple[bytes, bytes | None]:
        if self._function is None:
            instance = self._instance = await self._factory.build()
            await instance.close()
            return _PASSED, None
        output.current.set(None)  # what it prints is no task's: it goes to the replica's log
        # In a thread: an import of a check's module may hang.
        function = await asyncio.to_thread(factories.load_check, self._settings.agent, self._function, self._settings)
        try:
            await self._call(function, self._function)
        finally:
            for attempt in list(self._runs):
                attempt.cancel(_GRACE_S)
        return _PASSED, None

    async def _call(self, function: Any, name: str) -> None:
        arguments = _arguments(function, name, self._ask)
        if self._cancel_grace_s is not None:
            raise asyncio.CancelledError
        if inspect.iscoroutinefunction(function):
            result = await function(*arguments)
        else:
            result = await asyncio.to_thread(function, *arguments)
            if inspect.isawaitable(result):
                result = await result
        if self._begun < self._asked:
            raise contract.Failure("check_failed", f"{name} called the agent without `await`, or did not wait for it")
        if result is False:
            raise contract.Failure("check_failed", f"{name} returned False")

    def _ask(self, input: Any) -> Any:
        """Run a task on a fresh instance: what a check's function gets. Blocks in a thread, else is to be awaited."""
        self._asked += 1
        if threading.get_ident() == self._thread:
            return self._run(input)
        return asyncio.run_coroutine_threadsafe(self._run(input), self._loop).result()

    async def _run(self, input: Any) -> Any:
        self._begun += 1
        if self._cancel_grace_s is not None:
            raise asyncio.CancelledError
        encoded = values.encode(input, "input", limit_bytes=task_context.MAX_INPUT_BYTES)
        task = f"{self._invoke.task}.{next(self._numbers)}"
        invoke = protocol.Invoke(task, self._invoke.epoch, encoded, 1, self.context.remaining_s(), is_check=True)
        attempt = running.Attempt(invoke, self._settings, factory=self._factory, send=self._send)
        # In a context of its own: what it starts belongs to it alone, and it ends that by itself.
        run = contextvars.Context().run(self._loop.create_task, attempt.run())
        self._runs[attempt] = run
        run.add_done_callback(lambda run: self._forget(attempt, run))
        try:
            ended = await asyncio.shield(run)
        except asyncio.CancelledError:
            attempt.cancel(_GRACE_S)
            raise
        if ended is None or ended.cancelled:
            raise asyncio.CancelledError
        if ended.output is None:
            raise sdk_context.SubTaskFailed(self._settings.agent, ended.error_type or "", ended.error_message)
        return values.read(ended.output)

    def _forget(self, attempt: running.Attempt, run: asyncio.Task[protocol.Ended | None]) -> None:
        if run.result() is not None:  # else something of it cannot be ended
            del self._runs[attempt]

    async def _settled(self, timeout_s: float) -> bool:
        for attempt in list(self._runs):
            attempt.cancel(timeout_s)
        ends_s = self._loop.time() + timeout_s
        is_settled = await super()._settled(timeout_s)
        running_ = [run for run in self._runs.values() if not run.done()]
        if running_:
            await asyncio.wait(running_, timeout=ends_s - self._loop.time())
        ends = [run.done() and run.result() is not None for run in self._runs.values()]
        return is_settled and all(ends)

    def _failed(self, error: BaseException) -> protocol.Ended:
        error = failures.sole(error)
        if self._function is None or isinstance(error, factories.LoadFailed | values.Unfit | contract.Failure):
            return super()._failed(error)
        told = failures.describe(error, frozenset())
        message = told.message.strip() or _place_of(error, self._settings.snapshot)
        remedy = advice.remedy(error, self._settings)
        message = message if remedy is None else failures.followed_by(message, remedy)
        return self._ended(error_type=told.type, error_message=message)


def _arguments(function: Any, name: str, ask: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Return what *function* is to be called with; raises `factories.LoadFailed` for what can be no check."""
    if not callable(function) or isinstance(function, type):
        kind = "a class" if isinstance(function, type) else f"a {type(function).__name__}"
        raise _no_check(name, f"it is {kind}; name a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise _no_check(name, "it has a `yield`, so that a call would not run it; raise or return instead")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin
        raise _no_check(name, "it has no signature; name a function of Python") from None
    for arguments in ((ask,), ()):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return arguments
    raise _no_check(name, f"it takes {signature}; a check takes no parameter, or one: the agent to try")


def _no_check(name: str, why: str) -> factories.LoadFailed:
    return factories.LoadFailed("TypeError", f"cannot call the check {name}: {why}")


def _place_of(error: BaseException, snapshot: str) -> str:
    """Say which line of the agent's code has raised *error*."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if PurePath(frame.filename).is_relative_to(snapshot)
    ]
    if not frames:
        return "(without a message)"
    frame = frames[-1]
    place = f"{PurePath(frame.filename).relative_to(snapshot)}:{frame.lineno}"
    return failures.bounded(f"{place}: {frame.line}" if frame.line else place, _MAX_SOURCE_BYTES)
