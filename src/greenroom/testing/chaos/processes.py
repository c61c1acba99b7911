"""The processes of a node on this machine, found and signalled so that nobody else's is ever hit: a process is checked
to be the node's own after a pidfd holds it, which no other process can take over.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from greenroom.engine import kernel


class NotInjectable(Exception):
    """Why a fault cannot be injected, now or here."""


def node_pid(data_dir: Path, url: str) -> int:
    """Return the process of the node at *url*, as its data directory tells; raises `NotInjectable`."""
    place = data_dir / "node.json"
    try:
        written = json.loads(place.read_text())
        pid, at = int(written["pid"]), str(written["url"])
    except (OSError, ValueError, KeyError, TypeError):
        raise NotInjectable(f"{place} names no node of this machine; give its --data-dir") from None
    if at.rstrip("/") != url.rstrip("/"):
        raise NotInjectable(f"the node at {url} is not the one of {data_dir}; give its --data-dir")
    with held(pid) as pidfd:
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except PermissionError:
            raise NotInjectable(f"the node's process {pid} is another user's") from None
    return pid


@contextlib.contextmanager
def held(pid: int, *, below: int | None = None, started: str | None = None) -> Iterator[int]:
    """A pidfd of *pid*; raises `NotInjectable` if it is gone, is not *below* that process, or did not start then."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        raise NotInjectable(f"process {pid} is gone") from None
    try:
        if below is not None and below not in ancestors(pid):
            raise NotInjectable(f"process {pid} is not one of the node's")
        if started is not None and start_of(pid) != started:
            raise NotInjectable(f"process {pid} is gone")
        yield pidfd
    finally:
        os.close(pidfd)


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def start_of(pid: int) -> str:
    """Return when *pid* was started, in ticks: with its number, what no other process has."""
    try:
        return kernel.stat(pid)[19]
    except OSError:
        return ""


def ancestors(pid: int) -> list[int]:
    """Return the processes above *pid*, the nearest first."""
    found = []
    with contextlib.suppress(OSError):
        while (pid := int(kernel.stat(pid)[1])) > 0:
            found.append(pid)
    return found


def descendants(pid: int) -> list[int]:
    """Return the living processes below *pid*."""
    return [each for each in kernel.pids() if pid in ancestors(each)]


def zygotes(node: int, replicas: set[int]) -> list[int]:
    """Return the zygotes of *node*, whose *replicas* are known: its other children."""
    return [
        pid for pid in descendants(node) if pid not in replicas and ancestors(pid)[:1] == [node] and _is_zygote(pid)
    ]


def _is_zygote(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("zygote")
    except OSError:
        return False
