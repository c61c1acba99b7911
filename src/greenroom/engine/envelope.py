"""The envelope: what all replicas of a node may use together, held by the kernel where that lets us. Called by
`engine.local`.

Zygotes join the envelope before they import an agent's code, and whatever they fork is born in it; the node itself
never is. What holds a limit is, from the best down: a control group (version 2, or the hierarchy of version 1 that has
the controller), a set of CPUs, or nothing but `control.resources`, which measures and acts.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from greenroom.engine import processes

PREFIX = "greenroom-"
SELF = Path("/proc/self")
_PERIOD_US = 100_000  # of the kernel's CPU quota: its own default
_LEAST_QUOTA_US = 1_000  # what the kernel takes
_REMOVE_WITHIN_S = 1.0  # the dead leave their group a moment after they are waited for


class How(enum.StrEnum):
    """What holds a limit."""

    CGROUP_V2 = "cgroup v2"
    CGROUP_V1 = "cgroup v1"
    AFFINITY = "affinity"
    MEASURED = "measured"
    OFF = "off"


class Limits(msgspec.Struct, frozen=True):
    """None: no limit."""

    cpu: float | None = None
    memory_mb: int | None = None


class Enforcement(msgspec.Struct, frozen=True):
    """How each limit is held; *warnings* tell people where that is less than what was asked for."""

    cpu: How = How.OFF
    memory: How = How.OFF
    warnings: tuple[str, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """What a zygote does to be inside: write itself into the files *groups*, and keep to *cpus* where there are any."""

    groups: tuple[str, ...] = ()
    cpus: tuple[int, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """Where this process is in the hierarchy of a controller."""

    folder: Path
    how: How


def places(mountinfo: str, membership: str) -> dict[str, Place]:
    """Return where this process is for the controllers *cpu* and *memory*, by its ``mountinfo`` and ``cgroup``.

    Version 1 goes first: a controller that is mounted there is in no version 2 hierarchy.
    """
    mounts: list[tuple[Path, str, str, list[str]]] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, filesystem = before.split(), after.split()
        mounts.append((Path(_plain(fields[4])), _plain(fields[3]), filesystem[0], filesystem[-1].split(",")))
    groups = [line.split(":", 2) for line in membership.splitlines()]
    found: dict[str, Place] = {}
    for controller in ("cpu", "memory"):
        for at, root, kind, options in mounts:
            is_v1 = kind == "cgroup" and controller in options
            if not is_v1 and kind != "cgroup2":
                continue
            of = next(
                (path for _, names, path in groups if (controller in names.split(",") if is_v1 else not names)), None
            )
            if of is not None and (is_v1 or controller not in found):
                found[controller] = Place(_below(at, root, of), How.CGROUP_V1 if is_v1 else How.CGROUP_V2)
    return found


def _plain(text: str) -> str:
    return text.replace("\\040", " ").replace("\\134", "\\")


def _below(at: Path, root: str, group: str) -> Path:
    """Return the folder of *group* where the part of the hierarchy below *root* is mounted *at*."""
    if root != "/" and (group == root or group.startswith(root + "/")):
        group = group[len(root) :]
    return at / group.strip("/")


class Envelope:
    """The limits of one engine, and the groups that hold them. *marker* is the engine's own."""

    def __init__(self, limits: Limits, *, marker: str, source: Path = SELF) -> None:
        self.limits = limits
        self._name = PREFIX + marker.replace(":", "-")
        self._places = _places(source)
        self._groups: dict[str, Path] = {}  # by controller
        self._cpus: tuple[int, ...] = ()
        self._warnings: list[str] = []
        self.how = Enforcement(self._hold_cpu(), self._hold_memory(), tuple(self._warnings))

    def entry(self) -> Entry:
        """Return what the next zygote is to do; a group that somebody has removed is made again."""
        for controller in list(self._groups):
            if not self._groups[controller].is_dir():
                self._make(controller)
        procs = dict.fromkeys(str(group / "cgroup.procs") for group in self._groups.values())
        return Entry(tuple(procs), self._cpus)

    def held_mb(self) -> float | None:
        """Return the memory that the group holds and cannot give back, in MB; None where there is no group."""
        group = self._groups.get("memory")
        if group is None:
            return None
        is_v1 = self.how.memory is How.CGROUP_V1
        used = group / ("memory.usage_in_bytes" if is_v1 else "memory.current")
        prefix = "total_" if is_v1 else ""
        cached = {f"{prefix}inactive_file", f"{prefix}active_file"}
        try:
            lines = (group / "memory.stat").read_text().splitlines()
            files = sum(int(line.split()[1]) for line in lines if line.split()[0] in cached)
            return max(0.0, (int(used.read_text()) - files) / 2**20)
        except (OSError, ValueError, IndexError):
            return None

    @property
    def kills(self) -> Path | None:
        """The file in which the kernel counts whom it has killed because the group was full."""
        group = self._groups.get("memory")
        if group is None:
            return None
        return group / ("memory.oom_control" if self.how.memory is How.CGROUP_V1 else "memory.events")

    def close(self) -> None:
        """Remove the groups; whoever was in them is dead."""
        deadline_s = time.monotonic() + _REMOVE_WITHIN_S
        for group in set(self._groups.values()):
            while not _removed(group) and time.monotonic() < deadline_s:
                time.sleep(0.005)

    def sweep(self) -> None:
        """Remove the groups that dead nodes have left beside these; what is not empty stays."""
        for parent in {parent for name in self._places for parent in self._parents(name)}:
            with contextlib.suppress(OSError):
                for group in parent.glob(f"{PREFIX}*"):
                    if not processes.lives(group.name.rpartition(PREFIX)[2]):
                        _removed(group)

    # --- CPU

    def _hold_cpu(self) -> How:
        cpu = self.limits.cpu
        if cpu is None:
            return How.OFF
        if self._make("cpu"):
            return self._places["cpu"].how
        if not hasattr(os, "sched_setaffinity"):
            self._warnings.append(
                f"cluster.cpu = {cpu:g} is not enforced: this system has neither control groups that can be written "
                'to, nor sets of CPUs for a process; run the node on Linux, or say cpu = "off"'
            )
            return How.OFF
        mine = sorted(os.sched_getaffinity(0))
        whole = math.ceil(cpu)
        if whole < len(mine):
            self._cpus = tuple(mine[-whole:])
        if whole > cpu and cpu < len(mine):
            self._warnings.append(
                f"cluster.cpu = {cpu:g} is enforced as {min(whole, len(mine))}: without control groups that can be "
                "written to, only whole CPUs can be set apart; make a group for the node (docs/resources.md)"
            )
        return How.AFFINITY

    # --- memory

    def _hold_memory(self) -> How:
        if self.limits.memory_mb is None:
            return How.OFF
        if self._make("memory"):
            return self._places["memory"].how
        if not Path("/proc/self/stat").exists():
            self._warnings.append(
                f"cluster.memory_mb = {self.limits.memory_mb} is not enforced: this system has neither control groups "
                'nor /proc to measure by; run the node on Linux, or say memory_mb = "off"'
            )
            return How.OFF
        return How.MEASURED

    # --- groups

    def _make(self, controller: str) -> bool:
        """Make the group that holds the limit of *controller*; False where that cannot be."""
        for parent in self._parents(controller):
            group = parent / self._name
            try:
                group.mkdir(exist_ok=True)
                for name, value in self._values(controller, self._places[controller].how):
                    _write(group / name, value)
            except OSError:
                if group not in self._groups.values():
                    _removed(group)
                continue
            self._groups[controller] = group
            return True
        self._groups.pop(controller, None)
        return False

    def _parents(self, controller: str) -> Iterator[Path]:
        """Yield where a group may be made so that the limits which the node itself has hold for it, too."""
        place = self._places.get(controller)
        if place is None:
            return
        if place.how is How.CGROUP_V1 or _delegates(place.folder, controller):
            yield place.folder
        # Version 2 lets no group have both processes and groups with limits. Where the group above was given to this
        # user for just that (systemd: Delegate= with DelegateSubgroup=), it holds the node's limits, and takes ours.
        if (
            place.how is How.CGROUP_V2
            and _is_given(place.folder.parent)
            and _delegates(place.folder.parent, controller)
        ):
            yield place.folder.parent

    def _values(self, controller: str, how: How) -> Iterator[tuple[str, str]]:
        is_v1 = how is How.CGROUP_V1
        if controller == "cpu":
            assert self.limits.cpu is not None
            quota_us = max(_LEAST_QUOTA_US, round(self.limits.cpu * _PERIOD_US))
            if is_v1:
                yield "cpu.cfs_period_us", str(_PERIOD_US)
                yield "cpu.cfs_quota_us", str(quota_us)
            else:
                yield "cpu.max", f"{quota_us} {_PERIOD_US}"
            return
        assert self.limits.memory_mb is not None
        limit = str(self.limits.memory_mb * 2**20)
        if is_v1:
            yield "memory.limit_in_bytes", limit
        else:
            yield "memory.max", limit
        for swap, value in (("memory.memsw.limit_in_bytes", limit), ("memory.swap.max", "0")):
            yield f"?{swap}", value


def _write(path: Path, value: str) -> None:
    """Write a limit; one whose name begins with ``?`` only where the kernel has it."""
    if path.name.startswith("?"):
        path = path.with_name(path.name[1:])
        if not path.exists():
            return
    # Not write_text, which would make the file where there is none.
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _places(source: Path) -> Mapping[str, Place]:
    try:
        return places((source / "mountinfo").read_text(), (source / "cgroup").read_text())
    except (OSError, ValueError, IndexError):
        return {}


def _delegates(folder: Path, controller: str) -> bool:
    """Tell whether groups in *folder* have *controller*; switch it on for them where that can be."""
    control = folder / "cgroup.subtree_control"
    try:
        if controller in control.read_text().split():
            return True
        if controller not in (folder / "cgroup.controllers").read_text().split():
            return False
        _write(control, f"+{controller}")
    except OSError:
        return False
    return True


def _is_given(folder: Path) -> bool:
    """Tell whether the group was handed to who runs this node, by systemd or by its owner."""
    if os.geteuid() != 0:
        return os.access(folder / "cgroup.procs", os.W_OK)
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
