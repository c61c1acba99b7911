"""Plans: which replicas to start or let go, from what should be and what is. Pure; applied by `control.host`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Wanted(msgspec.Struct, frozen=True):
    """What an agent should have."""

    agent: str
    revision: int
    replicas: int
    may_start: bool = True  # false while backoff runs or the agent is given up
    one_by_one: bool = False  # no other is started before the last one is ready


class Seen(msgspec.Struct, frozen=True):
    """A replica that exists."""

    id: str
    revision: int
    is_ready: bool
    is_draining: bool
    is_moving: bool = False  # another is to take its place and its work
    load: int = 0  # tasks that are on it
    started_s: float = 0.0


class StartReplica(msgspec.Struct, frozen=True):
    agent: str
    revision: int


class DrainReplica(msgspec.Struct, frozen=True):
    """Let it go when its tasks are done, or at once: they are handed over."""

    id: str
    hands_over: bool = False


Action = StartReplica | DrainReplica


def plan(wanted: Wanted, seen: Sequence[Seen]) -> list[Action]:
    """Return what brings *seen* to *wanted*.

    Replicas of other revisions, and those that move, go only as others are ready to take their place, so that an agent
    that was served stays served. Of too many, those go first that are not ready, then those with the fewest tasks, so
    that they are gone soon, and of these the youngest, which have learned the least.

    >>> plan(Wanted("a", 2, 1), [Seen("r1", 1, True, False)])
    [StartReplica(agent='a', revision=2)]
    >>> plan(Wanted("a", 2, 1), [Seen("r1", 1, True, False), Seen("r2", 2, True, False)])
    [DrainReplica(id='r1', hands_over=False)]
    """
    staying = [replica for replica in seen if not replica.is_draining]
    current = [replica for replica in staying if replica.revision == wanted.revision and not replica.is_moving]
    others = [replica for replica in staying if replica.revision != wanted.revision or replica.is_moving]
    others.sort(key=lambda replica: replica.is_ready)
    missing = wanted.replicas - len(current)
    actions: list[Action] = []
    if missing > 0 and wanted.may_start:
        at_once = 0 if any(not replica.is_ready for replica in current) else 1
        starts = min(missing, at_once) if wanted.one_by_one else missing
        actions += [StartReplica(wanted.agent, wanted.revision)] * starts
    current.sort(key=lambda replica: (replica.is_ready, replica.load, -replica.started_s))
    surplus = current[: max(0, -missing)]
    ready = sum(replica.is_ready for replica in current)
    replaced = others if ready >= wanted.replicas else others[: max(0, ready + len(others) - wanted.replicas)]
    return actions + [DrainReplica(replica.id, replica.is_moving) for replica in (*surplus, *replaced)]
