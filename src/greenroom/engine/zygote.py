"""The process that imports a revision's code once and forks its replicas. The replica's side: standard
library and msgspec.

`engine.zygotes` starts it with ``python -I`` and a clean environment and speaks to it over a SOCK_SEQPACKET
pair, one message a record. It stays single-threaded, because fork copies one thread and every lock that the
others hold. Where the import started threads, it begins again as a fresh interpreter that imports nothing,
and every replica imports for itself after its fork: slower and larger, and safe.

It is the parent of everything below it, orphans included (subreaper), reaps it, and when its node is gone
(end of file) it kills until it has no child left. When it dies itself, the node adopts its replicas and they
go on. In namespaces of its own its end is that of its replicas, and the node's is that of all: see `namespaces.enter`.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

import msgspec

from greenroom.engine import kernel, replica, sandbox, secret_values

REPLICA_MARKER = "GREENROOM_REPLICA"
MAX_REPLICA_ID_BYTES = 64
MAX_RECORD_BYTES = 64 * 1024

BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from greenroom.engine import zygote; zygote.main()"
"""What ``python -I -X utf8 -c`` runs; arguments: the replica's side, the control socket's number, the node's
process, and the names of threads, empty at first."""


class Plan(msgspec.Struct, frozen=True):
    """What every replica of this zygote has in common; on its standard input."""

    config: replica.Config
    memory_mb: int | None = None
    groups: tuple[str, ...] = ()  # the files to write itself into, so that the node's limits hold for it and its forks
    cpus: tuple[int, ...] = ()  # the only ones to run on; none: all
    room: sandbox.Room = sandbox.Room()
    secrets: tuple[str, ...] = ()  # the variables whose values come with each `Fork`


# --- node to zygote


class Fork(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Make one replica; with the record come its channel, stdout and stderr, and an open file for each secret."""

    replica: str


# --- zygote to node


class Loaded(msgspec.Struct, frozen=True, tag=16, array_like=True):
    """Ready. *threads* names those that the import started: replicas are then forked before it."""

    threads: str = ""


class Failed(msgspec.Struct, frozen=True, tag=17, array_like=True):
    """The code cannot be imported; the zygote then exits."""

    error_type: str
    message: str
    traceback: str


class Forked(msgspec.Struct, frozen=True, tag=18, array_like=True):
    """The replica runs; with the record comes its pidfd, opened before anyone could reap it."""

    replica: str


class NotForked(msgspec.Struct, frozen=True, tag=19, array_like=True):
    replica: str
    message: str


class Died(msgspec.Struct, frozen=True, tag=20, array_like=True):
    """The replica is dead, its group is killed. *status* is an exit code, or minus the signal's number."""

    replica: str
    status: int


Report = Loaded | Failed | Forked | NotForked | Died
decode_report = msgspec.msgpack.Decoder(Report).decode
encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(Fork).decode


def main() -> NoReturn:
    _, side, control_fd, node, threads = sys.argv
    kernel.die_with_parent(signal.SIGKILL)  # an import that hangs would not see the end of file
    if os.getppid() != int(node):
        os._exit(0)
    sys.argv = [""]
    control = socket.socket(fileno=int(control_fd))
    marker, plan = kernel.Marker(REPLICA_MARKER), _read_plan()
    doors = sandbox.Doors(plan.room, own=[plan.config.snapshot, side, str(Path(kernel.__file__).parents[1])])
    if not threads:  # else it has done so already: all of it outlives an exec
        _enter_envelope(plan, control)
        _close_room(plan, doors, control)
    _settle(plan.config)
    if not threads:
        environment = dict(os.environ)
        _load(plan.config, control)
        threads = ", ".join(kernel.threads()[1:])
        if threads:
            _start_again([side, str(control_fd), str(os.getppid()), threads], control, environment)
    _freeze()
    control.send(encode(Loaded(threads)))
    if not plan.room.has_namespaces:
        kernel.die_with_parent(0)
        if os.getppid() != int(node):
            os._exit(0)
    _Zygote(plan, control, marker, doors).serve()


def _read_plan() -> Plan:
    with open(0, "rb", closefd=False) as standard_input:
        standard_input.seek(0)
        return msgspec.msgpack.decode(standard_input.read(), type=Plan)


def _enter_envelope(plan: Plan, control: socket.socket) -> None:
    """Keep to the node's limits before any code of the agent runs: its import may start processes, too."""
    try:
        for group in plan.groups:
            Path(group).write_text("0")
        if plan.cpus:
            os.sched_setaffinity(0, plan.cpus)
    except OSError as error:
        _give_up(control, f"cannot keep to the node's limits (cluster.cpu, memory_mb): {error}")


