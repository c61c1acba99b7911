from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import Response

import greenroom
from fake_node import AT, SLOTS, TASK_ID, FakeNode, agent, event, problem, task
from greenroom import errors
from greenroom.sdk import async_client, calls, client, discovery, flows, models, problems, streams

TASK = f"/v1/tasks/{TASK_ID}"


@pytest.fixture
def fake() -> FakeNode:
    return FakeNode()


@pytest.fixture
def node(fake: FakeNode, tmp_path: Path) -> Iterator[client.Client]:
    with fake.serving() as url, client.Client(url, "gr_key", data_dir=tmp_path) as made:
        yield made


# What is sent, and what comes back


def test_a_submission_sends_what_was_given_and_returns_the_task(fake: FakeNode, node: client.Client) -> None:
    fake.put("POST /v1/tasks", task("queued", routing={"agent": "research", "scores": SLOTS}))
    due_at = datetime(2030, 1, 1, tzinfo=UTC)
    submitted = node.submit({"q": 1}, session="s", priority=5, not_before=due_at, metadata={"a": "b"})
    assert fake.last_body == {
        "input": {"q": 1},
        "session": "s",
        "priority": 5,
        "not_before": "2030-01-01T00:00:00+00:00",
        "metadata": {"a": "b"},
    }
    assert fake.last.headers["authorization"] == "Bearer gr_key"
    assert fake.last.headers["content-type"] == "application/json"
    assert len(fake.last.headers["idempotency-key"]) == 32
    assert submitted.routing is not None
    assert submitted.routing.scores[0].agent == "research"
    assert not submitted.ended


def test_a_tasks_times_are_aware_and_unknown_fields_are_ignored(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"GET {TASK}", task())
    found = node.task(TASK_ID)
    assert found.created_at == datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    assert found.succeeded
    assert found.attempts[0].replica == "r1"
    assert found.usage.output_tokens == 34


def test_a_task_of_a_newer_node_in_an_unknown_state_has_not_ended(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"GET {TASK}", {"id": TASK_ID, "state": "pondering"})
    assert not node.task(TASK_ID).ended


def test_a_batch_answers_tasks_and_problems_in_order(fake: FakeNode, node: client.Client) -> None:
    refused = {"type": "no-route", "title": "No route", "status": 422, "detail": "nobody fits"}
    fake.put("POST /v1/tasks/batch", {"items": [task("queued"), refused]})
    accepted, problem = node.submit_many([models.Submission(input=1, agent="a"), models.Submission(input=None)])
    assert fake.last_body == {"tasks": [{"input": 1, "agent": "a"}, {"input": None}]}
    assert isinstance(accepted, models.Task)
    assert isinstance(problem, models.Problem)
    assert (problem.code, problem.detail) == ("no-route", "nobody fits")


def test_a_batch_may_be_of_dicts(fake: FakeNode, node: client.Client) -> None:
    fake.put("POST /v1/tasks/batch", {"items": [task("queued")] * 3})
    keyed = greenroom.Submission(input=2, idempotency_key="k")
    node.submit_many([{"input": {"q": 1}, "agent": "a"}, {"input": 2, "not_before": "2030-01-01T00:00:00Z"}, keyed])
    assert fake.last_body["tasks"] == [
        {"input": {"q": 1}, "agent": "a"},
        {"input": 2, "not_before": "2030-01-01T00:00:00+00:00"},
        {"input": 2, "idempotency_key": "k"},
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"agent": "a"}, "`input`"),
        ({"input": 1, "agnet": "a"}, "`agnet`"),
        ({"input": 1, "agent": 1}, "agent"),
        ("x", "str"),
    ],
)
def test_what_is_no_submission_is_told_with_its_place_and_what_it_takes(
    fake: FakeNode, node: client.Client, wrong: Any, why: str
) -> None:
    with pytest.raises(
        errors.BodyInvalid, match=rf"cannot submit submissions\[1\]: .*{why}.*with some of: input, agent"
    ):
        node.submit_many([{"input": 1}, wrong])
    assert not fake.requests


