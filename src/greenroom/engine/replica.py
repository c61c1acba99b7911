"""A replica: the forked child that hosts one agent. Frames in, frames out, over one socket to its node.

The zygote calls `load` to import the agent's code, forks, and the child calls `main`, which never returns.
Agent code runs here, so here is nothing worth stealing: no store, no key; only the standard library, msgspec
and what agents need. All of it is imported before the fork.
"""

from __future__ import annotations

import asyncio
import collections
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn

import msgspec

from greenroom import redaction
from greenroom.engine import factories, output, protocol, running, secret_values, task_context, threads, trying
from greenroom.sdk import context as sdk_context

LoadFailed = factories.LoadFailed
_Asked = protocol.Invoke | protocol.Check | protocol.Migrate

HEARTBEAT_S = 2.0
STOP_GRACE_S = 2.0  # what running attempts get after SIGTERM
# The watchdog needs a few frames only; the usual 8 MiB would count against a limit of address space.
_WATCHDOG_STACK_BYTES = 256 * 1024


class Config(msgspec.Struct, frozen=True):
    """What a replica is told when it starts."""

    replica: str
    agent: str
    revision: int
    snapshot: str  # the folder of code
    factory: str  # "module:attribute" or "file.py:attribute"
    arguments: dict[str, Any]
    concurrency: int
    sessions: bool
    retry_on: tuple[str, ...]
    check: bool  # build an instance on trial before `Ready`
    env: tuple[str, ...] = ()  # the variables of the node that the agent may see
    secrets: tuple[str, ...] = ()  # the variables that are set from references
    is_closed: bool = False  # whether it runs in a room


def load(config: Config) -> object:
    """Import the agent's module and return what its factory reference names; raises `LoadFailed`.

    Also makes what the code prints attributable, before its logging handlers take hold of stderr.
    """
    redaction.register_environment(os.environ, config.env)
    output.capture()
    return factories.load(config.agent, config.factory, config)


def main(channel: socket.socket, config: Config) -> NoReturn:
    """Be a replica until its node is gone; exit code EX_CONFIG: refused, EX_PROTOCOL: bad frames."""
    try:
        _serve(channel, config)
    except BaseException:  # noqa: BLE001 - nothing above may go on as if this were the zygote
        traceback.print_exc(file=sys.__stderr__)
    os._exit(os.EX_SOFTWARE)


def _serve(channel: socket.socket, config: Config) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    loop = asyncio.new_event_loop()
    try:
        arguments = secret_values.filled_in(config.arguments, config.secrets)
        factory = factories.examine(load(config), agent=config.agent, reference=config.factory, arguments=arguments)
        if config.check:
            loop.run_until_complete(factory.check(config))
    except LoadFailed as error:
        _refuse(channel, error)
    replica = _Replica(config, factory, loop)
    loop.set_default_executor(threads.AgentThreads())
    loop.set_task_factory(_start_task)
    loop.set_exception_handler(_report)
    loop.add_signal_handler(signal.SIGTERM, replica.stop)
    loop.run_until_complete(loop.create_connection(lambda: replica, sock=channel))
    _watch(channel.fileno())
    replica.send(protocol.Ready(factory.adapter, factory.took))
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Raised by a task that agent code started; asyncio lets these two out. Who awaits the task has
            # it, too.
            continue


def _refuse(channel: socket.socket, error: LoadFailed) -> NoReturn:
    channel.settimeout(None)
    channel.sendall(protocol.frame(protocol.Refused(error.error_type, error.message, error.traceback)))
    os._exit(os.EX_CONFIG)


