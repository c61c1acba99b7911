"""The board: this node's slots, so that a task can be claimed by the very commit that stores it.

The dispatcher opens a line for each ready replica; each commit claims for the free slots and writes who got what. An
optimisation of the claim statement's timing, not a second path: the same statement runs for a long queue and an empty
one. Whose tasks the slots are for is kept beside it (`tenants`). Also where the API reads how busy a replica is. All on
the event loop's thread.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from greenroom.store.database import RetryTransaction
from greenroom.store.rows import SessionKey
from greenroom.store.tenants import Queue, Tenants

MAX_CLAIMS = 500  # of one agent in one commit

Homes = Mapping[SessionKey, str]  # the replica that ran a session's last task
Seat = tuple[str, int]  # a replica and its revision

BUCKETS = 100_000  # that tasks are spread over, to be given to revisions by their shares
STRIDE = 61_803  # about BUCKETS by the golden ratio: a task's number by this, modulo BUCKETS, is its bucket, and each
# run of tasks is spread evenly, whatever the period of what comes in (Weyl's sequence)


class Line(msgspec.Struct):
    """A replica's slots."""

    queue: Queue
    slots: int
    busy: int = 0
    attempts: int = 0  # also those that wait for a sub-task and hold no slot
    open: bool = True
    turn: int = 0  # when it was given a task last: of those that are loaded alike, the one that has waited longest goes
    is_distrusted: bool = False  # it fails, and its peers do not: it gets one task at a time
    is_resting: bool = False  # and now none
    held: dict[str, int] = {}  # slots, by tenant

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


class Demand(msgspec.Struct, frozen=True):
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


class Usage(msgspec.Struct, frozen=True):
    """What this node's ready replicas of an agent have and do; those that drain or are for suspects not counted."""

    replicas: int = 0
    slots: int = 0
    busy: int = 0


class Traffic(msgspec.Struct, frozen=True):
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
        self._served: dict[Queue, int] = {}  # when each queue of an agent with a limit was asked last
        self.tenants = Tenants()
        self._reserved: set[Queue] = set()  # those whose free slots a commit in flight may fill

    def open(self, replica: str, *, agent: str, revision: int, slots: int, for_suspects: bool = False) -> None:
        queue = agent, for_suspects, revision
        line = self._lines[replica] = Line(queue, slots)
        self._by_queue.setdefault(queue, {})[replica] = line
        self._queues.setdefault(agent, set()).add(queue)
        self._reroute(agent)

    def drain(self, replica: str) -> None:
        """Take no more for *replica*; what runs goes on."""
        if (line := self._lines.get(replica)) is not None:
            line.open = False
            self._reroute(line.queue[0])

    def distrust(self, replica: str, *, is_resting: bool) -> None:
        """Give *replica* one task at a time from now on, or none while it is resting; its share goes to its peers."""
        if (line := self._lines.get(replica)) is not None:
            line.is_distrusted, line.is_resting = True, is_resting
            self.doubt_waiting(line.queue[0])

    def trust(self, replica: str) -> None:
        """Give *replica* as much as its peers again."""
        if (line := self._lines.get(replica)) is not None:
            line.is_distrusted = line.is_resting = False
            self.doubt_waiting(line.queue[0])

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
            self._served.pop(line.queue, None)
            self.tenants.forget(line.queue)
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
        self.doubt_waiting(agent)

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
        """Let at most so many tasks of *agent* run at once from now on; None: as many as there are slots.

        Nothing that runs is stopped. Where there is room again, the next commit begins with it: nudge one. Called by
        one loop only, which puts together whatever bounds an agent.
        """
        if running == self._limits.get(agent):
            return
        if running is None:
            del self._limits[agent]
        else:
            self._limits[agent] = running
        self.doubt_waiting(agent)

    def limit_of(self, agent: str) -> int | None:
        return self._limits.get(agent)

    def room(self, agent: str) -> float:
        """Return how many tasks of *agent* may begin, free slots aside."""
        if agent not in self._limits:
            return math.inf
        return max(0, self._limits[agent] - self.running(agent))

    def running(self, agent: str) -> int:
        """Return how many tasks of *agent* hold a slot here, those of replicas that drain or are for suspects too."""
        return sum(line.busy for queue in self._queues.get(agent, ()) for line in self._by_queue[queue].values())

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

    def try_occupy(self, replica: str, tenant: str) -> bool:
        """Take a slot of *replica* for a task that resumes; False while none is free or a commit may fill it.

        It keeps to the agent's limit, but one may always go on, or what has begun would never end.
        """
        line = self._lines.get(replica)
        if line is None or line.slots <= line.busy or line.queue in self._reserved:
            return False
        agent = line.queue[0]
        if (limit := self._limits.get(agent)) is not None:
            is_reserved = any(queue in self._reserved for queue in self._queues[agent])
            if is_reserved or self.running(agent) >= max(1, limit):
                return False
        line.busy += 1
        self._hold(line, tenant)
        return True

    def release(self, replica: str, tenant: str) -> None:
        """Free a slot."""
        if (line := self._lines.get(replica)) is not None:
            line.busy -= 1
            left = line.held[tenant] - 1
            if left:
                line.held[tenant] = left
            else:
                del line.held[tenant]

    def vacate(self, replica: str, tenant: str) -> None:
        """Take back an assignment: it was not committed."""
        self.release(replica, tenant)
        self.leave(replica)

    def leave(self, replica: str) -> None:
        """Note that an attempt of *replica* is over."""
        if (line := self._lines.get(replica)) is not None:
            line.attempts -= 1

    def _hold(self, line: Line, tenant: str) -> None:
        line.held[tenant] = line.held.get(tenant, 0) + 1

    def holding(self, agent: str) -> Mapping[str, int]:
        """Return how many slots of *agent* each tenant holds."""
        held: Counter[str] = Counter()
        for queue in self._queues.get(agent, ()):
            for line in self._by_queue[queue].values():
                held.update(line.held)
        return held

    def share_out(self, queue: Queue, slots: int) -> dict[str, int]:
        """Return how many of *slots* each of the tenants gets that wait in *queue*."""
        return self.tenants.share_out(queue, slots, lambda: self.holding(queue[0]))

    # --- who waits

    def mark(self, waiting: Iterable[tuple[str, str]]) -> None:
        """Note that tenants may have claimable tasks: of each the agent, and its name."""
        for agent, tenant in waiting:
            if queues := self._queues.get(agent):
                self.tenants.mark(queues, tenant)

    def mark_all(self) -> None:
        """Note that any tenant of any agent may have some."""
        for agent in self._queues:
            self.doubt_waiting(agent)

    def doubt_waiting(self, agent: str) -> None:
        """Note that any tenant of *agent* may have claimable tasks."""
        if self._queues.get(agent):
            self.tenants.doubt(agent)
        else:
            self.tenants.forget_agent(agent)

    def unlisted(self) -> list[str]:
        """Return the agents with free slots of which nobody knows who waits for them."""
        # In one order: a simulation is its seed.
        return [agent for agent in sorted(self.tenants.unlisted) if any(map(self._free, self._queues.get(agent, ())))]

    def list_waiting(self, agent: str, tenants: dict[str, None]) -> None:
        """Note who waits for *agent*, as it stands in the table."""
        self.tenants.list_waiting(agent, self._queues.get(agent, ()), tenants)

    def has_demand(self) -> bool:
        hungry = itertools.chain(
            self.tenants.queues, (queue for agent in self.tenants.unlisted for queue in self._queues.get(agent, ()))
        )
        return any(map(self._free, hungry))

    def _free(self, queue: Queue) -> int:
        """Return how many tasks *queue* may take now."""
        free = sum(line.free for line in self._by_queue.get(queue, {}).values())
        return int(min(free, self.room(queue[0]))) if free and queue[0] in self._limits else free

    # --- claims

    def reserve(self) -> list[Demand]:
        """Reserve the free slots of every queue in which somebody waits; `settle` gives back what stayed empty.

        Where an agent has a limit, those of its queues come first that were asked the longest ago: see `left`.
        """
        demands: list[Demand] = []
        # In one order: a simulation is its seed.
        for queue in sorted(self.tenants.queues, key=lambda queue: (queue[0], self._served.get(queue, -1), queue)):
            if free := self._free(queue):
                agent, run_alone, revision = queue
                low, high = self.ranges(agent).get(revision, (0, 0))
                self._reserved.add(queue)
                demands.append(Demand(agent, revision, min(free, MAX_CLAIMS), run_alone, low, high))
        return demands

    def left(self, demand: Demand) -> int:
        """Return how many of the slots of *demand* may be taken still: others have taken of its agent's room."""
        if demand.agent not in self._limits:
            return demand.slots
        left = int(min(demand.slots, self.room(demand.agent)))
        if left:
            self._served[demand.queue] = 1 + max(self._served.values(), default=0)
        return left

    def seat(self, agent: str, tenants: Sequence[str]) -> Sequence[Seat | None]:
        """Occupy slots for tasks of *agent* that are not stored yet: one for each of *tenants*, whose they are.

        Where anybody waits, or there are fewer slots than tasks, none is: the queue has to choose. Where several
        revisions share the tasks, this is so for each of them.
        """
        if len(tenants) > self.room(agent):
            return [None] * len(tenants)
        ranges, seats = self.ranges(agent), list[Seat | None]()
        drawn = dict.fromkeys(ranges, len(tenants)) if len(ranges) == 1 else self._drawn(agent, len(tenants))
        for revision, number in drawn.items():
            queue = agent, False, revision
            lines = self._by_queue.get(queue, {})
            if not self.tenants.may_wait(queue) and sum(line.free for line in lines.values()) >= number:
                spread = itertools.islice(_spread(lines, self._turns), number)
                for tenant, replica in zip(tenants[len(seats) :], spread, strict=False):
                    self._hold(lines[replica], tenant)
                    seats.append((replica, revision))
        return seats + [None] * (len(tenants) - len(seats))

    def _drawn(self, agent: str, count: int) -> Counter[int]:
        """Draw a revision for each of *count* tasks, by the shares."""
        ranges, drawn = self.ranges(agent), Counter[int]()
        for _ in range(count if ranges else 0):
            self._turn[agent] = bucket = (self._turn[agent] + STRIDE) % BUCKETS
            drawn[next(revision for revision, (low, high) in ranges.items() if low <= bucket < high)] += 1
        return drawn

    def assign(self, demand: Demand, tasks: Iterable[tuple[str, str | None]], homes: Homes) -> list[str]:
        """Occupy a slot for each claimed task: its session's replica (*homes*) if that has room, else the least loaded.

        *tasks*: of each the tenant, and the session. Return the replicas in their order; raises `RetryTransaction` if
        there is no room any more, because a replica was drained or closed meanwhile.
        """
        lines = self._by_queue.get(demand.queue, {})
        elsewhere = _spread(lines, self._turns)
        replicas: list[str] = []
        given: list[str] = []
        for tenant, session in tasks:
            home = homes.get((tenant, demand.agent, session)) if session is not None else None
            if home in lines and lines[home].free > 0:
                lines[home].occupy()
            else:
                home = next(elsewhere, None)
            if home is None:
                for replica, other in zip(replicas, given, strict=True):
                    self.vacate(replica, other)
                raise RetryTransaction("a replica went away while tasks were claimed for it")
            self._hold(lines[home], tenant)
            replicas.append(home)
            given.append(tenant)
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
