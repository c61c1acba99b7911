"""What replicas, what they have started, and their zygotes use. Reads ``/proc``, in a thread of `engine.local`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from greenroom.engine import contract, kernel, processes


class _Look:
    """Each process is looked at once."""

    def __init__(self) -> None:
        self._children: dict[int, list[int]] = {}
        self._seen: dict[int, tuple[float, float]] = {}

    def tree(self, root: int) -> list[int]:
        """Return *root* and what it has started, the nearest first, and no more of that than it may be."""
        found = [root]
        for pid in found:
            if len(found) > processes.MOST_DESCENDANTS:
                break
            if pid not in self._children:
                self._children[pid] = kernel.children_of(pid)
            found += self._children[pid]
        return found

    def size_mb(self, pid: int) -> float:
        return self._of(pid)[0]

    def cpu_s(self, pids: Collection[int]) -> float:
        """Return the CPU time of *pids*, and of their children that have ended and were waited for."""
        return sum(self._of(pid)[1] for pid in pids)

    def _of(self, pid: int) -> tuple[float, float]:
        if pid not in self._seen:
            try:
                fields = kernel.stat(pid)
                cpu_s = sum(map(int, fields[11:15])) / processes.TICKS_PER_S
                self._seen[pid] = processes.size_mb(fields), cpu_s
            except OSError:
                self._seen[pid] = 0.0, 0.0
        return self._seen[pid]


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
    seen = _Look()
    trees = {name: seen.tree(pid) for name, pid in replicas.items()}
    below = {zygote: seen.tree(zygote) for zygote in zygotes}
    # Who was left behind by a replica, or started by an import, is its zygote's.
    pids = {pid for each in (trees, below) for tree in each.values() for pid in tree}
    sizes_mb = {pid: seen.size_mb(pid) for pid in pids}
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
            seen.size_mb(tree[0]) if len(tree) == 1 else processes.held_mb(tree[0], each_mb.get(name, math.inf)),
            sum(shares_mb[pid] for pid in tree),
            seen.cpu_s(tree),
        )
        for name, tree in trees.items()
    }
    return contract.Usage(held, most_mb if group_mb is None else group_mb, _by_root(seen, trees, below))


def _by_root(seen: _Look, trees: Mapping[str, list[int]], below: Mapping[int, list[int]]) -> dict[int, float]:
    """Return the CPU time of each zygote with all below it, and of each replica whose zygote is gone."""
    known = {pid for tree in below.values() for pid in tree}
    adopted = {tree[0]: tree for tree in trees.values() if tree[0] not in known}
    return {root: seen.cpu_s(tree) for root, tree in (*below.items(), *adopted.items())}


def _share_mb(pid: int) -> float:
    """Return the memory of *pid*, of shared pages its part; all of it, where the process does not let that be read."""
    return processes.share_mb(pid) or (reading.rss_mb if (reading := processes.read(pid)) is not None else 0.0)