def test_lists_are_followed_to_their_end(fake: FakeNode, node: client.Client) -> None:
    fake.put("GET /v1/tasks", {"items": [task(id="a")], "next_cursor": "c"}, {"items": [task(id="b")]})
    assert [found.id for found in node.iter_tasks("research", "failed")] == ["a", "b"]
    assert dict(fake.last.query_params) == {"agent": "research", "state": "failed", "cursor": "c"}
    fake.put("GET /v1/agents", {"items": [agent("x")], "next_cursor": "c"}, {"items": [agent("y")]})
    assert [found.name for found in node.agents()] == ["x", "y"]


def test_the_other_routes(fake: FakeNode, node: client.Client) -> None:
    replica = {"id": "r1", "agent": "research", "state": "ready", "busy": 1, "slots": 4}
    fake.put(f"POST {TASK}/cancel", task("cancelled"))
    fake.put(f"POST {TASK}/retry", task("queued"))
    fake.put("GET /v1/sessions", {"items": [{"id": "s", "agent": "a"}]})
    fake.put("GET /v1/sessions/s", {"id": "s", "agent": "a", "state": {"n": 1}})
    fake.put("DELETE /v1/sessions/s", Response(status_code=204))
    fake.put("GET /v1/agents/research", agent())
    fake.put("PUT /v1/agents/research", agent())
    fake.put("DELETE /v1/agents/research", Response(status_code=204))
    fake.put("PATCH /v1/agents/research/scale", agent(replicas={"desired": 3, "ready": 2}))
    fake.put(
        "GET /v1/agents/research/scaling", {"agent": "research", "items": [{"from_replicas": 1, "to_replicas": 2}]}
    )
    fake.put("GET /v1/agents/research/load", {"items": [{"arrivals": 7}]})
    fake.put("GET /v1/agents/research/history", {"items": [{"attempts": 3, "run": {"p95_s": 2.5}}]})
    health = {"agent": "research", "grade": "degraded", "recent": {"grade": "degraded", "errors": 3}, "slo": None}
    fake.put("GET /v1/agents/research/health", health)
    fake.put("GET /v1/logs", {"items": [{"seq": 3, "text": "said", "level": "error", "mood": "new"}]})
    fake.put("GET /v1/replicas", {"items": [replica]})
    fake.put("POST /v1/replicas/r1/restart", replica)
    fake.put("POST /v1/replicas/r1/drain", replica)
    fake.put("GET /v1/status", {"environment": "development"})
    fake.put("GET /v1/keys", {"items": [{"id": "k", "name": "n", "role": "r"}]})
    fake.put("POST /v1/keys", {"id": "k", "name": "n", "role": "r", "key": "gr_secret"})
    fake.put("DELETE /v1/keys/k", Response(status_code=204))
    fake.put("GET /healthz", {})
    fake.put("GET /readyz", problem(503, "not-ready", "starting"))
    assert node.cancel(TASK_ID).state == "cancelled"
    assert node.retry(TASK_ID).state == "queued"
    assert node.sessions(limit=5).items[0].id == "s"
    assert node.session("s", "a").state == {"n": 1}
    node.delete_session("s", "a")
    assert dict(fake.last.query_params) == {"agent": "a"}
    assert node.agent("research").adapter == "an AutoGen agent"
    assert node.put_agent("research", {"factory": "a:b"}).name == "research"
    node.delete_agent("research")
    assert node.scale("research", 3).replicas.desired == 3
    assert fake.last_body == {"replicas": 3}
    assert node.scaling("research", limit=1).items[0].to_replicas == 2
    assert node.load("research", hours=2)[0].arrivals == 7
    assert dict(fake.last.query_params) == {"hours": "2"}
    (bucket,) = node.history("research", since=datetime(2030, 1, 1, tzinfo=UTC), step_s=3600)
    assert (bucket.attempts, bucket.run and bucket.run.p95_s, bucket.wait) == (3, 2.5, None)
    assert dict(fake.last.query_params) == {"since": "2030-01-01T00:00:00+00:00", "step_s": "3600"}
    assert node.agent_health("research").recent.errors == 3
    assert node.logs(task="t", level="error", limit=1).items[0].text == "said"
    assert dict(fake.last.query_params) == {"task": "t", "level": "error", "limit": "1"}
    assert node.replicas()[0].slots == 4
    assert node.restart_replica("r1").id == node.drain_replica("r1").id == "r1"
    assert node.status() == {"environment": "development"}
    assert node.keys()[0].key is None
    assert node.create_key("n", "r").key == "gr_secret"
    assert node.create_key("n", "r", scopes=["task:read"], expires_in_s=60, tenant="acme").id == "k"
    wanted = {"name": "n", "role": "r", "scopes": ["task:read"], "expires_in_s": 60, "tenant": "acme"}
    assert fake.last_body == wanted
    assert node.keys(tenant="acme")[0].id == "k"
    assert fake.last.query_params["tenant"] == "acme"
    fake.put("GET /v1/keys/k", {"id": "k", "rights": ["task:read"]})
    assert node.key("k").rights == ("task:read",)
    fake.put("GET /v1/keys/k/can", {"allowed": False, "action": "task:read", "reason": "no"})
    assert not node.key_can("k", "task:read", "agent:a").allowed
    assert dict(fake.last.query_params) == {"action": "task:read", "resource": "agent:a"}
    node.revoke_key("k")
    node.revoke_key("k", tenant="acme")
    assert dict(fake.last.query_params) == {"tenant": "acme"}
    fake.put("POST /v1/shutdown", {"node": "node-1", "state": "draining"})
    assert node.shut_down().node == "node-1"
    assert node.health()
    assert not node.ready()
    assert len(fake.asked("GET /readyz")) == 1


