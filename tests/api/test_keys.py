"""Keys: how long and for what they work, when they were used, and how fast they stop to."""

# ruff: noqa: ASYNC240 - the files here are touched, never waited for

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

import nodes
from greenroom import settings, telemetry
from greenroom.api import keys
from greenroom.api.keys import Keys
from greenroom.api.roles import Roles
from greenroom.core.permissions import HOME, Action, parse
from greenroom.testing import databases
from greenroom.testing.fakes import FakeClock

pytestmark = pytest.mark.asyncio(loop_scope="session")

POLICY = """
[roles.researcher]
grants = ["task:* on agent:research"]
"""


@pytest_asyncio.fixture(loop_scope="session")
async def scratch(server: databases.Server | None, tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) if server is None else server.scratch() as opened:
        yield opened


class Pair:
    """Two nodes' keys over one store, and what both were told."""

    def __init__(self, one: Keys, other: Keys, clock: FakeClock, told: list[Any]) -> None:
        self.one, self.other, self.clock, self.told = one, other, clock, told

    async def key(self, **given: Any) -> bytes:
        made = await self.one.create(**{"tenant": HOME, "name": "n", "role": "user", "word": "dev"} | given)
        return b"Bearer " + made.text.encode()


@pytest_asyncio.fixture(loop_scope="session")
async def pair(scratch: databases.Scratch, tmp_path: Path) -> Pair:
    store, clock, facts, told = await scratch.open(), FakeClock(), telemetry.Telemetry(), list[Any]()
    facts.subscribe(told.append, telemetry.PolicyChanged, telemetry.PolicyRefused)
    (tmp_path / "policy.toml").write_text(POLICY)
    policy = tmp_path / "policy.toml"
    one, other = (Keys(store.principals, clock, facts, pepper=b"p" * 32, roles=Roles(policy)) for _ in "ab")
    await one.refresh()
    await other.refresh()
    return Pair(one, other, clock, told)


async def test_a_key_of_another_node_works_after_its_next_look_and_is_revoked_after_one(pair: Pair) -> None:
    key = await pair.key()
    assert pair.other.principal_of(key) is None
    assert await pair.other.step() <= 0.5
    principal = pair.other.principal_of(key)
    assert principal is not None
    await pair.one.revoke(principal.id, tenant=HOME)
    assert pair.one.principal_of(key) is None
    assert not pair.one.is_live(principal.id)
    assert pair.other.is_live(principal.id)
    await pair.other.step()
    assert pair.other.principal_of(key) is None
    assert not pair.other.is_live(principal.id)


async def test_nothing_is_read_again_while_nothing_has_changed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    await pair.key()
    await pair.one.step()

    async def all_() -> Any:
        raise AssertionError("the keys were read")

    monkeypatch.setattr(pair.one._principals, "all", all_)
    await pair.one.step()


async def test_a_key_ends_with_its_time(pair: Pair) -> None:
    key = await pair.key(expires_in_s=60)
    pair.clock.advance(59)
    assert pair.one.principal_of(key) is not None
    pair.clock.advance(2)
    assert pair.one.principal_of(key) is None


