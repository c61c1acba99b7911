"""Claims: tasks begin to run in the commits that store them or that free a slot, for the slots on this node's board.

One move, at two moments of a commit. A task that finds a free slot, and none of its agent queued before it, is stored
as running at once; at its end each commit claims, from the queue, for what is still free. Whose tasks those are, and of
which priority, `core.fairness` decides; this module finds them: of each tenant, the first of the index.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from greenroom import errors
from greenroom.core import fairness
from greenroom.store import submissions, tenants, transitions
from greenroom.store.board import BUCKETS, STRIDE, Board, Demand
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News
from greenroom.store.rows import IS_SUSPECT, RANK, READY_AT, Accepted, Claim, NewTask, SessionKey
from greenroom.store.submissions import QUEUED, Placing
from greenroom.store.vault import Vault

MAX_HOMES = 10_000

_IS_READY = "state = 'queued' and due_at is null and not blocked"  # as the partial index has it, to the letter

# Statements for one tenant at a time: what there is of the others, no claim reads.
_READY = f"""
select seq, id, epoch, tenant, session, input, metadata, attempts_charged, max_attempts, on_replica_loss,
    retry_backoff_us, run_timeout_us, deadline_at, submitted_by, depth, priority, trace, kills, restores,
    case when started_at is null then {READY_AT} end
from task where agent = :agent and tenant = :tenant and {_IS_READY} and {{whose}}
order by priority desc, {RANK} limit :slots for update skip locked"""
_TO_SHARE, _TO_RUN_ALONE = _READY.format(whose=f"not ({IS_SUSPECT}) {{}}"), _READY.format(whose=IS_SUSPECT)
_ITS_OWN = _TO_SHARE.format("and (pin is null or pin = :revision)")  # for the only revision that gets tasks
_PINNED = _TO_SHARE.format("and pin = :revision")  # for one that gets no others
_ITS_SHARE = _TO_SHARE.format(
    f"""and case when pin is null
        then seq * {STRIDE} % {BUCKETS} >= :low and seq * {STRIDE} % {BUCKETS} < :high else pin = :revision end"""
)

_IS_SHARED = f"{_IS_READY} and not ({IS_SUSPECT})"

# Who waits for an agent, and which of a tenant's priorities: each found by one look into the index, however many wait.
_TENANTS = f"""
with recursive waiting (tenant) as (
    select min(tenant) from task where agent = :agent and tenant > :behind and {_IS_READY}
    union all select (select min(tenant) from task where agent = :agent and tenant > waiting.tenant and {_IS_READY})
    from waiting where waiting.tenant is not null)
select cast(:agent as text), tenant from waiting where tenant is not null limit :most"""
_LOWER = f"""
with recursive lower (priority) as (
    select max(priority) from task where agent = :agent and tenant = :tenant and priority < :below and {_IS_SHARED}
    union all select (
        select max(priority) from task
        where agent = :agent and tenant = :tenant and priority < lower.priority and {_IS_SHARED})
    from lower where lower.priority is not null)
select priority from lower where priority is not null limit :most"""

# What is given is in the order of the names here, too.
_CLAIM = """
update task set state = 'running', replica = :replica, revision = :revision, owner = :owner,
    lease_until = :lease_until, claimed_at = :now, started_at = coalesce(started_at, :now), epoch = epoch + 1,
    attempts_charged = attempts_charged + 1, event_seq = event_seq + 1, claim_seq = event_seq + 1