ROLLOUT = {"id": 7, "agent": "research", "strategy": "canary", "to_revision": 3, "state": "paused", "mood": "newer"}


def test_the_routes_of_rollouts(fake: FakeNode, node: client.Client) -> None:
    fake.put("GET /v1/agents/research/revisions", {"items": [{"agent": "research", "number": 3}]})
    fake.put("GET /v1/agents/research/rollouts", {"items": [ROLLOUT]})
    fake.put("GET /v1/rollouts/7", ROLLOUT)
    for verb in ("promote", "pause", "resume", "abort"):
        fake.put(f"POST /v1/rollouts/7/{verb}", ROLLOUT)
    fake.put("POST /v1/agents/research/rollback", ROLLOUT)
    assert node.revisions("research")[0].number == 3
    assert node.rollouts("research", limit=5)[0].is_open
    assert dict(fake.last.query_params) == {"limit": "5"}
    assert node.rollout(7).to_revision == 3
    for act in (node.promote_rollout, node.pause_rollout, node.resume_rollout, node.abort_rollout):
        assert act(7).id == 7
        assert fake.last.url.path == f"/v1/rollouts/7/{act.__name__.partition('_')[0]}"
    node.promote_rollout(7, 2)
    assert fake.last_body == {"stage": 2}
    assert node.roll_back("research").id == 7
    assert fake.last_body == {}
    node.roll_back("research", 2)
    assert fake.last_body == {"to": 2}


def test_a_deployment_brings_its_code_and_is_planned_before(fake: FakeNode, node: client.Client) -> None:
    spec = {"factory": "a:b"}
    fake.put("POST /v1/code", {"digest": "d", "files": 1, "bytes": 2})
    assert node.upload_code(b"archive").digest == "d"
    assert fake.last.headers["content-type"] == "application/gzip"
    assert fake.requests[-1][1] == b"archive"
    fake.put("PUT /v1/agents/research?dry_run", {"agent": "research", "action": "begin", "to_revision": 3})
    assert node.plan_agent("research", spec, code="d").action == "begin"
    assert dict(fake.last.query_params) == {"code": "d", "dry_run": "true"}
    node.plan_agent("research", spec, sessions=True)
    assert dict(fake.last.query_params) == {"dry_run": "true", "sessions": "true"}
    node.plan_agent("research", spec, strategy="canary", hold_s=2.5)
    assert dict(fake.last.query_params) == {"strategy": "canary", "hold_s": "2.5", "dry_run": "true"}
    fake.put("PUT /v1/agents/research", agent(rollout=ROLLOUT))
    node.put_agent("research", spec, strategy="canary", hold_s=2.5)
    assert (dict(fake.last.query_params), fake.last_body) == ({"strategy": "canary", "hold_s": "2.5"}, spec)
    deployed = node.put_agent("research", spec, code="d")
    assert deployed.rollout is not None
    assert deployed.rollout.id == 7
    assert (dict(fake.last.query_params), fake.last_body) == ({"code": "d"}, spec)


