"""Claims: tasks begin to run in the commits that store them or that free a slot, for the slots on this node's board.

One move, at two moments of a commit. A task that finds a free slot, and none of its agent queued before it, is stored
as running at once; at its end each commit claims, from the queue, for what is still free.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from greenroom.store import submissions
from greenroom.store.board import BUCKETS, STRIDE, Board, Demand
from greenroom.store.database import Row, Transaction
from greenroom.store.news import News
from greenroom.store.rows import IS_SUSPECT, Accepted, Claim, NewTask, SessionKey
from greenroom.store.submissions import QUEUED, Placing

MAX_HOMES = 10_000

_READY = """
select seq, id, epoch, tenant, session, input, metadata, attempts_charged, max_attempts, on_replica_loss,
    retry_backoff_us, run_timeout_us, deadline_at, submitted_by, depth, kills, restores
from task where agent = :agent and state = 'queued' and due_at is null and not blocked and {whose}
order by priority desc, seq limit :slots for update skip locked"""
_TO_SHARE, _TO_RUN_ALONE = _READY.format(whose=f"not ({IS_SUSPECT}) {{}}"), _READY.format(whose=IS_SUSPECT)
_ITS_OWN = _TO_SHARE.format("and (pin is null or pin = :revision)")  # for the only revision that gets tasks
_PINNED = _TO_SHARE.format("and pin = :revision")  # for one that gets no others
_ITS_SHARE = _TO_SHARE.format(
    f"""and case when pin is null
        then seq * {STRIDE} % {BUCKETS} >= :low and seq * {STRIDE} % {BUCKETS} < :high else pin = :revision end"""
)

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
                self.board.vacate(claim.replica)
        news.claims = [
            claim for claim, answer in zip(seated, answers, strict=True) if claim is not None and answer.is_new
        ]
        return answers

    def _placings(self, items: Sequence[NewTask], now_us: int) -> list[Placing]:
        """Say how each of *items* is to be stored; where slots are scarce, the highest priorities get them."""
        placings, by_agent = [QUEUED] * len(items), defaultdict(list)
        for index, item in enumerate(items):
            if item.session is None and item.not_before is None:
                by_agent[item.agent].append(index)
        for agent, indices in by_agent.items():
            seats = self.board.seat(agent, len(indices))
            if len(seats) < len(indices):
                indices.sort(key=lambda index: -items[index].priority)
            for index, (replica, revision) in zip(indices, seats, strict=False):
                placings[index] = Placing(
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
        return placings

    async def fill(self, tx: Transaction, news: News) -> None:
        """Claim from the queue for every free slot of an agent that may have work; the oldest of the most urgent."""
        self.board.mark(news.ready)
        news.demands = self.board.reserve()
        for demand in news.demands:
            await self._claim(tx, news, demand, await _ready(tx, demand))

    async def _claim(self, tx: Transaction, news: News, demand: Demand, ready: Sequence[Row]) -> None:
        keys = [None if row[4] is None else (row[3], demand.agent, row[4]) for row in ready]
        states = {session: await _state(tx, session) for session in set(keys)}
        replicas = self.board.assign(demand, keys, self._homes)
        claims = [
            _claim(row, demand, replica, states[session], tx.now_us)
            for row, replica, session in zip(ready, replicas, keys, strict=True)
        ]
        news.claims += claims
        news.changed.update(claim.id for claim in claims)
        until_us = tx.now_us + self.lease_ttl_us
        await tx.execute_many(
            _CLAIM,
            [
                (claim.replica, demand.revision, self.owner, until_us, tx.now_us, row[0])
                for claim, row in zip(claims, ready, strict=True)
            ],
        )
        moved = [(demand.revision, *key) for key in keys if key is not None and states[key].pin != demand.revision]
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
                self.board.vacate(claim.replica)
            self.board.mark(demand.agent for demand in news.demands)

    def _remember(self, session: SessionKey, replica: str) -> None:
        self._homes[session] = replica
        self._homes.move_to_end(session)
        if len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _State:
    """What a session's tasks begin with: its last state or, where they have to, its last good one."""

    last: bytes | None = None
    revision: int | None = None
    good: bytes | None = None
    good_revision: int | None = None
    pin: int | None = None

    @property
    def has_good(self) -> bool:
        return self.good is not None and self.good != self.last


async def _ready(tx: Transaction, demand: Demand) -> Sequence[Row]:
    """Find the tasks that *demand* is for."""
    params = {"agent": demand.agent, "slots": demand.slots}
    if demand.run_alone:
        return await tx.fetch(_TO_RUN_ALONE, params)
    params["revision"] = demand.revision
    share = demand.high - demand.low
    if share in (0, BUCKETS):
        return await tx.fetch(_ITS_OWN if share else _PINNED, params)
    return await tx.fetch(_ITS_SHARE, params | {"low": demand.low, "high": demand.high})


async def _state(tx: Transaction, session: SessionKey | None) -> _State:
    if session is None:
        return _State()
    (row,) = await tx.fetch(_STATE, session)
    return _State(*row)


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
    )


def _claim(row: Row, demand: Demand, replica: str, state: _State, now_us: int) -> Claim:
    _, id, epoch, tenant, session, input_, metadata, charged, *policy, deadline_at, submitted_by, depth = row[:-2]
    max_attempts, on_replica_loss, retry_backoff_us, run_timeout_us = policy
    kills, restores = row[-2:]
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
    )
