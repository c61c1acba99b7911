"""Bad input: one verdict for each body on both stores, a problem document each time, and never a 500."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any

import httpx
import pytest

import nodes
from greenroom.api import routes

pytestmark = pytest.mark.asyncio(loop_scope="session")

JSON = {"content-type": "application/json"}


def _task(input: bytes) -> bytes:
    return b'{"agent": "echo", "input": ' + input + b"}"


def _nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return _task(opening * depth + b"1" + closing * depth)


REFUSED = {
    "nothing": b"",
    "blank": b" ",
    "half": b'{"agent": "echo", "input": ',
    "two values": b'{"agent": "echo", "input": 1} {}',
    "trailing comma": b'{"agent": "echo", "input": 1,}',
    "comment": b'{"agent": "echo", "input": 1 /* one */}',
    "single quotes": b"{'agent': 'echo', 'input': 1}",
    "no quotes": b"{agent: 1}",
    "NaN": _task(b"NaN"),
    "Infinity": _task(b"Infinity"),
    "-Infinity": _task(b"[-Infinity]"),
    "1e400": _task(b"1e400"),
    "-1E400": _task(b"-1E400"),
    "a number of 400 digits with a point": _task(b"1" * 400 + b".0"),
    "5,000 digits": _task(b"9" * 5000),
    "2^63": _task(b"9223372036854775808"),
    "-2^63-1": _task(b"-9223372036854775809"),
    "2^64": _task(b'{"n": [18446744073709551616]}'),
    "leading zero": _task(b"01"),
    "plus": _task(b"+1"),
    "hexadecimal": _task(b"0x10"),
    "bare point": _task(b".5"),
    "duplicate keys": b'{"agent": "echo", "agent": "failing", "input": 1}',
    "duplicate keys within": _task(b'{"a": 1, "a": 2}'),
    "duplicate keys by escape": _task(b'{"a": 1, "\\u0061": 2}'),
    "lone surrogate": _task(rb'"\ud800"'),
    "low surrogate first": _task(rb'"\udc00\ud800"'),
    "lone surrogate as key": _task(rb'{"\ud800": 1}'),
    "NUL escaped": _task(rb'"a\u0000b"'),
    "NUL escaped as key": _task(rb'{"\u0000": 1}'),
    "NUL raw": _task(b'"a\0b"'),
    "control character raw": _task(b'"a\x1fb"'),
    "newline raw": _task(b'"a\nb"'),
    "bad escape": _task(rb'"\x41"'),
    "short escape": _task(rb'"\u12"'),
    "BOM": b"\xef\xbb\xbf" + _task(b"1"),
    "UTF-16": _task(b"1").decode().encode("utf-16"),
    "UTF-16 without BOM": _task(b"1").decode().encode("utf-16-le"),
    "invalid UTF-8": _task(b'"\xff"'),
    "overlong UTF-8": _task(b'"\xc0\xaf"'),
    "surrogate in UTF-8": _task(b'"\xed\xa0\x80"'),
    "beyond Unicode": _task(b'"\xf4\x90\x80\x80"'),
    "65 deep": _nested(65),
    "1,000 deep": _nested(1000),
    "100,000 deep": _nested(100_000),
    "100,000 deep without an end": b"[" * 100_000,
    "100,000 objects deep": _nested(100_000, b'{"a":', b"}"),
    "60,000 keys at the top": b"{%b}" % b",".join(b'"%d":1' % n for n in range(60_000)),
    "30,000 keys": _task(json.dumps({str(n): n for n in range(30_000)}).encode()),
    "30,000 keys in pieces": _task(json.dumps([{"k": n} for n in range(30_000)]).encode()),
}
UNFIT = {
    "null": b"null",
    "a list": b"[]",
    "a string": b'"echo"',
    "no input": b'{"agent": "echo"}',
    "unknown key": b'{"agent": "echo", "input": 1, "tenant": "other"}',
    "a misspelt key": b'{"agent": "echo", "input": 1, "sesion": "s"}',
    "two mistakes": b'{"agent": "E", "input": 1, "priority": "high"}',
    "an owner": b'{"agent": "echo", "input": 1, "owner": "me"}',
    "a webhook": b'{"agent": "echo", "input": 1, "webhook": "http://127.0.0.1/"}',
    "agent a number": b'{"agent": 1, "input": 1}',
    "agent with newline": b'{"agent": "echo\\n", "input": 1}',
    "session a path": b'{"agent": "echo", "input": 1, "session": "../x"}',
    "session of 129": b'{"agent": "echo", "input": 1, "session": "' + b"s" * 129 + b'"}',
    "priority a fraction": b'{"agent": "echo", "input": 1, "priority": 1.5}',
    "priority 2^62": b'{"agent": "echo", "input": 1, "priority": 4611686018427387904}',
    "priority a text": b'{"agent": "echo", "input": 1, "priority": "1"}',
    "timeout 0": b'{"agent": "echo", "input": 1, "timeout_s": 0}',
    "timeout negative": b'{"agent": "echo", "input": 1, "timeout_s": -1}',
    "timeout 1e300": b'{"agent": "echo", "input": 1, "timeout_s": 1e300}',
    "metadata a list": b'{"agent": "echo", "input": 1, "metadata": []}',
    "not_before without zone": b'{"agent": "echo", "input": 1, "not_before": "2030-01-01T00:00:00"}',
    "not_before a number": b'{"agent": "echo", "input": 1, "not_before": 5}',
    "not_before nonsense": b'{"agent": "echo", "input": 1, "not_before": "tomorrow"}',
    "not_before in the year 1, east": b'{"agent": "echo", "input": 1, "not_before": "0001-01-01T00:00:00+14:00"}',
    "not_before in the year 9999": b'{"agent": "echo", "input": 1, "not_before": "9999-12-31T23:59:59Z"}',
    "idempotency key empty": b'{"agent": "echo", "input": 1, "idempotency_key": ""}',
}
TAKEN = {
    "2^63-1": (_task(b"9223372036854775807"), 9223372036854775807),
    "-2^63": (_task(b"-9223372036854775808"), -9223372036854775808),
    "-0.0": (_task(b"-0.0"), -0.0),
    "denormal": (_task(b"5e-324"), 5e-324),
    "underflow": (_task(b"1e-400"), 0.0),
    "largest": (_task(b"1.7976931348623157e308"), 1.7976931348623157e308),
    "a pair of surrogates": (_task(rb'"\ud83d\ude00"'), "\U0001f600"),
    "line separators": (_task("'\u2028\u2029'".replace("'", '"').encode()), "\u2028\u2029"),
    "noncharacters": (_task('"\ufffe\uffff\U0010ffff"'.encode()), "\ufffe\uffff\U0010ffff"),
    "escapes": (_task(rb'"\"\\\/\b\f\n\r\t"'), '"\\/\b\f\n\r\t'),
    "DEL": (_task(b'"\x7f"'), "\x7f"),
    "62 deep": (_nested(62), None),
    "5,000 keys": (_task(json.dumps({str(n): n for n in range(5_000)}).encode()), None),
    "null": (_task(b"null"), None),
    "whitespace": (b"\r\n\t " + _task(b" 1 ") + b"\n", 1),
    "an empty key": (_task(b'{"": {"": ""}}'), {"": {"": ""}}),
}


def assert_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert all(isinstance(problem[key], str) and problem[key] for key in ("type", "title", "detail", "request_id"))
    return problem


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_strict_json_is_400(api: nodes.Api, name: str) -> None:
    response = await api.http.post("/v1/tasks", content=REFUSED[name], headers=JSON)
    assert assert_problem(response, 400)["type"] == "malformed-json"


@pytest.mark.parametrize("name", UNFIT)
async def test_what_does_not_fit_the_schema_is_422(api: nodes.Api, name: str) -> None:
    response = await api.http.post("/v1/tasks", content=UNFIT[name], headers=JSON)
    problem = assert_problem(response, 422)
    assert problem["type"] == "invalid-body"
    assert not re.search(r"`|\$|\^|regex|body: $", problem["detail"]), "these are words for programmers, or none"


NAME = "a name of at most 63 of a-z, 0-9, _ and -, beginning with a letter or digit"
WORDS = {
    "null": "expected an object, got null",
    "a list": "expected an object, got a list of 0",
    "no input": "input is missing",
    "an owner": "owner: unknown key; known here: agent, ",
    "a misspelt key": 'sesion: unknown key; did you mean "session"?',
    "a webhook": "webhook: expected the id of a webhook (wh_…), which POST /v1/webhooks gives, got",
    "agent with newline": f'agent: expected {NAME}, got "echo\\n"',
    "session a path": "session: expected a name of at most 128 of A-Z, a-z, 0-9, _, ., :, @ and -, beginning with",
    "priority a fraction": "priority: expected a whole number from -1000 to 1000, got 1.5",
    "timeout 0": "timeout_s: expected a number > 0 and at most 604800, got 0",
    "metadata a list": "metadata: expected an object, got a list of 0",
    "not_before without zone": "not_before: expected an instant with a time zone, for example 2030-01-01T00:00:00Z",
    "idempotency key empty": 'idempotency_key: expected 1 to 255 characters, got ""',
    "two mistakes": f'agent: expected {NAME}, got "E"; priority: expected',
}


@pytest.mark.parametrize("name", WORDS)
async def test_a_mistake_is_told_in_words_for_people(api: nodes.Api, name: str) -> None:
    response = await api.http.post("/v1/tasks", content=UNFIT[name], headers=JSON)
    assert response.json()["detail"].startswith(f"cannot take the body: {WORDS[name]}")


@pytest.mark.parametrize("name", TAKEN)
async def test_what_is_taken_comes_back_as_it_went_in(api: nodes.Api, name: str) -> None:
    body, expected = TAKEN[name]
    response = await api.http.post("/v1/tasks?wait=30", content=body, headers=JSON)
    assert response.status_code == 200, response.text
    task = response.json()
    assert task["state"] == "succeeded", task["error"]
    sent = json.loads(body)["input"]
    assert repr(task["output"]) == repr(sent)
    assert repr(task["input"]) == repr(sent)
    if expected is not None:
        assert repr(sent) == repr(expected)


@pytest.mark.parametrize("name", REFUSED)
async def test_other_routes_refuse_the_same(api: nodes.Api, name: str) -> None:
    for method, path in (("POST", "/v1/keys"), ("PATCH", "/v1/agents/echo/scale"), ("PUT", "/v1/agents/new")):
        assert_problem(await api.http.request(method, path, content=REFUSED[name], headers=JSON), 400)


async def test_the_error_bodies_of_refused_tasks_left_no_tasks(api: nodes.Api) -> None:
    session = "never-accepted"
    before = len((await api.get("/v1/tasks?limit=200"))["items"])
    body = f'{{"agent": "echo", "session": "{session}", "input": NaN}}'.encode()
    assert (await api.http.post("/v1/tasks", content=body, headers=JSON)).status_code == 400
    assert (await api.get(f"/v1/tasks?session={session}"))["items"] == []
    assert len((await api.get("/v1/tasks?limit=200"))["items"]) == before


# Around the body


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json; charset=utf-8; charset=utf-7",
        "application/json, text/plain",
        "*/*",
    ],
)
async def test_a_body_of_another_type_is_415(api: nodes.Api, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    for route in routes.ROUTES:
        if route.body is not None:
            path = route.path.replace("{name}", "echo").replace("{id}", "1")
            response = await api.http.request(route.method, path, content=_task(b"1"), headers=headers)
            assert assert_problem(response, 415)["type"] == "unsupported-media-type"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=utf-8",
        'application/json; charset="UTF-8"',
        "application/json;charset=utf8; x=y",
        "Application/JSON",
        "application/json ;x=y",
    ],
)
async def test_json_by_any_spelling_is_taken(api: nodes.Api, content_type: str) -> None:
    response = await api.http.post("/v1/tasks", content=_task(b"1"), headers={"content-type": content_type})
    assert response.status_code == 202


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "identity, gzip"])
async def test_a_body_that_is_packed_is_415(api: nodes.Api, encoding: str) -> None:
    body = gzip.compress(_task(b"1"))
    response = await api.http.post("/v1/tasks", content=body, headers=JSON | {"content-encoding": encoding})
    assert assert_problem(response, 415)["type"] == "unsupported-media-type"


async def test_a_body_over_the_limit_is_413_with_or_without_its_length(api: nodes.Api) -> None:
    limit = api.running.settings.server.max_body_bytes
    body = _task(b'"' + b"x" * limit + b'"')

    async def pieces() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    assert assert_problem(await api.http.post("/v1/tasks", content=body, headers=JSON), 413)["type"] == "body-too-large"
    assert_problem(await api.http.post("/v1/tasks", content=pieces(), headers=JSON), 413)
    assert_problem(await api.http.post("/v1/tasks", content=b"{}", headers=JSON | {"content-length": "9" * 30}), 413)
    fits = _task(b'"' + b"x" * (limit - 100) + b'"')
    assert (await api.http.post("/v1/tasks?wait=30", content=fits, headers=JSON)).json()["state"] == "succeeded"


# Queries

QUERIES = {
    "/v1/tasks?limit=-1": 422,
    "/v1/tasks?limit=0": 422,
    "/v1/tasks?limit=201": 422,
    "/v1/tasks?limit=1e2": 422,
    "/v1/tasks?limit=%D9%A1": 422,
    "/v1/tasks?cursor=x": 422,
    "/v1/tasks?cursor=99999999999999999999999999": 422,
    "/v1/tasks?cursor=4611686018427387904": 200,
    "/v1/tasks?state=done": 422,
    "/v1/tasks?state=": 200,  # an empty filter is none
    "/v1/tasks?agent=%00": 422,
    "/v1/tasks?session=%00": 422,
    "/v1/tasks?agent=%FF%FE": 200,
    "/v1/tasks?agent=%ED%A0%80": 200,
    "/v1/tasks?agent=' or 1=1 --": 200,
    "/v1/tasks?" + "&".join(f"a{n}=1" for n in range(50)): 400,
    "/v1/tasks/x?wait=-1": 422,
    "/v1/tasks/x?wait=301": 422,
    "/v1/tasks/x?wait=nan": 422,
    "/v1/tasks/x?wait=inf": 422,
    "/v1/tasks/x?wait=x": 422,
    "/v1/tasks/x?wait=300": 404,
    "/v1/tasks/x/events?after=-1": 404,
    "/v1/sessions?limit=0": 422,
    "/v1/sessions?cursor=5": 422,
    "/v1/sessions?cursor=x:echo:s": 422,
    "/v1/sessions?cursor=9223372036854775808:echo:s": 422,
    "/v1/sessions?cursor=5:echo:%00": 422,
    "/v1/sessions?cursor=5:echo:' or 1=1 --": 200,
    "/v1/sessions/x?agent=%00": 422,
}


@pytest.mark.parametrize("path", QUERIES)
async def test_a_query_has_one_verdict(api: nodes.Api, path: str) -> None:
    response = await api.http.get(path)
    assert response.status_code == QUERIES[path], response.text
    if response.status_code in (400, 422):
        assert response.json()["type"] in ("malformed-query", "invalid-query")
        assert "query" in response.json()["title"]


# Names and ids

HOSTILE_NAMES = [
    "..",
    "%2e%2e",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fx",
    "..%5c..%5cx",
    "%00",
    "a%00b",
    "a%0a",
    "%c0%ae%c0%ae%c0%af",
    "%ef%bc%8e%ef%bc%8e",
    "%2fetc%2fpasswd",
    "~root",
    "-rf",
    ".hidden",
    "con",
    "a" * 64,
    "a" * 5000,
    "A",
    "%E2%80%AE",
    "'; drop table task; --",
    "$(reboot)",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_hostile_names_and_ids_reach_nothing(api: nodes.Api, name: str) -> None:
    data_dir = api.running.options.data_dir
    around = set(data_dir.parent.rglob("*"))
    spec = nodes.agent("echo")
    for method, path, body in [
        ("GET", "/v1/tasks/{}", None),
        ("GET", "/v1/tasks/{}/events", None),
        ("POST", "/v1/tasks/{}/cancel", None),
        ("GET", "/v1/sessions/{}", None),
        ("DELETE", "/v1/sessions/{}", None),
        ("GET", "/v1/agents/{}", None),
        ("DELETE", "/v1/agents/{}", None),
        ("GET", "/v1/agents/{}/revisions", None),
        ("POST", "/v1/agents/{}/release", None),
        ("GET", "/v1/agents/{}/rollouts", None),
        ("POST", "/v1/agents/{}/rollback", None),
        ("GET", "/v1/rollouts/{}", None),
        ("POST", "/v1/rollouts/{}/abort", None),
        ("POST", "/v1/alerts/{}/ack", None),
        ("POST", "/v1/replicas/{}/restart", None),
        ("DELETE", "/v1/keys/{}", None),
        *([] if name == "con" else [("PUT", "/v1/agents/{}", spec)]),
    ]:
        response = await api.call(method, path.format(name), body)
        assert 400 <= response.status_code < 500, (method, path, response.status_code)
        assert_problem(response, response.status_code)
    new = set(data_dir.parent.rglob("*")) - around
    assert not [path for path in new if data_dir not in path.parents]


@pytest.mark.parametrize(
    "factory", ["../x:y", "/etc/passwd:x", "os:system", "a b:c", "agents:", ":echo", "agents:echo;x", "agents\x00:echo"]
)
async def test_a_hostile_factory_is_refused_or_fails_alone(api: nodes.Api, factory: str) -> None:
    response = await api.call("PUT", "/v1/agents/hostile", {"factory": factory, "python": "/bin/sh"})
    assert 400 <= response.status_code < 500
