"""What bounds an agent's replicas from outside: the envelope, its rollout, its breaker, its state, and the others.

Of one step of `control.autoscaler`; what one agent takes the next one does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from greenroom import settings
from greenroom.core import agents, rollouts
from greenroom.core.resources import CROWDED_PCT, RECYCLE_PCT, Use
from greenroom.core.scaling import Caps, Sample
from greenroom.store.agents import Replica
from greenroom.store.directory import Entry

HOT = 0.9  # of cluster.cpu
NAMED = 3  # of those that want replicas, too


class Bounds:
    """*use* is what all replicas use; None: nobody measures it, and their rows tell their memory. *dying* says whose
    replicas die, and of what.
    """

    def __init__(
        self,
        cluster: settings.Cluster,
        entries: Mapping[str, Entry],
        replicas: Sequence[Replica],
        use: Use | None,
        *,
        dying: Mapping[str, str],
    ) -> None:
        self._cluster, self._entries, self._dying = cluster, entries, dying
        self._surge = cluster.max_replicas if cluster.max_surge is None else cluster.max_surge
        self._sizes: dict[str, list[float]] = {}
        for replica in replicas:
            if replica.memory_mb is not None:
                self._sizes.setdefault(replica.agent, []).append(replica.memory_mb)
        self._use = use or Use(0.0, sum(map(sum, self._sizes.values())))
        self._counted = self._use.counted
        if self._counted is None:
            self._counted = {name: len(sizes) for name, sizes in self._sizes.items()}
        self._expected_mb = sum(self._coming_mb(entry) for entry in entries.values())
        self._taken_mb = 0.0
        # What was not measured counts shared pages again and again: it takes nothing that is there.
        self._crowding = None if use is None else self._giving_up()

    def take(self, entry: Entry, replicas: int) -> None:
        """Note that *replicas* more are to be started."""
        self._taken_mb += max(0, replicas) * self._size_mb(entry.agent.name)

    def forget_taken(self) -> None:
        self._taken_mb = 0.0

    def caps(self, entry: Entry, sample: Sample, *, limit: int | None) -> Caps:
        """Return the bounds of an agent; *limit* is the board's, of its tasks at once."""
        room, told = self._memory(entry)
        return Caps(
            surge=self._beside(entry),
            room_by_memory=room,
            memory=told,
            cpu=self._cpu(),
            breaker=_breaker(entry.spec, limit),
            failing=_failing(entry, sample) or self._dying.get(entry.agent.name, ""),
        )

    def _cpu(self) -> str:
        most = self._cluster.cpu
        if most == "off" or self._use.cpu < HOT * most:
            return ""
        return f"all replicas use {self._use.cpu:.1f} of {most:g} CPUs (cluster.cpu): more of them would not help"

    def _memory(self, entry: Entry) -> tuple[int | None, str]:
        most, size_mb = self._cluster.memory_mb, self._size_mb(entry.agent.name)
        if most == "off":
            return None, ""
        used_mb = self._use.memory_mb + self._expected_mb + self._taken_mb
        told = f"all replicas use {used_mb:.0f} of {most} MB (cluster.memory_mb)"
        if entry.agent.name == self._crowding:
            # Else who is killed for it would be started again, and killed again.
            return -1, f"{told}, the most of them those of this agent: one has to go"
        if not size_mb:
            return int(used_mb < most), f"{told}, and what one of these takes is not known yet: they come one by one"
        # From there on replicas are replaced, and each needs room for its successor.
        room = max(0, int((most * RECYCLE_PCT / 100 - used_mb) // size_mb))
        return room, (
            f"{told}, one of these takes {size_mb:.0f}, and {RECYCLE_PCT} % may be filled, "
            f"so there is room for {room} more"
        )

    def _giving_up(self) -> str | None:
        """Return the agent that has the most memory above its minimum, where there is hardly any left."""
        most = self._cluster.memory_mb
        if most == "off" or self._use.memory_mb <= most * CROWDED_PCT / 100:
            return None
        held_mb = {
            name: self._size_mb(name) * entry.agent.replicas
            for name, entry in self._entries.items()
            if entry.agent.replicas > max(1, entry.spec.scaling.min_replicas)
        }
        return max(held_mb, key=lambda name: (held_mb[name], name), default=None)

    def _size_mb(self, agent: str) -> float:
        sizes = self._sizes.get(agent, ())
        return sum(sizes) / len(sizes) if sizes else 0.0

    def _coming_mb(self, entry: Entry) -> float:
        """Return what the replicas will take, as far as is known, that were not there when memory was measured."""
        assert self._counted is not None
        name = entry.agent.name
        return self._size_mb(name) * max(0, entry.agent.replicas - self._counted.get(name, 0))

    def _beside(self, entry: Entry) -> int | None:
        """Return how many replicas the agent may have while its rollout needs others beside them."""
        if entry.rollout is None or not entry.rollout.state.is_open:
            return None
        state, name = entry.rollout.state, entry.agent.name
        taken = sum(
            rollouts.beside(other.rollout.state, other.agent.replicas)
            for other in self._entries.values()
            if other.rollout is not None and other.agent.name != name
        )
        low, high = 0, self._cluster.max_replicas
        while low < high:  # what a rollout needs beside them grows with their number
            middle = (low + high + 1) // 2
            if taken + rollouts.beside(state, middle) <= self._surge:
                low = middle
            else:
                high = middle - 1
        return low


def _failing(entry: Entry, sample: Sample) -> str:
    """Say why more replicas would not help: none works, or none gets tasks."""
    if entry.rollout is not None and (checking := agents.checking(entry.rollout.state)) is not None:
        return f"its first revision gets no tasks before it has passed its checks: {checking[1]}"
    state = entry.agent.state
    is_failing = state == agents.State.QUARANTINED or (state == agents.State.FAILED and not sample.ready)
    return f"none of its replicas works, and more would not: {entry.agent.reason[:200]}" if is_failing else ""


def sharing(agent: str, share: int, wants: Mapping[str, tuple[int, int]], *, most: int) -> str:
    """Say why *agent* gets no more than *share*: who else wants how many."""
    others = sorted(((wanted, name) for name, (_, wanted) in wants.items() if name != agent), reverse=True)
    hungry = [(wanted, name) for wanted, name in others if wanted]
    named = "".join(f", {name} wants {wanted}" for wanted, name in hungry[:NAMED])
    more = f" and {len(hungry) - NAMED} more do" if len(hungry) > NAMED else ""
    told = f"cluster.max_replicas is {most}{named}{more}, and its fair share is {share}"
    least = sum(least for name, (least, _) in wants.items() if name != agent)
    if share or least < most:
        return told
    return f"{told}: the minimums of the others are {least}; raise it, or lower a scaling.min_replicas"


def _breaker(spec: settings.AgentSettings, limit: int | None) -> str:
    """Say that its breaker, and not `max_running`, limits an agent: what waits, waits for what it calls.

    One that is half-open lets through what still ran and one more: any number.
    """
    if limit is None or limit == spec.max_running:
        return ""
    return "its circuit breaker is not closed: what waits, waits for what it calls"
