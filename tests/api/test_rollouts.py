"""Rollouts by the API: what they show, what people want of them, plans, and code that is brought."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom.engine import archives

pytestmark = pytest.mark.asyncio(loop_scope="session")

MANUAL = {"strategy": "blue-green", "promotion": "manual", "hold_s": 60}
GZIP = {"content-type": "application/gzip"}


async def last(api: nodes.Api, agent: str) -> Any:
    return (await api.get(f"/v1/agents/{agent}"))["rollout"]


async def until(api: nodes.Api, agent: str, **wanted: Any) -> Any:
    """Wait until the agent's last rollout shows what is *wanted*."""

    async def shown() -> Any:
        rollout = await last(api, agent)
        return rollout if wanted.items() <= rollout.items() else None

    return await nodes.eventually(shown)


async def put(api: nodes.Api, agent: str, spec: dict[str, Any], query: str = "") -> Any:
    response = await api.call("PUT", f"/v1/agents/{agent}{query}", spec)
    assert response.status_code == 200, response.text
    return response.json()


@asynccontextmanager
async def deployed(api: nodes.Api, name: str, spec: dict[str, Any]) -> AsyncIterator[None]:
    """An agent with one revision that serves, and that is removed at the end."""
    try:
        await put(api, name, spec)
        await until(api, name, state="complete")
        yield
    finally:
        await api.http.delete(f"/v1/agents/{name}")


async def act(api: nodes.Api, id: int, verb: str) -> Any:
    response = await api.call("POST", f"/v1/rollouts/{id}/{verb}")
    assert response.status_code == 200, response.text
    return response.json()


async def refusal(api: nodes.Api, id: int, verb: str, body: Any = None) -> str:
    response = await api.call("POST", f"/v1/rollouts/{id}/{verb}", body)
    assert (response.status_code, response.json()["type"]) == (409, "conflict")
    return str(response.json()["detail"])


# What they show


@pytest.mark.slow
async def test_a_rollout_is_shown_stage_by_stage_with_who_began_it(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "shown", spec):
        first = await last(api, "shown")
        assert (first["strategy"], first["from_revision"], first["to_revision"]) == ("first", None, 1)
        assert (first["begun_by"], first["reason"], first["is_proven"]) == ("owner", "", True)
        assert first["stages"] == [{"weight_pct": 100, "replicas": 1, "old_replicas": 0, "hold_s": 0.0}]
        await put(api, "shown", spec | {"timeout_s": 5})
        paused = await until(api, "shown", state="paused")
        assert (paused["from_revision"], paused["to_revision"], paused["weight_pct"]) == (1, 2, 0)
        assert (paused["strategy"], paused["stage"], paused["ready"]) == ("blue-green", 1, 1)
        assert (paused["awaits_promotion"], first["awaits_promotion"]) == (True, False)
        assert paused["stages"] == [
            {"weight_pct": 0, "replicas": 1, "old_replicas": 1, "hold_s": 0.0},
            {"weight_pct": 100, "replicas": 1, "old_replicas": 1, "hold_s": 60.0},
        ]
        assert paused["evidence"][0] | {"tasks": 0} == {
            "revision": 1,
            "weight_pct": 100,
            "tasks": 0,
            "errors": 0,
            "slow": 0,
            "refused": 0,
            "costly": 0,
        }
        assert await api.get(f"/v1/rollouts/{paused['id']}") == paused
        listed = (await api.get("/v1/agents/shown/rollouts"))["items"]
        assert [rollout["id"] for rollout in listed] == [paused["id"], first["id"]]
        assert (await api.get("/v1/agents/shown/rollouts?limit=1"))["items"] == listed[:1]