async def test_the_asynchronous_client_deploys_and_rolls_back(fake: FakeNode, tmp_path: Path) -> None:
    fake.put("POST /v1/code", {"digest": "d"})
    fake.put("PUT /v1/agents/research?dry_run", {"agent": "research", "action": "stay", "to_revision": 3})
    fake.put("GET /v1/agents/research/rollouts", {"items": [ROLLOUT]})
    for route in ("rollouts/7/promote", "rollouts/7/pause", "rollouts/7/resume", "rollouts/7/abort"):
        fake.put(f"POST /v1/{route}", ROLLOUT)
    fake.put("POST /v1/agents/research/rollback", ROLLOUT)
    fake.put("GET /v1/rollouts/7", ROLLOUT)
    fake.put("GET /v1/agents/research/revisions", {"items": []})
    with fake.serving() as url:
        async with async_client.AsyncClient(url, "k", data_dir=tmp_path) as node:
            assert (await node.upload_code(b"archive")).digest == "d"
            assert (await node.plan_agent("research", {}, code="d", sessions=True)).action == "stay"
            assert [rollout.id for rollout in await node.rollouts("research")] == [7]
            assert await node.revisions("research") == []
            for act in (
                node.rollout,
                node.promote_rollout,
                node.pause_rollout,
                node.resume_rollout,
                node.abort_rollout,
            ):
                assert (await act(7)).id == 7
            assert (await node.roll_back("research", 2)).id == 7


ALERT = {"id": "a", "kind": "slow_tasks", "state": "pending", "silenced_by": ["sil_1"]}
SILENCE = {"id": "sil_1", "kind": "slow_*", "created_at": AT, "until": AT}


def _with_alerts(fake: FakeNode) -> None:
    fake.put("GET /v1/alerts", {"items": [ALERT]})
    fake.put("GET /v1/alerts/rules", {"items": [{"name": "slow_tasks", "signal": "run_p95_s", "above": 60}]})
    fake.put("GET /v1/silences", {"items": [SILENCE]})
    fake.put("POST /v1/silences", SILENCE)
    fake.put("DELETE /v1/silences/sil_1", Response(status_code=204))


def test_alerts_are_silenced(fake: FakeNode, node: client.Client) -> None:
    _with_alerts(fake)
    assert [alert.silenced_by for alert in node.alerts(state="pending")] == [["sil_1"]]
    assert [rule.above for rule in node.alert_rules()] == [60.0]
    made = node.silence(60, kind="slow_*", comment="known")
    assert fake.last_body == {"for_s": 60, "kind": "slow_*", "comment": "known"}
    assert node.silences() == [made]
    node.unsilence(made.id)


async def test_the_asynchronous_client_silences_alerts(fake: FakeNode, tmp_path: Path) -> None:
    _with_alerts(fake)
    with fake.serving() as url:
        async with async_client.AsyncClient(url, "k", data_dir=tmp_path) as node:
            assert [alert.state for alert in await node.alerts(state="pending")] == ["pending"]
            assert [rule.name for rule in await node.alert_rules()] == ["slow_tasks"]
            assert await node.silences() == [await node.silence(60, kind="slow_*")]
            await node.unsilence("sil_1")


@pytest.mark.parametrize(
    ("call", "is_repeatable"),
    [
        (calls.put_agent("a", {}), True),
        (calls.plan_agent("a", {}), True),
        (calls.plan_agent("a", {}, sessions=True), False),  # the first may go on, and there is one at a time
        (calls.upload_code(b""), True),
        (calls.promote_rollout(1, None), False),
        (calls.resume_rollout(1), False),  # it may be a promotion
        (calls.pause_rollout(1), True),
        (calls.abort_rollout(1), True),
        (calls.roll_back("a", None), False),  # twice leads back
        (calls.roll_back("a", 2), True),
    ],
)
def test_what_moves_a_rollout_twice_is_not_repeated(call: calls.Call[Any], is_repeatable: bool) -> None:
    assert call.repeatable == is_repeatable


