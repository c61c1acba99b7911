"""Alerts, silences and rules over the API: what is listed, who may silence what, and what of it is audited."""

from __future__ import annotations

from typing import Any

import pytest

import nodes
from greenroom.core.permissions import parse
from greenroom.store.alerts import Pending, Raised, Resolved

pytestmark = pytest.mark.asyncio(loop_scope="session")


# Agents that there are not: other tests count the alerts of those that there are.
async def only(api: nodes.Api, *scopes: str) -> nodes.Api:
    made = await api.running.access.keys.create(
        tenant="default", name="scoped", role="admin", word="dev", scopes=[parse(scope) for scope in scopes]
    )
    return api.of(made.text)


async def listed(api: nodes.Api, query: str = "") -> dict[str, Any]:
    found = (await api.get(f"/v1/alerts{query}"))["items"]
    return {item["id"]: item for item in found if item["kind"].startswith("listed")}


async def silenced(api: nodes.Api, **given: Any) -> Any:
    answer = await api.call("POST", "/v1/silences", {"for_s": 60} | given)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_alerts_are_listed_by_state_and_agent_and_say_who_silences_them(api: nodes.Api) -> None:
    store = api.running.store.alerts
    await store.tell_all(
        [
            Raised("listed-1", "listed", "mine", "warning", "r"),
            Raised("listed-2", "listed-too", None, "critical", "r"),
            Pending("listed-3", "listed", "theirs", "warning", "r"),
            Raised("listed-4", "listed", "theirs", "warning", "r"),
            Resolved("listed-4"),
        ]
    )
    acknowledged = (await api.call("POST", "/v1/alerts/listed-2/ack")).json()
    assert acknowledged["state"] == "acknowledged"
    assert (await api.call("POST", "/v1/alerts/listed-2/ack")).json() == acknowledged
    states = {id: item["state"] for id, item in (await listed(api)).items()}
    assert list(states.items()) == [
        ("listed-1", "firing"),
        ("listed-2", "acknowledged"),
        ("listed-3", "pending"),
        ("listed-4", "resolved"),
    ]
    assert list(await listed(api, "?state=pending")) == ["listed-3"]
    assert list(await listed(api, "?agent=theirs&state=resolved")) == ["listed-4"]
    refused = await api.http.get("/v1/alerts?state=gone")
    assert (refused.status_code, "give one of pending, firing" in refused.json()["detail"]) == (422, True)
    for id in ("listed-3", "listed-4"):
        assert (await api.call("POST", f"/v1/alerts/{id}/ack")).status_code == 409
    acts = (await api.get("/v1/audit?action=alert.acknowledge"))["items"]
    assert [(act["object"], act["outcome"], act["detail"]) for act in acts if "listed" in act["object"]] == [
        ("alert:listed-4", "refused", {"was": "resolved"}),
        ("alert:listed-3", "refused", {"was": "pending"}),
        ("alert:listed-2", "done", {"was": "firing"}),  # once: the first who took it stays
    ]
    silence = await silenced(api, kind="listed", severity="warning", comment="a known one")
    told = {id: item["silenced_by"] for id, item in (await listed(api)).items()}
    by = [silence["id"]]
    assert told == {"listed-1": by, "listed-2": [], "listed-3": by, "listed-4": by}
    assert (await api.call("DELETE", f"/v1/silences/{silence['id']}")).status_code == 204
    assert (await listed(api))["listed-1"]["silenced_by"] == []


async def test_the_status_counts_what_fires_also_where_somebody_looks_after_it(api: nodes.Api) -> None:
    before = (await api.get("/v1/status"))["alerts"].get("critical", 0)
    await api.running.store.alerts.tell(Raised("counted", "listed", None, "critical", "r"))
    await api.call("POST", "/v1/alerts/counted/ack")
    await api.running.store.alerts.tell(Pending("counted-not", "listed", None, "critical", "r"))
    assert (await api.get("/v1/status"))["alerts"]["critical"] == before + 1
    await api.running.store.alerts.tell_all([Resolved("counted"), Resolved("counted-not")])


