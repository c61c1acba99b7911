"""Runs one attempt of a task: build the instance, load the session's state, run, save, and say how it ended.

Called by `engine.replica`, one `Attempt` per `protocol.Invoke`. State is only ever sent with a success, so
that a failed or cancelled run leaves the session as it was. State that another revision wrote goes through the
agent's `migrate` first. Nothing that agent code raises or returns leaves this module as an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from greenroom import errors, redaction
from greenroom.adapters import contract
from greenroom.engine import advice, factories, failures, migrations, output, protocol, spans, task_context, values
from greenroom.sdk import context as sdk_context

MAX_OUTPUT_BYTES = 8 * 1024 * 1024
MAX_STATE_BYTES = migrations.MAX_STATE_BYTES


class AgentSettings(advice.Surroundings, Protocol):
    """What an attempt needs to know of its agent; `replica.Config` is one."""

    @property
    def agent(self) -> str: ...
    @property
    def revision(self) -> int: ...
    @property
    def sessions(self) -> bool: ...
    @property
    def retry_on(self) -> tuple[str, ...]: ...


class Attempt:
    """One attempt. `run` answers with `Ended`, or with None if something of it cannot be ended from here.

    `trying.Trial` is one that does other work.
    """

    __slots__ = (
        "_cancel_grace_s",
        "_factory",
        "_instance",
        "_invoke",
        "_log",
        "_second_signal",
        "_settings",
        "_stored",
        "_task",
        "context",
    )

    def __init__(
        self,
        invoke: protocol.Invoke,
        settings: AgentSettings,
        *,
        factory: factories.Factory,
        send: Callable[[protocol.ToNode], None],
    ) -> None:
        self.context = task_context.TaskContext(invoke, settings.agent, send)
        self._invoke, self._settings, self._factory = invoke, settings, factory
        self._log = output.TaskLog(self.context.publish_line)
        self._stored = invoke.state
        self._instance: contract.Instance | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancel_grace_s: float | None = None
        self._second_signal: asyncio.TimerHandle | None = None

    async def run(self) -> protocol.Ended | None:
        self._task = asyncio.current_task()
        # Set and never reset: each asyncio task has context variables of its own, and so has all that it
        # starts.
        sdk_context._current.set(self.context)  # noqa: SLF001 - the runtime's end of `current()`
        output.current.set(self._log)
        try:
            recorder = self.context.recorder
            result, state = await (self._work() if recorder is None else self._traced(recorder))
            ended = self._ended(output=result, state=state)
        except BaseException as error:  # noqa: BLE001 - agent code, which may raise SystemExit as well
            ended = self._failed(error)
        if self._cancel_grace_s is not None:
            if self._second_signal is not None:
                self._second_signal.cancel()  # what it is for has ended; it would end the wait below
            if not await self._settled(self._cancel_grace_s / 2):
                return None
            ended = self._ended(cancelled=True)
        self._log.close()
        self.context.close()
        return ended

    def cancel(self, grace_s: float) -> None:
        """Begin the ladder: the framework's signal now, asyncio's after half of *grace_s*."""
        if self._cancel_grace_s is not None:
            return
        self._cancel_grace_s = grace_s
        self.context.abandon_calls()
        if self._instance is not None:
            try:
                self._instance.cancel()
            except Exception as error:  # noqa: BLE001 - agent code
                self._log.write("stderr", f"cancel() raised {type(error).__name__}\n")
        self._second_signal = asyncio.get_running_loop().call_later(grace_s / 2, self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _work(self) -> tuple[bytes, bytes | None]:
        agent = await self._factory.make()
        instance = self._instance = self._factory.open(agent)
        try:
            if self._keeps_session and self._invoke.state is not None:
                await self._load(instance, agent, self._invoke.state)
            if self._cancel_grace_s is not None:
                raise asyncio.CancelledError
            result = await instance.run(values.read(self._invoke.input), self.context)
            encoded = values.encode(result, "result", limit_bytes=MAX_OUTPUT_BYTES)
            return encoded, await self._save(instance) if self._keeps_session else None
        finally:
            self.context.usage += instance.usage
            await instance.close()

    async def _traced(self, recorder: spans.Recorder) -> tuple[bytes, bytes | None]:
        task, adapter = self.context.task, self._factory.adapter
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": task.agent,
            "gen_ai.conversation.id": task.session,
            "greenroom.adapter": adapter or None,
            "greenroom.attempt": task.attempt,
        }
        with recorder.run(f"invoke_agent {task.agent}", attributes) as span:
            try:
                return await self._work()
            finally:
                usage = self.context.usage
                if usage is not contract.NO_USAGE:
                    span.set("gen_ai.usage.input_tokens", usage.input_tokens)
                    span.set("gen_ai.usage.output_tokens", usage.output_tokens)

    @property
    def _keeps_session(self) -> bool:
        return self._settings.sessions and self._invoke.session is not None

    async def _load(self, instance: contract.Instance, agent: object, stored: bytes) -> None:
        migrate, written_by = self._migrate_of(agent), self._invoke.state_revision
        try:
            state = values.read(stored)
        except errors.JsonRefused as error:
            raise self._not_loadable(error) from error
        if migrate is not None and written_by is not None:
            self._stored = None  # even what comes out the same is this revision's from now on
            state = await migrate(state, written_by, self._settings.revision)
            if state is None:  # the session begins anew
                return
        try:
            await instance.load_state(state)
        except Exception as error:
            path = "" if migrate is None else f" and taken through {migrate.name}"
            raise self._not_loadable(error, path) from error

    def _migrate_of(self, agent: object) -> migrations.Migrate | None:
        if self._invoke.state_revision in {None, self._settings.revision}:
            return None
        return migrations.find(agent, self._factory, self._settings)

    def _not_loadable(self, error: Exception, path: str = "") -> contract.Failure:
        what = (
            f"this revision cannot load the session's state, written by revision {self._invoke.state_revision}{path}:"
            f" {type(error).__name__}: {failures.message_of(error)}"
        )
        return contract.Failure(
            "state_not_loadable", failures.followed_by(what, "deploy one that can, or remove the session")
        )

    async def _save(self, instance: contract.Instance) -> bytes | None:
        state = await instance.save_state()
        if state is None:
            return None
        encoded = values.encode(state, "state", limit_bytes=MAX_STATE_BYTES)
        return None if encoded == self._stored else encoded

    async def _settled(self, timeout_s: float) -> bool:
        """End what the run has left behind, tools above all; False if a thread or a task does not end."""
        context = self.context
        tasks = [task for task in context.tasks if not task.done() and task is not self._task]
        for task in tasks:
            task.cancel()
        waiting = {*tasks, *map(asyncio.wrap_future, list(context.threads))}
        if not waiting:
            return True
        done, pending = await asyncio.wait(waiting, timeout=timeout_s)
        for future in done:
            if not future.cancelled():
                future.exception()  # looked at, so that asyncio does not report it
        return not pending

    def _failed(self, error: BaseException) -> protocol.Ended:
        if isinstance(error, factories.LoadFailed):
            return self._ended(error_type=error.error_type, error_message=error.message)
        if isinstance(error, values.Unfit):
            return self._ended(error_type=error.type, error_message=str(error))
        told = failures.describe(error, frozenset(self._settings.retry_on))
        remedy = advice.remedy(error, self._settings)
        message = told.message if remedy is None else failures.followed_by(told.message, remedy)
        return self._ended(error_type=told.type, error_message=message, retryable=told.retryable)

    def _ended(self, **outcome: Any) -> protocol.Ended:
        usage = self.context.usage
        if "error_message" in outcome:  # it goes to whoever submitted the task; what the agent was given does not
            outcome["error_message"] = failures.bounded(
                redaction.text(outcome["error_message"]), failures.MAX_MESSAGE_BYTES
            )
        return protocol.Ended(
            self._invoke.task,
            self._invoke.epoch,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            **outcome,
        )