async def test_the_last_use_is_written_by_the_loop_at_most_once_a_minute(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await pair.key()
    written: list[int] = []
    use = pair.one._principals.use

    async def counted(uses: Any) -> None:
        written.append(len(uses))
        await use(uses)

    monkeypatch.setattr(pair.one._principals, "use", counted)
    await pair.one.step()
    assert written == []
    for _ in range(100):
        assert pair.one.principal_of(key) is not None
        await pair.one.step()
        pair.clock.advance(1)
    assert written == [1, 1]
    await pair.one.close()
    (row,) = await pair.one._principals.all()
    (shown,) = pair.one.rows(tenant=HOME)
    assert row.last_used_at == shown.last_used_at
    assert row.last_used_at is not None
    assert row.created_at + 98_000_000 <= row.last_used_at <= row.created_at + 101_000_000


async def test_an_older_use_of_another_node_changes_nothing(pair: Pair) -> None:
    key = await pair.key()
    await pair.other.step()
    assert pair.other.principal_of(key) is not None
    await pair.other.step()
    pair.clock.advance(-30)
    assert pair.one.principal_of(key) is not None
    before = (await pair.one._principals.all())[0].last_used_at
    await pair.one.step()
    assert (await pair.one._principals.all())[0].last_used_at == before


async def test_a_rejected_credential_is_no_use(pair: Pair) -> None:
    key = await pair.key()
    assert pair.one.principal_of(key[:-1] + b"x") is None
    await pair.one.step()
    assert pair.one.rows(tenant=HOME)[0].last_used_at is None


async def test_scopes_that_cannot_be_read_allow_nothing(pair: Pair) -> None:
    await pair.key(scopes=[parse("task:read")])
    (row,) = await pair.one._principals.all()
    for damaged in (b"[]", b'["task:fly"]', b"{", b'["task:read", 1]', b"null"):
        principal = pair.one.principal(msgspec.structs.replace(row, scopes=damaged))
        assert not any(principal.rights.allows(action) for action in Action), damaged


# The policy file


async def test_a_role_of_the_policy_file_is_taken_up_when_the_file_changes(pair: Pair, tmp_path: Path) -> None:
    key = await pair.key(role="researcher")

    def rights() -> Any:
        principal = pair.one.principal_of(key)
        assert principal is not None
        return principal.rights

    assert rights().on_agent(Action.TASK_SUBMIT, "research")
    assert not rights().allows(Action.KEY_READ)
    (tmp_path / "policy.toml").write_text(POLICY.replace('["', '["key:read", "'))
    await pair.one.step()
    assert rights().allows(Action.KEY_READ)
    assert pair.told == [telemetry.PolicyChanged("viewer, user, operator, admin, researcher")]
    (tmp_path / "policy.toml").write_text("[roles.other]\nextends = 'viewer'\n")
    await pair.one.step()
    assert not any(rights().allows(action) for action in Action), "its role is gone"


async def test_a_policy_file_with_a_mistake_changes_nothing_and_is_told_once(pair: Pair, tmp_path: Path) -> None:
    key = await pair.key(role="researcher")
    (tmp_path / "policy.toml").write_text("[roles.researcher]\ngrants = ['*', 'task:fly']\n")
    for _ in range(3):
        await pair.one.step()
    (refused,) = pair.told
    assert "there is no action" in refused.error
    principal = pair.one.principal_of(key)
    assert principal is not None
    assert not principal.rights.allows(Action.SYSTEM_SHUTDOWN)
    (tmp_path / "policy.toml").unlink()
    await pair.one.step()
    assert len(pair.told) == 2
    assert principal.rights.on_agent(Action.TASK_SUBMIT, "research")


async def test_a_node_does_not_start_on_a_policy_with_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[roles.admin]\n")
    with pytest.raises(settings.SettingsInvalid, match="built in"):
        Roles(tmp_path / "policy.toml")


# By the API


async def test_a_key_is_narrowed_by_its_scopes(api: nodes.Api) -> None:
    wanted = {"name": "ci", "role": "user", "scopes": ["task:submit on agent:echo", "task:read  on  agent:e*"]}
    made = (await api.call("POST", "/v1/keys", wanted)).json()
    assert made["scopes"] == ["task:submit on agent:echo", "task:read on agent:e*"]
    mine = api.of(made["key"])
    assert (await mine.run("echo", 1))["output"] == 1
    assert (await mine.http.get("/v1/agents")).status_code == 403
    assert (await mine.call("POST", "/v1/tasks", {"agent": "chained", "input": 1})).status_code == 404
    shown = await api.get(f"/v1/keys/{made['id']}")
    assert shown["rights"] == ["task:submit on agent:echo", "task:read on agent:e*"]
    assert shown["created_by"]
    assert "key" not in shown


@pytest.mark.parametrize(
    "scopes",
    [[], "task:read", ["task:fly"], ["task:read on nothing"], [1], ["x" * 201], [""], ["task:read"] * 33, {"a": 1}],
)
async def test_scopes_with_a_mistake_are_refused(api: nodes.Api, scopes: Any) -> None:
    refused = await api.call("POST", "/v1/keys", {"name": "n", "scopes": scopes})
    assert (refused.status_code, refused.json()["type"]) == (422, "invalid-body")


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"role": "user", "scopes": ["task:submit on agent:echo"]}, 201),
        ({"role": "admin", "scopes": ["task:read on agent:echo"]}, 201),
        ({"role": "viewer", "scopes": ["task:read on agent:echo", "key:read"]}, 201),
        ({"role": "admin", "scopes": ["key:create"]}, 201),
        ({"role": "user", "scopes": ["task:submit on agent:chained"]}, 403),
        ({"role": "user", "scopes": ["task:submit on agent:ech*"]}, 403),
        ({"role": "user", "scopes": ["task:submit"]}, 403),
        ({"role": "user"}, 403),
        ({"role": "viewer"}, 403),
        ({"role": "admin"}, 403),
        ({"role": "admin", "scopes": ["*"]}, 403),
        ({"role": "admin", "scopes": ["*:*"]}, 403),
        ({"role": "user", "tenant": "other"}, 403),
    ],
)
async def test_a_narrowed_administrator_makes_no_wider_key(api: nodes.Api, wanted: Any, status: int) -> None:
    scopes = ["key:*", "task:* on agent:echo"]
    made = (await api.call("POST", "/v1/keys", {"name": "narrow", "role": "admin", "scopes": scopes})).json()
    narrow = api.of(made["key"])
    assert (await narrow.call("POST", "/v1/keys", {"name": "n"} | wanted)).status_code == status


