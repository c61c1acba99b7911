"""What happens on real connections: live streams, smuggled requests, the bound on connections."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

import nodes
from greenroom import node
from greenroom.api import connections

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

AGENTS = {"talking": nodes.agent("talking"), "gated": nodes.agent("gated"), "echo": nodes.agent("echo")}


@contextlib.asynccontextmanager
async def listening(data_dir: Path, **given: Any) -> AsyncIterator[tuple[nodes.Api, httpx.AsyncClient]]:
    """A node on a loopback port, and its owner's client."""
    async with nodes.opened(data_dir, AGENTS, **given) as api, node.listening(api.running) as url:
        headers = {"authorization": api.http.headers["authorization"]}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
            yield api, http


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[nodes.Api, httpx.AsyncClient]]:
    """One for all tests: they name what is theirs."""
    async with listening(tmp_path_factory.mktemp("live") / "data") as opened:
        yield opened


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def test_events_are_told_while_the_task_runs_and_resume_where_they_broke_off(
    live: tuple[nodes.Api, httpx.AsyncClient], gate: Path
) -> None:
    api, http = live
    task = await api.submit("talking", {"count": 6, "gate": str(gate)})
    path = f"/v1/tasks/{task['id']}/events"
    seen: list[dict[str, Any]] = []
    async with http.stream("GET", path) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        async for event in _events(response):
            seen.append(event)
            if len(seen) == 4:
                break
    assert [event["type"] for event in seen] == ["state", "state", "message", "message"]
    async with http.stream("GET", path, headers={"last-event-id": str(seen[-1]["seq"])}) as response:
        async for event in _events(response):
            seen.append(event)
            gate.touch()
    assert [event["seq"] for event in seen] == list(range(1, 10))
    assert [event["data"]["number"] for event in seen if event["type"] == "message"] == list(range(6))
    assert seen[-1]["data"]["state"] == "succeeded"


async def test_a_reader_who_leaves_is_forgotten(
    live: tuple[nodes.Api, httpx.AsyncClient], ledger: Path, gate: Path
) -> None:
    api, http = live
    task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    async with http.stream("GET", f"/v1/tasks/{task['id']}/events") as response:
        await anext(_events(response))
        assert api.running.store.hub._watchers

    async def is_forgotten() -> bool:
        return not api.running.store.hub._watchers

    await nodes.eventually(is_forgotten)
    waiting = asyncio.create_task(http.get(f"/v1/tasks/{task['id']}?wait=60"))
    await nodes.eventually(lambda: _waits(api, task["id"]))
    waiting.cancel()
    gate.touch()
    assert (await api.end_of(task["id"]))["state"] == "succeeded"


async def test_a_reader_who_has_asked_for_more_and_leaves_is_forgotten(
    live: tuple[nodes.Api, httpx.AsyncClient], ledger: Path, gate: Path
) -> None:
    api, http = live
    task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    authorization = b"Host: x\r\nAuthorization: %s\r\n\r\n" % http.headers["authorization"].encode()
    _, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port or 0)
    writer.write(b"GET /v1/tasks/%s/events HTTP/1.1\r\n%s" % (task["id"].encode(), authorization))
    writer.write(b"GET /v1/status HTTP/1.1\r\n" + authorization)

    async def is_heard() -> bool:
        return bool(api.running.store.hub._watchers)

    async def is_forgotten() -> bool:
        return not api.running.store.hub._watchers

    await nodes.eventually(is_heard)
    writer.close()
    await nodes.eventually(is_forgotten)
    gate.touch()


