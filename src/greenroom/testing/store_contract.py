"""What every store does, as tests: subclass `StoreContract` with a fixture ``scratch``, a `databases.Scratch`.

The tests play the dispatcher: they open lines on the board, take what commits claim, and finish it.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from greenroom import errors, settings
from greenroom.core import history, optimizer, rollouts, tasks
from greenroom.store import advice as advices
from greenroom.store import agents, database, recovery, scaling, submissions, tenants, transitions
from greenroom.store import history as histories
from greenroom.store.advice import MAX_TEXT, Move
from greenroom.store.alerts import Raised, Resolved
from greenroom.store.deployments import Deployed, Deployment, Limits
from greenroom.store.history import Part
from greenroom.store.news import News
from greenroom.store.recovery import NewFailure, Noted, Recovered
from greenroom.store.rows import Accepted, Call, Cancel, Claim, Event, Finish, Lease, NewTask, StoredEvent
from greenroom.store.store import Store
from greenroom.testing.databases import Scratch
from greenroom.testing.fakes import Fault, FaultyDatabase

AGENT, TENANT, TTL_S = "research", "acme", 15.0
_ids = itertools.count(1)


def new_task(**changes: Any) -> NewTask:
    given: dict[str, Any] = {
        "id": f"task-{next(_ids)}",
        "tenant": TENANT,
        "agent": AGENT,
        "input": b'"hello"',
        "submitted_by": "key-1",
        "run_timeout_us": 300_000_000,
        "max_attempts": 3,
    }
    return NewTask(**given | changes)


def _scale(replicas: int, *, rule: str = "burst", reason: str = "why", before: int | None = None) -> scaling.Scale:
    return scaling.Scale(
        agent=AGENT,
        replicas=replicas,
        room=Limits(10, 10),
        rule=rule,
        by=scaling.AUTOSCALER,
        reason=reason,
        before=before,
    )


def _part(part: str, at: int, attempts: int, *, agent: str = AGENT, step_s: int = history.MINUTE_S) -> Part:
    counts = history.Counts()
    counts.end("succeeded", "ok", attempts)
    return Part(agent, step_s, at, part, history.encode(counts))


class Node:
    """A store and the dispatcher's part, played by the test."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.claims: list[Claim] = []
        self._names = itertools.count(1)
        store.claims.claimed = self.claims.extend

    async def submit(self, **changes: Any) -> str:
        accepted = await self.store.tasks.submit(new_task(**changes))
        assert accepted.is_new
        return accepted.id

    async def flush(self) -> None:
        """Wait for a commit, which claims for what is open on the board."""
        await self.store.tasks.renew("nobody", ttl_us=1)

    async def claim(self, slots: int = 1, *, agent: str = AGENT) -> list[Claim]:
        """Claim up to *slots* tasks for a replica that takes no more afterwards."""
        replica, before = f"{self.store.claims.owner}-r{next(self._names)}", len(self.claims)
        self.store.board.open(replica, agent=agent, revision=1, slots=slots)
        await self.flush()
        self.store.board.close(replica)
        return self.claims[before:]

    async def claim_one(self, *, agent: str = AGENT) -> Claim:
        (claim,) = await self.claim(agent=agent)
        return claim

    async def run(self, *, agent: str = AGENT) -> str:
        """Claim a task and let it succeed; return its id."""
        claim = await self.claim_one(agent=agent)
        assert await self.finish(claim)
        return claim.id

    def finish(self, claim: Claim, state: str = "succeeded", **changes: Any) -> asyncio.Future[bool]:
        given: dict[str, Any] = {"output": b'"done"' if state == "succeeded" else None}
        end = Finish(claim.id, claim.epoch, state, "ok", claim.replica, **given | changes)
        return self.store.tasks.finish(end)

    async def begin(self, digest: str, *, judged_anew: bool = True, **given: Any) -> Deployed:
        """Deploy code that is told by its digest."""
        spec = settings.parse_agent(AGENT, {"factory": "module:agent", **given})
        item = Deployment(agent=AGENT, digest=digest, spec=spec, by="ann", judged_anew=judged_anew)
        return await self.store.deployments.deploy(item)

    async def deploy(self, digest: str, **given: Any) -> int:
        """Deploy it and have it serve everything, at once; return the revision's number."""
        begun = await self.begin(digest, **given)
        rollout = await self.store.rollouts.get(begun.rollout)
        done = msgspec.structs.replace(rollout.state, phase=rollouts.Phase.COMPLETE, weight_pct=100, is_retired=True)
        assert await self.store.rollouts.put(rollout, done)
        return begun.revision

    async def agent(self) -> agents.Agent:
        return (await self.store.directory.refresh())[AGENT].agent

    async def state(self, id: str, *, tenant: str = TENANT) -> str:
        return (await self.store.tasks.get(id, tenant=tenant)).state

    async def moves(self, id: str, *, tenant: str = TENANT) -> Sequence[StoredEvent]:
        """The moves of a task after its acceptance."""
        _, *moves = await self.store.tasks.state_events(await self.store.tasks.get(id, tenant=tenant))
        return moves

    async def events(self, id: str, *, after: int = 1) -> Sequence[StoredEvent]:
        return await self.store.tasks.events(await self.store.tasks.get(id, tenant=TENANT), after=after)

    async def trail(self, id: str) -> list[str]:
        """The states that the events of a task tell."""
        return [msgspec.json.decode(event.data)["state"] for event in await self.moves(id)]

    async def raw(self, sql: str, **params: Any) -> list[tuple[Any, ...]]:
        async with self.store.db.transaction() as tx:
            return [tuple(row) for row in await tx.fetch(sql, params)]


def _lease(claim: Claim) -> Lease:
    return Lease(claim.id, claim.epoch)


