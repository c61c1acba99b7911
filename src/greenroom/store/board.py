"""The board: this node's slots, so that a task can be claimed by the very commit that stores it.

The dispatcher opens a line for each ready replica; each commit claims for the free slots and writes who got what. An
optimisation of the claim statement's timing, not a second path: the same statement runs for a long queue and an empty
one. Also where the API reads how busy a replica is. All on the event loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from greenroom.store.database import RetryTransaction
from greenroom.store.rows import SessionKey

MAX_CLAIMS = 500  # of one agent in one commit

Homes = Mapping[SessionKey, str]  # the replica that ran a session's last task
Queue = tuple[str, bool, int]  # an agent, whether it is its suspects', which run alone, and the revision

BUCKETS = 100_000  # that tasks are spread over, to be given to revisions by their shares
STRIDE = 61_803  # about BUCKETS by the golden ratio: a task's number by this, modulo BUCKETS, is its bucket, and each
# run of tasks is spread evenly, whatever the period of what comes in (Weyl's sequence)


@dataclass(slots=True)
class Line:
    """A replica's slots."""

    queue: Queue
    slots: int
    busy: int = 0
    attempts: int = 0  # also those that wait for a sub-task and hold no slot
    open: bool = True
    turn: int = 0  # when it was given a task last: of those that are loaded alike, the one that has waited longest goes

    is_distrusted: bool = False  # it fails, and its peers do not: it gets one task at a time
    is_resting: bool = False  # and now none

    @property
    def free(self) -> int:
        if not self.open or self.is_resting:
            return 0
        return max(0, 1 - self.busy) if self.is_distrusted else self.slots - self.busy

    @property
    def load(self) -> float:
        return self.busy / self.slots

    def occupy(self) -> None:
        self.busy += 1
        self.attempts += 1


@dataclass(frozen=True, slots=True)
class Demand:
    """How many tasks of *agent* this node would take now, for replicas of *revision*; suspects to *run_alone*.

    Of those that no session keeps to a revision, it takes what is in the buckets from *low* to below *high*.
    """

    agent: str
    revision: int
    slots: int
    run_alone: bool = False
    low: int = 0
    high: int = BUCKETS

    @property
    def queue(self) -> Queue:
        return self.agent, self.run_alone, self.revision


@dataclass(frozen=True, slots=True)
class Usage:
    """What this node's ready replicas of an agent have and do; those that drain or are for suspects not counted."""

    replicas: int = 0
    slots: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """How many of a hundred tasks each revision of an agent gets; what has a higher *version* was written later.

    What another one than *serving* cannot take goes to that; what is its own waits for it.
    """

    version: tuple[int, int]
    shares: Mapping[int, int]
    serving: int | None = None