@pytest.mark.parametrize("ends", ["by leaving", "when its time is over"])
@pytest.mark.parametrize("how", ["running", "queued"])
async def test_a_task_that_nobody_waits_for_any_more_is_cancelled(
    live: tuple[nodes.Api, httpx.AsyncClient], ledger: Path, gate: Path, ends: str, how: str
) -> None:
    api, http = live
    task_input = {"ledger": str(ledger), "gate": str(gate)}
    if how == "queued":
        await api.until((await api.submit("gated", task_input))["id"], "running")
    before = {item["id"] for item in (await api.get("/v1/tasks"))["items"]}
    wait_s = 60 if ends == "by leaving" else 0.3
    body = {"agent": "gated", "input": task_input}
    asking = asyncio.create_task(http.post(f"/v1/tasks?wait={wait_s}&or_cancel=true", json=body))

    async def its_id() -> str | None:
        items = (await api.get("/v1/tasks"))["items"]
        found = [str(item["id"]) for item in items if item["id"] not in before and item["state"] in (how, "cancelled")]
        return found[0] if found else None

    submitted = await nodes.eventually(its_id)
    if ends == "by leaving":
        asking.cancel()
    else:
        answer = await asking
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert (await api.end_of(submitted))["state"] == "cancelled"
    gate.touch()
    assert (await api.run("gated", task_input))["state"] == "succeeded"  # its slot is free


async def test_who_waits_to_the_end_gets_the_result(live: tuple[nodes.Api, httpx.AsyncClient]) -> None:
    _, http = live
    answer = await http.post("/v1/tasks?wait=30&or_cancel=true", json={"agent": "echo", "input": 1})
    assert (answer.status_code, answer.json()["output"]) == (200, 1)
    refused = await http.post("/v1/tasks?or_cancel=true", json={"agent": "echo", "input": 1})
    assert (refused.status_code, refused.json()["type"]) == (422, "invalid-query")


async def test_a_task_that_another_caller_submitted_is_not_cancelled_for_one_who_leaves(
    live: tuple[nodes.Api, httpx.AsyncClient], ledger: Path, gate: Path
) -> None:
    api, http = live
    task = {"agent": "gated", "input": {"ledger": str(ledger), "gate": str(gate)}}
    keyed = {"idempotency-key": "k"}
    first = (await http.post("/v1/tasks", json=task, headers=keyed)).json()
    again = await http.post("/v1/tasks?wait=0.1&or_cancel=true", json=task, headers=keyed)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    gate.touch()
    assert (await api.end_of(first["id"]))["state"] == "succeeded"


async def _waits(api: nodes.Api, id: str) -> bool:
    return id in api.running.store.hub._ends


async def test_a_request_that_is_over_is_forgotten_without_the_garbage_collector(
    live: tuple[nodes.Api, httpx.AsyncClient],
) -> None:
    _, http = live
    gc.collect()
    held = [each for each in gc.get_objects() if isinstance(each, RequestResponseCycle)]  # of other connections
    gc.disable()
    try:
        for path in ("/v1/tasks?wait=30", "/v1/tasks", "/v1/none"):
            for _ in range(10):
                await http.post(path, json={"agent": "echo", "input": 1})
        left = sum(isinstance(each, RequestResponseCycle) and each not in held for each in gc.get_objects())
    finally:
        gc.enable()
    assert left <= 2  # the last one of the connection, and one that is ending


async def test_connections_beyond_the_bound_are_told_to_come_again_and_probes_are_answered(data_dir: Path) -> None:
    async with listening(data_dir, cluster={"max_connections": 3}) as (api, http):
        held = [await asyncio.open_connection(http.base_url.host, http.base_url.port or 0) for _ in range(3)]
        for method in ("GET", "POST"):
            refused = await http.request(method, "/v1/tasks", content=b"x" * 1000 if method == "POST" else None)
            assert (refused.status_code, refused.json()["type"]) == (503, "overloaded")
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("5", "close")
        probed = await http.get("/healthz")
        assert (probed.status_code, probed.headers["connection"]) == (200, "close")
        for _, writer in held:
            writer.close()
            await writer.wait_closed()

        async def is_served() -> bool:
            return (await http.get("/v1/status")).status_code == 200

        await nodes.eventually(is_served)
        assert (await api.run("echo", 1))["state"] == "succeeded"