@pytest.mark.parametrize("id", ["../keys", "a/b", "..", "?x", "é"])
def test_an_id_stays_one_segment_of_the_path(fake: FakeNode, node: client.Client, id: str) -> None:
    with pytest.raises(errors.NotFound):
        node.task(id)
    assert fake.last.scope["raw_path"].startswith(b"/v1/tasks/")
    assert fake.last.scope["raw_path"].count(b"/") == 3


def test_what_strict_json_cannot_say_is_not_sent(fake: FakeNode, node: client.Client) -> None:
    with pytest.raises(errors.JsonRefused):
        node.submit(float("nan"))
    with pytest.raises(errors.BodyInvalid, match="time zone"):
        node.submit("x", not_before=datetime(2030, 1, 1))  # noqa: DTZ001 - the mistake that is tested
    assert not fake.requests


# Errors


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
)
def test_every_code_is_the_error_that_it_came_from(kind: type[errors.GreenroomError]) -> None:
    for type_ in (kind.code, f"greenroom:{kind.code}", f"https://greenroom.example/problems/{kind.code}"):
        error = problems.to_error(models.Problem(type=type_, detail="why"), status=kind.status)
        assert type(error) is kind
        assert str(error) == "why"


def test_an_unknown_code_is_a_plain_error_with_its_detail_and_request_id(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"GET {TASK}", problem(500, "brand-new", "it broke", request_id="req-1"))
    with pytest.raises(errors.GreenroomError, match="it broke") as caught:
        node.task(TASK_ID)
    assert caught.value.__notes__ == ["request id: req-1"]


def test_no_route_has_the_candidates_as_values(fake: FakeNode, node: client.Client) -> None:
    fake.put("POST /v1/tasks", problem(422, "no-route", "nobody fits", candidates=SLOTS))
    with pytest.raises(errors.NoRoute) as caught:
        node.submit("hm")
    best, other = caught.value.candidates
    assert (best.agent, best.score, best.reason) == ("research", 0.91, "summarise")
    assert (other.agent, other.score, other.reason) == ("writing", 0.12, "")
    assert not hasattr(caught.value, "__notes__"), "the node's message names them already"


def test_overload_says_when_to_come_back(fake: FakeNode, node: client.Client) -> None:
    refusal = problem(429, "overloaded", "the queue is full")
    refusal.headers["Retry-After"] = "77"  # longer than it has patience
    fake.put("POST /v1/tasks", refusal)
    with pytest.raises(errors.Overloaded) as caught:
        node.submit("x")
    assert caught.value.retry_after_s == 77


@pytest.mark.parametrize(
    ("status", "kind"),
    [(502, errors.NodeUnreachable), (401, errors.Unauthenticated), (418, errors.GreenroomError)],
)
def test_what_a_proxy_answers_is_an_error_too(
    fake: FakeNode, node: client.Client, status: int, kind: type[errors.GreenroomError]
) -> None:
    fake.put(f"GET {TASK}", Response("<html>", status))
    with pytest.raises(kind):
        node.task(TASK_ID)


def test_an_answer_that_is_not_greenrooms_is_one_error(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"GET {TASK}", Response("<html>welcome</html>"))
    with pytest.raises(errors.GreenroomError, match="is this a Greenroom node"):
        node.task(TASK_ID)


def test_where_nobody_listens_the_error_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with client.Client(url, data_dir=tmp_path) as node, pytest.raises(errors.NodeUnreachable) as caught:
            node.health()
    assert url in str(caught.value)
    assert "greenroom up" in str(caught.value)


# Retries