class StoreContract:
    @pytest.fixture
    async def node(self, scratch: Scratch) -> Node:
        return Node(await scratch.open())

    @pytest.fixture
    async def faulty(self, scratch: Scratch) -> tuple[Node, FaultyDatabase]:
        wrapped: list[FaultyDatabase] = []

        def wrap(db: Any) -> FaultyDatabase:
            wrapped.append(FaultyDatabase(db))
            return wrapped[0]

        node = Node(await scratch.open(wrap=wrap))
        return node, wrapped[0]

    # --- the queue

    async def test_a_task_is_accepted_claimed_and_finished(self, node: Node) -> None:
        id = await node.submit(metadata=b'{"a":1}', priority=2)
        claim = await node.claim_one()
        assert (claim.id, claim.epoch, claim.attempts_charged, claim.input) == (id, 1, 1, b'"hello"')
        assert await node.finish(claim, output=b'"42"', input_tokens=3, output_tokens=4)
        task = await node.store.tasks.get(id, tenant=TENANT)
        assert (task.state, task.output, task.input_tokens, task.output_tokens) == ("succeeded", b'"42"', 3, 4)
        assert task.created_at <= (task.started_at or 0) <= (task.finished_at or 0)
        assert await node.trail(id) == ["running", "succeeded"]

    async def test_a_task_is_claimed_by_the_commit_that_stores_it(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=7, slots=1)
        await node.flush()
        id = await node.submit()
        assert [(claim.id, claim.replica, claim.revision) for claim in node.claims] == [(id, "r", 7)]

    async def test_a_task_passes_nobody_who_was_queued_before(self, node: Node) -> None:
        first = await node.submit()
        node.store.board.open("r", agent=AGENT, revision=1, slots=1)
        await node.submit()
        assert [claim.id for claim in node.claims] == [first]

    async def test_where_slots_are_scarce_the_urgent_are_stored_as_running(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=2)
        await node.flush()
        tasks = [new_task(priority=priority) for priority in (0, 5, 0, 9)]
        await asyncio.gather(*(node.store.tasks.submit(task) for task in tasks))
        assert {claim.id for claim in node.claims} == {tasks[1].id, tasks[3].id}
        states = [await node.state(task.id) for task in tasks]
        assert states == ["queued", "running", "queued", "running"]

    async def test_what_a_commit_lets_run_looks_the_same_from_the_queue_and_at_once(self, node: Node) -> None:
        queued = await node.submit(metadata=b"1", timeout_us=5_000_000)
        node.store.board.open("r", agent=AGENT, revision=7, slots=2)
        await node.flush()
        seated = await node.submit(metadata=b"1", timeout_us=5_000_000)
        first, second = (
            msgspec.structs.replace(claim, id="", claimed_at=0, deadline_at=None, wait_us=0) for claim in node.claims
        )
        assert first == second
        rows = [await node.store.tasks.get(id, tenant=TENANT) for id in (queued, seated)]
        for row, claim in zip(rows, node.claims, strict=True):
            assert (row.claimed_at, row.deadline_at) == (claim.claimed_at, claim.deadline_at)
        assert (
            len({(row.state, row.epoch, row.event_seq, row.claim_seq, row.replica, row.revision) for row in rows}) == 1
        )

    async def test_who_watches_a_task_hears_that_it_begins(self, node: Node) -> None:
        id = await node.submit()
        heard = node.store.hub.watch(id)
        await node.claim_one()
        assert heard.is_set()

    async def test_a_submission_made_twice_in_one_commit_costs_no_slot(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=4)
        await node.flush()
        task = new_task(idempotency_key="k", fingerprint=b"same")
        answers = await asyncio.gather(*(node.store.tasks.submit(task) for _ in range(2)))
        assert [answer.is_new for answer in answers] == [True, True]  # of one id: it is the same task
        assert node.store.board.busy("r") == len(node.claims)

    async def test_a_used_key_takes_no_slot(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=2)
        await node.flush()
        tasks = [new_task(idempotency_key="k", fingerprint=b"same") for _ in range(2)]
        await asyncio.gather(*(node.store.tasks.submit(task) for task in tasks))
        assert ([claim.id for claim in node.claims], node.store.board.busy("r")) == ([tasks[0].id], 1)

    async def test_a_submission_that_is_not_stored_takes_no_slot(self, faulty: tuple[Node, FaultyDatabase]) -> None:
        node, db = faulty
        node.store.board.open("r", agent=AGENT, revision=1, slots=2)
        await node.flush()
        for fault in (Fault.AT_COMMIT, "insert into task "):
            db.faults = [fault]
            with pytest.raises(errors.StoreUnavailable):
                await node.submit()
            assert (node.claims, node.store.board.busy("r"), node.store.board.attempts("r")) == ([], 0, 0)

    async def test_what_is_written_together_is_answered_apart(self, node: Node) -> None:
        tasks = [new_task(), new_task(id=None), new_task()]
        first, bad, last = await node.store.tasks.submit_all(tasks)
        assert isinstance(bad, Exception)
        assert [first, last] == [
            Accepted(task.id, is_new=True, created_at=answer.created_at)
            for task, answer in ((tasks[0], first), (tasks[2], last))
            if isinstance(answer, Accepted)
        ]

    async def test_older_tasks_go_first_and_higher_priorities_before_them(self, node: Node) -> None:
        low, first, second = await node.submit(priority=-1), await node.submit(), await node.submit()
        urgent = await node.submit(priority=9)
        assert [claim.id for claim in await node.claim(2)] == [urgent, first]
        assert [claim.id for claim in await node.claim(5)] == [second, low]

    async def test_only_tasks_of_the_agent_are_claimed(self, node: Node) -> None:
        await node.submit(agent="writing")
        assert await node.claim() == []

    async def test_a_task_is_claimed_once(self, node: Node) -> None:
        ids = {await node.submit() for _ in range(10)}
        claims = [claim for _ in range(12) for claim in await node.claim()]
        assert {claim.id for claim in claims} == ids
        assert len(claims) == 10

    async def test_a_task_waits_until_it_is_due(self, scratch: Scratch, node: Node) -> None:
        now_us = int(scratch.clock.now().timestamp() * 1e6)
        id = await node.submit(not_before=now_us + 60_500_000)
        await scratch.advance(59)
        next_s = await node.store.tasks.tick()
        assert next_s == pytest.approx(1.5, abs=1.0)
        assert await node.claim() == []
        await scratch.advance(2)
        assert await node.store.tasks.tick() is None
        assert (await node.claim_one()).id == id

    async def test_a_task_that_waited_too_long_expires(self, scratch: Scratch, node: Node) -> None:
        id = await node.submit(timeout_us=30_000_000)
        ended = node.store.hub.end_of(id)
        await scratch.advance(29)
        assert await node.store.tasks.tick() == pytest.approx(1.0, abs=0.9)
        await scratch.advance(2)
        await node.store.tasks.tick()
        assert ended.has_come
        task = await node.store.tasks.get(id, tenant=TENANT)
        assert task.state == "expired"
        assert msgspec.json.decode(task.error or b"")["type"] == "timeout"
        assert await node.claim() == []

    async def test_a_running_task_is_its_dispatchers_to_expire(self, scratch: Scratch, node: Node) -> None:
        id = await node.submit(timeout_us=5_000_000)
        claim = await node.claim_one()
        await scratch.advance(6)
        await node.store.tasks.tick()
        assert await node.state(id) == "running"
        assert await node.finish(claim, "expired")

    async def test_a_timeout_counts_from_the_time_the_task_was_due(self, scratch: Scratch, node: Node) -> None:
        now_us = int(scratch.clock.now().timestamp() * 1e6)
        id = await node.submit(not_before=now_us + 100_000_000, timeout_us=30_000_000)
        await scratch.advance(120)
        await node.store.tasks.tick()
        assert await node.state(id) == "queued"
        await scratch.advance(20)
        await node.store.tasks.tick()
        assert await node.state(id) == "expired"

    async def test_a_sub_task_gets_no_more_time_than_its_parent_has(self, node: Node) -> None:
        id = await node.submit(deadline_at=4, timeout_us=30_000_000)
        assert (await node.store.tasks.get(id, tenant=TENANT)).deadline_at == 4

    async def test_nobody_works_while_there_is_nothing_to_do(self, faulty: tuple[Node, FaultyDatabase]) -> None:
        node, db = faulty
        node.store.board.open("r", agent=AGENT, revision=1, slots=4)
        await node.flush()
        before = db.transactions
        assert not node.store.board.has_demand()
        for _ in range(5):
            node.store.commits.nudge()
            await asyncio.sleep(0)
        assert db.transactions == before

    # --- sharing the queue

    async def test_a_free_slot_goes_to_the_tenant_that_holds_the_fewest(self, node: Node) -> None:
        for _ in range(20):
            await node.submit(tenant="flood")
        node.store.board.open("r", agent=AGENT, revision=1, slots=4)
        await node.flush()
        quiet = [await node.submit(tenant="quiet") for _ in range(3)]
        assert [claim.tenant for claim in node.claims] == ["flood"] * 4
        for claim in node.claims[:4]:
            node.store.board.vacate(claim.replica, claim.tenant)
            assert await node.finish(claim)
        assert [claim.tenant for claim in node.claims[4:]] == ["quiet", "quiet", "flood", "flood"]  # two each, now
        assert [claim.id for claim in node.claims[4:6]] == quiet[:2]

    async def test_tenants_that_wait_take_turns_at_one_slot(self, node: Node) -> None:
        for tenant, count in (("flood", 6), ("other", 2), ("third", 1)):
            for _ in range(count):
                await node.submit(tenant=tenant)
        claims = [await node.claim_one() for _ in range(9)]
        assert Counter(claim.tenant for claim in claims[:3]) == {"flood": 1, "other": 1, "third": 1}
        assert Counter(claim.tenant for claim in claims[3:5]) == {"flood": 1, "other": 1}
        assert [claim.tenant for claim in claims[5:]] == ["flood"] * 4

    async def test_what_a_tenant_has_no_tasks_for_goes_to_others_in_the_same_commit(self, node: Node) -> None:
        for tenant, count in (("a", 9), ("b", 2), ("c", 1)):
            await node.store.tasks.submit_all([new_task(tenant=tenant) for _ in range(count)])
        claims = await node.claim(10)
        assert Counter(claim.tenant for claim in claims) == {"a": 7, "b": 2, "c": 1}

    async def test_of_more_tenants_than_are_listed_at_once_each_gets_its_turn(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tenants, "MAX_WAITING", 2)
        for tenant in "abcde":
            await node.store.tasks.submit_all([new_task(tenant=tenant) for _ in range(9)])
        had = Counter([(await node.claim_one()).tenant for _ in range(15)])
        assert min(had[tenant] for tenant in "abcde") >= 2

    async def test_who_was_not_listed_is_looked_for_when_those_who_were_have_nothing_more(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tenants, "MAX_WAITING", 2)
        await node.store.tasks.submit_all([new_task(tenant=tenant) for tenant in "abcde"])
        node.store.board.open("r", agent=AGENT, revision=1, slots=9)
        for _ in range(4):
            await node.flush()
        assert sorted(claim.tenant for claim in node.claims) == ["a", "b", "c", "d", "e"]
        await node.store.tasks.submit_all([new_task(tenant=tenant) for tenant in "abaa"])
        assert len(node.claims) == 9

    async def test_where_slots_are_scarce_the_tenants_of_one_commit_share_them(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=4)
        await node.flush()
        tasks = [new_task(tenant="flood") for _ in range(8)] + [new_task(tenant="quiet") for _ in range(2)]
        await node.store.tasks.submit_all(tasks)
        assert Counter(claim.tenant for claim in node.claims) == {"flood": 2, "quiet": 2}

    async def test_who_waits_is_found_where_nobody_has_said_so(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=3)
        await node.flush()
        async with node.store.db.transaction() as tx:  # another node's
            await submissions.submit(tx, News(), [new_task(tenant=tenant) for tenant in ("a", "b", "c")])
        await node.flush()
        assert node.claims == []
        node.store.board.mark_all()
        await node.flush()
        assert sorted(claim.tenant for claim in node.claims) == ["a", "b", "c"]

    async def test_a_lower_priority_gets_an_eighth_of_its_tenants_turns(self, node: Node) -> None:
        await node.store.tasks.submit_all([new_task(priority=9) for _ in range(40)])
        low = [await node.submit(priority=priority) for priority in (0, -5, 0)]
        one_by_one = [(await node.claim_one()).id for _ in range(16)]
        assert [one_by_one[7], one_by_one[15]] == low[:2]
        assert low[2] in {claim.id for claim in await node.claim(8)}

    async def test_turns_of_lower_priorities_are_given_in_one_commit_too(self, node: Node) -> None:
        await node.store.tasks.submit_all([new_task(priority=9) for _ in range(40)])
        for priority in (0, -5, -9):
            await node.store.tasks.submit_all([new_task(priority=priority) for _ in range(5)])
        ids = [claim.id for claim in await node.claim(32)]
        priorities = [(await node.store.tasks.get(id, tenant=TENANT)).priority for id in ids]
        assert Counter(priorities) == {9: 28, 0: 2, -5: 1, -9: 1}

    async def test_a_lower_priority_that_is_reached_anyway_and_has_a_turn_is_claimed_once(self, node: Node) -> None:
        await node.store.tasks.submit_all([new_task(priority=9) for _ in range(4)])
        await node.store.tasks.submit_all([new_task(priority=0) for _ in range(30)])
        await node.submit(priority=-9)
        claims = await node.claim(24)
        assert len({claim.id for claim in claims}) == len(claims) == 24
        priorities = [(await node.store.tasks.get(claim.id, tenant=TENANT)).priority for claim in claims]
        assert Counter(priorities) == {9: 4, 0: 19, -9: 1}

    async def test_the_sessions_of_a_tenant_take_turns(self, node: Node) -> None:
        await node.store.tasks.submit_all([new_task(session="long") for _ in range(50)])
        await node.store.tasks.submit_all([new_task(session="other") for _ in range(3)])
        short, plain = await node.submit(session="short"), await node.submit()
        sessions = list[str | None]()
        for _ in range(8):
            claim = await node.claim_one()
            assert claim.id != short or len(sessions) == 2
            assert claim.id != plain or len(sessions) == 3
            sessions.append(claim.session)
            assert await node.finish(claim)
        assert sessions == ["long", "other", "short", None, "long", "other", "long", "other"]

    async def test_what_comes_after_a_session_has_been_let_go_goes_behind_it(self, node: Node) -> None:
        first, second = await node.submit(session="s"), await node.submit(session="s")
        older = await node.submit()
        assert await node.finish(await node.claim_one())
        newer = await node.submit()
        assert [claim.id for claim in await node.claim(3)] == [older, second, newer]
        assert await node.state(first) == "succeeded"

    async def test_nothing_begins_whose_time_is_over(self, scratch: Scratch, node: Node) -> None:
        late = [await node.submit(timeout_us=5_000_000, session=session) for session in (None, "s")]
        next_of_session, in_time = await node.submit(session="s"), await node.submit()
        await scratch.advance(6)
        assert {claim.id for claim in await node.claim(3)} == {next_of_session, in_time}  # without a janitor
        assert [await node.state(id) for id in late] == ["expired"] * 2

    async def test_nothing_is_stored_as_running_whose_time_is_over(self, node: Node) -> None:
        node.store.board.open("r", agent=AGENT, revision=1, slots=1)
        await node.flush()
        late = await node.submit(deadline_at=4)
        assert node.claims == []
        assert await node.state(late) == "expired"

    async def test_news_tell_how_many_tasks_have_left_the_queue(self, node: Node) -> None:
        left = Counter[str]()
        node.store.hub.subscribe(lambda news: left.update(news.left))
        ids = [await node.submit() for _ in range(4)]
        assert not left
        claims = await node.claim(2)
        await node.store.tasks.cancel(ids[2], tenant=TENANT)
        assert left == {TENANT: 3}
        await node.store.tasks.cancel(claims[0].id, tenant=TENANT)  # it has left already
        assert left == {TENANT: 3}

    # --- idempotency keys

    async def test_a_key_used_again_names_the_first_task(self, node: Node) -> None:
        first = await node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"same"))
        again = await node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"same"))
        assert again == Accepted(first.id, is_new=False, matches=True, created_at=first.created_at)
        other = await node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"other"))
        assert (other.id, other.is_new, other.matches) == (first.id, False, False)
        assert len(await node.store.tasks.list(tenant=TENANT)) == 1

    async def test_a_key_holds_after_its_task_has_ended(self, node: Node) -> None:
        first = await node.submit(idempotency_key="k", fingerprint=b"same")
        await node.run()
        again = await node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"same"))
        assert (again.id, again.is_new) == (first, False)

    async def test_keys_are_scoped_to_tenants(self, node: Node) -> None:
        await node.submit(idempotency_key="k", fingerprint=b"same")
        await node.submit(idempotency_key="k", fingerprint=b"same", tenant="other")

    @pytest.mark.parametrize("session", [None, "s"])
    async def test_many_equal_submissions_at_once_are_one_task(self, node: Node, session: str | None) -> None:
        tasks = [new_task(idempotency_key="k", fingerprint=b"same", session=session) for _ in range(64)]
        answers = await asyncio.gather(*(node.store.tasks.submit(task) for task in tasks))
        assert len({answer.id for answer in answers}) == 1
        assert sum(answer.is_new for answer in answers) == 1
        assert all(answer.matches for answer in answers)

    async def test_a_key_used_twice_within_a_commit_for_different_bodies_is_refused_once(self, node: Node) -> None:
        first, second = await asyncio.gather(
            node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"one")),
            node.store.tasks.submit(new_task(idempotency_key="k", fingerprint=b"two")),
        )
        assert (first.is_new, first.matches) == (True, True)
        assert (second.id, second.is_new, second.matches) == (first.id, False, False)

    async def test_a_submission_whose_answer_was_lost_is_found_by_its_key(
        self, faulty: tuple[Node, FaultyDatabase]
    ) -> None:
        node, db = faulty
        task = new_task(idempotency_key="k", fingerprint=b"same")
        db.faults = [Fault.AFTER_COMMIT]
        with pytest.raises(errors.StoreUnavailable):
            await node.store.tasks.submit(task)
        again = await node.store.tasks.submit(msgspec.structs.replace(task, id="another"))
        assert (again.id, again.is_new, again.matches) == (task.id, False, True)

    # --- sessions

    async def test_tasks_of_a_session_run_one_at_a_time_in_order(self, node: Node) -> None:
        ids = [await node.submit(session="s", priority=priority) for priority in (0, 5, 9)]
        for id in ids:
            (claim,) = await node.claim(3)
            assert claim.id == id
            assert await node.finish(claim)
        assert await node.claim(3) == []

    async def test_sessions_of_other_agents_and_tenants_do_not_wait(self, node: Node) -> None:
        await node.submit(session="s")
        await node.submit(session="s", tenant="other")
        await node.submit(session="s", agent="writing")
        assert len(await node.claim(3)) == 2
        assert len(await node.claim(3, agent="writing")) == 1

    async def test_a_whole_session_submitted_at_once_keeps_its_order(self, node: Node) -> None:
        tasks = [new_task(session="s") for _ in range(10)]
        await asyncio.gather(*(node.store.tasks.submit(task) for task in tasks))
        assert [await node.run() for _ in tasks] == [task.id for task in tasks]

    @pytest.mark.parametrize("state", ["succeeded", "failed", "expired"])
    async def test_the_end_of_a_task_lets_its_session_go_on(self, node: Node, state: str) -> None:
        await node.submit(session="s")
        second = await node.submit(session="s")
        claim = await node.claim_one()
        assert await node.claim() == []
        await node.finish(claim, state)
        assert (await node.claim_one()).id == second

    async def test_a_task_that_is_queued_again_keeps_its_place_in_its_session(self, node: Node) -> None:
        first, _ = await node.submit(session="s"), await node.submit(session="s")
        await node.finish(await node.claim_one(), "queued")
        assert [claim.id for claim in await node.claim(2)] == [first]

    async def test_a_waiting_task_holds_its_session(self, node: Node) -> None:
        first, second = await node.submit(session="s"), await node.submit(session="s")
        claim = await node.claim_one()
        await node.store.tasks.call(Call(first, claim.epoch, new_task(agent="writing", parent=first)))
        assert await node.claim() == []
        await node.finish(claim)
        assert (await node.claim_one()).id == second

    async def test_cancelling_the_first_of_a_session_lets_the_second_go(self, node: Node) -> None:
        first, second = await node.submit(session="s"), await node.submit(session="s")
        await node.store.tasks.cancel(first, tenant=TENANT)
        assert (await node.claim_one()).id == second

    async def test_cancelling_a_blocked_task_does_not_let_the_third_pass(self, node: Node) -> None:
        first, second, third = [await node.submit(session="s") for _ in range(3)]
        claim = await node.claim_one()
        assert claim.id == first
        await node.store.tasks.cancel(second, tenant=TENANT)
        assert await node.claim() == []
        await node.finish(claim)
        assert (await node.claim_one()).id == third

    async def test_a_blocked_task_that_expires_does_not_let_the_third_pass(self, scratch: Scratch, node: Node) -> None:
        await node.submit(session="s")
        second, third = await node.submit(session="s", timeout_us=1_000_000), await node.submit(session="s")
        claim = await node.claim_one()
        await scratch.advance(5)
        await node.store.tasks.tick()
        assert await node.state(second) == "expired"
        assert await node.claim() == []
        await node.finish(claim)
        assert (await node.claim_one()).id == third

    async def test_the_first_of_a_session_that_expires_lets_the_second_go(self, scratch: Scratch, node: Node) -> None:
        await node.submit(session="s", timeout_us=1_000_000)
        second = await node.submit(session="s")
        await scratch.advance(5)
        await node.store.tasks.tick()
        assert (await node.claim_one()).id == second

    async def test_a_rescued_task_goes_before_the_rest_of_its_session(self, scratch: Scratch, node: Node) -> None:
        first, second = await node.submit(session="s", max_attempts=2), await node.submit(session="s")
        for _ in range(2):
            assert (await node.claim_one()).id == first
            assert await node.claim() == []
            await scratch.advance(TTL_S + 1)
            assert await node.store.tasks.rescue() == 1
        assert await node.state(first) == "failed"
        assert (await node.claim_one()).id == second

    # --- session state

    async def test_the_next_task_of_a_session_sees_the_state_saved_with_the_result(self, node: Node) -> None:
        await node.submit(session="s")
        await node.submit(session="s")
        claim = await node.claim_one()
        assert (claim.state, claim.state_revision) == (None, None)
        await node.finish(claim, session_state=b'{"n":1}', revision=4)
        claim = await node.claim_one()
        assert (claim.state, claim.state_revision) == (b'{"n":1}', 4)
        (session,) = await node.store.sessions.find("s", tenant=TENANT)
        assert (session.tasks, session.state, session.revision) == (1, b'{"n":1}', 4)

    async def test_a_stale_attempt_saves_no_session_state(self, scratch: Scratch, node: Node) -> None:
        await node.submit(session="s")
        stale = await node.claim_one()
        await scratch.advance(TTL_S + 1)
        await node.store.tasks.rescue()
        claim = await node.claim_one()
        assert not await node.finish(stale, session_state=b'"stale"')
        await node.finish(claim, session_state=b'"right"')
        (session,) = await node.store.sessions.find("s", tenant=TENANT)
        assert (session.state, session.tasks) == (b'"right"', 1)

    @pytest.mark.parametrize("state", ["queued", "failed", "expired"])
    async def test_without_a_result_no_session_state_is_saved(self, node: Node, state: str) -> None:
        await node.submit(session="s")
        await node.finish(await node.claim_one(), state, session_state=b'"half"')
        (session,) = await node.store.sessions.find("s", tenant=TENANT)
        assert session.state is None

    async def test_a_session_is_forgotten_once_nothing_of_it_is_open(self, node: Node) -> None:
        await node.submit(session="s")
        with pytest.raises(errors.Conflict):
            await node.store.sessions.remove("s", tenant=TENANT, agent=AGENT)
        await node.finish(await node.claim_one(), session_state=b"1")
        with pytest.raises(errors.NotFound):
            await node.store.sessions.remove("s", tenant="other", agent=AGENT)
        await node.store.sessions.remove("s", tenant=TENANT, agent=AGENT)
        with pytest.raises(errors.NotFound):
            await node.store.sessions.remove("s", tenant=TENANT, agent=AGENT)
        await node.submit(session="s")
        assert (await node.claim_one()).state is None

    # --- leases and epochs

    async def test_a_stale_attempt_writes_nothing(self, scratch: Scratch, node: Node) -> None:
        id = await node.submit()
        stale = await node.claim_one()
        await scratch.advance(TTL_S + 1)
        await node.store.tasks.rescue()
        claim = await node.claim_one()
        assert (claim.id, claim.epoch) == (id, 2)
        before = await node.store.tasks.get(id, tenant=TENANT), await node.events(id)
        assert not await node.finish(stale, output=b'"stale"')
        assert not await node.store.tasks.append(Event(id, stale.epoch, "message", b'"stale"'))
        assert not await node.store.tasks.resume(_lease(stale))
        child = new_task(parent=id)
        assert await node.store.tasks.call(Call(id, stale.epoch, child)) is None
        with pytest.raises(errors.NotFound):
            await node.store.tasks.get(child.id, tenant=TENANT)
        assert (await node.store.tasks.get(id, tenant=TENANT), await node.events(id)) == before
        await node.store.tasks.call(Call(id, claim.epoch, new_task(parent=id, agent="writing")))
        assert not await node.store.tasks.resume(_lease(stale))
        assert await node.state(id) == "waiting"
        assert await node.finish(claim)

    async def test_a_stale_and_a_fresh_end_in_one_commit_are_told_apart(self, scratch: Scratch, node: Node) -> None:
        id = await node.submit()
        stale = await node.claim_one()
        await scratch.advance(TTL_S + 1)
        await node.store.tasks.rescue()
        claim = await node.claim_one()
        ends = (node.finish(stale, output=b"0"), node.finish(claim, output=b"1"), node.finish(claim, output=b"2"))
        assert list(await asyncio.gather(*ends)) == [False, True, False]
        assert (await node.store.tasks.get(id, tenant=TENANT)).output == b"1"
        assert await node.trail(id) == ["running", "queued", "running", "succeeded"]

    async def test_a_renewed_lease_is_not_rescued(self, scratch: Scratch, node: Node) -> None:
        await node.submit()
        claim = await node.claim_one()
        for _ in range(3):
            await scratch.advance(10)
            assert await node.store.tasks.renew("node-1", ttl_us=int(TTL_S * 1e6)) == {(claim.id, claim.epoch)}
            assert await node.store.tasks.rescue() == 0

    async def test_renewing_tells_what_is_lost(self, node: Node) -> None:
        kept, lost = await node.submit(), await node.submit()
        by_id = {claim.id: claim for claim in await node.claim(2)}
        await node.store.tasks.cancel(lost, tenant=TENANT)
        assert await node.store.tasks.renew("node-1", ttl_us=1_000_000) == {(kept, by_id[kept].epoch)}
        assert await node.store.tasks.renew("node-2", ttl_us=1_000_000) == set()

    async def test_what_another_owner_held_is_rescued_at_once(self, node: Node) -> None:
        id = await node.submit()
        await node.claim_one()
        assert await node.store.tasks.rescue(not_owner="node-1") == 0
        assert await node.store.tasks.rescue(not_owner="node-2") == 1
        assert await node.trail(id) == ["running", "queued"]
        assert (await node.claim_one()).attempts_charged == 2

    async def test_attempts_are_bounded(self, node: Node) -> None:
        id = await node.submit(max_attempts=2)
        for _ in range(2):
            await node.claim_one()
            await node.store.tasks.rescue(not_owner="node-2")
        task = await node.store.tasks.get(id, tenant=TENANT)
        assert (task.state, task.attempts_charged) == ("failed", 2)
        error = msgspec.json.decode(task.error or b"")
        assert (error["type"], error["may_have_run"]) == ("replica_lost", True)

    async def test_a_task_that_must_not_run_twice_fails_with_its_node(self, node: Node) -> None:
        id = await node.submit(on_replica_loss="fail")
        ended = node.store.hub.end_of(id)
        await node.claim_one()
        await node.store.tasks.rescue(not_owner="node-2")
        assert ended.has_come
        assert await node.state(id) == "failed"

    async def test_a_task_that_loses_its_node_again_is_given_some_time(self, scratch: Scratch, node: Node) -> None:
        await node.submit(retry_backoff_us=10_000_000)
        await node.claim_one()
        await node.store.tasks.rescue(not_owner="node-2", jitter=0.9)
        await node.claim_one()
        await node.store.tasks.rescue(not_owner="node-2", jitter=0.9)
        assert await node.claim() == []
        await scratch.advance(11)
        await node.store.tasks.tick()
        assert (await node.claim_one()).attempts_charged == 3

    async def test_every_attempt_is_told(self, node: Node) -> None:
        id = await node.submit()
        await node.finish(await node.claim_one(), "queued", refund=1, error=b'{"type":"x"}')
        await node.claim_one()
        await node.store.tasks.rescue(not_owner="node-2")
        await node.finish(await node.claim_one(), "failed", error=b'{"type":"y"}')
        told = [msgspec.json.decode(event.data) for event in await node.moves(id)]
        assert [(move["state"], move.get("attempt"), move.get("reason")) for move in told] == [
            ("running", 1, None),
            ("queued", None, "ok"),
            ("running", 1, None),
            ("queued", None, "fenced"),
            ("running", 2, None),
            ("failed", None, "ok"),
        ]
        assert [event.seq for event in await node.events(id)] == [2, 3, 4, 5, 6, 7]
        assert (told[1]["error"], told[5]["error"]) == ({"type": "x"}, {"type": "y"})

    async def test_a_refunded_attempt_is_not_charged_but_its_epoch_is_gone(self, node: Node) -> None:
        await node.submit()
        await node.finish(await node.claim_one(), "queued", refund=1)
        claim = await node.claim_one()
        assert (claim.attempts_charged, claim.epoch) == (1, 2)

    async def test_a_retry_waits_for_its_backoff(self, scratch: Scratch, node: Node) -> None:
        id = await node.submit()
        claim = await node.claim_one()
        await node.finish(claim, "queued", due_at=claim.claimed_at + 10_000_000)
        await scratch.advance(9)
        await node.store.tasks.tick()
        assert await node.claim() == []
        await scratch.advance(2)
        await node.store.tasks.tick()
        assert (await node.claim_one()).id == id

    async def test_events_of_an_attempt_are_numbered_in_order(self, node: Node) -> None:
        id = await node.submit()
        claim = await node.claim_one()
        events = [Event(id, claim.epoch, "message", str(number).encode()) for number in range(5)]
        assert all(await asyncio.gather(*(node.store.tasks.append(event) for event in events), node.finish(claim)))
        stored = await node.events(id)
        assert [event.seq for event in stored] == [2, 3, 4, 5, 6, 7, 8]
        assert [event.data for event in stored if event.type == "message"] == [event.data for event in events]
        assert [event.seq for event in await node.events(id, after=6)] == [7, 8]

    # --- cancelling

    async def test_a_cancelled_task_gives_no_result(self, node: Node) -> None:
        queued, running = await node.submit(priority=-1), await node.submit()
        claim = await node.claim_one()
        for id in (queued, running):
            await node.store.tasks.cancel(id, tenant=TENANT)
            assert await node.state(id) == "cancelled"
        assert not await node.finish(claim)
        assert await node.claim() == []
        assert await node.trail(running) == ["running", "cancelled"]

    async def test_what_was_ended_says_whether_it_may_have_run(self, scratch: Scratch, node: Node) -> None:
        running, queued = await node.submit(timeout_us=5_000_000), await node.submit()
        late = await node.submit(timeout_us=5_000_000)
        claim = await node.claim_one()
        for id in (running, queued):
            await node.store.tasks.cancel(id, tenant=TENANT)
        again = await node.submit(timeout_us=5_000_000, priority=1)
        await node.finish(await node.claim_one(), "queued")
        await scratch.advance(6)
        await node.store.tasks.tick()
        assert claim.id == running
        told = [(await node.store.tasks.get(id, tenant=TENANT)).error or b"" for id in (running, queued, late, again)]
        assert [msgspec.json.decode(error)["may_have_run"] for error in told] == [True, False, False, True]

    async def test_cancelling_ends_the_whole_tree_of_sub_tasks(self, node: Node) -> None:
        root = await node.submit()
        claim = await node.claim_one()
        child, bystander = new_task(parent=root), await node.submit(agent="other")
        await node.store.tasks.call(Call(root, claim.epoch, child))
        child_claim = await node.claim_one()
        grandchild = new_task(parent=child.id, agent="third")
        await node.store.tasks.call(Call(child.id, child_claim.epoch, grandchild))
        ends = [node.store.hub.end_of(id) for id in (root, child.id, grandchild.id)]
        await node.store.tasks.cancel(root, tenant=TENANT)
        assert all(end.has_come for end in ends)
        states = [await node.state(id) for id in (root, child.id, grandchild.id, bystander)]
        assert states == ["cancelled", "cancelled", "cancelled", "queued"]
        assert not await node.finish(child_claim)

    async def test_a_foreign_task_cannot_be_cancelled_nor_seen(self, node: Node) -> None:
        id = await node.submit()
        for missing, tenant in ((id, "other"), ("nothing", TENANT)):
            with pytest.raises(errors.NotFound):
                await node.store.tasks.cancel(missing, tenant=tenant)
            with pytest.raises(errors.NotFound):
                await node.store.tasks.get(missing, tenant=tenant)
        assert await node.store.tasks.list(tenant="other") == []
        assert await node.state(id) == "queued"

    async def test_an_ended_task_cannot_be_cancelled(self, node: Node) -> None:
        id = await node.submit()
        await node.run()
        with pytest.raises(errors.Conflict, match="succeeded"):
            await node.store.tasks.cancel(id, tenant=TENANT)

    async def test_a_task_cancelled_twice_at_once_is_cancelled_once(self, node: Node) -> None:
        id = await node.submit()
        answers = await asyncio.gather(
            *(node.store.tasks.cancel(id, tenant=TENANT) for _ in range(2)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [type(None), errors.Conflict]
        assert await node.trail(id) == ["cancelled"]

    async def test_an_end_and_a_cancel_in_one_commit_leave_one_terminal_state(self, node: Node) -> None:
        id = await node.submit()
        claim = await node.claim_one()
        cancelled = node.store.commits.write(transitions.cancel, Cancel(id, TENANT))
        assert await node.finish(claim)
        assert await cancelled == "succeeded"
        assert await node.trail(id) == ["running", "succeeded"]

    # --- sub-tasks

    async def test_a_parent_waits_for_its_sub_task_and_goes_on(self, node: Node) -> None:
        root = await node.submit()
        claim = await node.claim_one()
        child = new_task(agent="writing", parent=root)
        accepted = await node.store.tasks.call(Call(root, claim.epoch, child))
        assert accepted is not None
        assert accepted.is_new
        assert await node.state(root) == "waiting"
        await node.run(agent="writing")
        assert await node.store.tasks.resume(_lease(claim))
        assert await node.finish(claim)
        assert await node.trail(root) == ["running", "waiting", "running", "succeeded"]

    async def test_a_call_made_again_by_the_next_attempt_finds_the_recorded_child(self, node: Node) -> None:
        root = await node.submit()
        claim = await node.claim_one()
        child = new_task(agent="writing", parent=root, idempotency_key=f"call:{root}:0", fingerprint=b"f")
        await node.store.tasks.call(Call(root, claim.epoch, child))
        await node.run(agent="writing")
        await node.store.tasks.rescue(not_owner="node-2")
        claim = await node.claim_one()
        again = msgspec.structs.replace(child, id="task-again")
        accepted = await node.store.tasks.call(Call(root, claim.epoch, again))
        assert accepted is not None
        assert (accepted.id, accepted.is_new, accepted.matches) == (child.id, False, True)

    @pytest.mark.parametrize("state", ["failed", "expired"])
    async def test_a_task_that_fails_takes_its_sub_tasks_along(self, node: Node, state: str) -> None:
        root = await node.submit()
        claim = await node.claim_one()
        child = new_task(agent="writing", parent=root)
        await node.store.tasks.call(Call(root, claim.epoch, child))
        assert await node.finish(claim, state)
        assert await node.state(child.id) == "cancelled"

    async def test_a_task_that_expires_in_the_queue_takes_its_sub_tasks_along(
        self, scratch: Scratch, node: Node
    ) -> None:
        root = await node.submit(timeout_us=5_000_000)
        claim = await node.claim_one()
        child = new_task(agent="writing", parent=root)
        await node.store.tasks.call(Call(root, claim.epoch, child))
        assert await node.finish(claim, "queued")
        assert await node.state(child.id) == "queued"
        await scratch.advance(6)
        await node.store.tasks.tick()
        assert (await node.state(root), await node.state(child.id)) == ("expired", "cancelled")

    async def test_a_task_rescued_too_often_takes_its_sub_tasks_along(self, node: Node) -> None:
        root = await node.submit(max_attempts=1)
        claim = await node.claim_one()
        child = new_task(agent="writing", parent=root)
        await node.store.tasks.call(Call(root, claim.epoch, child))
        await node.claim_one(agent="writing")
        assert await node.store.tasks.rescue(not_owner="node-2") == 2
        assert (await node.state(root), await node.state(child.id)) == ("failed", "cancelled")

    # --- what the database itself enforces

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "expired"])
    async def test_the_database_lets_no_task_leave_a_terminal_state(self, node: Node, state: str) -> None:
        id = await node.submit()
        if state == "cancelled":
            await node.store.tasks.cancel(id, tenant=TENANT)
        else:
            await node.finish(await node.claim_one(), state)
        for other in ("queued", "running", "succeeded", "failed"):
            with pytest.raises(Exception, match="terminal states are absorbing"):
                await node.raw("update task set state = :state where id = :id", state=other, id=id)
        assert await node.state(id) == state

    async def test_the_database_lets_nobody_rewrite_events(self, node: Node) -> None:
        id = await node.submit()
        claim = await node.claim_one()
        assert await node.store.tasks.append(Event(id, claim.epoch, "message", b"1"))
        with pytest.raises(Exception, match="events are append-only"):
            await node.raw("update task_event set data = :data where task = :id", id=id, data=b"2")

    async def test_the_database_lets_one_task_of_a_session_run(self, node: Node) -> None:
        await node.submit(session="s")
        second = await node.submit(session="s")
        await node.claim_one()
        with pytest.raises(Exception, match=r"(?i)unique"):
            await node.raw("update task set state = 'running', lease_until = 1 where id = :id", id=second)

    # --- group commit

    async def test_an_item_that_fails_does_not_fail_its_neighbours(self, node: Node) -> None:
        taken = await node.submit()
        answers = await asyncio.gather(
            node.store.tasks.submit(new_task()),
            node.store.tasks.submit(new_task(id=taken)),
            node.store.tasks.submit(new_task(session="s")),
            return_exceptions=True,
        )
        assert [isinstance(answer, Accepted) for answer in answers] == [True, False, True]
        assert len(await node.store.tasks.list(tenant=TENANT)) == 3

    async def test_a_value_that_the_database_cannot_hold_fails_alone(self, node: Node) -> None:
        await node.flush()
        answers = await asyncio.gather(
            node.store.tasks.submit(new_task()),
            node.store.tasks.submit(new_task(deadline_at=2**70)),
            return_exceptions=True,
        )
        assert [isinstance(answer, Accepted) for answer in answers] == [True, False]

    async def test_what_listens_to_a_commit_cannot_make_it_happen_twice(self, scratch: Scratch) -> None:
        store = await scratch.open()

        def break_down(_: Any) -> None:
            raise RuntimeError("a listener is broken")

        store.hub.subscribe(break_down)
        first, second = new_task(), new_task()
        answers = await asyncio.gather(*(store.tasks.submit(task) for task in (first, second)))
        assert [answer.id for answer in answers] == [first.id, second.id]
        with pytest.raises(errors.StoreUnavailable):
            await asyncio.wait_for(store.tasks.submit(new_task()), 5)
        with pytest.raises(RuntimeError, match="a listener is broken"):
            await store.commits.close()

    @pytest.mark.parametrize("fault", [Fault.AT_COMMIT, "from session", "set state = 'running'", "skip locked"])
    async def test_a_failed_commit_gives_its_slots_back(
        self, faulty: tuple[Node, FaultyDatabase], fault: Fault | str
    ) -> None:
        node, db = faulty
        ids = [await node.submit(session=session) for session in ("s", "t", None)]
        node.store.board.open("r", agent=AGENT, revision=1, slots=3)
        db.faults = [fault]
        with pytest.raises(errors.StoreUnavailable):
            await node.flush()
        assert (node.claims, node.store.board.busy("r"), node.store.board.attempts("r")) == ([], 0, 0)
        assert node.store.board.has_demand()
        await node.flush()
        assert [claim.id for claim in node.claims] == ids
        assert node.store.board.busy("r") == 3

    async def test_nothing_of_a_failed_commit_is_stored_and_nothing_acknowledged_is_lost(
        self, faulty: tuple[Node, FaultyDatabase]
    ) -> None:
        node, db = faulty
        acknowledged: set[str] = set()
        refused: set[str] = set()
        db.faults = [Fault.AT_COMMIT if number % 3 == 0 else None for number in range(12)]
        for _ in range(12):
            tasks = [new_task() for _ in range(5)]
            answers = await asyncio.gather(*(node.store.tasks.submit(task) for task in tasks), return_exceptions=True)
            for task, answer in zip(tasks, answers, strict=True):
                (acknowledged if isinstance(answer, Accepted) else refused).add(task.id)
        stored = {task.id for task in await node.store.tasks.list(tenant=TENANT, limit=200)}
        assert (stored, len(refused)) == (acknowledged, 20)

    async def test_news_is_told_only_of_what_is_stored(self, faulty: tuple[Node, FaultyDatabase]) -> None:
        node, db = faulty
        id = await node.submit()
        claim, ended = await node.claim_one(), node.store.hub.end_of(id)
        db.faults = [Fault.AT_COMMIT]
        with pytest.raises(errors.StoreUnavailable):
            await node.finish(claim)
        assert not ended.has_come
        assert await node.finish(claim)
        assert ended.has_come

    async def test_closing_commits_what_is_pending(self, scratch: Scratch, node: Node) -> None:
        task = new_task()
        pending = node.store.tasks.submit(task)
        await scratch.close()
        assert pending.result().is_new
        with pytest.raises(errors.StoreUnavailable):
            await node.store.tasks.submit(new_task())
        node = Node(await scratch.open("node-2"))
        assert await node.state(task.id) == "queued"

    async def test_a_store_opened_again_goes_on_where_it_was(self, scratch: Scratch, node: Node) -> None:
        ids = [await node.submit(session="s") for _ in range(2)]
        await node.claim_one()
        await scratch.close()
        node = Node(await scratch.open("node-2"))
        assert await node.store.tasks.rescue(not_owner="node-2") == 1
        assert [await node.run(), await node.run()] == ids

    async def test_a_commit_is_bounded(self, node: Node) -> None:
        answers = await asyncio.gather(*(node.store.tasks.submit(new_task()) for _ in range(2_500)))
        assert sum(answer.is_new for answer in answers) == 2_500
        assert await node.store.tasks.open_counts() == {(AGENT, "queued"): 2_500}

    # --- reading

    async def test_lists_are_filtered_and_paged(self, node: Node) -> None:
        ids = [await node.submit(agent=("a", "b")[number % 2], session=f"s{number}") for number in range(6)]
        page = await node.store.tasks.list(tenant=TENANT, limit=4)
        assert [task.id for task in page] == ids[:1:-1]
        rest = await node.store.tasks.list(tenant=TENANT, before_seq=page[-1].seq)
        assert [task.id for task in rest] == ids[1::-1]
        assert [task.id for task in await node.store.tasks.list(tenant=TENANT, agent="b")] == ids[5:0:-2]
        assert [task.id for task in await node.store.tasks.list(tenant=TENANT, session="s3")] == [ids[3]]
        await node.run(agent="a")
        assert [task.id for task in await node.store.tasks.list(tenant=TENANT, state="succeeded")] == [ids[0]]
        assert await node.store.tasks.end_counts(tenant=TENANT) == {("a", "succeeded"): 1}

    async def test_only_the_replicas_of_lost_nodes_are_closed(self, node: Node) -> None:
        rows = node.store.agents
        for name in ("one", "two", "three"):
            await rows.put_replica(
                agents.Replica(f"r-{name}", "a", 1, name, 1, "ready", "healthy", "", 1, None, 0, started_at=1)
            )
        await rows.close_nodes(only="two")
        assert [replica.node for replica in await rows.replicas()] == ["two"]

    # --- what kills replicas, and what supervision remembers

    async def test_a_task_that_two_replicas_died_of_is_claimed_to_run_alone_only(self, node: Node) -> None:
        suspect, other = await node.submit(), await node.submit()
        for _ in range(tasks.SUSPECT_KILLS):
            assert await node.finish(await node.claim_one(), "queued", kills=1)
        assert [claim.id for claim in await node.claim(slots=5)] == [other]
        assert await node.store.tasks.suspected() == {AGENT}
        node.store.board.open("alone", agent=AGENT, revision=1, slots=1, for_suspects=True)
        await node.flush()
        claim = node.claims[-1]
        assert (claim.id, claim.replica, claim.is_alone, claim.kills) == (suspect, "alone", True, 2)
        assert await node.store.tasks.suspected() == frozenset()

    async def test_a_task_begins_with_its_sessions_last_good_state_only_when_it_has_to(self, node: Node) -> None:
        for state in (b'"first"', b'"second"'):
            await node.submit(session="s")
            claim = await node.claim_one()
            assert await node.finish(claim, session_state=state, revision=claim.revision)
        await node.submit(session="s")
        for _ in range(tasks.SUSPECT_KILLS):
            claim = await node.claim_one()
            assert (claim.state, claim.is_restored) == (b'"second"', False)
            assert await node.finish(claim, "queued", kills=1)
        node.store.board.open("alone", agent=AGENT, revision=1, slots=1, for_suspects=True)
        await node.flush()
        claim = node.claims[-1]
        assert (claim.state, claim.is_restored, claim.has_good_state) == (b'"second"', False, True)
        node.store.board.release("alone", TENANT)
        assert await node.finish(claim, "queued", kills=1, restores=1)
        claim = node.claims[-1]
        assert (claim.state, claim.state_revision, claim.is_restored) == (b'"first"', 1, True)
        assert await node.finish(claim, session_state=b'"third"', is_restored=True)
        ((state, good),) = await node.raw("select state, good_state from session")
        place = TENANT, "session"
        opened = [
            await node.store.vault.opened(*place, column, (AGENT, "s"), value)
            for column, value in (("state", state), ("good_state", good))
        ]
        assert tuple(opened) == (b'"third"', b'"first"')

    async def test_failures_are_kept_for_each_agent_up_to_a_bound(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recovery, "KEEP_FAILURES", 3)
        store = node.store.recovery
        for number in range(5):
            for agent in ("a", "b"):
                failure = NewFailure(f"{agent}-{number}", agent, 1, "node-1", "crashed", "x" * 9_999, "restart")
                await store.note(Noted(agent, b"{}", (failure,)))
        found = await store.failures(agent="a")
        assert [row.replica for row in found] == ["a-4", "a-3", "a-2"]
        assert {len(row.reason) for row in found} == {recovery.MAX_REASON}
        assert [row.replica for row in await store.failures(before_seq=found[0].seq, limit=2)] == ["b-3", "a-3"]
        await store.note(Noted("a", b"{}", recovered=(Recovered("a-3", "a-9"),)))
        assert [row.recovered_by for row in await store.failures(agent="a")] == [None, "a-9", None]
        still_open = [row.replica for row in await store.open_failures(after_us=0)]
        assert still_open == ["a-2", "b-2", "b-3", "a-4", "b-4"]

    async def test_a_failure_and_its_alert_are_one_commit(self, node: Node) -> None:
        failure = NewFailure("a-1", "a", 1, "node-1", "crashed", "why", "restart")
        raised = Raised("agent-a", "recurring", "a", "warning", "why")
        await node.store.recovery.note(Noted("a", b"{}", (failure,), alert=raised))
        assert [(alert.id, alert.state) for alert in await node.store.alerts.open()] == [("agent-a", "firing")]
        await node.store.recovery.note(Noted("a", b"{}", alert=Resolved("agent-a")))
        assert await node.store.alerts.open() == []
        assert await node.store.recovery.failure_counts(after_us=0) == {"a": 1}
        assert await node.store.recovery.failure_counts(after_us=2**62) == {}

    async def test_advice_is_opened_applied_and_measured_and_what_is_open_is_listed_first(self, node: Node) -> None:
        advice = node.store.advice
        found = optimizer.Found("idle", "a", "w" * 9_999, "why", "expected", "replicas", 2, 1.0)
        first, second, third = [await advice.open(found) for _ in range(3)]
        await advice.move(Move(second, "applied"))
        await advice.move(Move(third, "withdrawn", 1.5))
        rows = await advice.list()
        assert [(row.id, row.state) for row in rows] == [(second, "applied"), (first, "open"), (third, "withdrawn")]
        assert (len(rows[0].what), rows[0].value_before, rows[0].applied_at is not None) == (MAX_TEXT, 2.0, True)
        assert (rows[2].value_after, rows[2].ended_at is not None) == (1.5, True)
        assert [row.id for row in await advice.list(before=rows[1].cursor, limit=5)] == [third]
        await advice.move(Move(second, "measured", None, "no effect"))
        await advice.move(Move(second, "open"))  # what has ended stays so
        assert [row.id for row in await advice.standing()] == [first]
        assert await advice.open_count() == 1
        (ended,) = [row for row in await advice.list() if row.id == second]
        assert (ended.state, ended.value_after, ended.outcome) == ("measured", None, "no effect")

    async def test_advice_that_has_ended_is_kept_up_to_a_bound(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(advices, "KEEP", 3)
        advice = node.store.advice
        found = optimizer.Found("idle", None, "what", "why", "expected", "replicas", 2)
        still_open = await advice.open(found)
        ids = [await advice.open(found) for _ in range(6)]
        for id in ids:
            await advice.move(Move(id, "withdrawn"))
        assert [row.id for row in await advice.list()] == [still_open, *reversed(ids[-3:])]

    async def test_a_record_is_kept_until_its_agent_is_gone(self, node: Node) -> None:
        store = node.store.recovery
        await store.note(Noted("a", b'{"rung":null}'))
        assert [record for record, _ in (await store.records()).values()] == [b'{"rung":null}']
        await store.note(Noted("a", None))
        assert await store.records() == {}

    async def test_an_agent_goes_back_to_a_revision_that_has_proved_itself_unless_it_has_changed(
        self, node: Node
    ) -> None:
        rows = node.store.agents
        for digest in ("one", "two", "three"):
            await node.deploy(digest)
        assert await rows.fallback(AGENT, 3) is None
        await node.store.recovery.note(Noted(AGENT, b"{}", proven=(1,)))
        assert await rows.fallback(AGENT, 3) == 1
        (agent,) = await rows.list()
        back_to = functools.partial(node.store.rollouts.switch, AGENT, to=1, reason="it dies", by="recovery")
        assert await back_to(generation=agent.generation - 1) is None
        assert await back_to(generation=agent.generation) is not None
        (back,) = await rows.list()
        assert (back.revision, back.generation) == (1, agent.generation + 1)
        await node.store.recovery.note(Noted(AGENT, b"{}", proven=(3,)))
        assert await rows.fallback(AGENT, 3) is None

    async def test_a_node_that_starts_leaves_what_was_undone_as_it_is(self, node: Node) -> None:
        for digest in ("one", "two"):
            await node.deploy(digest)
        (agent,) = await node.store.agents.list()
        undone = await node.store.rollouts.switch(AGENT, generation=agent.generation, to=1, reason="ann", by="ann")
        begun = await node.begin("two", judged_anew=False)
        assert (begun.revision, begun.rollout, begun.action) == (1, undone, "leave")
        assert (await node.begin("two")).revision == 2
        assert (await node.begin("three", judged_anew=False)).revision == 3

    # --- scaling

    async def test_a_number_of_replicas_and_its_reason_are_one_write(self, node: Node) -> None:
        await node.deploy("one")
        store, generation = node.store.scaling, (await node.agent()).generation
        assert await store.decide([_scale(3, before=1)]) == [True]
        assert ((await node.agent()).replicas, (await node.agent()).generation) == (3, generation)
        (decision,) = await store.decisions(AGENT)
        told = (decision.from_replicas, decision.to_replicas, decision.rule, decision.reason, decision.decided_by)
        assert told == (1, 3, "burst", "why", scaling.AUTOSCALER)
        assert await store.decide([_scale(5, before=1)]) == [False]  # somebody else has set it
        assert await store.decide([_scale(3, before=3, rule="enough")]) == [True]
        assert [each.rule for each in await store.decisions(AGENT)] == ["enough", "burst"]
        assert [each.rule for each in await store.decisions(AGENT, before_seq=decision.seq + 1)] == ["burst"]

    async def test_what_a_person_sets_is_within_bounds_and_room_and_judged_anew(self, node: Node) -> None:
        await node.deploy("one")
        store, generation = node.store.scaling, (await node.agent()).generation
        room = Limits(4, 4)
        await store.set(AGENT, 3, room=room, by="ann", within_bounds=True)
        assert (await node.agent()).generation == generation + 1
        assert (await store.decisions(AGENT))[0].reason == "from 1 to 3: ann has set it"
        for count, word in ((0, "min_replicas"), (5, "max_replicas")):
            with pytest.raises(errors.Conflict, match=word):
                await store.set(AGENT, count, room=room, by="ann", within_bounds=True)
        with pytest.raises(errors.Conflict, match=r"cluster\.max_replicas is 4"):
            await store.set(AGENT, 5, room=room, by="ann", within_bounds=False)
        with pytest.raises(errors.NotFound):
            await store.set("nobody", 1, room=room, by="ann", within_bounds=False)
        assert (await node.agent()).replicas == 3

    async def test_decisions_are_bounded_for_each_agent(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(scaling, "KEEP", 3)
        await node.deploy("one")
        for number in range(5):
            await node.store.scaling.decide([_scale(1, rule=f"rule {number}", reason="x" * 9_999)])
        found = await node.store.scaling.decisions(AGENT)
        assert [each.rule for each in found] == ["rule 4", "rule 3", "rule 2"]
        assert {len(each.reason) for each in found} == {scaling.MAX_REASON}

    async def test_what_may_be_claimed_is_counted(self, node: Node) -> None:
        for changes in ({}, {}, {"session": "s"}, {"session": "s"}, {"agent": "other"}, {"not_before": 2**61}):
            await node.submit(**changes)
        for is_large in (False, True):
            assert await node.store.tasks.claimable_counts(is_large=is_large) == {AGENT: 3, "other": 1}

    async def test_how_long_a_task_waited_for_its_first_attempt_is_told_with_its_claim(
        self, scratch: Scratch, node: Node
    ) -> None:
        await scratch.stop_clock()
        now_us = int(scratch.clock.now().timestamp() * 1e6)
        await node.submit()
        await scratch.advance(2)
        await node.submit(agent="other", not_before=now_us + 3_000_000)
        await node.submit(agent="later", not_before=2**61)
        await scratch.advance(2)
        await node.store.tasks.tick()
        waiting = await node.store.tasks.waiting()
        assert waiting == {AGENT: (1, now_us), "other": (1, now_us + 3_000_000)}
        claim = await node.claim_one()
        assert claim.wait_us == 4_000_000
        assert (await node.claim_one(agent="other")).wait_us == 1_000_000
        await node.finish(claim, "queued", due_at=None)
        assert (await node.claim_one()).wait_us is None
        node.store.board.open("free", agent="third", revision=1, slots=1)
        await node.submit(agent="third")
        await node.flush()
        assert node.claims[-1].wait_us == 0

    async def test_the_load_is_kept_by_the_time_of_the_store(self, node: Node) -> None:
        load = scaling.Load(agent=AGENT, arrivals=2, ends=1, run_us=7, waiting=3, busy=0.5, replicas=1, start_us=None)
        await node.store.scaling.record([load])
        await node.store.scaling.record([load, msgspec.structs.replace(load, agent="other")])
        found = await node.store.scaling.loads(AGENT, after_us=0)
        assert sum(each.arrivals for each in found) == 4
        assert {(each.run_us, each.busy) for each in found} == {(7, 0.5)}
        assert all(each.at % 10_000_000 == 0 for each in found)
        assert not await node.store.scaling.loads(AGENT, after_us=2**61)

    # --- history

    async def test_a_part_of_the_history_is_written_whole_and_beside_those_of_others(self, node: Node) -> None:
        store, minute = node.store.history, 60_000_000
        await store.put([_part("one", minute, 1), _part("earlier", minute, 5), _part("one", 2 * minute, 7)])
        await store.put([_part("one", minute, 3)])  # it has grown, or nobody knows whether it was stored
        await store.put([_part("one", minute, 9, agent="other"), _part("one", 0, 9, step_s=history.HOUR_S)])
        found = await store.read(AGENT, history.MINUTE_S, since_us=0)
        assert [(at, history.decode(record).attempts) for at, record in found] == [
            (2 * minute, 7),
            *((minute, attempts) for attempts in (5, 3)),
        ]
        rolled = history.rolled(found, history.MINUTE_S)
        assert {at: counts.ends for at, counts in rolled.items()} == {
            minute: {"succeeded ok": 8},
            2 * minute: {"succeeded ok": 7},
        }
        for since_us, until_us, attempts in (
            (2 * minute, 2**62, [7]),
            (0, 2 * minute, [5, 3]),
            (3 * minute, 2**62, []),
        ):
            found = await store.read(AGENT, history.MINUTE_S, since_us=since_us, until_us=until_us)
            assert [history.decode(record).attempts for _, record in found] == attempts
        assert not await store.read("nobody", history.MINUTE_S, since_us=0)
        of_all = await store.recent(history.MINUTE_S, since_us=minute)
        assert sorted((agent, at, history.decode(record).attempts) for agent, at, record in of_all) == sorted(
            [(AGENT, 2 * minute, 7), (AGENT, minute, 5), (AGENT, minute, 3), ("other", minute, 9)]
        )
        assert [agent for agent, *_ in await store.recent(history.MINUTE_S, since_us=2 * minute)] == [AGENT]

    async def test_what_is_read_of_the_history_is_bounded(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(histories, "MAX_READ", 2)
        await node.store.history.put([_part("one", at, at + 1) for at in range(4)])
        found = await node.store.history.read(AGENT, history.MINUTE_S, since_us=0)
        assert [at for at, _ in found] == [3, 2]

    async def test_history_is_dropped_by_the_time_of_the_store_the_oldest_first_in_batches(
        self, scratch: Scratch, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(histories, "MAX_DROPPED", 2)
        store, now_us = node.store.history, database.microseconds(scratch.clock.now())
        olds = [now_us - (number + 200) * 1_000_000 for number in range(3)]
        await store.put([_part("one", at, 1) for at in (*olds, now_us)])
        await store.put([_part("one", olds[0], 1, step_s=history.HOUR_S)])
        assert await store.expire(history.MINUTE_S, keep_s=100)
        left = await store.read(AGENT, history.MINUTE_S, since_us=0)
        assert [at for at, _ in left] == [now_us, olds[0]]
        assert not await store.expire(history.MINUTE_S, keep_s=100)
        assert not await store.expire(history.HOUR_S, keep_s=1_000)
        assert [at for at, _ in await store.read(AGENT, history.MINUTE_S, since_us=0)] == [now_us]
        assert [at for at, _ in await store.read(AGENT, history.HOUR_S, since_us=0)] == [olds[0]]

    async def test_migrating_again_changes_nothing(self, node: Node) -> None:
        id = await node.submit()
        await node.store.db.migrate()
        assert await node.state(id) == "queued"
