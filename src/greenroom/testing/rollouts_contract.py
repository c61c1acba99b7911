"""What every store does about rollouts, as tests: subclass `RolloutsContract` with a fixture ``scratch``.

The tests play the reconciler, and the dispatcher as those of `store_contract` do.
"""

from __future__ import annotations

from collections import Counter

import pytest

from greenroom import errors
from greenroom.core import rollouts
from greenroom.core.rollouts import Phase
from greenroom.store.agents import Replica
from greenroom.store.deployments import Deployment, Limits
from greenroom.store.rollouts import Rollout
from greenroom.store.rows import Claim
from greenroom.testing.databases import Scratch
from greenroom.testing.store_contract import AGENT, TENANT, Node

READY = rollouts.Seen(1, 100, rollouts.Proof.PASSED)


async def last(node: Node) -> Rollout:
    entry = (await node.store.directory.refresh())[AGENT]
    assert entry.rollout is not None
    return entry.rollout


async def serving(node: Node) -> int:
    return (await node.store.directory.refresh())[AGENT].agent.revision


async def move(node: Node, *, until: int | None = None, elapsed_s: float = 0.0) -> Rollout:
    """Move the last rollout on: by one step, or *until* it has this weight."""
    while True:
        rollout = await last(node)
        state, _ = rollouts.step(rollout.state, READY, elapsed_s)
        assert await node.store.rollouts.put(rollout, state)
        if until is None or state.weight_pct >= until:
            return await last(node)


async def put_ready_replica(node: Node, *, revision: int) -> None:
    replica = Replica(
        id="r", agent=AGENT, revision=revision, node="n", pid=1, state="ready", grade="healthy", reason="", slots=1,
        memory_mb=None, restarts=0, started_at=1,
    )  # fmt: skip
    await node.store.agents.put_replica(replica)


async def standing(node: Node) -> list[int]:
    return sorted(revision.number for revision in await node.store.agents.revisions(AGENT) if not revision.retired_at)


async def claims(node: Node, *revisions: int, slots: int) -> list[Claim]:
    """Claim what there is for one replica of each revision."""
    before = len(node.claims)
    for revision in revisions:
        node.store.board.open(f"of-{revision}", agent=AGENT, revision=revision, slots=slots)
    await node.flush()
    for revision in revisions:
        node.store.board.close(f"of-{revision}")
    return node.claims[before:]


async def claim_one(node: Node, *revisions: int) -> Claim:
    (claim,) = await claims(node, *revisions, slots=5)
    return claim