async def test_nobody_revokes_a_key_that_may_do_more_but_everybody_their_own(api: nodes.Api) -> None:
    async def made(**wanted: Any) -> Any:
        return (await api.call("POST", "/v1/keys", {"name": "n"} | wanted)).json()

    lead_made = await made(role="admin", scopes=["key:*", "task:read"])
    lead = api.of(lead_made["key"])
    for wanted in ({"role": "admin"}, {"role": "user"}, {"role": "admin", "scopes": ["key:read", "task:submit"]}):
        more = await made(**wanted)
        refused = await lead.http.delete(f"/v1/keys/{more['id']}")
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
        assert "could do more than you may" in refused.json()["detail"]
        assert (await api.of(more["key"]).http.get("/v1/keys/x")).status_code in (403, 404)  # it works still
    less = await made(role="user", scopes=["task:read on agent:echo"])
    for id in (less["id"], less["id"], lead_made["id"]):  # twice is no mistake
        by = api if id == lead_made["id"] and (await lead.http.get("/v1/keys")).status_code == 401 else lead
        assert (await by.http.delete(f"/v1/keys/{id}")).status_code == 204
    assert (await lead.http.get("/v1/keys")).status_code == 401
    assert (await api.http.delete("/v1/keys/nothing")).status_code == 404