@pytest.mark.slow
async def test_an_agents_replicas_are_those_of_its_serving_revision(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "served", spec):

        async def told() -> Any:
            return next(item for item in (await api.get("/v1/status"))["agents"] if item["name"] == "served")

        assert (await told())["rollout"] is None
        await put(api, "served", spec | {"timeout_s": 5})
        rollout = await until(api, "served", state="paused")
        shown = await api.get("/v1/agents/served")
        assert len(await api.replicas("served")) == 2
        assert (shown["revision"], shown["replicas"]) == (1, {"desired": 1, "ready": 1})
        status = await told()
        assert (status["revision"], status["replicas"]) == (1, {"desired": 1, "ready": 1})
        assert status["rollout"] == {"id": rollout["id"], "state": "paused", "to_revision": 2, "weight_pct": 0}


@pytest.mark.slow
async def test_revisions_are_shown_with_their_proof_and_their_end(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout={"strategy": "blue-green", "scale_down_delay_s": 0})
    async with deployed(api, "proven", spec):
        await api.run("proven", 1)
        await put(api, "proven", spec | {"timeout_s": 5})

        async def both() -> Any:
            items = (await api.get("/v1/agents/proven/revisions"))["items"]
            return items if len(items) == 2 and items[1]["retired_at"] else None

        new, old = await nodes.eventually(both)
        assert (new["number"], new["retired_at"], new["proven_at"]) == (2, None, None)
        assert old["proven_at"]
        assert new["digest"] == old["digest"]


@pytest.mark.parametrize("id", ["0", "x", "-1", "1.5", "9" * 18, "9" * 40])
async def test_a_rollout_that_there_is_not_is_404(api: nodes.Api, id: str) -> None:
    assert (await api.http.get(f"/v1/rollouts/{id}")).status_code == 404
    for verb in ("promote", "pause", "resume", "abort"):
        assert (await api.http.post(f"/v1/rollouts/{id}/{verb}")).status_code == 404
    assert (await api.http.get("/v1/agents/nobody/rollouts")).status_code == 404
    assert (await api.http.post("/v1/agents/nobody/rollback")).status_code == 404


# What people want of them


@pytest.mark.slow
async def test_a_rollout_waits_for_its_promotion_and_is_paused_and_resumed(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL | {"hold_s": 0})
    async with deployed(api, "promoted", spec):
        await put(api, "promoted", spec | {"timeout_s": 5})
        id = (await until(api, "promoted", state="paused"))["id"]
        assert (await act(api, id, "pause"))["state"] == "paused"
        promoted = await act(api, id, "promote")
        assert (promoted["stage"], promoted["state"]) == (2, "progressing")
        done = await until(api, "promoted", state="complete")
        assert (done["id"], done["weight_pct"]) == (id, 100)
        assert (await api.run("promoted", 1))["revision"] == 2
        for verb in ("promote", "pause", "resume"):
            assert await refusal(api, id, verb) == f"cannot {verb} rollout {id} of promoted: it is complete already"


@pytest.mark.slow
async def test_a_paused_rollout_stays_where_it_is_and_goes_on_when_it_is_resumed(api: nodes.Api, gate: Path) -> None:
    spec = nodes.agent("late", arguments={"gate": "/"}, rollout={"strategy": "blue-green"})
    async with deployed(api, "paused", spec):
        id = (await put(api, "paused", spec | {"arguments": {"gate": str(gate)}}))["rollout"]["id"]
        assert (await act(api, id, "pause"))["reason"] == "it was paused"
        gate.touch()
        await until(api, "paused", ready=1)
        assert (await last(api, "paused"))["state"] == "paused"
        assert (await act(api, id, "resume"))["state"] == "progressing"
        await until(api, "paused", id=id, state="complete")


@pytest.mark.slow
async def test_what_has_not_proven_itself_is_not_promoted(api: nodes.Api, gate: Path) -> None:
    spec = nodes.agent("late", arguments={"gate": "/"}, rollout={"strategy": "blue-green"})
    async with deployed(api, "unproven", spec):
        id = (await put(api, "unproven", spec | {"arguments": {"gate": str(gate)}}))["rollout"]["id"]
        refused = await refusal(api, id, "promote")
        assert refused.startswith(f"cannot promote rollout {id} of unproven: revision 2 has not proven itself")
        gate.touch()
        await until(api, "unproven", id=id, state="complete")