class RolloutsContract:
    @pytest.fixture
    async def node(self, scratch: Scratch) -> Node:
        return Node(await scratch.open())

    # --- deployments

    async def test_the_first_revision_serves_at_once(self, node: Node) -> None:
        begun = await node.begin("one")
        assert (begun.revision, begun.action, await serving(node)) == (1, "begin", 1)
        state = (await last(node)).state
        assert (state.from_revision, state.shares) == (None, {1: 100})

    async def test_the_next_one_serves_when_its_rollout_has_switched_in_one_commit(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two", rollout={"strategy": "blue-green"}, description="new")
        assert (await serving(node), await standing(node)) == (1, [1, 2])
        switched = await move(node, until=100)
        entry = node.store.directory.entries[AGENT]
        assert (entry.agent.revision, entry.spec.description, switched.phase) == (2, "new", "progressing")
        back = rollouts.roll_back(switched.state, "errors")
        assert await node.store.rollouts.put(switched, back)
        entry = (await node.store.directory.refresh())[AGENT]
        assert (entry.agent.revision, entry.spec.description, await standing(node)) == (1, "", [1])

    async def test_a_rollout_keeps_the_moments_of_its_phases_stages_and_weights(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two", rollout={"strategy": "blue-green"})
        await move(node, until=100)
        await node.store.rollouts.move((await last(node)).id, lambda state: rollouts.abort(state, "enough"))
        row = await last(node)
        told = [(moment.phase, moment.stage, moment.weight_pct, moment.reason) for moment in row.state.moments]
        assert told == [
            (Phase.PROGRESSING, 1, 0, ""),
            (Phase.PROGRESSING, 1, 100, ""),
            (Phase.ABORTED, 1, 0, "enough"),
        ]
        instants = [moment.at_us for moment in row.state.moments]
        assert instants == sorted(instants)
        assert instants[-1] == row.ended_at

    async def test_the_latest_that_have_ended_are_listed_page_by_page(self, node: Node) -> None:
        await node.deploy("one")
        await node.deploy("two")
        await node.begin("three", rollout={"strategy": "blue-green"})
        (latest,) = await node.store.rollouts.latest_ended(limit=1)
        assert (latest.to_revision, latest.phase) == (2, Phase.COMPLETE)
        assert [row.to_revision for row in await node.store.rollouts.latest_ended(before_id=latest.id)] == [1]

    async def test_equal_code_and_spec_are_the_revision_that_there_is(self, node: Node) -> None:
        await node.deploy("one")
        assert await node.deploy("two") == 2
        assert await node.deploy("one") == 1
        assert [revision.number for revision in await node.store.agents.revisions(AGENT)] == [2, 1]

    async def test_what_is_no_part_of_a_revision_changes_without_a_rollout(self, node: Node) -> None:
        await node.deploy("one")
        begun = await node.begin("one", description="finds sources", scaling={"min_replicas": 3})
        entry = (await node.store.directory.refresh())[AGENT]
        assert (begun.action, begun.revision) == ("stay", 1)
        assert (entry.spec.description, entry.agent.replicas) == ("finds sources", 3)

    async def test_a_scaled_agent_keeps_its_number_of_replicas(self, node: Node) -> None:
        await node.deploy("one")
        await node.store.agents.scale(AGENT, 4)
        await node.deploy("two")
        assert (await node.store.directory.refresh())[AGENT].agent.replicas == 4

    async def test_another_number_of_replicas_comes_with_the_revision_and_not_before(self, node: Node) -> None:
        await node.deploy("one", scaling={"min_replicas": 6})
        await node.begin("two", scaling={"min_replicas": 2})
        entry = (await node.store.directory.refresh())[AGENT]
        assert (entry.agent.replicas, entry.capacity[1]) == (6, 6)
        undone = rollouts.roll_back((await last(node)).state, "it broke")
        assert await node.store.rollouts.put(await last(node), undone)
        entry = (await node.store.directory.refresh())[AGENT]
        assert (entry.agent.replicas, entry.spec.scaling.min_replicas, entry.capacity) == (6, 6, {1: 6})
        await node.deploy("three", scaling={"min_replicas": 2})
        entry = (await node.store.directory.refresh())[AGENT]
        assert (entry.agent.replicas, entry.spec.scaling.min_replicas) == (2, 2)

    async def test_who_joins_with_another_number_of_replicas_gets_it_in_the_end(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two")
        await node.begin("two", scaling={"min_replicas": 5})
        await node.deploy("two", scaling={"min_replicas": 5})
        entry = (await node.store.directory.refresh())[AGENT]
        assert (entry.agent.replicas, entry.spec.scaling.min_replicas) == (5, 5)

    async def test_a_first_revision_that_serves_although_it_has_failed_goes_on_serving(self, node: Node) -> None:
        await node.begin("one")
        assert await node.store.rollouts.put(await last(node), rollouts.roll_back((await last(node)).state, "late"))
        await put_ready_replica(node, revision=1)
        await node.begin("one", rollout={"checks": ["module:check"]})
        assert (await last(node)).state.shares == {1: 100}

    async def test_an_agent_of_a_schema_without_rollouts_has_one_behind_it(self, node: Node) -> None:
        await node.deploy("one")
        async with node.store.db.transaction() as tx:
            for statement in (
                "delete from rollout",
                "update agent set rollout = null",
                "update revision set identity = null",
            ):
                await tx.execute_many(statement, [{}])
        begun = await node.begin("one", judged_anew=False)
        assert (begun.revision, begun.action) == (1, "stay")
        assert ((await last(node)).phase, (await last(node)).strategy) == ("complete", "first")
        assert (await node.begin("two")).revision == 2
        assert ((await last(node)).from_revision, await serving(node)) == (1, 1)

    async def test_what_is_on_its_way_already_is_joined(self, node: Node) -> None:
        await node.deploy("one")
        first = await node.begin("two")
        again = await node.begin("two", description="new")
        assert (again.rollout, again.action) == (first.rollout, "join")
        await node.deploy("two", description="new")
        assert (await node.store.directory.refresh())[AGENT].spec.description == "new"

    @pytest.mark.parametrize("weight_pct", [0, 100])
    async def test_another_revision_supersedes_one_that_is_on_its_way(self, node: Node, weight_pct: int) -> None:
        await node.deploy("one")
        begun = await node.begin("two", rollout={"strategy": "blue-green", "hold_s": 60})
        await move(node, until=weight_pct)
        await node.begin("three")
        superseded = await node.store.rollouts.get(begun.rollout)
        assert (superseded.phase, superseded.reason) == (
            Phase.SUPERSEDED,
            "revision 3 was deployed before it was complete",
        )
        state = (await last(node)).state
        assert (state.from_revision, state.to_revision, await serving(node)) == (1, 3, 1)
        assert await standing(node) == [1, 3]

    @pytest.mark.parametrize("weight_pct", [0, 100])
    async def test_the_serving_revision_deployed_again_aborts_what_leads_away(
        self, node: Node, weight_pct: int
    ) -> None:
        await node.deploy("one")
        begun = await node.begin("two", rollout={"strategy": "blue-green", "hold_s": 60})
        await move(node, until=weight_pct)
        again = await node.begin("one")
        assert (again.revision, again.action, await serving(node)) == (1, "stay", 1)
        assert (await node.store.rollouts.get(begun.rollout)).phase == Phase.ABORTED

    async def test_a_way_back_goes_on_when_its_node_starts_again(self, node: Node) -> None:
        await node.deploy("one")
        await node.deploy("two")
        await node.begin("one")
        begun = await node.begin("two", judged_anew=False)
        assert (begun.revision, (await last(node)).phase, (await last(node)).to_revision) == (2, "progressing", 1)
        await node.begin("two")
        assert (await last(node)).phase == "aborted"

    async def test_a_first_revision_that_has_failed_is_tried_again(self, node: Node) -> None:
        begun = await node.begin("one", rollout={"checks": ["module:check"]})
        failed = rollouts.roll_back((await last(node)).state, "its check failed")
        assert await node.store.rollouts.put(await last(node), failed)
        again = await node.begin("one", rollout={"checks": ["module:check"]}, judged_anew=False)
        assert (again.revision, again.action) == (1, "begin")
        assert again.rollout != begun.rollout
        assert (await node.begin("two")).revision == 2
        assert ((await last(node)).from_revision, await serving(node)) == (None, 2)

    async def test_there_are_no_more_replicas_than_there_may_be(self, node: Node) -> None:
        await node.deploy("one", scaling={"min_replicas": 4}, rollout={"strategy": "blue-green"})

        async def begin(digest: str, limits: Limits) -> None:
            spec = node.store.directory.entries[AGENT].spec
            item = Deployment(agent=AGENT, digest=digest, spec=spec, by="ann", limits=limits)
            await node.store.deployments.deploy(item)

        await node.store.directory.refresh()
        with pytest.raises(errors.Conflict, match=r"are more than cluster.max_replicas \(3\)"):
            await begin("two", Limits(3, 10))
        with pytest.raises(errors.Conflict, match=r"blue-green needs 4 replicas beside its 4.*: 1 are missing"):
            await begin("two", Limits(4, 3))
        assert [revision.number for revision in await node.store.agents.revisions(AGENT)] == [1]
        await begin("two", Limits(4, 4))
        assert (await last(node)).to_revision == 2

    # --- moves

    async def test_a_move_from_what_is_no_longer_so_is_none(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two")
        stale = await last(node)
        await move(node)
        assert not await node.store.rollouts.put(stale, rollouts.abort(stale.state, "ann"))
        assert (await last(node)).phase == "progressing"

    async def test_an_end_by_itself_raises_an_alert_and_the_next_success_resolves_it(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two")
        assert await node.store.rollouts.put(await last(node), rollouts.roll_back((await last(node)).state, "it broke"))
        (alert,) = await node.store.alerts.list()
        assert (alert.id, alert.state, alert.reason) == (
            f"rollout-{AGENT}",
            "firing",
            f"the rollout of {AGENT} to revision 2 has failed and revision 1 serves: it broke",
        )
        await node.begin("three")
        await move(node, until=100)
        await move(node)
        assert [alert.state for alert in await node.store.alerts.list()] == ["resolved"]

    async def test_a_removed_agent_leaves_no_rollout_and_no_revision_standing(self, node: Node) -> None:
        await node.deploy("one")
        begun = await node.begin("two")
        await node.store.rollouts.remove(AGENT)
        assert (await node.store.rollouts.get(begun.rollout)).phase == Phase.ABORTED
        assert await standing(node) == []
        with pytest.raises(errors.NotFound):
            await node.store.rollouts.remove(AGENT)
        assert (await node.begin("two")).revision == 2
        assert (await serving(node), (await last(node)).state.shares) == (2, {2: 100})

    async def test_the_history_tells_the_latest_first(self, node: Node) -> None:
        await node.deploy("one")
        await node.deploy("two")
        history = await node.store.rollouts.history(AGENT)
        assert [(each.strategy, each.to_revision, each.phase) for each in history] == [
            ("rolling", 2, "complete"),
            ("first", 1, "complete"),
        ]

    # --- traffic

    async def test_nothing_is_claimed_for_a_revision_without_traffic(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two", rollout={"strategy": "blue-green"})
        await node.submit()
        assert (await claim_one(node, 1, 2)).revision == 1
        await move(node, until=100)
        await node.submit()
        assert (await claim_one(node, 1, 2)).revision == 2

    async def test_queued_tasks_are_shared_out_by_weight(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two", rollout={"strategy": "canary", "weights": [20, 100]})
        await move(node, until=20)
        for _ in range(50):
            await node.submit()
        assert Counter(claim.revision for claim in await claims(node, 1, 2, slots=60)) == {1: 40, 2: 10}

    async def test_a_full_revision_leaves_the_others_share_alone(self, node: Node) -> None:
        await node.deploy("one")
        await node.begin("two", rollout={"strategy": "canary", "weights": [20, 100]})
        await move(node, until=20)
        for _ in range(50):
            await node.submit()
        assert len(await claims(node, 2, slots=5)) == 5  # alone, it would take them all
        node.store.board.open("full", agent=AGENT, revision=1, slots=1)
        await node.flush()
        assert len(await claims(node, 2, slots=60)) < 12

    # --- sessions

    async def _begin_session(self, node: Node) -> None:
        await node.deploy("one")
        await node.submit(session="s")
        claim = await claim_one(node, 1)
        assert await node.finish(claim, session_state=b"1", revision=1)
        await node.begin("two", rollout={"strategy": "blue-green"})
        await move(node, until=100)

    async def test_a_session_stays_on_the_revision_that_it_began_on_until_that_is_retired(self, node: Node) -> None:
        await self._begin_session(node)
        await node.submit(session="s")
        assert await claims(node, 2, slots=5) == []
        claim = await claim_one(node, 1, 2)
        assert claim.revision == 1
        assert await node.finish(claim)
        await node.submit(session="s")
        await move(node)  # it is complete
        assert await claims(node, 2, slots=5) == []
        await move(node, elapsed_s=1000)  # ... and the old one is retired
        claim = await claim_one(node, 2)
        assert (claim.revision, claim.state, claim.state_revision) == (2, b"1", 1)

    async def test_new_sessions_begin_where_the_traffic_goes(self, node: Node) -> None:
        await self._begin_session(node)
        await node.submit(session="t")
        assert (await claim_one(node, 1, 2)).revision == 2

    async def test_tasks_that_are_blocked_keep_to_it_too(self, node: Node) -> None:
        await self._begin_session(node)
        for _ in range(2):
            await node.submit(session="s")
        assert await node.finish(await claim_one(node, 1, 2))
        assert await claims(node, 2, slots=5) == []
        assert (await claim_one(node, 1, 2)).revision == 1

    async def test_a_task_that_is_given_back_keeps_to_it_unless_it_was_retired_meanwhile(self, node: Node) -> None:
        await self._begin_session(node)
        await node.submit(session="s")
        claim = await claim_one(node, 1)
        assert await node.finish(claim, "queued")
        assert await claims(node, 2, slots=5) == []
        claim = await claim_one(node, 1)
        await move(node)
        await move(node, elapsed_s=1000)
        assert await node.finish(claim, "queued")
        assert (await claim_one(node, 2)).revision == 2

    async def test_sessions_of_a_revision_that_is_undone_go_back(self, node: Node) -> None:
        await self._begin_session(node)
        await node.submit(session="t")
        assert await node.finish(await claim_one(node, 1, 2))
        await node.submit(session="t")
        assert await node.store.rollouts.put(await last(node), rollouts.abort((await last(node)).state, "ann"))
        assert (await claim_one(node, 1)).revision == 1

    async def test_a_revision_that_stands_again_gets_no_session_back_before_it_has_proven_itself(
        self, node: Node
    ) -> None:
        await self._begin_session(node)
        await move(node)
        await move(node, elapsed_s=1000)
        await node.begin("one", rollout={"strategy": "blue-green"})
        assert await standing(node) == [1, 2]
        await node.submit(session="s")
        assert (await claim_one(node, 1, 2)).revision == 2

    async def test_the_state_of_every_session_can_be_looked_through(self, node: Node) -> None:
        await self._begin_session(node)
        await node.submit(session="without state")
        (stored,) = await node.store.sessions.states(AGENT)
        assert (stored.tenant, stored.id, stored.revision, stored.state) == (TENANT, "s", 1, b"1")
        assert await node.store.sessions.states(AGENT, behind=stored) == []
        assert await node.store.sessions.count(AGENT) == 1
