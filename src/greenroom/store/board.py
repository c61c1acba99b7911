"""The board: this node's slots, so that a task can be claimed by the very commit that stores it.

The dispatcher opens a line for each ready replica; each commit claims for the free slots and writes who got what. An
optimisation of the claim statement's timing, not a second path: the same statement runs for a long queue and an empty
one. Also where the API reads how busy a replica is. All on the event loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from greenroom.store.database import RetryTransaction
from greenroom.store.rows import SessionKey

MAX_CLAIMS = 500  # of one agent in one commit

Homes = Mapping[SessionKey, str]  # the replica that ran a session's last task
Queue = tuple[str, bool]  # an agent, and whether it is its suspects', which run alone


@dataclass(slots=True)
class Line:
    """A replica's slots."""

    queue: Queue
    revision: int
    slots: int
    busy: int = 0
    attempts: int = 0  # also those that wait for a sub-task and hold no slot
    open: bool = True

    @property
    def free(self) -> int:
        return self.slots - self.busy if self.open else 0

    @property
    def load(self) -> float:
        return self.busy / self.slots

    def occupy(self) -> None:
        self.busy += 1
        self.attempts += 1


@dataclass(frozen=True, slots=True)
class Demand:
    """How many tasks of *agent* this node would take now, for replicas of *revision*; suspects to *run_alone*."""

    agent: str
    revision: int
    slots: int
    run_alone: bool = False

    @property
    def queue(self) -> Queue:
        return self.agent, self.run_alone


class Board:
    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._by_queue: dict[Queue, dict[str, Line]] = {}
        self._hungry: set[Queue] = set()  # those that may have claimable tasks
        self._reserved: set[Queue] = set()  # those whose free slots a commit in flight may fill

    def open(self, replica: str, *, agent: str, revision: int, slots: int, for_suspects: bool = False) -> None:
        queue = agent, for_suspects
        line = self._lines[replica] = Line(queue, revision, slots)
        self._by_queue.setdefault(queue, {})[replica] = line
        self._hungry.add(queue)

    def drain(self, replica: str) -> None:
        """Take no more for *replica*; what runs goes on."""
        if (line := self._lines.get(replica)) is not None:
            line.open = False

    def close(self, replica: str) -> None:
        if (line := self._lines.pop(replica, None)) is not None:
            self._by_queue[line.queue].pop(replica, None)

    def busy(self, replica: str) -> int:
        line = self._lines.get(replica)
        return line.busy if line is not None else 0

    def attempts(self, replica: str) -> int:
        """Return how many attempts *replica* has, waiting ones too: it may go when there are none."""
        line = self._lines.get(replica)
        return line.attempts if line is not None else 0

    def try_occupy(self, replica: str) -> bool:
        """Take a slot of *replica* for a task that resumes; False while none is free or a commit may fill it."""
        line = self._lines.get(replica)
        if line is None or line.slots <= line.busy or line.queue in self._reserved:
            return False
        line.busy += 1
        return True

    def release(self, replica: str) -> None:
        """Free a slot."""
        if (line := self._lines.get(replica)) is not None:
            line.busy -= 1

    def vacate(self, replica: str) -> None:
        """Take back an assignment: it was not committed."""
        self.release(replica)
        self.leave(replica)

    def leave(self, replica: str) -> None:
        """Note that an attempt of *replica* is over."""
        if (line := self._lines.get(replica)) is not None:
            line.attempts -= 1

    def mark(self, agents: Iterable[str]) -> None:
        """Note that *agents* may have claimable tasks."""
        for agent in agents:
            self._hungry.add((agent, False))
            if (agent, True) in self._by_queue:
                self._hungry.add((agent, True))

    def mark_all(self) -> None:
        self._hungry.update(self._by_queue)

    def has_demand(self) -> bool:
        return any(line.free > 0 for queue in self._hungry for line in self._by_queue.get(queue, {}).values())

    def reserve(self) -> list[Demand]:
        """Reserve the free slots of every queue that may have work; `settle` gives back what stayed empty."""
        demands = []
        for queue in sorted(self._hungry):  # in one order: a simulation is its seed
            free: dict[int, int] = {}
            for line in self._by_queue.get(queue, {}).values():
                if line.free > 0:
                    free[line.revision] = free.get(line.revision, 0) + line.free
            # The newest revision that has room: claims bind to it.
            if free:
                revision = max(free)
                agent, run_alone = queue
                self._reserved.add(queue)
                demands.append(Demand(agent, revision, min(free[revision], MAX_CLAIMS), run_alone))
        return demands

    def seat(self, agent: str, count: int) -> tuple[list[str], int]:
        """Occupy slots for at most *count* tasks of *agent* that are not stored yet, if none is queued before them.

        Return the replicas, and the revision that all of them are of.
        """
        queue = agent, False
        lines = self._by_queue.get(queue, {})
        revision = max((line.revision for line in lines.values() if line.free > 0), default=0)
        if not revision or queue in self._hungry:
            return [], revision
        return list(itertools.islice(_spread(lines, revision), count)), revision

    def assign(self, demand: Demand, sessions: Iterable[SessionKey | None], homes: Homes) -> list[str]:
        """Occupy a slot for each claimed task: its session's replica (*homes*) if that has room, else the least loaded.

        Return the replicas in the order of *sessions* and settle the reservation; raises `RetryTransaction` if there is
        no room any more, because a replica was drained or closed meanwhile.
        """
        self._reserved.discard(demand.queue)
        lines = self._by_queue.get(demand.queue, {})
        elsewhere = _spread(lines, demand.revision)
        replicas: list[str] = []
        for session in sessions:
            home = homes.get(session) if session is not None else None
            if home in lines and lines[home].revision == demand.revision and lines[home].free > 0:
                lines[home].occupy()
            else:
                home = next(elsewhere, None)
            if home is None:
                for replica in replicas:
                    self.vacate(replica)
                raise RetryTransaction("a replica went away while tasks were claimed for it")
            replicas.append(home)
        if len(replicas) < demand.slots:
            self._hungry.discard(demand.queue)
        return replicas

    def settle(self, demand: Demand) -> None:
        """Give up what is left of the reservation of *demand*."""
        self._reserved.discard(demand.queue)


def _spread(lines: dict[str, Line], revision: int) -> Iterator[str]:
    """Occupy slot after slot, each of the replica that is the least loaded then."""
    loads = [(line.load, name) for name, line in lines.items() if line.revision == revision and line.free > 0]
    heapq.heapify(loads)
    while loads:
        _, name = loads[0]
        line = lines[name]
        if line.free <= 0:  # a session's task has taken the last one
            heapq.heappop(loads)
            continue
        line.occupy()
        heapq.heapreplace(loads, (line.load, name))
        yield name
