"""What becomes of agents that the store knows and the manifest does not, when a node starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import errors

pytestmark = pytest.mark.slow


async def _states(api: nodes.Api) -> dict[str, str]:
    return {item["name"]: item["state"] for item in (await api.get("/v1/agents"))["items"]}


async def test_an_agent_that_has_left_the_manifest_keeps_its_tasks_and_gets_no_replicas(
    data_dir: Path, store_url: str | None, ledger: Path
) -> None:
    both = {"echo": nodes.agent("echo"), "gated": nodes.agent("gated", scaling={"min_replicas": 2})}
    async with nodes.opened(data_dir, both, store_url=store_url) as api:
        ids = [(await api.submit("gated", {"ledger": str(ledger), "gate": "/nonexistent"}))["id"] for _ in range(3)]
        await nodes.lines_of(ledger, 2)
    generations = set()
    for _ in range(2):
        async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, store_url=store_url) as api:
            shown = await api.get("/v1/agents/gated")
            generations.add(shown["generation"])
            assert (shown["state"], shown["replicas"], shown["queued"]) == ("dropped", {"desired": 0, "ready": 0}, 3)
            assert "not in the manifest" in shown["reason"]
            assert "DELETE /v1/agents/gated" in shown["reason"]
            status = {agent["name"]: agent for agent in (await api.get("/v1/status"))["agents"]}["gated"]
            assert (status["state"], status["reason"]) == ("dropped", shown["reason"])
            assert status["tasks"]["queued"] == 3
            assert await api.replicas("gated") == []
            assert (await api.http.get("/readyz")).status_code == 200
            assert (await api.run("echo", 1))["state"] == "succeeded"
            assert len(await nodes.lines_of(ledger)) == 2
    assert len(generations) == 1  # it stays as it is
    async with nodes.opened(data_dir, both, store_url=store_url) as api:
        assert (await api.get("/v1/agents/gated"))["replicas"] == {"desired": 2, "ready": 2}
        assert await _states(api) == {"echo": "ready", "gated": "ready"}
        await nodes.lines_of(ledger, 4)
        for id in ids:
            await api.call("POST", f"/v1/tasks/{id}/cancel")


async def test_an_agent_that_was_deployed_by_the_api_lives_on(data_dir: Path, store_url: str | None) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, store_url=store_url) as api:
        assert (await api.call("PUT", "/v1/agents/third", nodes.agent("third"))).status_code == 200
    for _ in range(2):
        async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, store_url=store_url) as api:
            assert await _states(api) == {"echo": "ready", "third": "ready"}
            assert (await api.run("third", 1))["output"] == ["third", 1]


async def test_who_deploys_an_agent_last_is_where_it_comes_from(data_dir: Path) -> None:
    echo, third = {"echo": nodes.agent("echo")}, {"third": nodes.agent("third")}
    async with nodes.opened(data_dir, echo | third):
        pass
    async with nodes.opened(data_dir, echo) as api:
        assert await _states(api) == {"echo": "ready", "third": "dropped"}
        assert (await api.call("PUT", "/v1/agents/third", third["third"])).json()["state"] != "dropped"
        assert (await api.run("third", 1))["state"] == "succeeded"
    async with nodes.opened(data_dir, echo) as api:
        assert await _states(api) == {"echo": "ready", "third": "ready"}
    async with nodes.opened(data_dir, echo | third):
        pass
    async with nodes.opened(data_dir, echo) as api:
        assert await _states(api) == {"echo": "ready", "third": "dropped"}


async def test_a_dropped_agent_may_be_scaled_until_the_next_start_and_be_removed(data_dir: Path) -> None:
    echo = {"echo": nodes.agent("echo")}
    async with nodes.opened(data_dir, echo | {"third": nodes.agent("third")}):
        pass
    async with nodes.opened(data_dir, echo) as api:
        assert (await api.call("PATCH", "/v1/agents/third/scale", {"replicas": 1})).status_code == 200
        assert (await api.run("third", 1))["state"] == "succeeded"
    async with nodes.opened(data_dir, echo) as api:
        assert await _states(api) == {"echo": "ready", "third": "dropped"}
        assert (await api.http.delete("/v1/agents/third")).status_code == 204
        assert await _states(api) == {"echo": "ready"}


async def test_no_request_is_routed_to_an_agent_that_has_left_the_manifest(data_dir: Path) -> None:
    echo = {"echo": nodes.agent("echo", description="Repeats what it is told", skills=["repeat"])}
    third = {"third": nodes.agent("third", description="Finds and summarises sources", skills=["research"])}
    request = {"input": "find and summarise sources"}
    async with nodes.opened(data_dir, echo | third) as api:
        assert (await api.call("POST", "/v1/tasks", request)).json()["agent"] == "third"
    async with nodes.opened(data_dir, echo) as api:
        refused = await api.call("POST", "/v1/tasks", request)
        assert (refused.status_code, refused.json()["type"]) == (422, "no-route")
        assert [candidate["agent"] for candidate in refused.json()["candidates"]] == ["echo"]
        await api.call("PUT", "/v1/agents/third", third["third"])
        assert (await api.call("POST", "/v1/tasks", request)).json()["agent"] == "third"


async def test_the_check_at_start_counts_what_will_have_replicas(data_dir: Path) -> None:
    def given(*names: str) -> dict[str, Any]:
        return {name: nodes.agent("echo", scaling={"min_replicas": 2}) for name in names}

    bound = {"max_replicas": 3}
    async with nodes.opened(data_dir, given("first"), cluster=bound):
        pass
    async with nodes.opened(data_dir, given("second"), cluster=bound) as api:  # the first one has gone
        assert await _states(api) == {"first": "dropped", "second": "ready"}
        assert (await api.call("PUT", "/v1/agents/put", nodes.agent("echo"))).status_code == 200
    with pytest.raises(errors.StartRefused, match=r"max_replicas.* 3.*put") as refused:
        async with nodes.opened(data_dir, given("second") | {"third": nodes.agent("echo")}, cluster=bound):
            pass
    assert "first" not in str(refused.value)
    async with nodes.opened(data_dir, given("second"), cluster=bound) as api:  # nothing was changed
        assert await _states(api) == {"first": "dropped", "put": "ready", "second": "ready"}


async def test_a_list_of_the_manifests_agents_that_cannot_be_read_refuses_the_start(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}):
        pass
    (data_dir / "manifest-agents.json").write_text("{")
    with pytest.raises(errors.StartRefused, match=r"manifest-agents\.json"):
        async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}):
            pass