where seq = :seq and state = 'queued'"""

_STATE = """
select state, revision, good_state, good_revision, pin from session
where tenant = :tenant and agent = :agent and id = :session"""
# From here on the session keeps to the revision that its task runs on.
_PIN = """
update session set pin = :revision where tenant = :tenant and agent = :agent and id = :session"""


class Claims:
    """*owner* is the node's random incarnation id, in whose name tasks are claimed.

    *claimed* is called with what each commit claimed, after it is durable.
    """

    def __init__(self, *, owner: str, lease_ttl_us: int) -> None:
        self.owner, self.lease_ttl_us = owner, lease_ttl_us
        self.board = Board()
        self.claimed: Callable[[Sequence[Claim]], None] = lambda _: None
        self._homes: OrderedDict[SessionKey, str] = OrderedDict()

    async def submit(self, tx: Transaction, news: News, items: Sequence[NewTask]) -> list[Accepted]:
        """Store tasks; those for which there is a slot are stored as running."""
        placings = self._placings(items, tx.now_us)
        seated = [
            None if placing is QUEUED else _first_claim(item, placing, tx.now_us)
            for item, placing in zip(items, placings, strict=True)
        ]
        news.claims = [claim for claim in seated if claim is not None]
        answers = await submissions.submit(tx, news, items, placings)
        for claim, answer in zip(seated, answers, strict=True):
            if claim is not None and not answer.is_new:
                self.board.vacate(claim.replica, claim.tenant)
        news.claims = [
            claim for claim, answer in zip(seated, answers, strict=True) if claim is not None and answer.is_new
        ]
        return answers

    def _placings(self, items: Sequence[NewTask], now_us: int) -> list[Placing]:
        """Say how each of *items* is to be stored; where slots are scarce, all wait for `fill`, which chooses."""
        placings, by_agent = [QUEUED] * len(items), defaultdict(list)
        for index, item in enumerate(items):
            if item.session is None and item.not_before is None and not _is_late(item, now_us):
                by_agent[item.agent].append(index)
        for agent, indices in by_agent.items():
            seats = self.board.seat(agent, [items[index].tenant for index in indices])
            for index, seat in zip(indices, seats, strict=True):
                if seat is not None:
                    placings[index] = self._seated(*seat, now_us)
        return placings

    def _seated(self, replica: str, revision: int, now_us: int) -> Placing:
        return Placing(
            state="running",
            epoch=1,
            event_seq=2,  # its acceptance was the first, its begin is the second
            attempts_charged=1,
            owner=self.owner,
            lease_until=now_us + self.lease_ttl_us,
            revision=revision,
            replica=replica,
            claimed_at=now_us,
            claim_seq=2,
            started_at=now_us,
        )

    async def fill(self, tx: Transaction, news: News) -> None:
        """Claim from the queue for every free slot of an agent that may have work."""
        self.board.mark(news.ready)
        await self._list_tenants(tx)
        news.demands = self.board.reserve()
        for demand in news.demands:
            await self._serve(tx, news, demand)
            self.board.settle(demand)

    async def _list_tenants(self, tx: Transaction) -> None:
        if agents := self.board.unlisted():
            behind = self.board.tenants.listed_to
            asked = [{"agent": agent, "behind": behind(agent), "most": tenants.MAX_WAITING} for agent in agents]
            found: dict[str, dict[str, None]] = {agent: {} for agent in agents}
            for agent, tenant in await tx.fetch_many(_TENANTS, asked):
                found[agent][tenant] = None
            for agent, waiting in found.items():
                self.board.list_waiting(agent, waiting)

    async def _serve(self, tx: Transaction, news: News, demand: Demand) -> None:
        """Share the slots of *demand* out among those who wait, and again what some of them have no tasks for."""
        slots, late = self.board.left(demand), 0
        while slots and late < transitions.MAX_MOVED:
            shares = self.board.share_out(demand.queue, slots)
            if not shares:
                return
            firsts, lower = await self._choose(tx, demand, shares)
            ended = await self._begin_or_expire(tx, news, demand, firsts)
            found = len(firsts)
            if lower:  # looked for now: some of those may have been among the first
                rows = await _at_priorities(tx, demand, lower)
                ended += await self._begin_or_expire(tx, news, demand, rows)
                found += len(rows)
            slots, late = slots - found + ended, late + ended

    async def _begin_or_expire(self, tx: Transaction, news: News, demand: Demand, rows: Sequence[Row]) -> int:
        """Let queued tasks begin, but for those whose time is over; return how many these were."""
        late = [row[_ID] for row in rows if row[_DEADLINE] is not None and row[_DEADLINE] <= tx.now_us]
        if late:  # the janitor has not come by yet; the slot is for one whom somebody waits for
            await transitions.expire(tx, news, late)
            self.board.mark(news.ready)  # the next of their sessions
            rows = [row for row in rows if row[_ID] not in late]
        if rows:
            await self._begin(tx, news, demand, rows)
        return len(late)

    async def _choose(
        self, tx: Transaction, demand: Demand, shares: Mapping[str, int]
    ) -> tuple[list[Row], list[tuple[str, int, int]]]:
        """Find the first tasks of each tenant, as many as its share, without those turns that are lower priorities'.

        Those are returned beside them: the tenant, the priority, and how many. They are to be looked for when the first
        are no longer queued.
        """
        ready = await _ready(tx, demand, shares)
        found: dict[str, list[Row]] = {tenant: [] for tenant in shares}
        if len(found) == 1:
            found = {tenant: [*ready] for tenant in shares}
        else:
            for row in ready:
                found[row[_TENANT]].append(row)
        firsts: list[Row] = []
        lower: list[tuple[str, int, int]] = []
        known = self.board.tenants
        for tenant, rows in found.items():
            share, turns = shares[tenant], known.turns(demand.agent, tenant)
            if len(rows) < share:
                known.exhaust(demand.queue, tenant)
            count = 0 if len(rows) < share or demand.run_alone else turns.lower(share)
            given = await _lower_turns(tx, demand, rows[0], count, turns.last) if count else Counter[int]()
            lower += [(tenant, priority, number) for priority, number in given.items()]
            firsts += rows[: len(rows) - given.total()]
            if rows:
                last = fairness.last_turn(count, given)
                known.note_turns(demand.agent, tenant, len(rows), last=last)
        return firsts, lower

    async def _begin(self, tx: Transaction, news: News, demand: Demand, ready: Sequence[Row]) -> None:
        keys = [None if row[4] is None else (row[3], demand.agent, row[4]) for row in ready]
        vault = news.seals.vault
        states = {session: await _state(tx, vault, session) for session in set(keys)}
        replicas = self.board.assign(demand, [(row[3], row[4]) for row in ready], self._homes)
        claims = [
            await _opened(vault, _claim(row, demand, replica, states[session], tx.now_us))
            for row, replica, session in zip(ready, replicas, keys, strict=True)
        ]
        news.claims += claims
        news.changed.update(claim.id for claim in claims)
        news.left.update(claim.tenant for claim in claims)
        until_us = tx.now_us + self.lease_ttl_us
        await tx.execute_many(
            _CLAIM,
            [
                (claim.replica, demand.revision, self.owner, until_us, tx.now_us, row[0])
                for claim, row in zip(claims, ready, strict=True)
            ],
        )
        moved = [(demand.revision, *key) for key in keys if key is not None and states[key].pin != demand.revision]
        if moved:
            await tx.execute_many(_PIN, moved)

    def settle(self, news: News, *, committed: bool) -> None:
        """Tell board and dispatcher how the commit ended, and remember where sessions ran."""
        for demand in news.demands:
            self.board.settle(demand)
        if committed:
            for claim in news.claims:
                if claim.session is not None:
                    self._remember((claim.tenant, claim.agent, claim.session), claim.replica)
            self.claimed(news.claims)
        else:
            for claim in news.claims:
                self.board.vacate(claim.replica, claim.tenant)
            for agent in {demand.agent for demand in news.demands}:
                self.board.doubt_waiting(agent)

    def _remember(self, session: SessionKey, replica: str) -> None:
        self._homes[session] = replica
        self._homes.move_to_end(session)
        if len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)


class _State(msgspec.Struct, frozen=True):
    """What a session's tasks begin with: its last state or, where they have to, its last good one."""

    last: bytes | None = None
    revision: int | None = None
    good: bytes | None = None
    good_revision: int | None = None
    pin: int | None = None
    damage: str | None = None

    @property
    def has_good(self) -> bool:
        return self.good is not None and self.good != self.last