def test_a_busy_store_is_asked_again_under_the_same_idempotency_key(fake: FakeNode, node: client.Client) -> None:
    fake.put("POST /v1/tasks", problem(503, "store-unavailable", "busy"), task("queued"))
    assert node.submit("x").state == "queued"
    keys = [request.headers["idempotency-key"] for request in fake.asked("POST /v1/tasks")]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_what_would_be_done_twice_is_not_sent_twice(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"POST {TASK}/cancel", problem(503, "store-unavailable", "busy"))
    with pytest.raises(errors.StoreUnavailable):
        node.cancel(TASK_ID)
    assert len(fake.requests) == 1


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def patience(self, timeout_s: float = 30.0) -> flows.Patience:
        return flows.Patience(timeout_s, monotonic_s=lambda: self.now_s, jitter=lambda: 0.5)


def drive(flow: flows.Flow[Any], answers: list[calls.Reply | flows.Lost], time: Time) -> tuple[Any, list[Any]]:
    """Run *flow* on *answers*; returns its value and what it asked for."""
    asked: list[Any] = []
    came: calls.Reply | flows.Lost | None = None
    while True:
        try:
            step = flow.send(came)
        except StopIteration as end:
            return end.value, asked
        asked.append(step)
        came = None
        if isinstance(step, flows.Pause):
            time.now_s += step.delay_s
        else:
            time.now_s += step.wait_s
            came = answers.pop(0)


GONE = flows.Lost(errors.NodeUnreachable("gone"), sent=True)
REFUSED = flows.Lost(errors.NodeUnreachable("refused"), sent=False)
BUSY = calls.Reply(503, b"{}", retry_after_s=2.0)


def reply(state: str) -> calls.Reply:
    return calls.Reply(200, f'{{"id": "t", "state": "{state}"}}'.encode())


def test_a_call_is_tried_three_times_with_growing_pauses() -> None:
    time = Time()
    flow = flows.answer(calls.task("t"), time.patience())
    with pytest.raises(errors.NodeUnreachable, match="gone"):
        drive(flow, [GONE, GONE, GONE], time)
    assert time.now_s == pytest.approx(flows.BACKOFF_S * 0.5 + flows.BACKOFF_S * 2 * 0.5)


def test_a_pause_is_as_long_as_the_node_asks() -> None:
    time = Time()
    task, asked = drive(flows.answer(calls.task("t"), time.patience()), [BUSY, reply("queued")], time)
    assert task.state == "queued"
    assert asked[1].delay_s >= 2.0


LIMITED = calls.Reply(429, b'{"type": "rate-limited"}', retry_after_s=6.0)


@pytest.mark.parametrize("call", [calls.task("t"), calls.cancel("t")])
def test_who_is_limited_comes_again_when_the_node_says_and_not_all_at_once(call: calls.Call[Any]) -> None:
    time = Time()
    task, asked = drive(flows.answer(call, time.patience()), [LIMITED, LIMITED, reply("queued")], time)
    assert task.state == "queued"
    pauses_s = [step.delay_s for step in asked if isinstance(step, flows.Pause)]
    assert pauses_s == [pytest.approx(6.0 + flows.BACKOFF_S * 0.5), pytest.approx(6.0 + flows.BACKOFF_S)]
    with pytest.raises(errors.RateLimited):
        drive(flows.answer(call, time.patience()), [LIMITED] * 3, time)
    with pytest.raises(errors.RateLimited) as caught:
        drive(flows.answer(call, time.patience(timeout_s=5.0)), [LIMITED], time)
    assert caught.value.retry_after_s == 6.0


def test_who_is_limited_while_following_goes_on_when_the_node_says() -> None:
    following = streams.Following("t", after=None, patience=Time().patience())
    assert following.refused(LIMITED) >= 6.0
    with pytest.raises(errors.RateLimited):
        following.refused(calls.Reply(429, LIMITED.content, retry_after_s=31.0))
    with pytest.raises(errors.RateLimited):
        following.refused(calls.Reply(429, LIMITED.content))


def test_nobody_pauses_beyond_the_timeout() -> None:
    time = Time()
    with pytest.raises(errors.GreenroomError):
        drive(flows.answer(calls.task("t"), time.patience(timeout_s=1.0)), [BUSY], time)