@pytest.mark.slow
async def test_a_stage_is_promoted_only_by_who_means_it(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "meant", spec):
        await put(api, "meant", spec | {"timeout_s": 5})
        id = (await until(api, "meant", state="paused"))["id"]
        refused = await refusal(api, id, "promote", {"stage": 2})
        assert refused == f"cannot promote rollout {id} of meant: it is in stage 1, and not in stage 2"
        promoted = await api.call("POST", f"/v1/rollouts/{id}/promote", {"stage": 1})
        assert (promoted.status_code, promoted.json()["stage"]) == (200, 2)
        assert "not in stage 1" in await refusal(api, id, "promote", {"stage": 1})
        bodies: list[Any] = [{"stage": 0}, {"stage": "1"}, {"revision": 1}, []]
        for body in bodies:
            assert (await api.call("POST", f"/v1/rollouts/{id}/promote", body)).status_code == 422


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["promote", "resume"])
async def test_what_has_lost_its_replicas_is_not_promoted(api: nodes.Api, gate: Path, verb: str) -> None:
    spec = nodes.agent("late", arguments={"gate": str(gate)}, rollout=MANUAL)
    name = f"lost-{verb}"
    gate.touch()
    async with deployed(api, name, spec):
        await put(api, name, spec | {"timeout_s": 5})
        id = (await until(api, name, state="paused", awaits_promotion=True))["id"]
        gate.unlink()  # the next one is not ready before it is there again
        (replica,) = [each for each in await api.replicas(name) if each["revision"] == 2]
        await api.call("POST", f"/v1/replicas/{replica['id']}/restart")
        await until(api, name, ready=0)
        refused = await refusal(api, id, verb)
        assert refused == f"cannot {verb} rollout {id} of {name}: only 0 of 1 replicas are ready"
        gate.touch()
        await until(api, name, ready=1)
        assert (await act(api, id, verb))["stage"] == 2


@pytest.mark.slow
async def test_an_abort_is_at_once_and_twice_is_once(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "aborted", spec):
        await put(api, "aborted", spec | {"timeout_s": 5})
        id = (await until(api, "aborted", state="paused"))["id"]
        operator = api.of(await api.key("operator"))
        aborts = await asyncio.gather(*(act(operator, id, "abort") for _ in range(4)))
        assert {each["state"] for each in aborts} == {"aborted"}
        assert {each["reason"] for each in aborts} == {"operator aborted it"}
        assert (await act(api, id, "abort"))["updated_at"] == aborts[0]["updated_at"]
        assert (await api.get("/v1/agents/aborted"))["revision"] == 1
        await nodes.eventually(lambda: _revisions_are(api, "aborted", {1}))


async def _revisions_are(api: nodes.Api, agent: str, wanted: set[int]) -> bool:
    items = (await api.get("/v1/replicas"))["items"]
    return {item["revision"] for item in items if item["agent"] == agent} == wanted


@pytest.mark.slow
async def test_a_revision_of_before_serves_again_at_once_while_it_stands(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout={"strategy": "blue-green", "scale_down_delay_s": 60})
    async with deployed(api, "back", spec):
        await put(api, "back", spec | {"timeout_s": 5})
        await until(api, "back", state="complete", to_revision=2)
        back = await api.call("POST", "/v1/agents/back/rollback")
        assert back.status_code == 200, back.text
        assert (back.json()["state"], back.json()["to_revision"]) == ("complete", 1)
        assert back.json()["begun_by"] == "owner"
        assert (await api.get("/v1/agents/back"))["revision"] == 1
        assert (await api.run("back", 1))["revision"] == 1
        same = await api.call("POST", "/v1/agents/back/rollback", {"to": 1})
        assert (same.status_code, same.json()["id"]) == (200, back.json()["id"])
        forth = await api.call("POST", "/v1/agents/back/rollback", {"to": 2})
        assert forth.json()["to_revision"] == 2
        await until(api, "back", state="complete", to_revision=2)