_ID, _TENANT, _DEADLINE, _PRIORITY, _TRACE = 1, 3, 12, 15, 16  # of a row of _READY


async def _ready(tx: Transaction, demand: Demand, shares: Mapping[str, int]) -> Sequence[Row]:
    """Find the tasks that *demand* is for: of each tenant the first, as many as it may have."""
    sql, params = _statement(demand)
    return await tx.fetch_many(sql, [params | {"tenant": tenant, "slots": slots} for tenant, slots in shares.items()])


async def _at_priorities(tx: Transaction, demand: Demand, lower: Sequence[tuple[str, int, int]]) -> Sequence[Row]:
    sql, params = _statement(demand)
    sql = _at_priority(sql)
    names = ("tenant", "priority", "slots")
    return await tx.fetch_many(sql, [params | dict(zip(names, given, strict=True)) for given in lower])


def _at_priority(sql: str) -> str:
    return sql.replace("tenant = :tenant and", "tenant = :tenant and priority = :priority and")


def _statement(demand: Demand) -> tuple[str, dict[str, Any]]:
    """Return the statement that finds what *demand* is for, and what it needs beside the tenant and a number."""
    params: dict[str, Any] = {"agent": demand.agent}
    if demand.run_alone:
        return _TO_RUN_ALONE, params
    params["revision"] = demand.revision
    share = demand.high - demand.low
    if share in (0, BUCKETS):
        return (_ITS_OWN if share else _PINNED), params
    return _ITS_SHARE, params | {"low": demand.low, "high": demand.high}