async def test_the_last_key_that_may_do_everything_is_spared(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", {}) as api:
        (owner,) = (await api.get("/v1/keys"))["items"]
        wanted: dict[str, Any]
        for wanted in ({"scopes": ["key:*"]}, {"expires_in_s": 0.001}):
            made = await api.call("POST", "/v1/keys", {"name": "n", "role": "admin"} | wanted)
            assert made.status_code == 201, made.text
        await asyncio.sleep(0.002)
        refused = await api.http.delete(f"/v1/keys/{owner['id']}")
        assert (refused.status_code, refused.json()["type"]) == (409, "conflict")
        assert "greenroom keys create NAME --role admin" in refused.json()["detail"]
        other = (await api.call("POST", "/v1/keys", {"name": "other", "role": "admin"})).json()
        paths = [f"/v1/keys/{id}" for id in (owner["id"], other["id"])]
        answers = await asyncio.gather(*(api.http.delete(path) for path in paths))  # at once: one of them is the last
        assert sorted(answer.status_code for answer in answers) in ([204, 401], [204, 409])


async def test_a_key_that_ends_makes_none_that_ends_later(api: nodes.Api) -> None:
    brief = api.of(await api.key("admin", expires_in_s=600))
    for later in (None, 601, 1e6):
        body = {"name": "n", "role": "user"} | ({} if later is None else {"expires_in_s": later})
        refused = await brief.call("POST", "/v1/keys", body)
        assert (refused.status_code, refused.json()["type"]) == (403, "forbidden")
        assert "expires_in_s of at most 59" in refused.json()["detail"], refused.text
    assert (await brief.call("POST", "/v1/keys", {"name": "n", "expires_in_s": 500})).status_code == 201


async def test_can_says_what_decides(api: nodes.Api) -> None:
    made = (await api.call("POST", "/v1/keys", {"name": "n", "scopes": ["task:* on agent:echo"]})).json()
    path = f"/v1/keys/{made['id']}/can"
    yes = await api.get(f"{path}?action=task:submit&resource=agent:echo")
    assert yes["allowed"]
    assert yes["reason"].startswith('"task:submit" of the role user and "task:* on agent:echo" of')
    assert (await api.get(f"{path}?action=task:submit"))["allowed"]
    assert not (await api.get(f"{path}?action=task:submit&resource=agent:chained"))["allowed"]
    assert "the role user" in (await api.get(f"{path}?action=system:shutdown"))["reason"]
    for query in (
        "",
        "?action=task:fly",
        "?action=task:read&resource=echo",
        "?action=task:read&resource=agent:*",
        "?action=key:read&resource=agent:a",
    ):
        assert (await api.http.get(path + query)).status_code == 422
    await api.http.delete(f"/v1/keys/{made['id']}")
    gone = await api.get(f"{path}?action=task:submit")
    assert (gone["allowed"], gone["reason"]) == (False, "the key is revoked or has expired")


async def test_what_a_revoked_key_waits_for_is_not_told_any_more(api: nodes.Api, gate: Path, ledger: Path) -> None:
    made = (await api.call("POST", "/v1/keys", {"name": "waits"})).json()
    mine = api.of(made["key"])
    task = await mine.submit("gated", {"gate": str(gate), "ledger": str(ledger)})
    await nodes.lines_of(ledger)
    waiting = asyncio.create_task(mine.http.get(f"/v1/tasks/{task['id']}?wait=60"))
    following = asyncio.create_task(mine.http.get(f"/v1/tasks/{task['id']}/events"))
    assert (await mine.http.get("/v1/agents")).status_code == 200  # what was sent before has begun
    await api.http.delete(f"/v1/keys/{made['id']}")
    answer = await asyncio.wait_for(waiting, nodes.DEADLINE_S)
    assert answer.status_code == 401
    await asyncio.wait_for(following, nodes.DEADLINE_S)
    assert (await api.task(task["id"]))["state"] == "running"
    gate.touch()
    await api.end_of(task["id"])


async def test_the_node_looks_at_the_keys_by_itself(api: nodes.Api) -> None:
    """Another node revokes a key; nobody asks this one to look."""
    running = api.running
    elsewhere = Keys(
        running.store.principals, running.clock, running.facts, pepper=running.secrets.pepper, roles=Roles()
    )
    await elsewhere.refresh()
    key = await api.key("user")
    mine = api.of(key)
    made = next(row for row in running.access.keys.rows(tenant=HOME) if row.key_id in key)
    assert (await mine.http.get("/v1/status")).status_code == 200
    await elsewhere.revoke(made.key_id, tenant=HOME)

    async def is_out() -> bool:
        return (await mine.http.get("/v1/status")).status_code == 401

    await nodes.eventually(is_out, within_s=2 * keys.LOOK_EVERY_S + 1)
    shown = await api.get(f"/v1/keys/{made.key_id}")
    assert shown["revoked_at"] is not None
    assert shown["last_used_at"] is not None