async def test_a_flood_of_idle_connections_leaves_those_that_were_there_alone(data_dir: Path) -> None:
    async with listening(data_dir, cluster={"max_connections": 4}) as (api, http):
        assert (await http.get("/v1/status")).status_code == 200  # on the connection that is kept alive
        place = http.base_url.host, http.base_url.port or 0
        flood = [await asyncio.open_connection(*place) for _ in range(3 + connections.SURPLUS)]
        many = [await asyncio.open_connection(*place) for _ in range(20)]
        for reader, _ in many:  # unread, and gone at once
            answer = await asyncio.wait_for(reader.read(), 5)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 5" in answer
        for _ in range(5):
            assert (await http.get("/v1/status")).status_code == 200
        assert (await api.run("echo", 1))["state"] == "succeeded"

        async def is_probed() -> bool:
            """As soon as one of those beyond the bound has been closed, which takes a second."""
            reader, writer = await asyncio.open_connection(*place)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer.startswith(b"HTTP/1.1 200 ")

        await nodes.eventually(is_probed)
        for _, writer in (*flood, *many):
            writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n1", 401),
    ],
    ids=["answered", "refused"],
)
async def test_sockets_of_strangers_keep_nobody_out(data_dir: Path, request_: bytes, status: int) -> None:
    async with listening(data_dir, cluster={"max_connections": 8}) as (_, http):
        place = http.base_url.host, http.base_url.port or 0
        flood = [await asyncio.open_connection(*place) for _ in range(8)]
        for reader, writer in flood:
            writer.write(request_)
            assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
        async with httpx.AsyncClient(base_url=http.base_url, headers=http.headers) as newcomer:
            assert (await newcomer.get("/v1/status")).status_code == 200
        for _, writer in flood:
            writer.close()


# Smuggling

BODY = b'{"agent":"echo","input":"smuggled"}'
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)

SMUGGLED = {
    "length and chunked": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunked and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "two lengths": b"Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s" % (len(BODY), BODY),
    "two equal lengths": b"Content-Length: %d\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), len(BODY), BODY),
    "list of lengths": b"Content-Length: %d, 5\r\n\r\n%s" % (len(BODY), BODY),
    "signed length": b"Content-Length: +%d\r\n\r\n%s" % (len(BODY), BODY),
    "negative length": b"Content-Length: -1\r\n\r\n" + BODY,
    "length in hexadecimal": b"Content-Length: 0x23\r\n\r\n" + BODY,
    "huge length": b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "unknown transfer coding": b"Transfer-Encoding: cow\r\n\r\n" + BODY,
    "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "obfuscated chunked": b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "space before the colon": b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "bad chunk size": b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY,
    "huge chunk size": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + BODY,
    "NUL in a header": b"X: a\0b\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "folded header": b"X: a\r\n b\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "header without a colon": b"nonsense\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
}