@pytest.mark.slow
async def test_a_rollback_to_nothing_is_refused(api: nodes.Api) -> None:
    async with deployed(api, "lone", nodes.agent("echo")):
        nowhere = await api.call("POST", "/v1/agents/lone/rollback")
        assert (nowhere.status_code, nowhere.json()["type"]) == (409, "conflict")
        assert (await api.call("POST", "/v1/agents/lone/rollback", {"to": 9})).status_code == 404
        bodies: list[Any] = [{"to": 0}, {"to": "1"}, {"revision": 1}, []]
        for body in bodies:
            assert (await api.call("POST", "/v1/agents/lone/rollback", body)).status_code == 422
        told = await api.http.post("/v1/agents/lone/rollback", content=b"to=1", headers={"content-type": "text/plain"})
        assert told.status_code == 415


async def test_a_check_that_does_not_exist_is_refused_before_anything_starts(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout={"checks": ["agents:smoke"]})
    for query in ("", "?dry_run=true"):
        refused = await api.call("PUT", f"/v1/agents/unchecked{query}", spec)
        assert (refused.status_code, refused.json()["type"]) == (422, "agent-invalid")
        assert "agents:smoke" in refused.json()["detail"]
    strange = await api.call("PUT", "/v1/agents/unchecked", nodes.agent("echo", rollout={"strategy": "blue"}))
    assert (strange.status_code, strange.json()["type"]) == (422, "settings-invalid")
    assert (await api.http.get("/v1/agents/unchecked")).status_code == 404


# Plans


@pytest.mark.slow
async def test_a_dry_run_tells_what_a_deployment_would_do_and_begins_nothing(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout={"strategy": "canary", "weights": [10, 100], "hold_s": 5})
    plan = await put(api, "planned", spec, "?dry_run=true")
    assert (plan["action"], plan["strategy"], plan["to_revision"], plan["from_revision"]) == ("begin", "first", 1, None)
    assert (plan["is_new_revision"], plan["changes"], plan["replicas"], plan["surge"]) == (True, [], 1, 0)
    assert plan["files"] == {"added": ["agents.py", "providing.py", "traced.py", "unimportable.py"]}
    assert (plan["refusal"], plan["error"], plan["sessions"]) == (None, None, None)
    assert (await api.http.get("/v1/agents/planned")).status_code == 404
    async with deployed(api, "planned", spec):
        generation = (await api.get("/v1/agents/planned"))["generation"]
        assert (await put(api, "planned", spec, "?dry_run=true"))["action"] == "stay"
        changed = spec | {"timeout_s": 5, "scaling": {"min_replicas": 2}, "description": "new"}
        plan = await put(api, "planned", changed, "?dry_run=true")
        assert (plan["action"], plan["strategy"], plan["from_revision"], plan["to_revision"]) == (
            "begin",
            "canary",
            1,
            2,
        )
        assert {change["key"]: (change["before"], change["after"]) for change in plan["changes"]} == {
            "timeout_s": (300.0, 5.0),
            "scaling.min_replicas": (1, 2),
            "description": ("", "new"),
        }
        assert plan["files"] == {}
        assert [(stage["weight_pct"], stage["replicas"], stage["old_replicas"]) for stage in plan["stages"]] == [
            (10, 1, 2),
            (100, 2, 2),
        ]
        assert (plan["replicas"], plan["surge"]) == (2, 2)
        most = api.running.settings.cluster.max_replicas
        for many in (spec, changed):  # whether a revision moves or not
            many |= {"scaling": {"min_replicas": most}}
            plan = await put(api, "planned", many, "?dry_run=true")
            assert plan["refusal"].startswith("cannot deploy planned: ")
            assert (await api.call("PUT", "/v1/agents/planned", many)).status_code == 409
        after = await api.get("/v1/agents/planned")
        assert (after["generation"], after["revision"], after["rollout"]["to_revision"]) == (generation, 1, 1)


