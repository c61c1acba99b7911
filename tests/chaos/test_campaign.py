"""What a campaign waits for, before and after its faults, with a client that plays the node."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, cast

import pytest

from greenroom import errors
from greenroom.sdk import models
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing.chaos import campaign, load
from greenroom.testing.chaos.nemesis import Hit
from greenroom.testing.chaos.schedule import Planned


class Node:
    """Of one task, which ends at once, and one replica, ``r1``; once it is killed, ``r2`` comes when *comes_back*."""

    def __init__(self, *, comes_back: bool = True) -> None:
        self.state = "ready"
        self._ready: str | None = "r1"
        self._comes_back = comes_back
        self._task = models.Task(id="t", state="succeeded")

    async def agent(self, name: str) -> models.Agent:
        count = models.ReplicaCount(desired=1, ready=self.state == "ready")
        return models.Agent(name=name, state=self.state, reason="it fails", replicas=count)

    async def replicas(self) -> list[models.Replica]:
        return [models.Replica(id=self._ready, agent="a", state="ready")] if self._ready else []

    async def submit(self, input: Any, **given: Any) -> models.Task:  # noqa: ARG002
        return self._task

    async def tasks(self, agent: str, **given: Any) -> models.Page[models.Task]:  # noqa: ARG002
        if self._comes_back:
            self._ready = "r2"  # not before all tasks have ended
        return models.Page[models.Task](items=[self._task])

    async def kill(self, planned: Planned) -> Hit:  # noqa: ARG002
        self._ready = None
        return Hit(time.time(), gone=frozenset({"r1"}))


class PlainTasks:
    agent, ways = "a", ((load.Way.PLAIN, 1),)

    def input(self, key: str, chance: random.Random) -> Any:  # noqa: ARG002
        return None

    def poison(self, key: str, chance: random.Random) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("comes_back", [True, False])
async def test_the_verdict_waits_until_all_replicas_are_ready_again_and_says_so_if_they_never_are(
    comes_back: bool,
) -> None:
    node = Node(comes_back=comes_back)
    kill, settle_s = Planned(0.0, "kill", 0.0, 0.0), 30.0 if comes_back else 0.0
    plan = campaign.Plan(name="c", seed=1, for_s=0.1, tasks=1, faults=(kill,), settle_s=settle_s)
    run = campaign.Campaign(cast("AsyncClient", node), plan, PlainTasks(), None)
    report = await run.run({"kill": node.kill})
    assert report.passed == comes_back, report
    if comes_back:
        assert report.ready is not None
        assert report.ready.count == 1
    else:
        assert "kill at" in report.violations["not ready again"][0]


@pytest.mark.parametrize("state", ["failed", "quarantined"])
async def test_an_agent_that_will_not_become_ready_is_not_waited_for(state: str) -> None:
    node = Node()
    node.state = state
    with pytest.raises(errors.AgentInvalid, match=state):
        async with asyncio.timeout(campaign.READY_WITHIN_S / 2):
            await campaign.ready(cast("AsyncClient", node), "a", replicas=1)
