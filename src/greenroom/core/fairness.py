"""Fairness: whose task a free slot of an agent is for. Between tenants, and between the priorities of one. Pure.

*Between tenants*: a free slot goes to the waiting tenant that holds the fewest slots of the agent now; of those that
hold equally many, to the one whose last turn is the longest ago. So slots are shared max-min fair, a tenant that comes
with little work waits for a turn and not for its neighbours' queues, and nobody who holds nothing is passed over twice
by the same one.

*Between the priorities of one tenant*: the highest goes first, but each `LOWER_EVERY`th turn is a lower one's than the
highest that waits, in turns over all of those. So each gets something, however much comes above it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

LOWER_EVERY = 8  # an eighth of a tenant's turns: enough to see that a class moves, too little to notice above it


def share_out(
    slots: int, waiting: Iterable[str], *, holding: Mapping[str, int], turns: Mapping[str, int]
) -> dict[str, int]:
    """Return how many of *slots* each of the tenants in *waiting* gets, in the order of their last turns.

    *holding*: the slots that each has of the agent already; who is not in it has none. *turns*: numbers that grow from
    turn to turn; who is not in it never had one, and goes before those who had. What it takes grows with the tenants,
    to find the first, and for each slot with their logarithm.

    >>> share_out(3, ["flood", "quiet"], holding={"flood": 4}, turns={})
    {'quiet': 3}
    >>> share_out(3, ["flood", "quiet"], holding={}, turns={"flood": 1})
    {'flood': 1, 'quiet': 2}
    """
    order = [(holding.get(tenant, 0), turns.get(tenant, -1), place, tenant) for place, tenant in enumerate(waiting)]
    heapq.heapify(order)
    turn, shares = max((entry[1] for entry in order), default=0), dict[str, int]()
    for _ in range(slots if order else 0):
        holds, _, place, tenant = order[0]
        shares[tenant] = shares.pop(tenant, 0) + 1
        turn += 1
        heapq.heapreplace(order, (holds + 1, turn, place, tenant))
    return shares


class Turns(msgspec.Struct, frozen=True):
    """What a tenant's priorities have had of an agent. *count*: turns since the last one of a lower priority.

    *last*: the priority that had that one.
    """

    count: int = 0
    last: int | None = None

    def lower(self, slots: int) -> int:
        """Return how many of the next *slots* turns are lower priorities'."""
        return (self.count + slots) // LOWER_EVERY

    def after(self, slots: int, last: int | None) -> Turns:
        """Return what is so after *slots* more turns, the last lower one of them of the priority *last*."""
        return Turns((self.count + slots) % LOWER_EVERY, self.last if last is None else last)


def lower_turns(count: int, priorities: Sequence[int], last: int | None) -> Counter[int]:
    """Return how many of *count* turns each of the lower *priorities* gets, highest first, going on below *last*.

    The keys are in the order of their first turns.

    >>> lower_turns(4, [5, 0, -5], last=5)
    Counter({0: 2, -5: 1, 5: 1})
    """
    below = [priority for priority in priorities if last is not None and priority < last]
    order = below + [priority for priority in priorities if priority not in below]
    return Counter(order[number % len(order)] for number in range(count if order else 0))


def last_turn(count: int, given: Counter[int]) -> int | None:
    """Return the priority that had the last of the *count* turns that `lower_turns` has given."""
    return list(given)[(count - 1) % len(given)] if given else None