@pytest.mark.slow
async def test_a_dry_run_of_what_is_on_its_way_joins_it(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "joined", spec):
        await put(api, "joined", spec | {"timeout_s": 5})
        plan = await put(api, "joined", spec | {"timeout_s": 5}, "?dry_run=true")
        assert (plan["action"], plan["from_revision"], plan["to_revision"]) == ("join", 1, 2)
        assert (plan["strategy"], plan["ends_rollout"]) == ("blue-green", None)


@pytest.mark.slow
async def test_a_dry_run_tells_which_rollout_the_deployment_would_end(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout=MANUAL)
    async with deployed(api, "ending", spec):
        assert (await put(api, "ending", spec | {"timeout_s": 5}, "?dry_run=true"))["ends_rollout"] is None
        id = (await put(api, "ending", spec | {"timeout_s": 5}))["rollout"]["id"]
        for timeout_s, action in ((300, "stay"), (6, "begin")):
            plan = await put(api, "ending", spec | {"timeout_s": timeout_s}, "?dry_run=true")
            assert (plan["action"], plan["ends_rollout"]) == (action, id)
        assert (await api.get(f"/v1/rollouts/{id}"))["state"] != "aborted"


@pytest.mark.slow
async def test_a_rollout_can_be_another_one_for_once(api: nodes.Api) -> None:
    spec = nodes.agent("echo", rollout={"strategy": "canary", "weights": [10, 100], "promotion": "manual"})
    async with deployed(api, "once", spec):
        query, changed = "strategy=blue-green&hold_s=60", spec | {"timeout_s": 5}
        plan = await put(api, "once", changed, f"?dry_run=true&{query}")
        assert (plan["strategy"], [change["key"] for change in plan["changes"]]) == ("blue-green", ["timeout_s"])
        assert [(stage["weight_pct"], stage["hold_s"]) for stage in plan["stages"]] == [(0, 0.0), (100, 60.0)]
        begun = (await put(api, "once", changed, f"?{query}"))["rollout"]
        assert (begun["strategy"], begun["stages"][1]["hold_s"]) == ("blue-green", 60.0)
        await until(api, "once", state="paused")
        await act(api, begun["id"], "promote")
        await act(api, (await until(api, "once", stage=2, is_proven=True))["id"], "promote")
        await until(api, "once", state="complete")
        shown = (await api.get("/v1/agents/once"))["spec"]["rollout"]
        assert (shown["strategy"], shown["hold_s"], shown["weights"]) == ("canary", 0.0, [10, 100])


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("strategy=purple", "agents.asked.rollout.strategy"),
        ("hold_s=-1", "agents.asked.rollout.hold_s"),
        ("hold_s=nan", "agents.asked.rollout.hold_s"),
        ("hold_s=long", 'got "long"'),
    ],
)
@pytest.mark.parametrize("how", ["", "&dry_run=true"])
async def test_a_rollout_for_once_is_checked_like_any_other(api: nodes.Api, query: str, word: str, how: str) -> None:
    answer = await api.call("PUT", f"/v1/agents/asked?{query}{how}", nodes.agent("echo"))
    assert (answer.status_code, answer.json()["type"]) == (422, "settings-invalid")
    assert word in answer.json()["detail"]
    assert (await api.http.get("/v1/agents/asked")).status_code == 404


@pytest.mark.parametrize("query", ["dry_run=yes", "dry_run=1", "sessions=true", "dry_run=true&sessions=no"])
async def test_a_query_that_says_nothing_is_refused(api: nodes.Api, query: str) -> None:
    answer = await api.call("PUT", f"/v1/agents/asked?{query}", nodes.agent("echo"))
    assert (answer.status_code, answer.json()["type"]) == (422, "invalid-query")