async def _raw(http: httpx.AsyncClient, request: bytes) -> bytes:
    """Everything that comes back until the server closes or has said nothing for a while."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port or 0)
    writer.write(request)
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        await asyncio.wait_for(writer.drain(), 2)
        while piece := await asyncio.wait_for(reader.read(65_536), 1):
            answer += piece
    writer.transport.abort()
    return answer


async def test_ambiguous_requests_are_refused_and_nothing_is_smuggled(
    live: tuple[nodes.Api, httpx.AsyncClient],
) -> None:
    api, http = live
    head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: %s\r\n" % (
        http.headers["authorization"].encode()
    )
    behind = b"GET /v1/keys HTTP/1.1\r\nHost: x\r\n\r\n"
    before = (await api.get("/v1/tasks?agent=echo"))["items"]
    answers = await asyncio.gather(*(_raw(http, head + rest + behind) for rest in SMUGGLED.values()))
    for name, answer in zip(SMUGGLED, answers, strict=True):
        assert answer.startswith(b"HTTP/1.1 4"), (name, answer[:200])
        assert answer.count(b"HTTP/1.1 ") == 1, name  # nothing behind it was taken for a request
    assert (await api.get("/v1/tasks?agent=echo"))["items"] == before
    good = await _raw(http, head + b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(BODY), BODY))
    assert good.startswith(b"HTTP/1.1 202"), good


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://admin/healthz HTTP/1.1",
        b"GET //healthz HTTP/1.1",
        b"GET /healthz/../v1/keys HTTP/1.1",
        b"GET /v1/keys?/healthz HTTP/1.1",
        b"GET /v1/keys;/healthz HTTP/1.1",
        b"GET /%68ealthz/..%2fv1/keys HTTP/1.1",
        b"GET /V1/KEYS HTTP/1.1",
        b"GET * HTTP/1.1",
        b"CONNECT x:1 HTTP/1.1",
        b"get /v1/keys HTTP/1.1",
        b"GET /v1/keys HTTP/9.9",
        b"GET  /v1/keys HTTP/1.1",
        b"GET /v1/keys",
        b"\x16\x03\x01\x02\x00\x01",
    ],
)
async def test_no_spelling_of_a_request_gets_past_authentication(
    live: tuple[nodes.Api, httpx.AsyncClient], line: bytes
) -> None:
    _, http = live
    answer = await _raw(http, line + b"\r\nHost: healthz\r\nConnection: close\r\n\r\n")
    status = answer.split(b" ")[1] if answer else b""
    assert status in (b"", b"400", b"401", b"404", b"405") or line.startswith(b"GET http://admin/healthz"), answer[:200]
    assert b"owner" not in answer


async def test_a_head_that_never_ends_is_bounded(live: tuple[nodes.Api, httpx.AsyncClient]) -> None:
    _, http = live
    for request in (
        b"GET /healthz HTTP/1.1\r\n" + b"X: " + b"x" * 2_000_000,
        b"GET /" + b"x" * 2_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X%d: x\r\n" % n for n in range(50_000)) + b"\r\n",
    ):
        answer = await _raw(http, request)
        assert not answer or answer.startswith(b"HTTP/1.1 4"), answer[:100]
    large = {f"x-{n}": "x" * 4000 for n in range(3)}
    assert (await http.get("/healthz", headers=large)).status_code == 200


async def test_a_head_that_takes_too_long_is_cut_off_and_others_are_not(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    async with listening(data_dir) as (_, http):
        reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port or 0)
        writer.write(b"GET /healthz HTTP/1.1\r\nX: ")
        assert (await http.get("/healthz")).status_code == 200
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert (await http.get("/healthz")).status_code == 200  # on the connection that is kept alive


async def test_a_body_that_takes_too_long_is_cut_off_and_a_response_may_take_longer(
    data_dir: Path, gate: Path, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BODY_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "LINGER_S", 0.3)
    async with listening(data_dir) as (api, http):
        task = await api.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
        head = b"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n"
        authorization = b"Authorization: %s\r\n" % http.headers["authorization"].encode()
        path = f"/v1/tasks/{task['id']}"
        async with http.stream("GET", f"{path}/events") as response, asyncio.TaskGroup() as group:
            waiting = group.create_task(http.get(f"{path}?wait=60"))
            cut_off = [
                group.create_task(_trickle(http, rest)) for rest in (head + authorization + b"\r\n{", head + b"\r\n{")
            ]
            answers = [await asyncio.wait_for(answer, 10) for answer in cut_off]
            gate.touch()
            assert [event["data"]["state"] async for event in _events(response)][-1] == "succeeded"
            assert (await waiting).json()["state"] == "succeeded"
        assert answers[0] == b""
        assert answers[1].startswith(b"HTTP/1.1 401 ")


async def _trickle(http: httpx.AsyncClient, request: bytes) -> bytes:
    """Send *request*, then a byte now and then until the server has closed; return what came back."""
    reader, writer = await asyncio.open_connection(http.base_url.host, http.base_url.port or 0)
    writer.write(request)
    answer = bytearray()
    with contextlib.suppress(ConnectionError):
        while not reader.at_eof():
            with contextlib.suppress(TimeoutError):
                answer += await asyncio.wait_for(reader.read(65_536), 0.05)
            writer.write(b" ")
            await writer.drain()
    writer.transport.abort()
    return bytes(answer)
