"""The node's handle of one replica: its endpoints, its process, and why it ended. Called by `engine.local`.

A life is: have a zygote fork it, pass messages, notice its death by pidfd, bury it. Burial finds what
it left behind, hears the last of it, and only then says that it is gone: exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, assert_never

from greenroom import errors
from greenroom.engine import channels, contract, failures, processes, protocol, said, secret_values, zygotes

_LAST_WORDS_S = (
    0.05  # for the zygote's report and the channel's end; both are there within a millisecond, or not at all
)
_LINGER_S = 1.0  # between the end of the channel and that of the process
_LAUNCHES = 3  # zygotes that may die under one replica before that is its own end
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS})


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _complain(burial: asyncio.Task[None]) -> None:
    """Say at once what went wrong: nobody awaits a burial."""
    if not burial.cancelled() and (error := burial.exception()) is not None:
        context = {"message": "the burial of a replica failed", "exception": error, "task": burial}
        burial.get_loop().call_exception_handler(context)


class Sweep(Protocol):
    async def __call__(self, replica: str) -> None:
        """Kill what *replica* left behind."""


class Replica:
    def __init__(
        self,
        replica: str,
        revision: contract.Revision,
        *,
        listeners: Sequence[contract.Listener],
        zygote_of: Callable[[Replica], zygotes.Zygote],
        sweep: Sweep,
        on_gone: Callable[[Replica], None],
        why_killed: Callable[[], str | None],
        closed: Sequence[Path] = (),
    ) -> None:
        self.id, self.revision = replica, revision
        self.pid: int | None = None
        self.is_ready = False
        self.gone = asyncio.Event()
        self._listeners, self._sweep, self._on_gone = listeners, sweep, on_gone
        self._zygote_of, self._why_killed, self._closed = zygote_of, why_killed, closed
        self._loop = asyncio.get_running_loop()
        self._launches = 0
        self._channel: channels.Channel | None = None
        self._pipes: list[channels.LogPipe] = []
        self._zygote: zygotes.Zygote | None = None
        self._pidfd: int | None = None
        self._verdict: tuple[str, str] | None = None  # reason and detail, where this side ends it
        self._linger: asyncio.TimerHandle | None = None
        self._burial: asyncio.Task[None] | None = None

    @property
    def home(self) -> str:
        """The folder that its private folder is in; empty: it has none."""
        return "" if self._zygote is None else self._zygote.home

    async def launch(self) -> None:
        """Have a zygote make its process, which it does once the code is imported; raises `errors.AgentInvalid`."""
        self._launches += 1
        self._zygote = self._zygote_of(self)
        self._zygote.tenants.add(self.id)
        try:
            endpoints = await self._open()
        except OSError as error:
            self._on_never_born(contract.Exit("crashed", f"cannot start a replica: {error}"))
            return
        except secret_values.Unresolved as error:
            self._on_never_born(contract.Exit("refused", f"cannot start agent {self.revision.agent}: {error}"))
            return
        if self._verdict is not None:  # it was stopped meanwhile
            _close(endpoints)
            self._on_never_born(contract.Exit(*self._verdict))
            return
        channel, stdout, stderr, *secrets = endpoints
        order = zygotes.Order(self.id, channel, stdout, stderr, tuple(secrets), self._on_forked, self._on_failed)
        self._zygote.order(order)

    async def _open(self) -> list[int]:
        """Make its endpoints; return the child's: channel, stdout, stderr, and an open file for each secret."""
        endpoints: list[int] = []
        try:
            ours, theirs = socket.socketpair()
            endpoints.append(theirs.detach())
            _, self._channel = await self._loop.create_unix_connection(self._new_channel, sock=ours)
            for stream in ("stdout", "stderr"):
                read_end, write_end = os.pipe()
                endpoints.append(write_end)
                self._pipes.append(channels.LogPipe(read_end, self._line_of(stream)))
            if self.revision.secrets:
                endpoints += await asyncio.to_thread(secret_values.opened, self.revision.secrets, closed=self._closed)
        except (OSError, secret_values.Unresolved):
            _close(endpoints)
            raise
        return endpoints

    def _new_channel(self) -> channels.Channel:
        return channels.Channel(
            on_message=self._on_message, on_end=self._on_end, on_broken=lambda why: self.kill("protocol", why)
        )

    def _line_of(self, stream: str) -> Callable[[str], None]:
        return lambda line: self.log(stream, line)

    def log(self, stream: str, line: str) -> None:
        self._tell("on_log", said.read(stream, line))

    def _tell(self, event: str, *what: object) -> None:
        """Tell every listener, also after one that raises; its error follows when all have heard."""
        failure: Exception | None = None
        tell = operator.methodcaller(event, self.id, *what)
        for listener in self._listeners:
            try:
                tell(listener)
            except Exception as error:  # noqa: BLE001 - raised below
                failure = failure or error
        if failure is not None:
            raise failure

    # --- while it lives

    def lives(self) -> bool:
        """Whether its process is there, as far as is known."""
        return self._pidfd is not None and self._burial is None

    def _on_forked(self, pid: int | None, pidfd: int) -> None:
        self.pid, self._pidfd = pid, pidfd
        self._loop.add_reader(pidfd, self._on_death)
        if self._verdict is not None:
            processes.send(pidfd, signal.SIGKILL)

    def send(self, message: protocol.ToReplica) -> bool:
        if self._channel is None or self._verdict is not None or self._burial is not None:
            return False
        self._channel.send(message)
        return True

    def _on_message(self, message: protocol.ToNode) -> None:
        match message:
            case protocol.Emitted() | protocol.Called() | protocol.Ended() | protocol.Spans():
                self._tell("on_message", message)
            case protocol.Ready():
                self._on_ready(message)
            case protocol.Refused():
                self._on_refused(message)
            case protocol.Alive(number):
                self._tell("on_alive", number)
            case _:
                assert_never(message)

    def _on_ready(self, ready: protocol.Ready) -> None:
        if self.is_ready or self._verdict is not None:
            return
        self.is_ready = True
        adapter, took = (failures.bounded(text, failures.MAX_MESSAGE_BYTES) for text in (ready.adapter, ready.took))
        self._tell("on_ready", protocol.Ready(adapter, took))

    def _on_refused(self, refused: protocol.Refused) -> None:
        if self._verdict is not None:
            return
        self._verdict = ("refused", refused.message)
        for line in failures.lines(refused.traceback):
            self.log("stderr", line)

    # --- its end

    def terminate(self) -> None:
        """Ask it to end what runs, say so, and leave."""
        self._verdict = self._verdict or ("stopped", "")
        if self._pidfd is not None:
            processes.send(self._pidfd, signal.SIGTERM)
        elif self._zygote is not None and self._zygote.withdraw(self.id):
            self._on_never_born(contract.Exit("stopped"))

    def kill(self, reason: str, detail: str = "") -> None:
        if self._verdict in {None, ("stopped", "")}:  # a reason to kill says more than a stop that it interrupts
            self._verdict = (reason, detail)
        if self._pidfd is not None:
            processes.send(self._pidfd, signal.SIGKILL)
        elif self._zygote is not None and self._zygote.withdraw(self.id):
            self._on_never_born(contract.Exit(reason, detail))

    def _on_end(self) -> None:
        if self._burial is None:
            self._linger = self._loop.call_later(_LINGER_S, self.kill, "protocol", "it closed its channel and lives on")

    def _on_death(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self._begin_burial(None)

    def _on_failed(self, exit: contract.Exit | None) -> None:
        if self._verdict is not None:
            self._on_never_born(contract.Exit(*self._verdict))
        elif exit is None and self._launches < _LAUNCHES:
            self._burial = self._loop.create_task(self._launch_again())
        else:
            self._on_never_born(exit or contract.Exit("crashed", "its zygotes died before it was forked"))

    def _on_never_born(self, exit: contract.Exit) -> None:
        self._begin_burial(exit)

    async def _launch_again(self) -> None:
        """Its zygote may have died between fork and report: with new endpoints, that child is nobody's and leaves."""
        self._burial = None
        self._let_go()
        try:
            await self.launch()
        except errors.AgentInvalid as error:
            self._on_never_born(contract.Exit("crashed", str(error)))

    def _begin_burial(self, exit: contract.Exit | None) -> None:
        self._burial = self._loop.create_task(self._bury(exit))
        self._burial.add_done_callback(_complain)

    async def _bury(self, exit: contract.Exit | None) -> None:
        try:
            if exit is None:
                async with asyncio.TaskGroup() as last_things:
                    status = last_things.create_task(self._status())
                    last_things.create_task(self._hear_the_last())
                exit = self._judge(status.result())
            # Also for one that was never born, as far as this side knows: its zygote may have died after the
            # fork.
            await self._sweep(self.id)
        finally:
            self._part(contract.Exit("crashed", "its end could not be looked into") if exit is None else exit)

    def _part(self, exit: contract.Exit) -> None:
        """Let go, tell, be gone: each of them whatever became of the one before."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._on_gone, self)
            last_first.callback(self.gone.set)
            last_first.callback(self._tell, "on_exit", exit)
            last_first.callback(self._let_go)

    async def _status(self) -> int | None:
        assert self._pidfd is not None
        assert self._zygote is not None
        status = await self._zygote.status(self.id, timeout_s=_LAST_WORDS_S)
        if self.pid is None:
            return status
        if status is None:
            status = processes.reap(self.pid, self._pidfd)
        if status is None and processes.is_corpse(self.pid):  # its zygote hangs
            processes.kill_group(self.pid)
        return status

    async def _hear_the_last(self) -> None:
        """Read what it sent before it died; a grandchild may hold the channel open for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                assert self._channel is not None
                await self._channel.closed.wait()

    def _judge(self, status: int | None) -> contract.Exit:
        code = status if status is not None and status >= 0 else None
        number = -status if status is not None and status < 0 else None
        is_certain = True
        if self._verdict is not None:
            reason, detail = self._verdict
        elif number is None and self._zygote is not None and self._zygote.took_its_replicas:
            is_certain = False
            reason, detail = "killed", "with the interpreter that it was forked from, which has ended"
        elif number is None:
            is_certain = status is not None
            reason, detail = (
                "crashed",
                "its process ended by itself" + ("" if code is None else f", exit code {code}"),
            )
        elif number == signal.SIGKILL and (why := self._why_killed()) is not None:
            # Another process may have been meant, and this one killed by hand; and who is killed because all together
            # are too much need not be the one who was.
            is_certain = False
            reason, detail = "oom", why
        else:
            name = signal.Signals(number).name
            reason = "crashed" if number in _CRASHES else "killed"
            detail = f"by {name}" if reason == "crashed" else f"by {name} from outside, or by the kernel for memory"
        return contract.Exit(reason, detail, exit_code=code, signal=number, is_certain=is_certain)

    def _let_go(self) -> None:
        if self._channel is not None:
            self._channel.abort()
        while self._pipes:
            self._pipes.pop().close()
        if self._linger is not None:
            self._linger.cancel()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._zygote is not None:
            self._zygote.tenants.discard(self.id)