def test_a_refused_connection_is_tried_again_for_every_call() -> None:
    time = Time()
    task, _ = drive(flows.answer(calls.cancel("t"), time.patience()), [REFUSED, reply("cancelled")], time)
    assert task.state == "cancelled"
    with pytest.raises(errors.NodeUnreachable):
        drive(flows.answer(calls.cancel("t"), time.patience()), [GONE], time)


# Waiting


def test_waiting_asks_again_until_the_task_has_ended() -> None:
    time = Time()
    answers: list[calls.Reply | flows.Lost] = [reply("queued"), reply("running"), reply("failed")]
    task, asked = drive(flows.until_ended("t", None, time.patience()), answers, time)
    assert task.state == "failed"
    assert [call.query["wait"] for call in asked] == [flows.LONGEST_WAIT_S] * 3


def test_waiting_ends_with_its_time() -> None:
    time = Time()
    answers: list[calls.Reply | flows.Lost] = [reply("running"), reply("running"), reply("running")]
    task, asked = drive(flows.until_ended("t", 40.0, time.patience()), answers, time)
    assert task.state == "running"
    assert [call.query["wait"] for call in asked] == [30.0, 10.0]


def test_a_result_is_the_output_or_an_error(fake: FakeNode, node: client.Client) -> None:
    fake.put(f"GET {TASK}", task())
    assert node.result(TASK_ID) == "All is well."
    fake.put(f"GET {TASK}", task("failed"))
    with pytest.raises(errors.TaskFailed, match="it failed: ValueError: no sources"):
        node.result(TASK_ID, 5)
    fake.put(f"GET {TASK}", task("running"))
    with pytest.raises(errors.TaskPending, match="it is running and goes on"):
        node.result(TASK_ID, 0.01)


# Events


def test_a_broken_stream_is_resumed_without_loss_or_repetition(fake: FakeNode, node: client.Client) -> None:
    cut = event(2, "message", {"text": "never complete"})[:-20]
    fake.stream(b": hello\n\n", event(1, "state", {"state": "running"}), cut, ConnectionError("cut"))
    fake.stream(event(1, "state", {"state": "running"}), event(2, "message", "héllo\u2028there"))
    fake.stream(event(3, "state", {"state": "succeeded"}), event(4, "log", "not ours any more"))
    fake.put(f"GET {TASK}", task("running"))
    events = list(node.events(TASK_ID))
    assert [found.seq for found in events] == [1, 2, 3]
    assert events[1].data == "héllo\u2028there"
    asked = [request.headers.get("last-event-id") for request in fake.asked(f"GET {TASK}/events")]
    assert asked == [None, "1", "2"]


def test_events_of_a_task_that_ended_before_are_none(fake: FakeNode, node: client.Client) -> None:
    fake.stream()
    fake.stream()
    fake.put(f"GET {TASK}", task())
    assert list(node.events(TASK_ID, after=9)) == []
    assert fake.asked(f"GET {TASK}/events")[0].headers["last-event-id"] == "9"


def test_where_the_node_says_that_nothing_is_left_nothing_more_is_asked(fake: FakeNode, node: client.Client) -> None:
    fake.streams.append(Response(status_code=204))
    assert list(node.events(TASK_ID, after=9)) == []
    assert len(fake.requests) == 1


def test_a_stream_that_only_breaks_is_given_up(fake: FakeNode, node: client.Client) -> None:
    for _ in range(flows.TRIES):
        fake.stream(b": hello\n\n", ConnectionError("cut"))
    with pytest.raises(errors.NodeUnreachable):
        list(node.events(TASK_ID))


def test_a_refused_stream_is_the_error_that_it_means() -> None:
    following = streams.Following("t", after=None, patience=Time().patience())
    with pytest.raises(errors.NotFound, match="gone"):
        following.refused(calls.Reply(404, b'{"type": "not-found", "detail": "gone"}'))
    assert following.refused(BUSY) >= 2.0


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_read_whatever_pieces_they_come_in(size: int) -> None:
    content = event(1, "log", "ä\x85\u2028").replace(b"\n", b"\r\n") + b": idle\n\n" + event(2, "output", {"a": [1]})
    parser = streams.Parser(models.Event)
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    found = [event for piece in pieces for event in parser.feed(piece)]
    assert [(event.seq, event.data) for event in found] == [(1, "ä\x85\u2028"), (2, {"a": [1]})]


