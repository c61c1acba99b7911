"""The node's side of the agents' rooms: what the kernel and the user permit, and the room of each revision. Called by
`engine.local`; `engine.sandbox` closes what is described here.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

import greenroom
from greenroom import errors
from greenroom.core import isolation
from greenroom.engine import contract, kernel, landlock, namespaces, processes, sandbox, seccomp

FIRST_USER = 60_706  # nobody's: between the users of people and those that systemd hands out
MOST_USERS = 478
_PREFIX = "greenroom-"
_TRY = (
    "import sys; sys.path.insert(0, sys.argv[1]); from greenroom.engine import namespaces as n; n.try_out(sys.argv[2])"
)
_TRY_DEADLINE_S = 10.0
_USERS = "agent-users.json"  # in the data directory: who was given to which agent


def powers(first_user: int = FIRST_USER, *, tries_namespaces: bool = False) -> isolation.Powers:
    """Return what this machine permits to this process; trying namespaces takes a new interpreter, about 50 ms."""
    if sys.platform != "linux":
        return isolation.Powers(landlock_abi=0, has_seccomp=False, machine=platform.machine())
    return isolation.Powers(
        landlock_abi=landlock.abi(),
        has_seccomp=seccomp.is_there(),
        machine=platform.machine(),
        capabilities=kernel.capabilities() if os.geteuid() == 0 else frozenset(),
        unreachable=tuple(_unreachable()),
        are_uids_mapped=kernel.are_mapped(first_user, MOST_USERS),
        without_namespaces=_without_namespaces() if tries_namespaces else "nobody has tried",
    )


def _without_namespaces() -> str | None:
    """Move a process into namespaces as a zygote does, and look whether it can be seen to from here."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        package = str(Path(greenroom.__path__[0]).parent)
        tried = subprocess.Popen(
            [sys.executable, "-I", "-c", _TRY, package, folder],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"TRIED": "1"},
        )  # fmt: skip
        try:
            assert tried.stdout is not None
            is_in = tried.stdout.read(len(namespaces.TRIED)) == namespaces.TRIED
            is_seen = any(kernel.environment(pid) for pid in kernel.children_of(tried.pid))
            _, said = tried.communicate(timeout=_TRY_DEADLINE_S)
        except subprocess.TimeoutExpired:
            tried.kill()
            tried.communicate()
            return "a process that tries them hangs"
    if is_in:
        return None if is_seen else "processes in them cannot be seen to from outside"
    error = said.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"
    return isolation.why_without_namespaces(error, dict(_switches()))


def _switches() -> Iterator[tuple[str, str]]:
    for name in isolation.SWITCHES:
        with contextlib.suppress(OSError):
            yield name, Path("/proc/sys", *name.split(".")).read_text()


def _unreachable() -> Iterator[str]:
    """Yield the folders that keep other users from this interpreter or this package."""
    needed = (os.path.realpath(sys.executable), sys.prefix, os.path.realpath(greenroom.__path__[0]))
    found: dict[Path, None] = {}
    for path in map(Path, needed):
        for folder in (path, *path.parents):
            with contextlib.suppress(OSError):
                if not folder.stat().st_mode & stat.S_IXOTH:
                    found[folder] = None
    yield from map(str, found)