def _close_room(plan: Plan, doors: sandbox.Doors, control: socket.socket) -> None:
    try:
        sandbox.close(plan.room, doors)
    except OSError as error:
        _give_up(control, f"cannot close the agent's room as {plan.room.tier} (security.isolation): {error}")


def _give_up(control: socket.socket, why: str) -> NoReturn:
    control.send(encode(Failed("OSError", why, "")))
    sys.exit(1)


def _settle(config: replica.Config) -> None:
    os.chdir(config.snapshot)
    sys.path.insert(0, config.snapshot)
    kernel.be_called(f"zygote {config.agent}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # typed as TextIO, always a TextIOWrapper
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _load(config: replica.Config, control: socket.socket) -> None:
    try:
        replica.load(config)
    except replica.LoadFailed as failure:
        limit = MAX_RECORD_BYTES // 16  # in characters; four bytes each at most
        control.send(encode(Failed(failure.error_type[:200], failure.message[:limit], failure.traceback[-limit:])))
        sys.exit(1)


def _start_again(arguments: list[str], control: socket.socket, environment: dict[str, str]) -> NoReturn:
    control.set_inheritable(True)
    os.execve(sys.executable, [sys.executable, "-I", "-X", "utf8", "-c", BOOT, *arguments], environment)  # noqa: S606  # the same program


def _freeze() -> None:
    """Leave nothing behind that a replica would say again or that its collector would write to."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # measured: after one collection in the child 1.3 MB of its own instead of 15.5


class _Zygote:
    def __init__(self, plan: Plan, control: socket.socket, marker: kernel.Marker, doors: sandbox.Doors) -> None:
        self._plan, self._control, self._marker, self._doors = plan, control, marker, doors
        self._most_fds = 3 + len(plan.secrets)
        self._replicas: dict[int, str] = {}
        self._woken, self._wakes = socket.socketpair()
        self._woken.settimeout(0)
        self._wakes.settimeout(0)

    def serve(self) -> NoReturn:
        kernel.become_subreaper()
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to be woken
        ready = select.poll()
        ready.register(self._control, select.POLLIN)
        ready.register(self._woken, select.POLLIN)
        self._reap()
        while True:
            for fd, _ in ready.poll():
                if fd == self._control.fileno():
                    self._obey()
                else:
                    self._woken.recv(4096)
                    self._reap()

    def _obey(self) -> None:
        try:
            record, fds, _, _ = socket.recv_fds(
                self._control, MAX_RECORD_BYTES, self._most_fds, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            record, fds = b"", []
        if not record:
            _kill_everything_below()
        self._fork(_decode_order(record).replica, fds)
        for fd in fds:
            os.close(fd)

    def _fork(self, replica_id: str, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._report(NotForked(replica_id, str(error)))
            return
        if pid == 0:
            self._become(replica_id, *fds)
        self._replicas[pid] = replica_id
        pidfd = os.pidfd_open(pid)
        self._report(Forked(replica_id), pidfd)
        os.close(pidfd)

    def _report(self, report: Report, *fds: int) -> None:
        try:
            socket.send_fds(self._control, [encode(report)], fds)
        except ConnectionError:
            _kill_everything_below()

    def _become(self, replica_id: str, channel: int, stdout: int, stderr: int, *values: int) -> NoReturn:
        # Open files of the zygote itself end here; what the agent's import opened is the agent's, and closing
        # it behind the agent's back would hand the number to somebody else.
        try:
            signal.set_wakeup_fd(-1)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            for fd in (stdout, stderr, self._control.detach(), self._woken.detach(), self._wakes.detach()):
                os.close(fd)
            self._marker.write(replica_id)
            os.chdir(self._plan.config.snapshot)
            sandbox.enter(self._plan.room, self._doors, replica=replica_id, memory_mb=self._plan.memory_mb)
            secret_values.learn(self._plan.secrets, values)
            config = msgspec.structs.replace(self._plan.config, replica=replica_id)
            replica.main(socket.socket(fileno=channel), config)
        except BaseException:  # noqa: BLE001  # nothing may return into the zygote's loop
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(70)

    def _reap(self) -> None:
        """Bury the dead; a replica's group is killed while the corpse still holds its number."""
        while (dead := _peek()) is not None:
            if dead in self._replicas:
                _kill_group(dead)
            _, status = os.waitpid(dead, 0)
            if dead in self._replicas:
                self._report(Died(self._replicas.pop(dead), os.waitstatus_to_exitcode(status)))


def _peek() -> int | None:
    try:
        dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return dead.si_pid if dead is not None else None


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # it died before it had a group of its own


def _kill_everything_below() -> NoReturn:
    """The node is gone. Orphans come to this process, so killing children until there are none reaches them all."""
    while True:
        for pid in kernel.children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            os._exit(0)