# Code


@pytest.mark.slow
async def test_code_that_is_brought_is_deployed_by_its_digest(api: nodes.Api) -> None:
    files = {"other.py": b"async def say(input):\n    return 'brought'\n", "lib/words.txt": b"x"}
    brought = await api.http.post("/v1/code", content=archives.pack(files), headers=GZIP)
    assert brought.status_code == 201, brought.text
    digest = brought.json()["digest"]
    assert brought.json() == {"digest": digest, "files": 2, "bytes": sum(map(len, files.values()))}
    again = await api.http.post("/v1/code", content=archives.pack(files), headers=GZIP)
    assert again.json() == brought.json()
    async with deployed(api, "brought", nodes.agent("echo")):
        spec = {"factory": "other:say"}
        plan = await put(api, "brought", spec, f"?dry_run=true&code={digest}")
        assert plan["digest"] == digest
        assert plan["files"] == {
            "added": ["lib/words.txt", "other.py"],
            "removed": ["agents.py", "providing.py", "traced.py", "unimportable.py"],
        }
        assert [change["key"] for change in plan["changes"]] == ["factory"]
        await put(api, "brought", spec, f"?code={digest}")
        await until(api, "brought", to_revision=2, state="complete")
        assert (await api.run("brought", 1))["output"] == "brought"


@pytest.mark.parametrize("code", ["0" * 64, "x", "..", "../data", "a" * 5000, "A" * 64, "%00"])
async def test_code_that_nobody_has_brought_is_not_found(api: nodes.Api, code: str) -> None:
    answer = await api.call("PUT", f"/v1/agents/without?code={code}", nodes.agent("echo"))
    assert answer.status_code == (422 if code == "%00" else 404), answer.text


ARCHIVES = {
    "nothing": (b"", "ends early"),
    "a zip": (b"PK\x03\x04 a zip", "no gzip"),
    "no tar": (gzip.compress(b"no tar" * 100), "no tar"),
    "half": (archives.pack({"a.py": b"x" * 5000})[:-20], "ends early"),
    "two": (archives.pack({"a.py": b""}) + b"more", "follows its end"),
    "a log": (archives.pack({"debug.log": b""}), "debug.log"),
}


@pytest.mark.parametrize("name", ARCHIVES)
async def test_a_bad_archive_is_refused_with_what_is_wrong(api: nodes.Api, name: str) -> None:
    archive, word = ARCHIVES[name]
    snapshots = set((api.running.options.data_dir / "snapshots").iterdir())
    answer = await api.http.post("/v1/code", content=archive, headers=GZIP)
    assert (answer.status_code, answer.json()["type"]) == (422, "agent-invalid")
    assert word in answer.json()["detail"]
    assert set((api.running.options.data_dir / "snapshots").iterdir()) == snapshots


async def test_an_archive_has_a_bound_of_its_own(api: nodes.Api) -> None:
    server = api.running.settings.server
    large = bytes(server.max_code_bytes + 1)
    refused = await api.http.post("/v1/code", content=large, headers=GZIP)
    assert refused.status_code == 413
    assert "server.max_code_bytes" in refused.json()["detail"]
    taken = await api.http.post("/v1/code", content=large[: server.max_body_bytes + 1], headers=GZIP)
    assert taken.status_code == 422


async def test_only_who_may_deploy_brings_code(api: nodes.Api) -> None:
    operator = api.of(await api.key("operator"))
    assert (await operator.http.post("/v1/code", content=b"", headers=GZIP)).status_code == 403


async def test_a_node_takes_no_code_unless_its_settings_say_so(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {}) as closed:
        answer = await closed.http.post("/v1/code", content=archives.pack({"a.py": b""}), headers=GZIP)
        assert (answer.status_code, answer.json()["type"]) == (403, "forbidden")
        assert "server.accept_code = true" in answer.json()["detail"]
