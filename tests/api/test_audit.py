"""The audit log by the API: every act of a person is in it, with who it was; and who may see it."""

from __future__ import annotations

from typing import Any

import pytest

import nodes
from greenroom.security import audit, keys

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def last(api: nodes.Api, **which: str) -> Any:
    query = "&".join(f"{name}={value}" for name, value in which.items())
    return (await api.get(f"/v1/audit?{query}&limit=1"))["items"][0]


def _id(key: str) -> str:
    presented = keys.parse(key)
    assert presented is not None
    return presented.id


async def test_what_people_do_is_in_the_log(api: nodes.Api) -> None:
    key = await api.key("admin")
    mine = api.of(key, source="192.0.2.44")
    spec = nodes.agent("echo")
    late = {"agent": "audited", "input": 1, "not_before": "2999-01-01T00:00:00Z"}
    made = (await mine.call("POST", "/v1/keys", {"name": "made"})).json()
    steps: list[tuple[str, str, Any, str, str]] = [
        ("PUT", "/v1/agents/audited", spec, "agent.deploy", "agent:audited"),
        ("PATCH", "/v1/agents/audited/scale", {"replicas": 2}, "agent.scale", "agent:audited"),
        ("POST", "/v1/agents/audited/release", None, "agent.release", "agent:audited"),
        ("DELETE", f"/v1/keys/{made['id']}", None, "key.revoke", f"key:{made['id']}"),
        ("POST", "/v1/backups", None, "backup.ask", "backup"),
    ]

    async def rest() -> bool:
        return not (await api.get("/v1/status"))["backups"]["is_running"]

    await nodes.eventually(rest)
    for method, path, body, action, object in steps:
        answer = await mine.call(method, path, body)
        assert answer.status_code < 300, answer.text
        entry = await last(api, action=action, actor=_id(key))
        assert (entry["object"], entry["outcome"], entry["source"]) == (object, "done", "192.0.2.44")
        assert entry["request_id"]

    async def ready() -> list[Any]:
        return await api.replicas("audited")

    replica = (await nodes.eventually(ready))[0]["id"]
    for verb in ("restart", "drain"):
        await mine.call("POST", f"/v1/replicas/{replica}/{verb}")
        assert (await last(api, action=f"replica.{verb}"))["object"] == f"replica:{replica}"
    task = (await mine.call("POST", "/v1/tasks", late)).json()["id"]
    await mine.call("POST", f"/v1/tasks/{task}/cancel")
    entry = await last(api, action="task.cancel")
    assert (entry["object"], entry["actor"], entry["outcome"]) == (f"task:{task}", _id(key), "done")
    await mine.call("POST", f"/v1/tasks/{task}/cancel")
    assert (await last(api, action="task.cancel"))["outcome"] == "refused"
    await mine.call("DELETE", "/v1/agents/audited")
    assert (await last(api, action="agent.delete"))["actor"] == _id(key)
    assert not (await api.get("/v1/audit?action=task.submit"))["items"]


async def test_no_secret_is_in_the_log(api: nodes.Api) -> None:
    key = await api.key("admin")
    await api.of(key).call("POST", "/v1/keys", {"name": "made"})
    text = (await api.http.get("/v1/audit?limit=200")).text
    assert key.split("_")[3] not in text
    assert "secret_hash" not in text