class Rooms:
    """The rooms of one engine. *closed* are files and folders of the node that no agent may read, wherever they are.

    *means* are those of T2, None: users.
    """

    def __init__(
        self,
        data_dir: Path,
        tier: isolation.Tier,
        *,
        means: isolation.Means | None = None,
        marker: str,
        closed: Sequence[Path] = (),
        first_user: int = FIRST_USER,
    ) -> None:
        self.tier = tier
        self._has_users = tier is isolation.Tier.T2 and means is not isolation.Means.NAMESPACES
        self._has_namespaces = tier is isolation.Tier.T2 and not self._has_users
        self.closed = (data_dir.resolve(), *(path.resolve() for path in closed))
        self._data_dir, self._first_user = data_dir.resolve(), first_user
        self._prefix = f"{_PREFIX}{marker.replace(':', '-')}"
        self._homes: Path | None = None
        self._shown: set[Path] = set()

    def is_particular(self, revision: contract.Revision) -> bool:
        """Whether there is anything to check about *revision*'s room."""
        if self._has_users:
            return True
        return self.tier is not isolation.Tier.T0 and bool(revision.read_paths or revision.write_paths)

    def check(self, revision: contract.Revision) -> None:
        """Raise `errors.AgentInvalid` where *revision*'s room cannot be made. Blocks."""
        for key, paths in (("read_paths", revision.read_paths), ("write_paths", revision.write_paths)):
            for path in paths:
                self._check_path(revision.agent, key, path)
        if self._has_users and revision.snapshot not in self._shown:
            self._show(revision.snapshot)
            self._shown.add(revision.snapshot)

    def _check_path(self, agent: str, key: str, path: Path) -> None:
        real = path.resolve()
        if not real.exists():
            raise errors.AgentInvalid(
                f"cannot start agent {agent}: its {key} names {path}, which is not there; make it, or take it out"
            )
        closed = (*self.closed, self._home_of_all())
        inside = any(_is_in(real, each) for each in closed)
        around = any(_is_in(each, real) for each in closed)
        if inside or (key == "write_paths" and around):
            where = "is in" if inside else "holds"
            raise errors.AgentInvalid(
                f"cannot start agent {agent}: its {key} names {path}, which {where} what is the node's own "
                "(its data directory, its keys, the agents' private folders); name a folder beside it"
            )

    def room(self, revision: contract.Revision) -> sandbox.Room:
        """Return the room of a revision, with a home for its private folders."""
        if self.tier is isolation.Tier.T0:
            return sandbox.Room()
        user = self._user(revision.agent) if self._has_users else None
        return sandbox.Room(
            tier=self.tier,
            read=tuple(map(str, revision.read_paths)),
            write=tuple(str(path.resolve()) for path in revision.write_paths),
            closed=(*map(str, self.closed), str(self._home_of_all())),
            ports=isolation.egress(revision.egress).ports,
            user=user,
            has_namespaces=self._has_namespaces,
            home=self._home(revision, user),
        )

    def environment(self, revision: contract.Revision) -> dict[str, str]:
        """Return the variables that the room makes necessary."""
        if self.tier is isolation.Tier.T0:
            return {}
        open_ = isolation.egress(revision.egress)
        by_tcp = open_.resolves and open_.ports is not None
        found = {"RES_OPTIONS": "use-vc", "GRPC_DNS_RESOLVER": "native"} if by_tcp else {}
        if self._has_users:  # a user that no table of the system has: libraries ask for its name
            found |= {"USER": revision.agent, "LOGNAME": revision.agent}
        return found

    def forget(self, home: str, name: str) -> None:
        """Remove the private folder *name*, or all of *home* where it is empty. Blocks."""
        if home:
            shutil.rmtree(Path(home, name) if name else home, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what dead nodes of this data directory have left. Blocks."""
        home = self._prefix.rpartition("-")[0].rpartition("-")[0].rpartition("-")[0]
        for folder in Path(tempfile.gettempdir()).glob(f"{home}-*"):
            with contextlib.suppress(OSError):
                marker, _, _ = folder.name.removeprefix(_PREFIX).rpartition("~")
                if folder.lstat().st_uid == os.geteuid() and not processes.lives(marker):
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove all private folders; who lived in them is dead. Blocks."""
        if self._homes is not None:
            shutil.rmtree(self._homes, ignore_errors=True)
            self._homes = None

    def _home_of_all(self) -> Path:
        if self._homes is None:
            self._homes = Path(tempfile.mkdtemp(prefix=f"{self._prefix}~")).resolve()
            if self._has_users:
                self._homes.chmod(0o711)
        return self._homes

    def _home(self, revision: contract.Revision, user: int | None) -> str:
        home = tempfile.mkdtemp(prefix=f"{revision.agent}-{revision.number}-", dir=self._home_of_all())
        if user is not None:
            os.chown(home, user, user)
        return home

    # --- users of the agents' own

    def _user(self, agent: str) -> int:
        """Return the user of *agent*, the same for ever: files that it has written stay its own."""
        path = self._data_dir / _USERS
        try:
            given = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        except FileNotFoundError:
            given = {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise errors.AgentInvalid(f"cannot start agent {agent}: {path} cannot be read: {error}") from None
        if agent not in given:
            range_ = range(self._first_user, self._first_user + MOST_USERS)
            free = next((user for user in range_ if user not in given.values()), None)
            if free is None:
                raise errors.AgentInvalid(
                    f"cannot start agent {agent}: all {MOST_USERS} users for agents are given away; remove the agents "
                    f"that are no more from {path}"
                )
            given[agent] = free
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_bytes(msgspec.json.encode(given, order="sorted"))
            draft.replace(path)
        return given[agent]

    def _show(self, snapshot: Path) -> None:
        """Let other users read the code of a revision, and pass through the folders on the way to it, no more.

        Folders above the data directory are somebody else's: raises `errors.AgentInvalid` where they cannot be entered.
        """
        for folder in self._data_dir.parents:
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise errors.AgentInvalid(
                    f"cannot isolate agents as T2: other users cannot enter {folder}, which the data directory is in; "
                    f"run chmod o+x {shlex.quote(str(folder))}, or choose another with --data-dir"
                )
        for folder in (self._data_dir, snapshot.parent):
            folder.chmod(folder.stat().st_mode | 0o011)
        side = self._data_dir / "replica-side"
        side.chmod(0o755)
        for path in (snapshot, *snapshot.rglob("*")):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode) | (0o555 if stat.S_ISDIR(mode) else 0o444))


def _is_in(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents
