"""The node's handle of a zygote: starts it, orders forks, hears of deaths. Called by `engine.local`.

Replicas outlive their zygote: what this handle loses with it is only the ability to make more. Not so in namespaces of
their own: there the process that is started here is their keeper, and ends with the zygote and all replicas.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from greenroom import redaction
from greenroom.engine import channels, contract, failures, kernel, processes, said, zygote

_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
_ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}  # else numpy's import starts threads: no warm fork
_FORK_DEADLINE_S = 10.0
_EXIT_DEADLINE_S = 2.0


class Order(msgspec.Struct, frozen=True):
    """One replica to make. The descriptors are the child's ends, closed here once they are passed on."""

    replica: str
    channel: int
    stdout: int
    stderr: int
    secrets: tuple[int, ...]  # open files, in the order of the plan's names
    on_forked: Callable[[int | None, int], None]  # pid, pidfd; the pid is None where it is gone already
    on_failed: Callable[[contract.Exit | None], None]  # None: the zygote is lost, and another may do it

    def close(self) -> None:
        for fd in (self.channel, self.stdout, self.stderr, *self.secrets):
            os.close(fd)


class Launch(msgspec.Struct, frozen=True):
    """How a revision's zygote is started."""

    plan: zygote.Plan
    python: str
    side: Path  # a folder that holds the greenroom package and nothing else
    environment: Mapping[str, str]
    import_deadline_s: float


def environment(revision: contract.Revision, *, node_marker: str) -> dict[str, str]:
    """Return what a replica of *revision* sees of this node's variables: none but what it names, and a few."""
    redaction.register_environment(os.environ, revision.env)
    names = (*_PASSED_ON, *revision.env)
    return {
        **_ONE_THREAD,
        **{name: os.environ[name] for name in names if name in os.environ},
        processes.NODE_MARKER: node_marker,
        zygote.REPLICA_MARKER: "-" * zygote.MAX_REPLICA_ID_BYTES,  # written over in place: see `kernel.Marker`
    }


