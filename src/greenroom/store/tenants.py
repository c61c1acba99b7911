"""The tenants of each agent: when they had a turn, and which of them may have tasks that wait.

In memory, beside the board's lines; what `core.fairness` decides by. Hints, made right from the table: for agents that
are `unlisted` the next commit asks it who waits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping

from greenroom.core import fairness

MAX_TURNS = 10_000  # beyond, those whose last turn is the longest ago are forgotten, which changes nobody's place
MAX_WAITING = 10_000  # of one agent's tenants that are listed at once; of more, the next ones when it is asked again

Queue = tuple[str, bool, int]  # an agent, whether it is its suspects', which run alone, and the revision


class Tenants:
    def __init__(self) -> None:
        self._turns: OrderedDict[tuple[str, str], tuple[int, fairness.Turns]] = OrderedDict()  # the oldest first
        self._turn = 0
        self._waiting: dict[Queue, dict[str, None]] = {}  # in the order in which they came
        self._unlisted: set[str] = set()
        self._listed_to: dict[str, str] = {}  # the last tenant of those agents' of which only a part is listed

    # --- turns

    def share_out(self, queue: Queue, slots: int, holding: Callable[[], Mapping[str, int]]) -> dict[str, int]:
        """Return how many of *slots* each of the tenants gets that wait in *queue*; *holding*: where that matters."""
        agent, waiting = queue[0], self._waiting.get(queue, {})
        if len(waiting) < 2:
            return dict.fromkeys(waiting, slots)
        had = {tenant: self._turns[agent, tenant][0] for tenant in waiting if (agent, tenant) in self._turns}
        return fairness.share_out(slots, waiting, holding=holding(), turns=had)

    def turns(self, agent: str, tenant: str) -> fairness.Turns:
        return self._turns[agent, tenant][1] if (agent, tenant) in self._turns else fairness.Turns()

    def note_turns(self, agent: str, tenant: str, slots: int, *, last: int | None = None) -> None:
        """Note that *tenant* has had *slots* turns, the last of a lower priority of *last*."""
        self._turn += 1
        self._turns[agent, tenant] = self._turn, self.turns(agent, tenant).after(slots, last)
        self._turns.move_to_end((agent, tenant))
        if len(self._turns) > MAX_TURNS:
            self._turns.popitem(last=False)

    # --- who waits

    def mark(self, queues: Iterable[Queue], tenant: str) -> None:
        """Note that *tenant* may have something for *queues*."""
        for queue in queues:
            self._waiting.setdefault(queue, {})[tenant] = None

    def exhaust(self, queue: Queue, tenant: str) -> None:
        """Note that *tenant* has nothing more for *queue*."""
        if (waiting := self._waiting.get(queue)) is not None:
            waiting.pop(tenant, None)
            if not waiting:
                del self._waiting[queue]
                if queue[0] in self._listed_to:
                    self._unlisted.add(queue[0])

    def doubt(self, agent: str) -> None:
        """Note that nobody knows who waits for *agent*."""
        self._unlisted.add(agent)

    def list_waiting(self, agent: str, queues: Iterable[Queue], tenants: dict[str, None]) -> None:
        """Note that *tenants* wait for *agent*, and no others behind `listed_to`, or where they are many, the first."""
        for queue in queues:
            kept = [tenant for tenant in self._waiting.pop(queue, {}) if tenant in tenants]
            if tenants:
                self._waiting[queue] = dict.fromkeys((*kept, *tenants))
        was_behind = self._listed_to.pop(agent, None) is not None
        if tenants or not was_behind:  # else it begins again at the first
            self._unlisted.discard(agent)
        if len(tenants) >= MAX_WAITING:
            self._listed_to[agent] = next(reversed(tenants))

    def listed_to(self, agent: str) -> str:
        """Return the tenant behind which those of *agent* are to be listed next."""
        return self._listed_to.get(agent, "")

    def forget(self, queue: Queue) -> None:
        self._waiting.pop(queue, None)

    def forget_agent(self, agent: str) -> None:
        self._unlisted.discard(agent)

    @property
    def unlisted(self) -> Collection[str]:
        """The agents of which nobody knows who waits for them."""
        return self._unlisted

    def may_wait(self, queue: Queue) -> bool:
        return queue in self._waiting or queue[0] in self._unlisted

    @property
    def queues(self) -> Collection[Queue]:
        """Those in which somebody is known to wait."""
        return self._waiting.keys()