async def test_where_it_cannot_be_audited_it_is_not_done(api: nodes.Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a test said so")

    name = "not-audited"
    await api.call("PUT", f"/v1/agents/{name}", nodes.agent("echo"))

    async def ready() -> list[Any]:
        return await api.replicas(name)

    replica = (await nodes.eventually(ready))[0]
    with monkeypatch.context() as patch:
        patch.setattr(api.running.store.commits, "_append", fails)
        for method, path, body in (
            ("POST", "/v1/keys", {"name": "never"}),
            ("POST", f"/v1/replicas/{replica['id']}/restart", None),
            ("DELETE", f"/v1/agents/{name}", None),
        ):
            assert (await api.call(method, path, body)).json()["type"] == "internal-error"
        submitted = await api.run("echo", "goes on")
        assert submitted["state"] == "succeeded"
    assert "never" not in (await api.http.get("/v1/keys")).text
    assert [row["id"] for row in await api.replicas(name)] == [replica["id"]]
    assert (await api.call("DELETE", f"/v1/agents/{name}")).status_code == 204


async def test_a_tenant_sees_its_own_and_the_home_tenant_all(api: nodes.Api) -> None:
    theirs = api.of(await api.key("admin", tenant="audited-tenant"))
    await theirs.call("POST", "/v1/keys", {"name": "theirs"})
    seen = (await theirs.get("/v1/audit?limit=200"))["items"]
    assert seen
    assert {entry["tenant"] for entry in seen} == {"audited-tenant"}
    home = (await api.get("/v1/audit?limit=200"))["items"]
    assert {"default", "audited-tenant"} <= {entry["tenant"] for entry in home}
    numbers = {entry["seq"] for entry in home}
    assert {entry["seq"] for entry in seen} <= numbers


async def test_the_list_goes_on_and_is_followed(api: nodes.Api) -> None:
    for n in range(5):
        await api.running.store.audit.note(audit_act(f"thing:{n}"))
    first = await api.get("/v1/audit?action=test.list&limit=3")
    rest = await api.get(f"/v1/audit?action=test.list&limit=3&cursor={first['next_cursor']}")
    assert [entry["object"] for entry in first["items"] + rest["items"]] == [f"thing:{n}" for n in (4, 3, 2, 1, 0)]
    assert rest["next_cursor"] is None
    after = await api.get(f"/v1/audit?action=test.*&after={rest['items'][0]['seq']}")
    assert [entry["object"] for entry in after["items"]] == ["thing:2", "thing:3", "thing:4"]


def audit_act(object: str) -> Any:
    from greenroom.store.audit import Act

    return Act("test.list", object)


@pytest.mark.parametrize(
    "query", ["since=yesterday", "since=2030-01-01", "since=%00", "after=-1", "limit=0", "limit=201", "cursor=x"]
)
async def test_what_cannot_be_asked_is_refused(api: nodes.Api, query: str) -> None:
    assert (await api.http.get(f"/v1/audit?{query}")).status_code == 422


async def test_what_is_erased_is_gone_and_said_to_be(api: nodes.Api) -> None:
    key = await api.key("admin")
    await api.of(key, source="198.51.100.99").call("POST", "/v1/keys", {"name": "erased"})
    erased = (await api.call("POST", "/v1/audit/erase", {"actor": _id(key)})).json()
    assert erased == {"entries": 1, "is_more": False}
    text = (await api.http.get("/v1/audit?limit=200")).text
    assert "198.51.100.99" not in text
    entry = await last(api, action=audit.ERASE)
    (seq,) = entry["detail"]["seqs"]
    (gone,) = [each for each in (await api.get("/v1/audit?limit=200"))["items"] if each["seq"] == seq]
    assert (gone["is_erased"], gone["actor"], gone["object"], gone["detail"]) == (True, None, None, None)


async def test_refusals_are_told_with_who_and_what(api: nodes.Api) -> None:
    from greenroom import telemetry

    heard: list[Any] = []
    for kind in (telemetry.CredentialRejected, telemetry.RequestRefused, telemetry.RequestForged):
        api.running.facts.subscribe(heard.append, kind)
    try:
        key = await api.key("viewer")
        mine, guessing = api.of(key, source="192.0.2.50"), api.of(keys.mint("dev", b"x").text, source="192.0.2.51")
        await guessing.http.get("/v1/status")
        await mine.http.delete("/v1/agents/echo")
        await mine.http.get("/v1/tasks/" + "0" * 32)
        await mine.http.get("/v1/%2e%2e/%2e%2e/etc/passwd")
        await mine.http.get("/v1/status")
    finally:
        for kind in (telemetry.CredentialRejected, telemetry.RequestRefused, telemetry.RequestForged):
            api.running.facts.unsubscribe(heard.append, kind)
    rejected, forbidden, missed, unknown, climbing = heard
    assert (rejected.source, len(rejected.key_id), rejected.why) == ("192.0.2.51", 16, "unknown")
    assert (forbidden.principal, forbidden.status, forbidden.path) == (_id(key), 403, "/v1/agents/echo")
    assert (missed.status, unknown.status) == (404, 404)
    assert (climbing.principal, climbing.what) == (_id(key), "a path that climbs")


async def test_who_is_locked_is_refused_and_let_in_again(api: nodes.Api) -> None:
    from greenroom.core.measures import Standing

    key = await api.key("viewer")
    mine, subject = api.of(key), f"principal:{_id(key)}"
    running = api.running
    running.security.measures.put(subject, Standing("lock", "why", running.clock.monotonic_s() + 60))
    locked = await mine.http.get("/v1/status")
    assert (locked.status_code, locked.json()["type"]) == (403, "forbidden")
    assert (await api.http.get("/v1/status")).status_code == 200
    running.security.measures.drop(subject)
    assert (await mine.http.get("/v1/status")).status_code == 200
    source = api.of("gr_dev_x", source="192.0.2.61")
    running.security.measures.put("source:192.0.2.61", Standing("lock", "why", running.clock.monotonic_s() + 60))
    refused = await source.http.get("/v1/status")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    neighbour = api.of(key, source="192.0.2.61")  # who has a valid key does not suffer for it
    assert (await neighbour.http.get("/v1/status")).status_code == 200
    link = {"link": "gl_x"}
    tried = await source.http.post("/login", json=link, headers={"sec-fetch-site": "same-origin"})
    assert (tried.status_code, tried.headers["retry-after"]) == (429, "60")
    running.security.measures.drop("source:192.0.2.61")


async def test_a_login_of_who_is_locked_is_locked_and_begins_in_the_log_with_its_source(api: nodes.Api) -> None:
    from greenroom.core.measures import Standing

    key = await api.key("viewer")
    mine, running, ours = api.of(key), api.running, {"sec-fetch-site": "same-origin"}
    path = (await mine.call("POST", "/v1/logins")).json()["path"]
    browser = api.of("", source="192.0.2.62").http
    del browser.headers["authorization"]
    begun = await browser.post("/login", json={"link": path.partition("#")[2]}, headers=ours)
    cookie = ours | {"cookie": begun.headers["set-cookie"].partition(";")[0]}
    browser.cookies.clear()
    assert (await browser.get("/v1/status", headers=cookie)).status_code == 200
    running.security.measures.put(f"principal:{_id(key)}", Standing("lock", "why", running.clock.monotonic_s() + 60))
    assert (await browser.get("/v1/status", headers=cookie)).status_code == 403
    running.security.measures.drop(f"principal:{_id(key)}")
    (entry,) = (await api.get(f"/v1/audit?action=login.begin&object=key:{_id(key)}"))["items"]
    assert (entry["actor"], entry["source"]) == ("nobody", "192.0.2.62")


async def test_an_ipv6_customer_is_one_source_for_who_watches_and_who_locks(api: nodes.Api) -> None:
    from greenroom.core.measures import Standing

    running, subject = api.running, "source:2001:db8:7:1::/64"
    running.security.measures.put(subject, Standing("lock", "why", running.clock.monotonic_s() + 60))
    answers = [
        (await api.of("gr_dev_x", source=source).http.get("/v1/status")).status_code
        for source in ("2001:db8:7:1::1", "2001:db8:7:1:f::2", "2001:db8:7:2::1")
    ]
    running.security.measures.drop(subject)
    assert answers == [429, 429, 401]


async def test_nobody_who_could_undo_it_is_touched(api: nodes.Api) -> None:
    owner = (api.running.options.data_dir / "local.key").read_text().strip()
    assert "owner" in (api.running.security._spared(_id(owner)) or "")
    assert api.running.security._spared(_id(await api.key("viewer"))) is None
    assert api.running.security._spared(_id(await api.key("admin"))) is None  # there are others


async def test_the_report_says_of_each_control_what_it_is(api: nodes.Api) -> None:
    report = await api.get("/v1/security")
    states = {control["name"]: control["state"] for control in report["controls"]}
    assert states["authentication"] == states["audit log"] == "on"
    assert states["intrusion rules"] == states["audit export"] == "off by setting"
    assert report["grade"] == "not watched"  # though nothing bad was seen
    assert set(states.values()) <= {"on", "off by setting", "not possible here", "degraded"}
    assert all(control["why"] for control in report["controls"])