class Zygote:
    """One zygote, from exec to burial. *on_log* takes a stream's name and a line."""

    def __init__(self, launch: Launch, *, on_log: Callable[[str, str], None]) -> None:
        self.tenants: set[str] = set()  # replicas that it made, or was asked to make, and that are not gone
        self.gone = asyncio.Event()
        self._launch, self._on_log = launch, on_log
        self._has_namespaces = launch.plan.room.has_namespaces
        self._loop = asyncio.get_running_loop()
        self._loaded = False
        self._failure: contract.Exit | None = None
        self._last_line = ""
        self._queued: deque[Order] = deque()
        self._ordered: dict[str, Order] = {}
        self._status: dict[str, asyncio.Future[int | None]] = {}  # by replica
        self._control, self._process, self._logs = self._spawn()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._on_death)
        self._loop.add_reader(self._control, self._on_reports)
        self._deadline = self._loop.call_later(launch.import_deadline_s, self._give_up_import)

    def _spawn(self) -> tuple[socket.socket, subprocess.Popen[bytes], list[channels.LogPipe]]:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.settimeout(0)
        plan = os.memfd_create("plan")
        os.write(plan, zygote.encode(self._launch.plan))
        pipes = {stream: os.pipe() for stream in ("stdout", "stderr")}
        boot = [str(self._launch.side), str(theirs.fileno()), str(os.getpid()), ""]
        try:
            process = subprocess.Popen(
                [self._launch.python, "-I", "-X", "utf8", "-c", zygote.BOOT, *boot],
                stdin=plan,
                stdout=pipes["stdout"][1],
                stderr=pipes["stderr"][1],
                env=self._launch.environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C in the node's terminal is not for zygotes
            )
        except OSError:
            control.close()
            for read_end, _ in pipes.values():
                os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(plan)
            for _, write_end in pipes.values():
                os.close(write_end)
        logs = [channels.LogPipe(fd, self._line_of(stream)) for stream, (fd, _) in pipes.items()]
        return control, process, logs

    def _line_of(self, stream: str) -> Callable[[str], None]:
        def on_line(line: str) -> None:
            self._last_line = said.read(stream, line).text.strip() or self._last_line
            self._on_log(stream, line)

        return on_line

    # --- orders

    @property
    def pid(self) -> int:
        """The process that all it has started descends from."""
        return self._process.pid

    @property
    def took_its_replicas(self) -> bool:
        """Whether it is dead, and its replicas therefore as well."""
        return self._has_namespaces and not self.is_usable()

    @property
    def home(self) -> str:
        """The folder of its replicas' private folders; empty: they have none."""
        return self._launch.plan.room.home

    def is_usable(self) -> bool:
        """Tell whether it takes orders; asks the kernel, as the notice of its death may still be on the way."""
        return self._failure is None and not self.gone.is_set() and self._process.poll() is None

    def order(self, order: Order) -> None:
        """Fork a replica now, or as soon as the code is imported; one of the order's callbacks follows."""
        self._queued.append(order)
        if self.gone.is_set():  # it died between the question whether it is usable and this order
            self._refuse_all(None)
        elif self._loaded:
            self._send_orders()

    def withdraw(self, replica: str) -> bool:
        """Take back an order that was not sent yet."""
        for order in self._queued:
            if order.replica == replica:
                self._queued.remove(order)
                order.close()
                return True
        return False

    def _send_orders(self) -> None:
        self._loop.remove_writer(self._control)
        while self._queued:
            order = self._queued[0]
            try:
                fds = [order.channel, order.stdout, order.stderr, *order.secrets]
                socket.send_fds(self._control, [zygote.encode(zygote.Fork(order.replica))], fds)
            except BlockingIOError:
                self._loop.add_writer(self._control, self._send_orders)
                break
            except OSError:
                break  # it is dead, and the notice of that is on the way
            self._queued.popleft()
            order.close()
            self._ordered[order.replica] = order
            self._loop.call_later(_FORK_DEADLINE_S, self._give_up_fork, order)

    def _give_up_fork(self, order: Order) -> None:
        if self._ordered.get(order.replica) is order:
            self.kill()

    # --- reports

    def _on_reports(self) -> None:
        while True:
            try:
                record, fds, _, _ = socket.recv_fds(self._control, zygote.MAX_RECORD_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except ConnectionError:
                record, fds = b"", []
            if not record:
                self._loop.remove_reader(self._control)
                return
            try:
                self._on_report(zygote.decode_report(record), fds)
            except (
                msgspec.DecodeError,
                UnicodeDecodeError,
                LookupError,
            ) as error:  # an import can write to this socket, too
                self._failure = contract.Exit(
                    "refused", f"cannot import {self._code}: its zygote talks nonsense: {error}"
                )
                self.kill()

    def _on_report(self, report: zygote.Report, fds: list[int]) -> None:
        match report:
            case zygote.Loaded(threads):
                self._on_loaded(threads)
            case zygote.Failed(_, message, traceback):
                for line in failures.lines(traceback):
                    self._on_log("stderr", line)
                self._failure = contract.Exit("refused", message)
            case zygote.Forked(replica):
                if not self._is_its_child(fds):
                    return
                self._status[replica] = self._loop.create_future()
                self._ordered.pop(replica).on_forked(kernel.pid_of(fds[0]), fds[0])
            case zygote.NotForked(replica, message):
                self._ordered.pop(replica).on_failed(contract.Exit("crashed", f"cannot fork a replica: {message}"))
            case zygote.Died(replica, status):
                if replica in self._status and not self._status[replica].done():
                    self._status[replica].set_result(status)

    def _is_its_child(self, fds: list[int]) -> bool:
        """Look whether the open file is of a process that this zygote has started.

        The agent's import could report any process of the machine, for the node to kill it one day. Raises LookupError
        for such a report; False where the zygote is dead, and nothing can be known: its end is on the way.
        """
        parent = self._process.pid
        if self._has_namespaces:  # behind its keeper and their init
            parent = processes.first_child(processes.first_child(parent))
        if processes.is_child(fds[0], parent=parent):
            return True
        for fd in fds:
            os.close(fd)
        if self._process.poll() is None:
            raise LookupError("it reports a process that is not its child")
        return False

    def _on_loaded(self, threads: str) -> None:
        self._loaded = True
        self._deadline.cancel()
        if threads:
            self._on_log(
                "stderr",
                f"importing {self._code} starts threads ({threads}), so every replica imports it for itself: slower "
                "to start, and no memory is shared; start them in the factory or in the task instead",
            )
        self._send_orders()

    async def status(self, replica: str, *, timeout_s: float) -> int | None:
        """Return how *replica* ended, None if this zygote can no longer tell or does not in time."""
        future = self._status.get(replica)
        if future is None or (self.gone.is_set() and not future.done()):
            return None
        await asyncio.wait([future], timeout=timeout_s)
        del self._status[replica]
        return future.result() if future.done() else None

    # --- its end

    @property
    def _code(self) -> str:
        return f"{self._launch.plan.config.factory} of agent {self._launch.plan.config.agent}"

    def _give_up_import(self) -> None:
        self._failure = contract.Exit(
            "refused",
            f"cannot import {self._code}: it took longer than {self._launch.import_deadline_s:g} s; move what waits or "
            "works into the factory or the task",
        )
        self.kill()

    def _on_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._on_reports()
        code = self._process.wait()
        for log in self._logs:
            log.close()
        self._deadline.cancel()
        self._loop.remove_writer(self._control)
        self._loop.remove_reader(self._control)
        self._control.close()
        os.close(self._pidfd)
        self.gone.set()
        for future in self._status.values():
            if not future.done():
                future.set_result(None)
        self._refuse_all(self._failure or self._unexpected(code))

    def _unexpected(self, code: int) -> contract.Exit | None:
        if self._loaded:
            return None
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        said = f": {self._last_line[:500]}" if self._last_line else ""
        return contract.Exit("refused", f"cannot import {self._code}: the interpreter ended ({how}){said}")

    def _refuse_all(self, exit: contract.Exit | None) -> None:
        for order in self._queued:
            order.close()
            order.on_failed(exit)
        for order in self._ordered.values():
            order.on_failed(exit)
        self._queued.clear()
        self._ordered.clear()

    def retire(self) -> None:
        """Let it go: it kills what it still has and exits."""
        self._failure = self._failure or contract.Exit("stopped", "the engine was closed")
        if self._loaded and not self.gone.is_set():
            self._control.shutdown(socket.SHUT_RDWR)
        else:
            self.kill()

    def kill(self) -> None:
        if self.gone.is_set():
            return
        # Init first: its keeper then buries it, and ends. The other way round its corpse would be this process's.
        if not (self._has_namespaces and processes.kill_first_child(self._process.pid)):
            self._process.kill()

    async def close(self) -> None:
        """Retire it, and wait until it is gone."""
        if self.gone.is_set():
            return
        self.retire()
        try:
            await asyncio.wait_for(self.gone.wait(), _EXIT_DEADLINE_S)
        except TimeoutError:
            self.kill()
            await self.gone.wait()
