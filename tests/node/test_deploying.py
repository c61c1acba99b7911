"""Deploying by the API, with real replicas: every strategy, bad revisions, code that is brought, dry runs, undoing."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import nodes
from greenroom import errors, telemetry
from greenroom.engine import archives
from greenroom.sdk import models
from greenroom.sdk.async_client import AsyncClient

pytestmark = pytest.mark.slow

KEEPING = """
async def agent(input, context):
    context.state["word"] = input
    return {answer}

def migrate(state, from_revision, to_revision):
    {migrate}
"""
STRATEGIES = {
    "rolling": {"strategy": "rolling", "max_surge": 1},
    "blue-green": {"strategy": "blue-green"},
    "canary": {"strategy": "canary", "weights": [50, 100]},
}


def _client(api: nodes.Api) -> AsyncClient:
    return AsyncClient(
        "http://greenroom.test",
        api.http.headers["authorization"].removeprefix("Bearer "),
        transport=api.http._transport,
    )


async def _ended(client: AsyncClient, name: str) -> models.Rollout:
    async def ended() -> models.Rollout | None:
        rollout = (await client.agent(name)).rollout
        return None if rollout is None or rollout.is_open else rollout

    return await nodes.eventually(ended)


@pytest.mark.parametrize(
    ("server", "strategy"),
    [
        *(("sqlite", strategy) for strategy in STRATEGIES),
        ("postgresql", "rolling"),
        *(pytest.param("postgresql", strategy, marks=pytest.mark.long) for strategy in ("blue-green", "canary")),
    ],
    indirect=["server"],
)
async def test_a_new_revision_takes_over_while_tasks_are_served(
    data_dir: Path, store_url: str | None, strategy: str
) -> None:
    spec = nodes.agent("echo", concurrency=4, scaling={"min_replicas": 2}, rollout=STRATEGIES[strategy])
    async with nodes.opened(data_dir, {"echo": spec}, store_url=store_url) as api:
        client, seen, is_over = _client(api), list[models.Task](), asyncio.Event()

        async def load() -> None:
            while not is_over.is_set():
                seen.append(await client.submit(1, "echo", wait_s=30))

        loads = [asyncio.create_task(load()) for _ in range(4)]
        begun = await client.put_agent("echo", spec | {"timeout_s": 5, "rollout": spec["rollout"]})
        assert begun.rollout is not None
        assert (begun.rollout.strategy, begun.rollout.begun_by) == (strategy, "owner")
        ended = await _ended(client, "echo")
        is_over.set()
        await asyncio.gather(*loads)
        assert (ended.id, ended.state, ended.weight_pct) == (begun.rollout.id, "complete", 100)
        assert {task.state for task in seen} == {"succeeded"}
        shown = await client.agent("echo")
        assert (shown.revision, shown.replicas.ready) == (2, 2)
        last = await client.submit(1, "echo", wait_s=30)
        assert last.revision == 2


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a check that fails": ({"rollout": {"checks": ["agents:objects"]}}, "seven is no eight"),
    "an example that fails": ({"rollout": {"examples": [{"input": 1, "equals": 2}]}}, "example 1 failed"),
    "no import": ({"factory": "unimportable:agent"}, "a_module_that_nobody_has"),
    "a factory that raises": ({"factory": "agents:raising"}, "the model is missing"),
}


async def test_a_bad_revision_is_rolled_back_and_its_rollout_says_why(data_dir: Path) -> None:
    spec = nodes.agent("echo")
    agents = {name.replace(" ", "-"): bad for name, bad in BAD.items()}
    async with nodes.opened(data_dir, dict.fromkeys(agents, spec)) as api:
        client = _client(api)
        told: list[telemetry.RolloutMoved] = []
        api.running.facts.subscribe(told.append, telemetry.RolloutMoved)

        async def is_rolled_back(name: str, change: dict[str, Any], word: str) -> None:
            begun = await client.put_agent(name, spec | {"timeout_s": 5} | change)
            assert begun.rollout is not None
            move = next(each for each in told if each.rollout == begun.rollout.id)
            assert move == telemetry.RolloutMoved(name, move.rollout, "progressing", 2, stage=1, weight_pct=0)
            await _ended(client, name)
            ended = await client.rollout(begun.rollout.id)
            assert (ended.state, ended.from_revision, ended.to_revision) == ("rolled_back", 1, 2)
            assert word in ended.reason
            latest = (await client.rollouts(name))[0]
            # Its replicas go.
            assert msgspec.structs.replace(latest, ready=0) == msgspec.structs.replace(ended, ready=0)
            assert (await client.agent(name)).revision == 1
            assert (await client.submit(1, name, wait_s=30)).revision == 1

        await asyncio.gather(*(is_rolled_back(name, *bad) for name, bad in agents.items()))


async def test_a_good_check_lets_a_revision_pass(data_dir: Path) -> None:
    spec = nodes.agent("echo")
    async with nodes.opened(data_dir, {"echo": spec}) as api:
        client = _client(api)
        checked = {"checks": ["agents:agrees"], "examples": [{"input": {"a": 1}, "equals": {"a": 1}}]}
        await client.put_agent("echo", spec | {"timeout_s": 5, "rollout": checked})
        assert (await _ended(client, "echo")).state == "complete"


async def test_code_that_was_brought_serves_also_after_the_node_has_started_again(data_dir: Path) -> None:
    archive = archives.pack({"mine.py": b"def say(input):\n    return ['mine', input]\n"})
    server = {"accept_code": True}
    async with nodes.opened(data_dir, {}, server=server) as api:
        client = _client(api)
        code = await client.upload_code(archive)
        await client.put_agent("mine", {"factory": "mine:say"}, code=code.digest)
        assert (await _ended(client, "mine")).state == "complete"
        assert (await client.submit(1, "mine", wait_s=30)).output == ["mine", 1]
    async with nodes.opened(data_dir, {}) as api:
        client = _client(api)
        with pytest.raises(errors.Forbidden, match="accept_code"):
            await client.upload_code(archive)
        assert (await client.submit(2, "mine", wait_s=30)).output == ["mine", 2]


async def test_undoing_is_at_once_while_the_revision_before_stands(data_dir: Path) -> None:
    spec = nodes.agent("echo", rollout={"strategy": "blue-green", "scale_down_delay_s": 60})
    async with nodes.opened(data_dir, {"echo": spec}) as api:
        client = _client(api)
        await client.put_agent("echo", spec | {"timeout_s": 5})
        await _ended(client, "echo")
        told: list[telemetry.RolloutMoved] = []
        api.running.facts.subscribe(told.append, telemetry.RolloutMoved)
        undone = await client.roll_back("echo")
        assert (undone.state, undone.to_revision) == ("complete", 1)
        assert [(each.rollout, each.phase, each.revision) for each in told] == [(undone.id, "complete", 1)]
        assert (await client.submit(1, "echo", wait_s=30)).revision == 1


async def test_undoing_what_has_gone_is_a_rollout(data_dir: Path) -> None:
    spec = nodes.agent("echo", rollout={"scale_down_delay_s": 0})
    async with nodes.opened(data_dir, {"echo": spec}) as api:
        client = _client(api)
        for number in (2, 3):
            await client.put_agent("echo", spec | {"timeout_s": number})
            assert (await _ended(client, "echo")).to_revision == number

        async def is_retired() -> bool:
            return (await client.revisions("echo"))[2].retired_at is not None

        await nodes.eventually(is_retired)
        assert (await client.roll_back("echo", 1)).strategy == "rolling"
        assert (await _ended(client, "echo")).state == "complete"
        assert (await client.agent("echo")).revision == 1


# Dry runs


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    folder = tmp_path / "code"
    folder.mkdir()

    def written(answer: str, migrate: str = "return state") -> Path:
        (folder / "keeping.py").write_text(KEEPING.format(answer=answer, migrate=migrate))
        return folder

    return written


async def test_a_dry_run_tries_the_stored_sessions_and_changes_nothing(
    data_dir: Path, store_url: str | None, write: Callable[..., Path]
) -> None:
    spec = {"factory": "keeping:agent", "sessions": True}
    async with nodes.opened(data_dir, {"keeping": spec}, folder=write("1"), store_url=store_url) as api:
        client = _client(api)
        for word in ("good", "bad", "fine"):
            await client.submit(word, "keeping", session=word, wait_s=30)
        write("2", "assert state['word'] != 'bad', f'from {from_revision} to {to_revision}'\n    return state")
        plan = await client.plan_agent("keeping", spec, sessions=True)
        assert (plan.action, plan.to_revision, plan.files) == ("begin", 2, {"changed": ("keeping.py",)})
        assert plan.error is None
        assert plan.sessions is not None
        assert (plan.sessions.stored, plan.sessions.tried, plan.sessions.failed) == (3, 3, 1)
        assert list(plan.sessions.failures) == ["bad"]
        assert "from 1 to 2" in plan.sessions.failures["bad"]
        assert (await client.session("bad")).state == {"word": "bad"}
        assert [revision.number for revision in await client.revisions("keeping")] == [1]
        write("3")
        plan = await client.plan_agent("keeping", spec, sessions=True)
        assert plan.sessions is not None
        assert plan.sessions.failed == 0
        await client.put_agent("keeping", spec)
        assert (await _ended(client, "keeping")).state == "complete"
        assert (await client.submit("x", "keeping", session="new", wait_s=30)).output == 3


async def test_a_dry_run_says_why_a_revision_cannot_run(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        client = _client(api)
        plan = await client.plan_agent("echo", {"factory": "unimportable:agent"}, sessions=True)
        assert plan.error is not None
        assert "a_module_that_nobody_has" in plan.error
        assert plan.sessions is None
        plan = await client.plan_agent("echo", nodes.agent("raising"), sessions=True)
        assert plan.error is not None
        assert "the model is missing" in plan.error
        assert (await client.agent("echo")).rollout == (await client.rollouts("echo"))[0]
        assert await api.replicas("echo", "starting") == []


async def test_what_was_tried_under_a_number_is_not_what_runs_under_it(data_dir: Path, gate: Path) -> None:
    """The number of a revision is given to whatever is deployed first."""
    gate.touch()
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        client = _client(api)
        assert (await client.plan_agent("echo", nodes.agent("pid"), sessions=True)).to_revision == 2
        await client.put_agent("echo", nodes.agent("late", arguments={"gate": str(gate)}))
        assert (await _ended(client, "echo")).to_revision == 2
        assert (await client.submit("late", "echo", wait_s=30)).output == "late"


async def test_one_revision_is_tried_at_a_time(data_dir: Path, gate: Path) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        client = _client(api)
        late = nodes.agent("late", arguments={"gate": str(gate)})
        first = asyncio.create_task(client.plan_agent("echo", late, sessions=True))

        async def is_tried() -> bool:
            return api.running.planning._trying.locked()

        await nodes.eventually(is_tried)
        with pytest.raises(errors.Conflict, match=r"cannot try revision 2 of echo: another one is being tried"):
            await client.plan_agent("echo", late, sessions=True)
        assert (await client.plan_agent("echo", late)).action == "begin"
        gate.touch()
        assert (await first).error is None
        assert (await client.plan_agent("echo", late, sessions=True)).error is None