class _Replica(asyncio.Protocol):
    """The channel's end, and the attempts that run."""

    def __init__(self, config: Config, factory: factories.Factory, loop: asyncio.AbstractEventLoop) -> None:
        self._config, self._factory, self._loop = config, factory, loop
        self._thread = threading.get_ident()
        self._transport: asyncio.WriteTransport | None = None
        self._frames = protocol.Frames()
        self._outbox: collections.deque[bytes] = collections.deque()
        self._flush_is_due = False
        self._attempts: dict[tuple[str, int], running.Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heartbeat: asyncio.TimerHandle | None = None
        self._is_stopping = False

    # --- the channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        os._exit(os.EX_OK)

    def data_received(self, data: bytes) -> None:
        try:
            messages = [protocol.decode_for_replica(body) for body in self._frames.feed(data)]
        except (ValueError, msgspec.MsgspecError) as error:
            sys.stderr.write(f"cannot read the node's frames: {error}\n")
            os._exit(os.EX_PROTOCOL)
        for message in messages:
            self._receive(message)

    def send(self, message: protocol.ToNode) -> None:
        """Send *message*, from any thread; what one turn of the loop sends goes out in one piece."""
        self._outbox.append(protocol.frame(message))
        if self._flush_is_due:
            return
        self._flush_is_due = True
        if threading.get_ident() == self._thread:
            self._loop.call_soon(self._flush)
        else:
            self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False  # first: what a thread appends from here on is either seen below or flushed again
        outbox, pieces = self._outbox, []
        while outbox:
            pieces.append(outbox.popleft())
        if self._transport is not None and pieces:
            self._transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    # --- the attempts

    def _receive(self, message: protocol.ToReplica) -> None:
        match message:
            case protocol.Invoke():
                self._begin(message, running.Attempt)
            case protocol.Check():
                self._begin(message, trying.Check)
            case protocol.Migrate():
                self._begin(message, trying.Migration)
            case protocol.Cancel():
                attempt = self._attempts.get((message.task, message.epoch))
                if attempt is not None:
                    attempt.cancel(message.grace_s)
            case protocol.CallEnded():
                attempt = self._attempts.get((message.task, message.epoch))
                if attempt is not None:
                    attempt.context.call_ended(message)
            case protocol.Probe():
                self.send(protocol.Alive(message.number))

    def _begin(self, message: _Asked, kind: Callable[..., running.Attempt]) -> None:
        if self._is_stopping:
            return  # the node gives it to another replica when this one is gone
        attempt = kind(message, self._config, factory=self._factory, send=self.send)
        self._attempts[message.task, message.epoch] = attempt
        self._track(self._run((message.task, message.epoch), attempt))
        if self._heartbeat is None:
            self._heartbeat = self._loop.call_later(HEARTBEAT_S, self._beat)

    async def _run(self, key: tuple[str, int], attempt: running.Attempt) -> None:
        ended = await attempt.run()
        if ended is not None:
            del self._attempts[key]
            self.send(ended)

    def _track(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _beat(self) -> None:
        self._heartbeat = None
        if self._attempts:
            self.send(protocol.Alive())
            self._heartbeat = self._loop.call_later(HEARTBEAT_S, self._beat)

    # --- the end

    def stop(self) -> None:
        """On SIGTERM: take nothing more, cancel what runs, leave."""
        if not self._is_stopping:
            self._is_stopping = True
            self._track(self._stop())

    async def _stop(self) -> None:
        for attempt in self._attempts.values():
            attempt.cancel(STOP_GRACE_S)
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=STOP_GRACE_S)
        self._flush()
        if self._transport is not None:
            self._transport.close()  # writes what is left, then `connection_lost` exits


def _start_task(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **options: Any,
) -> asyncio.Task[Any]:
    """Create a task as asyncio does, and note whose attempt it belongs to."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    context = sdk_context._current.get(None)  # noqa: SLF001 - the runtime's end of `current()`
    if isinstance(context, task_context.TaskContext):
        context.tasks.add(task)
    return task


def _report(loop: asyncio.AbstractEventLoop, situation: dict[str, Any]) -> None:
    error = situation.get("exception")
    if isinstance(error, ValueError) and str(error) == "task_done() called too many times":
        return  # AutoGen's runtime, when a run in a tool call is cancelled: nobody can act on it
    loop.default_exception_handler(situation)


def _watch(descriptor: int) -> None:
    """Exit when the node's end of the channel is closed, even while the loop is blocked."""

    def wait() -> None:
        poll = select.poll()
        poll.register(descriptor, _HANG_UP)
        while not poll.poll():
            pass
        os._exit(os.EX_OK)

    usual = threading.stack_size(_WATCHDOG_STACK_BYTES)
    threading.Thread(target=wait, name="watchdog", daemon=True).start()
    threading.stack_size(usual)


_HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP
