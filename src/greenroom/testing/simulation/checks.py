"""What must hold at every instant, and in the end. Both simulations tell what they see; the first breach raises.

The numbers are those of the promises. Nothing here trusts what it judges: the rules are stated anew, over
what was seen.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from greenroom.core import plans, recovery, tasks
from greenroom.testing.simulation import agents

_MOVES = frozenset((before, after) for (before, _), after in tasks.TRANSITIONS.items())
_LEASED = ("running", "waiting")
UNCHARGED = frozenset({"drained", "neighbour"})


class Violation(AssertionError):
    """A promise was broken: *promise* is its number."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(f"{promise}: {what}")
        self.promise = promise


class Row(Protocol):
    """A task as the store has it."""

    @property
    def id(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def agent(self) -> str: ...
    @property
    def session(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def state(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def charged(self) -> int: ...
    @property
    def kills(self) -> int: ...
    @property
    def restores(self) -> bool: ...
    @property
    def max_attempts(self) -> int: ...
    @property
    def output(self) -> bytes | None: ...


@dataclass(slots=True)
class Seen:
    """A task as it was seen last."""

    id: str
    seq: int
    state: str
    epoch: int
    charged: int
    kills: int
    output: bytes | None

    @property
    def is_open(self) -> bool:
        return self.state not in tasks.TERMINAL


@dataclass(frozen=True, slots=True)
class End:
    """Why an attempt ended; whether it was given back, where that is known."""

    epoch: int
    reason: str
    is_refunded: bool | None = None


@dataclass
class Counts:
    accepted: int = 0
    unknown: int = 0  # submissions whose caller was never told; neither success nor failure
    lost: int = 0
    duplicated: int = 0
    recovered: int = 0  # tasks that succeeded although an attempt of theirs was lost
    ended: Counter[str] = field(default_factory=Counter)

    def add(self, other: Counts) -> None:
        self.accepted += other.accepted
        self.unknown += other.unknown
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.recovered += other.recovered
        self.ended.update(other.ended)


class Checks:
    """*each_move*: every move of a row is told by itself; else what a commit made of it."""

    def __init__(self, *, each_move: bool) -> None:
        self._each_move = each_move
        self.counts = Counts()
        self.tasks: dict[str, Seen] = {}
        self._accepted: set[str] = set()
        self._cancelled: set[str] = set()
        self._keys: dict[str, str] = {}
        self._sessions: defaultdict[tuple[str, str], dict[str, Seen]] = defaultdict(dict)
        self._chains: dict[tuple[str, str], tuple[str, str]] = {}  # the last state, and what its task began with
        self._begun: set[tuple[str, int]] = set()
        self._sharing: set[tuple[str, int]] = set()  # attempts that had neighbours
        self._restoring: set[tuple[str, int]] = set()  # attempts after which another state was tried
        self._spared: set[tuple[str, int]] = set()
        self._running: defaultdict[tuple[str, str], set[tuple[str, int]]] = defaultdict(set)
        self._early_deaths: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)

    # --- tasks

    def accepted(self, id: str) -> None:
        """A caller was told that the task is accepted."""
        self._accepted.add(id)
        if id not in self.tasks:
            raise Violation("I1", f"{id} was accepted, and is not stored")

    def cancelled(self, id: str) -> None:
        """A caller was told that the task is cancelled."""
        self._cancelled.add(id)
        if self.tasks[id].state != "cancelled":
            raise Violation("I10", f"{id} was said to be cancelled, and is {self.tasks[id].state}")

    def saw(self, rows: Iterable[Row]) -> None:
        """These rows have changed, together."""
        busy: list[tuple[tuple[str, str], Seen]] = []
        for row in rows:
            before = self.tasks.get(row.id)
            if before is None:
                before = self._meet(row)
            elif self._each_move and (before.state, row.state) not in _MOVES and before.state != row.state:
                raise Violation("I3", f"{row.id} went from {before.state} to {row.state}")
            self._judge(before, row)
            has_ended = row.state == "succeeded" != before.state
            before.state, before.epoch, before.charged, before.output = row.state, row.epoch, row.charged, row.output
            before.kills = row.kills
            if row.restores and all(id != row.id for id, _ in self._restoring):
                self._restoring.add((row.id, row.epoch))
            if row.session is not None:
                if has_ended:
                    self._link(row)
                if row.state in _LEASED:
                    busy.append(((row.agent, row.session), before))
        for session, seen in busy:
            self._judge_turn(session, seen)

    def _meet(self, row: Row) -> Seen:
        seen = self.tasks[row.id] = Seen(row.id, row.seq, "queued", 0, 0, 0, None)
        if row.session is not None:
            self._sessions[row.agent, row.session][row.id] = seen
        if row.key is not None and self._keys.setdefault(row.key, row.id) != row.id:
            self.counts.duplicated += 1
            raise Violation("I8", f"{row.id} and {self._keys[row.key]} have the same idempotency key {row.key}")
        if row.parent is not None and self._each_move and self.tasks[row.parent].state not in _LEASED:
            raise Violation("I4", f"{row.id} was stored for {row.parent}, which is {self.tasks[row.parent].state}")
        return seen

    def _judge(self, before: Seen, row: Row) -> None:
        if before.state in tasks.TERMINAL and (row.state, row.epoch, row.output, row.charged) != (
            before.state, before.epoch, before.output, before.charged,
        ):  # fmt: skip
            self.counts.duplicated += row.output != before.output
            raise Violation("I3", f"{row.id} had {before.state} and is {row.state} now")
        if row.epoch < before.epoch:
            raise Violation("I6", f"the epoch of {row.id} went back from {before.epoch} to {row.epoch}")
        if not 0 <= row.charged <= min(row.epoch, row.max_attempts):
            raise Violation("I6", f"{row.id} is charged {row.charged} of {row.max_attempts}, and began {row.epoch}")
        if row.parent is not None and before.state == "queued" and row.state == "running":
            parent = self.tasks[row.parent]
            if parent.state in ("failed", "cancelled", "expired"):
                raise Violation("I10", f"{row.id} was begun, and its parent {parent.id} is {parent.state}")
        if row.output is not None and before.output is None:
            result = agents.read(row.output)
            if (result.task, result.epoch) != (row.id, row.epoch):
                self.counts.duplicated += 1
                raise Violation("I4", f"{row.id} has the result of {result.task}#{result.epoch}, not of #{row.epoch}")

    def _link(self, row: Row) -> None:
        assert row.output is not None
        assert row.session is not None
        result, key = agents.read(row.output), (row.agent, row.session)
        last, good = self._chains.get(key, ("-", "-"))
        is_restored = row.restores and result.seen == good != last
        if result.seen != last and not is_restored:
            raise Violation("I16", f"{row.id} saw the state {result.seen} of its session, where {last} was stored")
        self._chains[key] = result.saved, good if is_restored else last

    def _judge_turn(self, session: tuple[str, str], seen: Seen) -> None:
        for other in self._sessions[session].values():
            if other is not seen and other.is_open:
                if other.state in _LEASED:
                    raise Violation("I15", f"{seen.id} and {other.id} run in one session")
                if other.seq < seen.seq:
                    raise Violation("I15", f"{seen.id} runs before {other.id}, which was submitted earlier")

    # --- attempts, as replicas run them

    def began(
        self, task: str, epoch: int, *, agent: str, session: str | None, neighbours: Sequence[tuple[str, int]]
    ) -> None:
        """A replica that runs *neighbours* has begun an attempt: no other one of its session may run that is not
        fenced, and nothing beside what has killed replicas.
        """
        self._begun.add((task, epoch))
        if neighbours:
            self._sharing.update(neighbours, [(task, epoch)])
            # One that waits for a sub-task does nothing meanwhile.
            together = [self.tasks[each[0]] for each in (*neighbours, (task, epoch)) if self._is_leased(each)]
            busy = [seen for seen in together if seen.state == "running"]
            if len(busy) > 1 and any(seen.kills >= tasks.SUSPECT_KILLS for seen in busy):
                names = " and ".join(seen.id for seen in busy)
                raise Violation("I22", f"{names} share a replica, and one of them has killed others")
        if session is None:
            return
        running = self._running[agent, session]
        for other in running if self._is_leased((task, epoch)) else ():
            if self._is_leased(other):
                raise Violation("I15", f"{task}#{epoch} was begun while {other[0]}#{other[1]} ran in its session")
        running.add((task, epoch))

    def _is_leased(self, attempt: tuple[str, int]) -> bool:
        seen = self.tasks[attempt[0]]
        return seen.state in _LEASED and seen.epoch == attempt[1]

    def spared(self, task: str, epoch: int) -> None:
        """The node kills this attempt's replica for another task's sake: it may not be charged."""
        self._spared.add((task, epoch))

    def stopped(self, task: str, epoch: int, *, agent: str, session: str | None) -> None:
        """No replica runs this attempt any more."""
        if session is not None:
            self._running[agent, session].discard((task, epoch))

    # --- replicas

    def started(self, node: str, agent: str, *, now_s: float) -> None:
        """A replica was started."""
        deaths = self._early_deaths[node, agent]
        while deaths and deaths[0] <= now_s - recovery.PERIOD_S:
            deaths.popleft()
        if len(deaths) >= recovery.INTENSITY:
            raise Violation("I21", f"{agent} was started on {node} after {len(deaths)} deaths before readiness")

    def died_early(self, node: str, agent: str, *, started_s: float, now_s: float) -> None:
        """A replica of the serving revision died before it was ready; those that were started together die once."""
        deaths = self._early_deaths[node, agent]
        if not deaths or started_s > deaths[-1]:
            deaths.append(now_s)

    def judged_anew(self, node: str, agent: str) -> None:
        """The agent was deployed or scaled, had a success, or its node was started."""
        self._early_deaths.pop((node, agent), None)

    def forget_deaths(self, node: str, *, since_s: float) -> None:
        """The node was killed, and what its host had not written yet is not known any more."""
        for (name, _), deaths in self._early_deaths.items():
            while name == node and deaths and deaths[-1] >= since_s:
                deaths.pop()

    @staticmethod
    def given_up(agent: str, deaths: int) -> None:
        """An agent is not started any more, after so many *deaths* since it was judged anew."""
        if deaths < recovery.INTENSITY:
            raise Violation("I21", f"{agent} was given up after {deaths} deaths")

    def quarantined(self, task: str, *, is_poison: bool) -> None:
        """A task was ended for what it did to its replicas."""
        if not is_poison:
            raise Violation("I22", f"{task} is innocent, and was taken for poison")

    @staticmethod
    def planned(wanted: plans.Wanted, seen: Sequence[plans.Seen], actions: Sequence[plans.Action]) -> None:
        """A plan may not take ready replicas below what is wanted."""
        drained = {action.id for action in actions if isinstance(action, plans.DrainReplica)}
        ready = [replica for replica in seen if replica.is_ready and not replica.is_draining]
        left = sum(replica.id not in drained for replica in ready)
        if left < min(wanted.replicas, len(ready)):
            raise Violation("I34", f"{wanted.agent} wants {wanted.replicas} replicas: {len(ready)} ready, {left} left")

    # --- in the end

    def finish(self, ends: Mapping[str, Sequence[End]], *, waited_s: float) -> None:
        """Faults have stopped *waited_s* ago: *ends* are those of each task's attempts."""
        stuck = [id for id, seen in self.tasks.items() if seen.is_open]
        self.counts.lost = sum(id in self._accepted for id in stuck)
        if stuck:
            states = ", ".join(f"{id} is {self.tasks[id].state}" for id in stuck[:5])
            raise Violation("I7", f"{len(stuck)} tasks have not ended {waited_s:.0f} s after the last fault: {states}")
        for id in self._cancelled:
            if self.tasks[id].state != "cancelled":
                raise Violation("I10", f"{id} was said to be cancelled, and is {self.tasks[id].state}")
        for id, seen in self.tasks.items():
            if seen.state == "succeeded" and (id, seen.epoch) not in self._begun:
                raise Violation("I4", f"{id} has a result of #{seen.epoch}, which nobody has run")
            self._explain(seen, ends[id])
        self.counts.accepted = len(self._accepted)
        self.counts.ended = Counter(seen.state for seen in self.tasks.values())
        self.counts.recovered = sum(seen.state == "succeeded" and seen.epoch > 1 for seen in self.tasks.values())

    def _explain(self, seen: Seen, ends: Sequence[End]) -> None:
        if [end.epoch for end in ends] != list(range(1, seen.epoch + 1)):
            told = ", ".join(f"#{end.epoch} {end.reason}" for end in ends)
            raise Violation(
                "I6", f"{seen.id} was begun {seen.epoch} times, and its attempts' ends are: {told or 'none'}"
            )
        for end in ends:
            has_failed = seen.state == "failed" and end.epoch == seen.epoch  # on_replica_loss is "fail"
            if end.reason in UNCHARGED and end.is_refunded is False and not has_failed:
                raise Violation("I6", f"{seen.id}#{end.epoch} was {end.reason}, and is charged")
            was_shared = end.reason == "replica_lost" and (seen.id, end.epoch) in self._sharing | self._restoring
            if end.is_refunded and end.reason not in UNCHARGED | {"fenced"} and not was_shared:
                raise Violation("I6", f"{seen.id}#{end.epoch} ended with {end.reason}, and was given back")
            if end.reason == "fenced" and end.is_refunded and (seen.id, end.epoch) in self._begun:
                raise Violation("I6", f"{seen.id}#{end.epoch} was given back as if nobody had run it")
            if end.reason == "replica_lost" and (seen.id, end.epoch) in self._spared:
                raise Violation("I6", f"{seen.id}#{end.epoch} was charged with the end of its neighbour")
        refunds = sum(bool(end.is_refunded) for end in ends)
        if None not in (end.is_refunded for end in ends) and seen.charged != seen.epoch - refunds:
            raise Violation("I6", f"{seen.id}: {seen.epoch} attempts, {refunds} given back, {seen.charged} charged")