async def test_a_silence_is_by_whom_of_what_and_until_when_and_is_audited(api: nodes.Api) -> None:
    await api.running.store.alerts.tell(Raised("of:mine", "of", "mine", "warning", "r"))
    silence = await silenced(api, alert="of:mine", comment="x" * 500)
    assert (silence["alert"], silence["agent"], silence["kind"]) == ("of:mine", "mine", None)  # the alert's own
    assert silence["created_by"]
    assert silence["id"] in {each["id"] for each in (await api.get("/v1/silences"))["items"]}
    await api.call("DELETE", f"/v1/silences/{silence['id']}")
    assert (await api.call("DELETE", f"/v1/silences/{silence['id']}")).status_code == 404
    acts = (await api.get(f"/v1/audit?object=silence:{silence['id']}"))["items"]
    assert {(act["action"], act["outcome"]) for act in acts} >= {("alert.silence", "done"), ("alert.unsilence", "done")}


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ({"for_s": 60}, 422, "cannot add a silence of everything"),
        ({"for_s": 0, "kind": "k"}, 422, "for_s: expected a number of seconds"),
        ({"for_s": 1e9, "kind": "k"}, 422, "for_s: expected a number of seconds"),
        ({"kind": "k"}, 422, "for_s"),
        ({"for_s": 60, "severity": "bad"}, 422, "severity: expected one of"),
        ({"for_s": 60, "kind": ""}, 422, "kind: expected 1 to 200 characters"),
        ({"for_s": 60, "alert": "no such alert"}, 404, "cannot find the alert no such alert"),
    ],
)
async def test_a_silence_that_is_none_is_refused(api: nodes.Api, body: Any, status: int, why: str) -> None:
    answer = await api.call("POST", "/v1/silences", body)
    assert (answer.status_code, why in answer.json()["detail"]) == (status, True), answer.text


async def test_who_may_act_on_one_agent_may_silence_that_one_alone(api: nodes.Api) -> None:
    store = api.running.store.alerts
    await store.tell_all([Raised(f"own-{name}", "own", name, "warning", "r") for name in ("mine", "theirs")])
    everything = await silenced(api, kind="own")
    others = await silenced(api, agent="theirs")
    mine = await only(api, "alert:* on agent:mine")
    own = await silenced(mine, alert="own-mine")
    assert await silenced(mine, kind="own", agent="mine")
    for body in ({"kind": "own"}, {"agent": "*"}, {"agent": "theirs"}, {"severity": "warning"}, {"alert": "own-*"}):
        assert (await mine.call("POST", "/v1/silences", body | {"for_s": 60})).status_code == 403
    assert (await mine.call("POST", "/v1/silences", {"alert": "own-theirs", "for_s": 60})).status_code == 404
    seen = {each["id"] for each in (await mine.get("/v1/silences"))["items"]}
    assert own["id"] in seen
    assert not seen & {everything["id"], others["id"]}
    for id in (everything["id"], others["id"]):
        assert (await mine.call("DELETE", f"/v1/silences/{id}")).status_code == 404
    assert (await mine.call("DELETE", f"/v1/silences/{own['id']}")).status_code == 204
    reader = await only(api, "alert:read on agent:mine")
    assert (await reader.call("POST", "/v1/silences", {"agent": "mine", "for_s": 60})).status_code == 403


async def test_the_rules_are_listed_and_to_whom_it_may_concern(api: nodes.Api) -> None:
    rules = {rule["name"]: rule for rule in (await api.get("/v1/alerts/rules"))["items"]}
    assert rules["slow_tasks"]["above"] == 60.0
    assert (rules["slow_tasks"]["agents"], rules["slow_tasks"]["window_s"]) == (["*"], 600.0)
    assert (rules["disk_full"]["below"], rules["disk_full"]["severity"]) == (512.0, "critical")
    assert (rules["disk_free"]["below"], rules["disk_free"]["agents"], rules["disk_free"]["window_s"]) == (
        10.0,
        [],
        None,
    )
    mine = await only(api, "alert:read on agent:echo")
    own = {rule["name"]: rule["agents"] for rule in (await mine.get("/v1/alerts/rules"))["items"]}
    assert own["slow_tasks"] == ["echo"]
    assert "disk_free" not in own
