"""One trace from the request to the agent's model and tools: real replicas, a real OTLP receiver."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import collector
import nodes
import receivers
import replicas
from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.node import tracing
from greenroom.telemetry import otlp

pytestmark = pytest.mark.slow

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = CALLER[3:35], CALLER[36:52]


@pytest.fixture
def receiver() -> Iterator[collector.Collector]:
    with collector.collecting() as found:
        yield found


def traced(name: str, **spec: Any) -> dict[str, Any]:
    return {"factory": f"traced:{name}", **spec}


@contextlib.asynccontextmanager
async def opened(
    data_dir: Path, receiver: collector.Collector, agents: dict[str, Any], **given: Any
) -> AsyncIterator[nodes.Api]:
    """A node that traces; all has been exported when it is closed."""
    told = {"endpoint": receiver.url, "ui_url": "https://traces.test/{trace_id}", **given.pop("tracing", {})}
    async with nodes.opened(data_dir, agents, cluster={"tracing": True}, tracing=told, **given) as api:
        yield api


async def submitted(api: nodes.Api, agent: str, input: Any = None, **headers: str) -> Any:
    """Run a task that is submitted with *headers*."""
    body = {"agent": agent, "input": input}
    return (await api.call("POST", "/v1/tasks?wait=60", body, headers=headers)).json()


async def test_a_task_is_one_trace_down_to_the_models_and_tools_of_its_agent(
    data_dir: Path, receiver: collector.Collector
) -> None:
    agents = {"team": {"factory": "chat:tool_agent"}, "words": {"factory": "chat:streaming_agent"}}
    async with opened(data_dir, receiver, agents, folder=replicas.AGENTS) as api:
        task = await api.run("team", "hush")
        assert task["trace_url"] == f"https://traces.test/{task['trace_id']}"
        assert (await api.task(task["id"]))["trace_id"] == task["trace_id"]
        await api.run("words", "count")
    chats = [span for span in receiver.all("chat") if span.trace_id == task["trace_id"]]
    above = ["POST /v1/tasks", "attempt team", "invoke_agent team", "invoke_agent a"]
    assert [receiver.path(span) for span in chats] == [[*above, "chat"]] * 2
    assert receiver.path(receiver.named("execute_tool shout")) == [*above, "execute_tool shout"]
    assert [span.attributes["gen_ai.usage.output_tokens"] for span in chats] == [5, 5]
    ours = receiver.named("invoke_agent team").attributes
    assert (ours["gen_ai.usage.input_tokens"], ours["greenroom.adapter"]) == (20, "autogen-agentchat")
    attempt = receiver.named("attempt team").attributes
    assert (attempt["greenroom.attempt"], attempt["greenroom.outcome"]) == (1, "succeeded")
    (streamed,) = (span for span in receiver.all("chat") if span.trace_id != task["trace_id"])
    assert receiver.path(streamed)[2:] == ["invoke_agent words", "invoke_agent a", "chat"]
    assert streamed.attributes["gen_ai.provider.name"] == "replay"
    assert receiver.spans[0].resource["service.name"] == "greenroom"
    exported = json.dumps([span.__dict__ for span in receiver.spans])
    assert "hush" not in exported
    assert "HUSH" not in exported


async def test_models_and_tools_of_ag2_classic_are_in_it(data_dir: Path, receiver: collector.Collector) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "shout", "arguments": '{"text": "hush"}'}}
    asked = [{"role": "user", "content": "hush"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    agents = {"classic": {"factory": "classic:modelled_agent"}}
    async with opened(data_dir, receiver, agents, folder=replicas.AGENTS) as api:
        await api.run("classic", "hush")
        await api.run("classic", asked)
    chat, tool = receiver.named("chat scripted-1"), receiver.named("execute_tool shout")
    assert receiver.path(chat)[2:] == ["invoke_agent classic", "chat scripted-1"]
    assert receiver.path(tool)[2:] == ["invoke_agent classic", "execute_tool shout"]
    assert (chat.attributes["gen_ai.usage.input_tokens"], chat.attributes["gen_ai.response.model"]) == (7, "scripted-1")
    assert tool.attributes["gen_ai.tool.name"] == "shout"
    assert "hush" not in json.dumps([span.__dict__ for span in receiver.spans]).lower()


async def test_what_was_said_is_exported_where_the_setting_says_so(
    data_dir: Path, receiver: collector.Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_HEADERS", "x-tenant=one%20two, x-key=abc")
    agents = {"team": {"factory": "chat:tool_agent"}}
    told = {"content": True, "headers_env": "COLLECTOR_HEADERS"}
    async with opened(data_dir, receiver, agents, folder=replicas.AGENTS, tracing=told) as api:
        await api.run("team", "hush")
    said = [json.loads(span.attributes["gen_ai.input.messages"]) for span in receiver.all("chat")]
    assert said[0][-1] == {"role": "user", "parts": [{"type": "text", "content": "hush"}]}
    assert (receiver.headers[0]["x-tenant"], receiver.headers[0]["x-key"]) == ("one two", "abc")


async def test_a_callers_trace_goes_on_and_is_handed_on(data_dir: Path, receiver: collector.Collector) -> None:
    async with opened(data_dir, receiver, {"headers": traced("headers")}, tracing={"sample_ratio": 0}) as api:
        task = await submitted(api, "headers", traceparent=CALLER, tracestate="vendor=1", baggage="user=x")
        unsampled = await submitted(api, "headers", traceparent=f"{CALLER[:-2]}00")
        malformed = await submitted(api, "headers", traceparent=f"{CALLER[:-2]}0", tracestate="vendor=1")
        assert (await api.get("/v1/status"))["node"]["tracing"].startswith("on, 0 of the traces")
    agent = receiver.named("invoke_agent headers")
    own = {"traceparent": f"00-{TRACE}-{agent.id}-01", "tracestate": "vendor=1"}
    assert task["output"] == {"ours": own, "theirs": f"{TRACE}-{agent.id}"}
    assert task["trace_id"] == TRACE
    request = receiver.named("POST /v1/tasks")
    assert (request.trace_id, request.parent, request.state) == (TRACE, SPAN, "vendor=1")
    assert unsampled["output"]["ours"] == {"traceparent": f"{CALLER[:-2]}00"}
    assert unsampled["output"]["theirs"] == f"{TRACE}-{SPAN}"
    assert malformed["output"] == {"ours": {}, "theirs": f"{'0' * 32}-{'0' * 16}"}
    assert "trace_id" not in unsampled.keys() | malformed.keys()
    assert len(receiver.spans) == 3


async def test_each_attempt_is_a_span_of_the_same_trace(
    data_dir: Path, store_url: str | None, receiver: collector.Collector, tmp_path: Path
) -> None:
    agents = {"shaky": traced("shaky", retry_backoff_s=0.0), "dying": traced("dying"), "bad": nodes.agent("failing")}
    async with opened(data_dir, receiver, agents, store_url=store_url) as api:
        shaky = await api.run("shaky", None)
        dying = await api.run("dying", str(tmp_path / "died"))
        bad = await api.run("bad", "what was said")
        await api.running.logs.step()
        lines = (await api.get("/v1/logs?limit=200"))["items"]
    assert {(line["task"], line["trace_id"]) for line in lines} == {
        (None, None), *((task["id"], task["trace_id"]) for task in (shaky, dying, bad))
    }  # fmt: skip
    assert (shaky["output"], dying["output"]) == (3, 2)
    attempts = receiver.all("attempt shaky")
    told = [(span.attributes["greenroom.attempt"], span.attributes["greenroom.outcome"]) for span in attempts]
    assert told == [(1, "queued"), (2, "queued"), (3, "succeeded")]
    assert [span.attributes["greenroom.epoch"] for span in attempts] == [1, 2, 3]
    assert [span.failed for span in attempts] == [True, True, False]
    assert attempts[0].attributes["error.type"] == "Shaky"
    assert {span.trace_id for span in attempts} == {shaky["trace_id"]}
    assert [receiver.path(span)[:2] for span in receiver.all("invoke_agent shaky")] == [
        ["POST /v1/tasks", "attempt shaky"]
    ] * 3
    lost, again = receiver.all("attempt dying")
    assert (lost.attributes["greenroom.reason"], again.attributes["greenroom.reason"]) == ("replica_lost", "ok")
    failed = receiver.named("invoke_agent bad")
    assert (failed.failed, failed.attributes["error.type"]) == (True, "ValueError")
    assert "what was said" not in json.dumps([span.__dict__ for span in receiver.spans])


async def test_sub_tasks_sessions_and_waits_are_in_it(data_dir: Path, receiver: collector.Collector) -> None:
    agents = {"top": traced("top"), "below": traced("below", sessions=True), "slow": nodes.agent("gated")}
    async with opened(data_dir, receiver, agents) as api:
        top = await api.run("top", 1)
        await api.run("below", 1, session="s")
        batch = {"tasks": [{"agent": "below", "input": 1}, {"agent": "below", "input": 2}]}
        items = (await api.call("POST", "/v1/tasks/batch", batch)).json()["items"]
        for item in items:
            await api.end_of(item["id"])
        again = (await api.call("POST", f"/v1/tasks/{top['id']}/retry", {})).json()
        await api.end_of(again["id"])
    (inner,) = (span for span in receiver.all("invoke_agent below") if span.trace_id == top["trace_id"])
    outer = ["POST /v1/tasks", "attempt top", "invoke_agent top", "ask", "call below"]
    assert receiver.path(inner) == [*outer, "attempt below", "invoke_agent below"]
    waits = [span for span in receiver.all("wait below") if span.trace_id == top["trace_id"]]
    assert [receiver.path(wait) for wait in waits] == [[*outer, "wait below"]] * len(waits)
    (session,) = (span for span in receiver.all("attempt below") if "gen_ai.conversation.id" in span.attributes)
    assert session.attributes["gen_ai.conversation.id"] == "s"
    assert len({item["trace_id"] for item in items}) == 1
    assert again["trace_id"] == receiver.named("POST /v1/tasks/{id}/retry").trace_id != top["trace_id"]


async def test_what_an_agents_libraries_trace_joins_in(data_dir: Path, receiver: collector.Collector) -> None:
    agents = {"library": traced("library"), "own": {"factory": "providing:agent"}}
    async with opened(data_dir, receiver, agents) as api:
        await api.run("library", "what was said")
        assert (await api.run("own", None))["output"] == "own"
    query, broken, own = (receiver.named(name) for name in ("query", "broken", "own step"))
    within = ["POST /v1/tasks", "attempt library", "invoke_agent library"]
    assert receiver.path(query) == [*within, "look up", "query"]
    assert (query.scope, query.kind, query.events) == ("agents.library", 3, [("retried", {"times": 2})])
    assert receiver.named("look up").attributes["rows"] == 3
    assert receiver.path(broken) == [*within, "broken"]
    assert (broken.failed, broken.attributes["error.type"]) == (True, "ValueError")
    assert [event for event, _ in broken.events] == ["exception"]
    assert broken.events[0][1].keys() == {"exception.type", "exception.escaped"}
    assert receiver.path(own)[-2:] == ["invoke_agent own", "own step"]
    assert own.attributes["n"] == 1


async def test_hostile_spans_are_bounded_and_say_no_secret(data_dir: Path, receiver: collector.Collector) -> None:
    async with opened(data_dir, receiver, {"hostile": traced("hostile")}) as api:
        assert (await api.run("hostile", None))["output"] == "done"
    (span,) = (each for each in receiver.spans if each.name.startswith("xxx"))
    exported = json.dumps(span.__dict__)
    assert "0123456789abcdef0123" not in exported
    assert "what was said" not in exported
    assert "Bearer" not in exported
    assert (span.attributes["key"], span.attributes["url.full"]) == ("sk-***", "https://host/path")
    assert (span.attributes["number"], span.attributes["list"]) == (str(2**70), ["1", "a"])
    assert max(map(len, map(str, span.attributes.values()))) <= 1024
    assert len(span.attributes) <= 64 + 2
    assert (len(span.name), len(span.events)) == (200, 128)
    agent = receiver.named("invoke_agent hostile")
    assert len([each for each in receiver.spans if each.scope != "greenroom"]) == 999
    assert agent.attributes["greenroom.spans_dropped"] == 1002


async def test_a_webhook_hands_the_trace_on(data_dir: Path, receiver: collector.Collector) -> None:
    async with (
        receivers.receiving() as hook,
        opened(
            data_dir,
            receiver,
            {"below": traced("below")},
            server={"webhook_hosts": ["127.0.0.1"], "webhook_ports": [hook.port]},
        ) as api,
    ):
        await api.call("POST", "/v1/webhooks", {"url": f"http://127.0.0.1:{hook.port}/", "events": ["task.succeeded"]})
        await submitted(api, "below", traceparent=CALLER)
        (message,) = await hook.until(1)
    assert message.headers["traceparent"][3:35] == TRACE


@pytest.mark.parametrize("mode", ["hangs", "500", "nonsense", "endless"])
async def test_a_collector_that_misbehaves_harms_no_task(
    data_dir: Path, receiver: collector.Collector, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(otlp, "BATCH", 10)
    monkeypatch.setattr(otlp, "CLOSE_WITHIN_S", 0.1)
    receiver.mode = mode
    told: list[telemetry.SpansLost] = []
    async with opened(data_dir, receiver, {"below": traced("below")}, tracing={"timeout_s": 0.3}) as api:
        api.running.facts.subscribe(told.append, telemetry.SpansLost)
        ended = await asyncio.gather(*(api.run("below", n) for n in range(30)))
        assert [task["output"] for task in ended] == list(range(30))
        assert await asyncio.to_thread(receiver.asked.wait, nodes.DEADLINE_S)
        if mode in ("hangs", "500"):
            await nodes.eventually(lambda: _is_said(api))
            assert len(told) == 1
            status = (await api.get("/v1/status"))["node"]["tracing"]
            assert "spans are being dropped" in status


async def _is_said(api: nodes.Api) -> bool:
    lines = (await api.call("GET", "/metrics")).text.splitlines()
    (dropped,) = (line for line in lines if line.startswith('greenroom_trace_spans_total{result="dropped"}'))
    return float(dropped.partition(" ")[2]) > 0


async def test_a_bug_that_a_traced_request_meets_is_logged_with_its_trace(
    data_dir: Path, receiver: collector.Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[telemetry.RequestCrashed] = []

    async def breaks(*_: object, **__: object) -> None:
        raise KeyError

    async with opened(data_dir, receiver, {"below": traced("below")}) as api:
        api.running.facts.subscribe(told.append, telemetry.RequestCrashed)
        monkeypatch.setattr(api.running.store.tasks, "submit", breaks)
        for caller in (CALLER, f"{CALLER[:-2]}00"):
            answer = await api.http.post(
                "/v1/tasks", json={"agent": "below", "input": 1}, headers={"traceparent": caller}
            )
            assert answer.status_code == 500
    assert [fact.trace_id for fact in told] == [TRACE, None]
    assert receiver.named("POST /v1/tasks").attributes["error.type"] == "500"


async def test_production_without_a_collector_says_that_nothing_is_traced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = nodes.options(data_dir, {}, cluster={"tracing": True}).settings
    facts, told = telemetry.Telemetry(), list[telemetry.TracingIdle]()
    facts.subscribe(told.append, telemetry.TracingIdle)

    def begun(environ: dict[str, str]) -> tracing.NodeTracing:
        clock = clocks.SystemClock()
        made = tracing.NodeTracing(found, clock, facts, telemetry.Metrics(), node="n", environ=environ)
        made.begin()
        return made

    assert begun({}).state() == "on, and nothing is traced: no collector is named"
    assert begun({"OTEL_SDK_DISABLED": "true"}).requests is None
    monkeypatch.setattr(otlp, "is_installed", lambda: False)
    assert begun({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}).requests is None
    assert [fact.reason for fact in told] == [
        "no collector is named",
        "OTEL_SDK_DISABLED is true",
        "the extra that exports is not installed",
    ]
    assert told[-1].advice == "pip install 'greenroom[tracing]'"
