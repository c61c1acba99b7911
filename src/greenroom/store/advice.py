"""What the optimizer advises, as rows. Written by `control.optimizer` alone; no read changes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from greenroom.core import optimizer
from greenroom.store import agent_patterns, database
from greenroom.store.agent_patterns import Agents
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

KEEP = 1_000  # rows that have ended
KEEP_US = 30 * 86_400 * 1_000_000
MAX_TEXT = 2_000  # characters
MAX_PAGE = 200
_OPEN_FIRST = 1 << 40  # more than there are ids


class Advice(msgspec.Struct, frozen=True):
    """A row. Instants in microseconds; *agent* None: it is about the node."""

    id: int
    rule: str
    agent: str | None
    state: str
    what: str
    why: str
    expected: str
    metric: str
    value_before: float
    value_wanted: float | None
    value_after: float | None
    outcome: str
    opened_at: int
    applied_at: int | None
    ended_at: int | None

    @property
    def cursor(self) -> int:
        """What a list goes on behind."""
        return self.id + (_OPEN_FIRST if self.ended_at is None else 0)


class Move(msgspec.Struct, frozen=True):
    """What becomes of the advice *id*: it is applied, as it was *found* then, or has ended as *state* says."""

    id: int
    state: str
    after: float | None = None
    outcome: str = ""
    found: optimizer.Found | None = None


_COLUMNS = Advice.__struct_fields__
_NEW = ("rule", "agent", "what", "why", "expected", "metric", "value_before", "value_wanted")
_OPEN = f"""
insert into advice ({", ".join(_NEW)}, state, outcome, opened_at)
values ({", ".join(f":{name}" for name in _NEW)}, 'open', '', :now) returning id"""
_APPLY = "update advice set state = 'applied', applied_at = :now where id = :id and ended_at is null"
_ANEW = """
update advice set what = :what, why = :why, expected = :expected, metric = :metric, value_before = :value_before,
    value_wanted = :value_wanted
where id = :id and ended_at is null"""
_END = """
update advice set state = :state, value_after = :after, outcome = :outcome, ended_at = :now
where id = :id and ended_at is null"""
_FORGET = """
delete from advice where ended_at is not null and (ended_at < :before or id <= (
    select id from advice where ended_at is not null order by id desc limit 1 offset :keep))"""
_RANK = f"id + case when ended_at is null then {_OPEN_FIRST} else 0 end"
_LIST = f"""
select {", ".join(_COLUMNS)} from advice where {_RANK} < :before {{whose}} order by {_RANK} desc limit :limit"""
_STANDING = f"select {', '.join(_COLUMNS)} from advice where ended_at is null order by id"
_COUNT = "select count(*) from advice where ended_at is null"


async def open_all(tx: Transaction, news: News, items: Sequence[optimizer.Found]) -> list[int]:
    """Note new advice; return the id of each."""
    ids: list[int] = []
    for item in items:
        params = {"rule": item.rule, "agent": item.agent, "now": tx.now_us}
        ((id,),) = await tx.fetch(_OPEN, params | _told(item))
        ids.append(id)
    return ids


def _told(found: optimizer.Found) -> dict[str, str | float | None]:
    return {
        "what": found.what[:MAX_TEXT],
        "why": found.why[:MAX_TEXT],
        "expected": found.expected[:MAX_TEXT],
        "metric": found.metric,
        "value_before": float(found.before),
        "value_wanted": None if found.wanted is None else float(found.wanted),
    }


async def move(tx: Transaction, news: News, items: Sequence[Move]) -> list[None]:
    for item in items:
        params = {"id": item.id, "now": tx.now_us}
        if item.state == "applied":
            await tx.execute_many(_APPLY, [params])
            if item.found is not None:
                await tx.execute_many(_ANEW, [{"id": item.id} | _told(item.found)])
            continue
        after = None if item.after is None else float(item.after)
        ended = {"state": item.state, "after": after, "outcome": item.outcome[:MAX_TEXT]}
        await tx.execute_many(_END, [params | ended])
    await tx.execute_many(_FORGET, [{"before": tx.now_us - KEEP_US, "keep": KEEP}])
    return [None] * len(items)


class Advices:
    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    async def open(self, found: optimizer.Found) -> int:
        """Note new advice, and return its id."""
        id: int = await self._commits.write(open_all, found)
        return id

    async def move(self, moved: Move) -> None:
        await self._commits.write(move, moved)

    async def list(self, *, before: int | None = None, limit: int = 50, agents: Agents = None) -> Sequence[Advice]:
        """Return what is open, then what has ended, each the latest first; *before* is the `Advice.cursor` to go on
        behind. With *agents*, only what is about one of them.
        """
        params: dict[str, Any] = {
            "before": 2 * _OPEN_FIRST if before is None else before,
            "limit": min(limit, MAX_PAGE),
        }
        of_agents = agent_patterns.condition(agents, params)
        sql = _LIST.format(whose="" if of_agents is None else f"and {of_agents}")
        return [Advice(*row) for row in await self._db.read(sql, params)]

    async def standing(self) -> Sequence[Advice]:
        """Return what is open or was applied and has not ended, oldest first."""
        return [Advice(*row) for row in await self._db.read(_STANDING, {})]

    async def open_count(self) -> int:
        ((count,),) = await self._db.read(_COUNT, {})
        return int(count)


ORDER = (open_all, move)