class Board:
    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._by_queue: dict[Queue, dict[str, Line]] = {}
        self._queues: dict[str, set[Queue]] = {}  # of each agent: those that ever had a line
        self._traffic: dict[str, Traffic] = {}
        self._doubted: set[str] = set()  # agents of whose traffic nobody knows whether it was changed
        self._ranges: dict[
            str, dict[int, tuple[int, int]]
        ] = {}  # the buckets of each revision, until something changes
        self._turns = itertools.count(1)
        self._limits: dict[str, int] = {}  # tasks of an agent at once, where there may be no more than so many
        self._turn: Counter[str] = Counter()
        self._hungry: set[Queue] = set()  # those that may have claimable tasks
        self._reserved: set[Queue] = set()  # those whose free slots a commit in flight may fill

    def open(self, replica: str, *, agent: str, revision: int, slots: int, for_suspects: bool = False) -> None:
        queue = agent, for_suspects, revision
        line = self._lines[replica] = Line(queue, slots)
        self._by_queue.setdefault(queue, {})[replica] = line
        self._queues.setdefault(agent, set()).add(queue)
        self._hungry.add(queue)
        self._ranges.pop(agent, None)

    def drain(self, replica: str) -> None:
        """Take no more for *replica*; what runs goes on."""
        if (line := self._lines.get(replica)) is not None:
            line.open = False
            self._reroute(line.queue[0])

    def distrust(self, replica: str, *, is_resting: bool) -> None:
        """Give *replica* one task at a time from now on, or none while it is resting; its share goes to its peers."""
        if (line := self._lines.get(replica)) is not None:
            line.is_distrusted, line.is_resting = True, is_resting
            self.mark((line.queue[0],))

    def trust(self, replica: str) -> None:
        """Give *replica* as much as its peers again."""
        if (line := self._lines.get(replica)) is not None:
            line.is_distrusted = line.is_resting = False
            self.mark((line.queue[0],))

    def is_distrusted(self, replica: str) -> bool:
        line = self._lines.get(replica)
        return line is not None and line.is_distrusted

    def close(self, replica: str) -> None:
        line = self._lines.pop(replica, None)
        if line is None:
            return
        lines, agent = self._by_queue[line.queue], line.queue[0]
        del lines[replica]
        if not lines:
            del self._by_queue[line.queue]
            self._queues[agent].discard(line.queue)
            self._hungry.discard(line.queue)
        self._reroute(agent)

    def route(self, agent: str, traffic: Traffic) -> None:
        """Share out the tasks of *agent* so from now on, unless what is known was written later."""
        known = self._traffic.get(agent)
        if known is None or known.version < traffic.version or agent in self._doubted:
            self._doubted.discard(agent)
            self._traffic[agent] = traffic
            self._reroute(agent)

    def doubt(self, agent: str) -> None:
        """Share out nothing of *agent* until `route` says how: a commit may have changed it, or not."""
        self._doubted.add(agent)
        self._reroute(agent)

    def _reroute(self, agent: str) -> None:
        self._ranges.pop(agent, None)
        self.mark((agent,))

    def ranges(self, agent: str) -> Mapping[int, tuple[int, int]]:
        """Return the buckets of each revision: from the first number to below the second.

        What a new revision without replicas would get goes to the serving one.
        """
        if (found := self._ranges.get(agent)) is None:
            found = self._ranges[agent] = self._shared_out(agent)
        return found

    def _shared_out(self, agent: str) -> dict[int, tuple[int, int]]:
        lines = {
            revision
            for _, run_alone, revision in self._queues.get(agent, ())
            if not run_alone and any(line.open for line in self._by_queue[agent, run_alone, revision].values())
        }
        traffic = self._traffic.get(agent)
        if agent in self._doubted:
            return {}
        if traffic is None:  # of somebody who knows no rollouts: all to the newest
            return {max(lines): (0, BUCKETS)} if lines else {}
        low, found = 0, {}
        for revision in sorted(traffic.shares, key=lambda revision: (revision == traffic.serving, revision)):
            share = traffic.shares[revision] * BUCKETS // 100
            is_last = revision == traffic.serving
            high = BUCKETS if is_last and share else low + (share if revision in lines or is_last else 0)
            if high > low and revision in lines:
                found[revision] = low, high
            low = high
        return found

    def limit(self, agent: str, running: int | None) -> None:
        """Let at most so many tasks of *agent* run at once from now on; None: as many as there are slots."""
        if running is None:
            self._limits.pop(agent, None)
        else:
            self._limits[agent] = running
        self.mark((agent,))

    def limit_of(self, agent: str) -> int | None:
        return self._limits.get(agent)

    def _room(self, agent: str) -> float:
        """Return how many tasks of *agent* may begin, free slots aside."""
        if agent not in self._limits:
            return math.inf
        return max(0, self._limits[agent] - self.running(agent))

    def running(self, agent: str) -> int:
        """Return how many tasks of *agent* hold a slot here, those of replicas that drain or are for suspects too."""
        lines = (line for queue in self._queues.get(agent, ()) for line in self._by_queue[queue].values())
        return sum(line.busy for line in lines)

    def busy(self, replica: str) -> int:
        line = self._lines.get(replica)
        return line.busy if line is not None else 0

    def usage(self, agent: str) -> Usage:
        lines = [
            line
            for queue in self._queues.get(agent, ())
            if not queue[1]
            for line in self._by_queue[queue].values()
            if line.open
        ]
        return Usage(len(lines), sum(line.slots for line in lines), sum(line.busy for line in lines))

    def replicas(self, agent: str) -> dict[int, list[str]]:
        """Return the replicas of *agent* that take tasks, by their revisions; those that are for suspects not."""
        return {
            revision: found
            for _, run_alone, revision in self._queues.get(agent, ())
            if not run_alone
            and (found := [name for name, line in self._by_queue[agent, False, revision].items() if line.open])
        }

    def runs_alone(self, replica: str) -> bool:
        """Whether *replica* is beside its agent's number, for tasks that are suspected to kill."""
        line = self._lines.get(replica)
        return line is not None and line.queue[1]

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
            self._hungry.update(self._queues.get(agent, ()))

    def mark_all(self) -> None:
        self._hungry.update(self._by_queue)

    def has_demand(self) -> bool:
        return any(
            line.free > 0
            for queue in self._hungry
            if queue[0] not in self._limits or self._room(queue[0])
            for line in self._by_queue[queue].values()
        )

    def reserve(self) -> list[Demand]:
        """Reserve the free slots of every queue that may have work; `settle` gives back what stayed empty."""
        demands: list[Demand] = []
        for queue in sorted(self._hungry):  # in one order: a simulation is its seed
            free = sum(line.free for line in self._by_queue[queue].values())
            agent, run_alone, revision = queue
            if agent in self._limits:
                taken = sum(demand.slots for demand in demands if demand.agent == agent)
                free = int(min(free, max(0, self._room(agent) - taken)))
            if free:
                low, high = self.ranges(agent).get(revision, (0, 0))
                self._reserved.add(queue)
                demands.append(Demand(agent, revision, min(free, MAX_CLAIMS), run_alone, low, high))
        return demands

    def seat(self, agent: str, count: int) -> list[tuple[str, int]]:
        """Occupy slots for at most *count* tasks of *agent* that are not stored yet, if none is queued before them.

        Return the replica and the revision of each.
        """
        if agent in self._limits:
            count = int(min(count, self._room(agent)))
        ranges = self.ranges(agent)
        drawn = dict.fromkeys(ranges, count) if len(ranges) == 1 else self._drawn(agent, count)
        seats: list[tuple[str, int]] = []
        for revision, number in drawn.items():
            queue = agent, False, revision
            if queue not in self._hungry:
                spread = _spread(self._by_queue.get(queue, {}), self._turns)
                seats += [(replica, revision) for replica in itertools.islice(spread, number)]
        return seats

    def _drawn(self, agent: str, count: int) -> Counter[int]:
        """Draw a revision for each of *count* tasks, by the shares."""
        ranges, drawn = self.ranges(agent), Counter[int]()
        for _ in range(count if ranges else 0):
            self._turn[agent] = bucket = (self._turn[agent] + STRIDE) % BUCKETS
            drawn[next(revision for revision, (low, high) in ranges.items() if low <= bucket < high)] += 1
        return drawn

    def assign(self, demand: Demand, sessions: Iterable[SessionKey | None], homes: Homes) -> list[str]:
        """Occupy a slot for each claimed task: its session's replica (*homes*) if that has room, else the least loaded.

        Return the replicas in the order of *sessions* and settle the reservation; raises `RetryTransaction` if there is
        no room any more, because a replica was drained or closed meanwhile.
        """
        self._reserved.discard(demand.queue)
        lines = self._by_queue.get(demand.queue, {})
        elsewhere = _spread(lines, self._turns)
        replicas: list[str] = []
        for session in sessions:
            home = homes.get(session) if session is not None else None
            if home in lines and lines[home].free > 0:
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


def _spread(lines: dict[str, Line], turns: Iterator[int]) -> Iterator[str]:
    """Occupy slot after slot, each of the replica that is the least loaded then.

    In turn where several are: else one that fails at once would get all there is while there is little to do, and there
    would be nothing to compare it with.
    """
    loads = [(line.load, line.turn, name) for name, line in lines.items() if line.free > 0]
    heapq.heapify(loads)
    while loads:
        _, _, name = loads[0]
        line = lines[name]
        if line.free <= 0:  # a session's task has taken the last one
            heapq.heappop(loads)
            continue
        line.occupy()
        line.turn = next(turns)
        heapq.heapreplace(loads, (line.load, line.turn, name))
        yield name