def test_a_task_that_is_cancelled_with_its_connection_is_not_asked_for_again() -> None:
    asked = calls.submit(models.Submission(input="x"), None, wait_s=5, or_cancel=True)
    assert (asked.query, asked.repeatable) == ({"wait": 5, "or_cancel": "true"}, False)
    asked = calls.submit(models.Submission(input="x"), None, wait_s=5)
    assert (asked.query["or_cancel"], asked.repeatable) == (None, True)


# Asynchronous


async def test_the_asynchronous_client_speaks_to_an_application_in_process(fake: FakeNode, tmp_path: Path) -> None:
    fake.put("POST /v1/tasks", problem(503, "store-unavailable", "busy"), task("queued"))
    fake.put(f"GET {TASK}", task())
    fake.put("GET /v1/tasks", {"items": [task()], "next_cursor": "c"}, {"items": [task()]})
    fake.stream(event(1, "message", "hi"))
    fake.stream(event(2, "state", {"state": "succeeded"}))
    transport = httpx.ASGITransport(fake.app)
    async with greenroom.AsyncClient(key="gr_key", data_dir=tmp_path, transport=transport) as node:
        submitted = await node.submit("x", "research", wait_s=1)
        assert fake.last.query_params["wait"] == "1"
        assert await node.result(submitted.id) == "All is well."
        assert len([found async for found in node.iter_tasks()]) == 2
        assert [found.seq async for found in node.events(TASK_ID)] == [1, 2]
        fake.streams.append(Response(status_code=204))
        assert [found async for found in node.events(TASK_ID, after=2)] == []
        with pytest.raises(errors.NotFound):
            await node.agent("nobody")


def test_both_clients_have_the_same_methods() -> None:
    def names(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")} - {"close", "aclose"}

    assert names(client.Client) == names(async_client.AsyncClient)


# Finding the node


def test_a_running_node_and_its_key_are_found_in_the_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert discovery.address(None, None, tmp_path) == ("http://127.0.0.1:7080", None)
    (tmp_path / "node.json").write_text('{"url": "http://127.0.0.1:4321/"}')
    (tmp_path / "local.key").write_text("gr_owner\n")
    assert discovery.address(None, None, tmp_path) == ("http://127.0.0.1:4321", "gr_owner")
    monkeypatch.setenv("GREENROOM_URL", "https://node.example:8443/")
    assert discovery.address(None, None, tmp_path) == ("https://node.example:8443", None)
    monkeypatch.setenv("GREENROOM_KEY", "gr_mine")
    assert discovery.address(None, None, tmp_path) == ("https://node.example:8443", "gr_mine")
    assert discovery.address("http://[::1]:1", "gr_given", tmp_path) == ("http://[::1]:1", "gr_given")


@pytest.mark.parametrize("url", ["localhost:7080", "ftp://x", "http://", "http://x:y", "http://a b", "http://x:99999"])
def test_an_address_that_is_none_is_said_to_be(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.NodeUnreachable, match="expected http://HOST:PORT"):
        client.Client(url, data_dir=tmp_path)


def test_a_damaged_node_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text("{")
    with pytest.raises(errors.NodeUnreachable, match=r"node\.json"):
        client.Client(data_dir=tmp_path)


# The package


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'httpx', 'msgspec', 'greenroom.core'}"
    program = f"import sys, greenroom, greenroom.sdk.context; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_the_public_names_are_there() -> None:
    assert greenroom.Client is client.Client
    assert greenroom.errors is errors
    assert set(greenroom.__all__) <= set(dir(greenroom))
    with pytest.raises(AttributeError, match="nothing"):
        greenroom.nothing  # noqa: B018


def test_a_submission_says_of_the_cache_only_that_it_is_not_to_be_asked() -> None:
    sent = [calls.submit(models.Submission(input=1, cache=cache), None).body for cache in (True, False)]
    assert [msgspec.json.decode(body or b"") for body in sent] == [{"input": 1}, {"input": 1, "cache": False}]
