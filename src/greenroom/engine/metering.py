"""What replicas, what they have started, and their zygotes use. Reads ``/proc``, in a thread of `engine.local`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping

from greenroom.engine import contract, kernel, processes


def look(
    replicas: Mapping[str, int],
    zygotes: Collection[int],
    *,
    enough_mb: float,
    each_mb: Mapping[str, float],
    group_mb: float | None,
) -> contract.Usage:
    """Return what *replicas*, by their processes, and *zygotes* use; see `contract.Meter`.

    The sum of their sizes is more than what they hold, as forks share pages. The kernel adds up a process's own part of
    them page by page: it is asked only while more than *enough_mb* are used, the largest first. Where all of them are
    in one group, its *group_mb* is what they use.
    """
    trees = {name: [pid, *_below(pid)] for name, pid in replicas.items()}
    seen = {pid for tree in trees.values() for pid in tree} | set(zygotes)
    sizes_mb = {pid: reading.rss_mb for pid in seen if (reading := processes.read(pid)) is not None}
    shares_mb = dict(sizes_mb)
    most_mb = sum(sizes_mb.values())
    for pid in sorted(sizes_mb, key=sizes_mb.__getitem__, reverse=True):
        if (most_mb if group_mb is None else group_mb) <= enough_mb:
            break
        shares_mb[pid] = _share_mb(pid)
        if group_mb is None:
            most_mb += shares_mb[pid] - sizes_mb[pid]
    held = {
        name: contract.Held(
            processes.held_mb(replicas[name], each_mb.get(name, math.inf)),
            sum(shares_mb.get(pid, 0.0) for pid in tree),
            sum(map(_cpu_s, tree)),
        )
        for name, tree in trees.items()
    }
    return contract.Usage(held, most_mb if group_mb is None else group_mb, _by_root(replicas, zygotes))


def _by_root(replicas: Mapping[str, int], zygotes: Collection[int]) -> dict[int, float]:
    """Return the CPU time of each zygote with all below it, and of each replica whose zygote is gone."""
    below = {zygote: [zygote, *_below(zygote)] for zygote in zygotes}
    known = {pid for tree in below.values() for pid in tree}
    below |= {pid: [pid, *_below(pid)] for pid in replicas.values() if pid not in known}
    return {root: sum(map(_cpu_s, tree)) for root, tree in below.items()}


def _share_mb(pid: int) -> float:
    """Return the memory of *pid*, of shared pages its part; all of it, where the process does not let that be read."""
    return processes.share_mb(pid) or (reading.rss_mb if (reading := processes.read(pid)) is not None else 0.0)


def _below(pid: int) -> list[int]:
    return list(itertools.islice(processes.descendants(pid), processes.MOST_DESCENDANTS))


def _cpu_s(pid: int) -> float:
    """Return the CPU time of *pid*, and of its children that have ended and were waited for."""
    try:
        fields = kernel.stat(pid)
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / processes.TICKS_PER_S