async def _lower_turns(tx: Transaction, demand: Demand, first: Row, count: int, last: int | None) -> Counter[int]:
    """Return how many of *count* turns each priority below that of *first* gets; *last* had the last one."""
    top: int = first[_PRIORITY]
    params = {"agent": demand.agent, "tenant": first[_TENANT], "most": count}
    below = top if last is None else min(last, top)
    found = [row[0] for row in await tx.fetch(_LOWER, params | {"below": below})]
    if len(found) < count and below < top:  # again from the top
        found = [row[0] for row in await tx.fetch(_LOWER, params | {"below": top})] + found
    return fairness.lower_turns(count, sorted(set(found), reverse=True), last)


async def _state(tx: Transaction, vault: Vault, session: SessionKey | None) -> _State:
    if session is None:
        return _State()
    (row,) = await tx.fetch(_STATE, session)
    state = _State(*row)
    if not vault.is_used:
        return state
    tenant, *place = session
    try:
        last = await vault.opened(tenant, "session", "state", tuple(place), state.last)
        good = await vault.opened(tenant, "session", "good_state", tuple(place), state.good)
    except errors.StoreDamaged as error:
        return msgspec.structs.replace(state, last=None, good=None, damage=str(error))
    return msgspec.structs.replace(state, last=last, good=good)


async def _opened(vault: Vault, claim: Claim) -> Claim:
    """Return *claim* as its run needs it; where what is stored was tampered with, with what to say of that."""
    if not vault.is_used:
        return claim
    try:
        input = await vault.opened(claim.tenant, "task", "input", (claim.id,), claim.input)
        metadata = await vault.opened(claim.tenant, "task", "metadata", (claim.id,), claim.metadata)
    except errors.StoreDamaged as error:
        return replace(claim, input=b"null", metadata=None, damage=str(error))
    assert input is not None
    return replace(claim, input=input, metadata=metadata)


def _is_late(item: NewTask, now_us: int) -> bool:
    """Whether nobody waits for *item* any more: it is stored as queued, to expire."""
    deadline_us = submissions.deadline_at(item, now_us)
    return deadline_us is not None and deadline_us <= now_us


def _first_claim(item: NewTask, placing: Placing, now_us: int) -> Claim:
    assert placing.revision is not None
    assert placing.replica is not None
    deadline_at = submissions.deadline_at(item, now_us)
    return Claim(
        id=item.id,
        epoch=placing.epoch,
        tenant=item.tenant,
        agent=item.agent,
        revision=placing.revision,
        replica=placing.replica,
        session=None,
        input=item.input,
        metadata=item.metadata,
        attempts_charged=placing.attempts_charged,
        max_attempts=item.max_attempts,
        on_replica_loss=item.on_replica_loss,
        retry_backoff_us=item.retry_backoff_us,
        run_timeout_us=item.run_timeout_us,
        deadline_at=deadline_at,
        claimed_at=now_us,
        submitted_by=item.submitted_by,
        depth=item.depth,
        wait_us=0,
        trace=item.trace,
    )


def _claim(row: Row, demand: Demand, replica: str, state: _State, now_us: int) -> Claim:
    _, id, epoch, tenant, session, input_, metadata, charged, *policy, deadline_at, submitted_by, depth = row[
        :_PRIORITY
    ]
    max_attempts, on_replica_loss, retry_backoff_us, run_timeout_us = policy
    kills, restores, ready_at = row[-3:]
    is_restored = bool(restores) and state.has_good
    return Claim(
        id=id,
        epoch=epoch + 1,
        tenant=tenant,
        agent=demand.agent,
        revision=demand.revision,
        replica=replica,
        session=session,
        input=input_,
        metadata=metadata,
        attempts_charged=charged + 1,
        max_attempts=max_attempts,
        on_replica_loss=on_replica_loss,
        retry_backoff_us=retry_backoff_us,
        run_timeout_us=run_timeout_us,
        deadline_at=deadline_at,
        claimed_at=now_us,
        submitted_by=submitted_by,
        depth=depth,
        kills=kills,
        is_alone=demand.run_alone,
        has_good_state=state.has_good,
        state=state.good if is_restored else state.last,
        state_revision=state.good_revision if is_restored else state.revision,
        is_restored=is_restored,
        damage=state.damage,
        wait_us=None if ready_at is None else max(0, now_us - ready_at),
        trace=row[_TRACE],
    )
