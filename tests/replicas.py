"""A replica in a forked child, and this end of its channel: what tests of replica and adapters talk to."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from greenroom.engine import protocol, replica

AGENTS = Path(__file__).with_name("agents")
DEADLINE_S = 20.0


class Replica:
    """One replica; a context manager. Received messages that nobody asked for are kept in ``events``."""

    def __init__(
        self,
        factory: str,
        *,
        snapshot: Path = AGENTS,
        arguments: dict[str, Any] | None = None,
        sessions: bool = False,
        retry_on: tuple[str, ...] = (),
        check: bool = False,
        env: tuple[str, ...] = (),
    ) -> None:
        self.config = replica.Config(
            replica="r1",
            agent="tested",
            revision=1,
            snapshot=str(snapshot),
            factory=factory,
            arguments=arguments or {},
            concurrency=8,
            sessions=sessions,
            retry_on=retry_on,
            check=check,
            env=env,
        )
        self.channel, theirs = socket.socketpair()
        self.channel.settimeout(DEADLINE_S)
        self.output, their_output = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the test runner has threads; none is needed here
            self.pid = os.fork()
        if self.pid == 0:
            self._be_child(theirs, their_output)
        theirs.close()
        os.close(their_output)
        self.pidfd = os.pidfd_open(self.pid)
        self.events: list[protocol.Emitted] = []
        self.ended: dict[str, protocol.Ended] = {}
        self._messages = self._receive()

    def _be_child(self, theirs: socket.socket, output: int) -> None:
        try:
            os.setsid()
            warnings.resetwarnings()
            logging.getLogger().handlers.clear()  # the test runner's
            self.channel.close()
            os.dup2(output, 1)
            os.dup2(output, 2)
            replica.main(theirs, self.config)
        finally:
            os._exit(99)

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        if not select.select([self.pidfd], [], [], 5)[0]:
            os.kill(self.pid, signal.SIGKILL)
        if self.pid:
            self.exit_code()
        os.close(self.pidfd)
        os.close(self.output)

    def exit_code(self) -> int:
        """Wait for the end of the process."""
        assert select.select([self.pidfd], [], [], DEADLINE_S)[0], "the replica does not end"
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return code

    def printed(self) -> str:
        """What went to the process's own stdout and stderr; after its end."""
        return os.read(self.output, 1 << 20).decode()

    def send(self, message: protocol.ToReplica) -> None:
        self.channel.sendall(protocol.frame(message))

    def receive(self) -> protocol.ToNode:
        return next(self._messages)

    def ready(self) -> protocol.Ready:
        message = self.receive()
        assert isinstance(message, protocol.Ready), message
        return message

    def refused(self) -> protocol.Refused:
        message = self.receive()
        assert isinstance(message, protocol.Refused), message
        return message

    def invoke(self, task: str, input: Any, *, session: str | None = None, state: bytes | None = None) -> None:
        self.send(
            protocol.Invoke(
                task, 1, json.dumps(input).encode(), 1, 60.0, session=session, state=state, state_revision=1
            )
        )

    def until(self, wanted: Callable[[protocol.ToNode], bool]) -> protocol.ToNode:
        deadline_s = time.monotonic() + DEADLINE_S  # heartbeats come for ever
        while True:
            assert time.monotonic() < deadline_s, "the replica does not say what is waited for"
            message = self.receive()
            match message:
                case protocol.Emitted():
                    self.events.append(message)
                case protocol.Ended():
                    assert message.task not in self.ended, "a task ended twice"
                    self.ended[message.task] = message
                case _:
                    pass
            if wanted(message):
                return message

    def event(self, type: str, text: str) -> None:
        """Wait for an event whose data holds *text*."""
        self.until(lambda m: isinstance(m, protocol.Emitted) and m.type == type and text.encode() in m.data)

    def end_of(self, task: str) -> protocol.Ended:
        if task not in self.ended:
            self.until(lambda m: isinstance(m, protocol.Ended) and m.task == task)
        return self.ended[task]

    def called(self) -> protocol.Called:
        message = self.until(lambda m: isinstance(m, protocol.Called))
        assert isinstance(message, protocol.Called)
        return message

    def run(self, input: Any, *, task: str = "t1", **options: Any) -> protocol.Ended:
        self.ended.pop(task, None)
        self.invoke(task, input, **options)
        return self.end_of(task)

    def data(self, type: str) -> list[Any]:
        return [json.loads(event.data) for event in self.events if event.type == type]

    def _receive(self) -> Iterator[protocol.ToNode]:
        frames = protocol.Frames()
        while data := self.channel.recv(1 << 18):
            for body in frames.feed(data):
                yield protocol.decode_for_node(body)


def started(factory: str, **options: Any) -> Replica:
    """Start a replica and wait until it is ready."""
    replica = Replica(factory, **options)
    try:
        replica.ready()
    except BaseException:
        replica.__exit__()
        raise
    return replica


def output_of(ended: protocol.Ended) -> Any:
    assert ended.error_type is None, ended
    assert not ended.cancelled
    assert ended.output is not None
    return json.loads(ended.output)
