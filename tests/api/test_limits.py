"""How often callers may call, seen from outside; the clock is the test's."""

from __future__ import annotations

import itertools
import re
import resource
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

import nodes
from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.security import keys

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = {"echo": nodes.agent("echo", concurrency=8)}
SECURITY = {"rate_limit_per_minute": 10, "tenant_rate_limit_per_minute": 15, "source_rate_limit_per_minute": 1000}

_tenants = (f"tenant-{number}" for number in itertools.count())


class Clock(clocks.SystemClock):
    """The machine's, but for what the limits measure by: that stands still until it is moved."""

    def __init__(self) -> None:
        self.at_s = 1000.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def limited(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[nodes.Api]:
    folder = tmp_path_factory.mktemp("limited")
    server = {"trusted_proxies": ["10.9.9.9"]}
    async with nodes.opened(folder / "data", AGENTS, security=SECURITY, server=server) as opened:
        clock = Clock()
        opened.running.access.limits._clock = Still(clock)  # type: ignore[assignment] # what it uses of one
        yield opened


class Still:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic_s(self) -> float:
        return self._clock.at_s

    def move(self, by_s: float) -> None:
        self._clock.at_s += by_s


def _clock(api: nodes.Api) -> Still:
    clock = api.running.access.limits._clock
    assert isinstance(clock, Still)
    return clock


async def _caller(api: nodes.Api, tenant: str | None = None, *, role: str = "user", source: str = "a") -> nodes.Api:
    return api.of(await api.key(role, tenant=tenant or next(_tenants)), source=source)


def _standing(response: httpx.Response) -> list[tuple[str, int, int]]:
    found = re.findall(r'"(\w+)";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    return [(name, int(left), int(full_in_s)) for name, left, full_in_s in found]


async def test_a_principal_is_limited_told_so_and_taken_again_after_retry_after(limited: nodes.Api) -> None:
    mine = await _caller(limited)
    answers = [await mine.http.get("/v1/agents") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
    assert [_standing(answer)[0] for answer in answers[:3]] == [
        ("principal", 9, 6),
        ("principal", 8, 12),
        ("principal", 7, 18),
    ]
    refused = answers[-1]
    assert refused.headers["ratelimit-policy"] == '"principal";q=10;w=60, "tenant";q=15;w=60'
    assert _standing(refused) == [("principal", 0, 60), ("tenant", 5, 40)]
    problem = refused.json()
    assert (problem["type"], problem["status"]) == ("rate-limited", 429)
    assert "a principal may send 10 a minute (security.rate_limit_per_minute)" in problem["detail"]
    assert problem["detail"].endswith("try again in 6 s")
    retry_after_s = int(refused.headers["retry-after"])
    assert retry_after_s == 6
    _clock(limited).move(retry_after_s)
    assert [(await mine.http.get("/v1/agents")).status_code for _ in range(2)] == [200, 429]


async def test_every_answer_to_a_limited_principal_says_where_it_stands(limited: nodes.Api) -> None:
    mine = await _caller(limited, role="viewer")
    task = {"agent": "echo", "input": 1}
    statuses = []
    for method, path, body in [
        ("GET", "/v1/agents", None),
        ("POST", "/v1/tasks", task),
        ("GET", "/v1/nothing", None),
        ("POST", "/v1/agents", None),
        ("GET", "/v1/tasks/x?wait=-1", None),
        ("GET", "/openapi.json", None),
        ("GET", "/metrics", None),
    ]:
        response = await mine.call(method, path, body)
        statuses.append(response.status_code)
        assert _standing(response)[0][1] == 10 - len(statuses)
    assert statuses == [200, 403, 404, 405, 422, 200, 403]
    writer = await _caller(limited)
    accepted = await writer.call("POST", "/v1/tasks?wait=30", task)
    assert _standing(accepted)[0][:2] == ("principal", 9)
    async with writer.http.stream("GET", f"/v1/tasks/{accepted.json()['id']}/events") as events:
        assert _standing(events)[0][:2] == ("principal", 8)
    assert "ratelimit" not in (await limited.of("gr_bad", source="b").http.get("/v1/agents")).headers
    assert "ratelimit" not in (await limited.http.get("/readyz")).headers


async def test_a_batch_counts_its_tasks(limited: nodes.Api) -> None:
    mine, other = await _caller(limited), await _caller(limited)
    item = {"agent": "echo", "input": 1}
    taken = await mine.call("POST", "/v1/tasks/batch", {"tasks": [item] * 6})
    assert (taken.status_code, _standing(taken)[0]) == (202, ("principal", 4, 36))
    refused = await mine.call("POST", "/v1/tasks/batch", {"tasks": [item] * 6})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "12")
    assert _standing(refused)[0][1] == 3  # only the request itself
    assert (await other.call("POST", "/v1/tasks/batch", {"tasks": [item] * 10})).status_code == 202
    too_large = await (await _caller(limited)).call("POST", "/v1/tasks/batch", {"tasks": [item] * 11})
    assert too_large.status_code == 429
    assert "larger than that: send it in smaller ones" in too_large.json()["detail"]


async def test_the_principals_of_a_tenant_share_its_rate_and_others_do_not(limited: nodes.Api) -> None:
    tenant = next(_tenants)
    callers = [await _caller(limited, tenant) for _ in range(3)]
    taken: list[int] = []
    for caller in callers[:2]:
        taken = [(await caller.http.get("/v1/agents")).status_code for _ in range(10)]
    assert taken == [200] * 5 + [429] * 5
    refused = await callers[2].http.get("/v1/agents")
    assert "a tenant may send 15 a minute (security.tenant_rate_limit_per_minute)" in refused.json()["detail"]
    assert _standing(refused)[0] == ("principal", 10, 0)  # who was refused for the tenant has spent nothing
    assert (await (await _caller(limited)).http.get("/v1/agents")).status_code == 200


async def test_a_source_is_limited_before_anybody_knows_who_it_is(limited: nodes.Api) -> None:
    stranger = limited.of(None, source="198.51.100.5")
    statuses = Counter([(await stranger.http.get("/v1/agents")).status_code for _ in range(1010)])
    assert statuses == {401: 30, 429: 980}
    mine = await _caller(limited, source="198.51.100.5")
    refused = await mine.http.get("/v1/agents")
    assert (refused.status_code, refused.json()["type"]) == (429, "rate-limited")
    assert "security.source_rate_limit_per_minute" in refused.json()["detail"]
    assert (await stranger.http.get("/readyz")).status_code == 200
    assert (await (await _caller(limited, source="198.51.100.6")).http.get("/v1/agents")).status_code == 200


@pytest.mark.slow
async def test_ten_thousand_guesses_are_bounded_and_hurt_nobody_else(limited: nodes.Api) -> None:
    facts: list[telemetry.Fact] = []
    running = limited.running
    running.facts.subscribe(facts.append, telemetry.CredentialsGuessed)
    good = keys.parse(text := await limited.key("user", tenant="attacked"))
    assert good is not None
    guesses = [keys.mint("dev", b"pepper").text for _ in range(20)]
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    statuses: Counter[int] = Counter()
    for number in range(10_000):
        headers = {"authorization": f"Bearer {guesses[number % 20]}", "x-forwarded-for": f"203.0.113.{number % 250}"}
        scope = _scope(headers, source=f"192.0.2.{number % 50}")
        statuses[await _status(running, scope)] += 1
    assert statuses == {401: 20 * 30, 429: 10_000 - 20 * 30}  # each key is guessed at from everywhere
    assert {(fact.by, fact.name) for fact in facts} == {("key", keys.parse(guess).id) for guess in guesses}  # type: ignore[union-attr]
    assert len(facts) == 20
    assert len(running.access.limits._rejections) < 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000
    assert (await limited.of(text, source="192.0.2.1").http.get("/v1/agents")).status_code == 200
    running.facts.unsubscribe(facts.append, telemetry.CredentialsGuessed)


async def test_guesses_at_one_key_from_everywhere_are_one_fact_and_its_holder_is_taken(limited: nodes.Api) -> None:
    facts: list[telemetry.Fact] = []
    limited.running.facts.subscribe(facts.append, telemetry.CredentialsGuessed)
    mine = await limited.key("user", tenant="guessed")
    id = mine.split("_")[2]
    statuses: Counter[int] = Counter()
    for number in range(500):
        guess = keys.mint("dev", b"x").text
        body = f"gr_dev_{id}_{guess.split('_')[3]}"
        scope = _scope({"authorization": f"Bearer {body}_{keys._checksum(body)}"}, source=f"192.0.3.{number % 250}")
        statuses[await _status(limited.running, scope)] += 1
    assert statuses == {401: 30, 429: 470}
    assert facts == [telemetry.CredentialsGuessed("key", id)]
    assert (await limited.of(mine, source="192.0.3.1").http.get("/v1/agents")).status_code == 200
    limited.running.facts.unsubscribe(facts.append, telemetry.CredentialsGuessed)


async def test_behind_a_trusted_proxy_each_client_is_a_source_of_its_own(limited: nodes.Api) -> None:
    for client, expected in (("203.0.113.8", 401), ("203.0.113.9", 401)):
        for _ in range(30):
            scope = _scope({"x-forwarded-for": f"1.2.3.4, {client}"}, source="10.9.9.9")
            assert await _status(limited.running, scope) == expected
    scope = _scope({"x-forwarded-for": "5.6.7.8, 203.0.113.9"}, source="10.9.9.9")
    assert await _status(limited.running, scope) == 429
    status = 0
    for number in range(31):  # one customer's IPv6
        scope = _scope({"x-forwarded-for": f"2001:db8::{number:x}"}, source="10.9.9.9")
        status = await _status(limited.running, scope)
    assert status == 429


async def test_without_a_limit_nobody_is_limited_and_no_header_says_so(tmp_path: Path) -> None:
    async with nodes.opened(tmp_path / "data", AGENTS, is_settled=False) as unlimited:
        responses = [await unlimited.http.get("/v1/agents") for _ in range(200)]
    assert {response.status_code for response in responses} == {200}
    assert not any("ratelimit" in response.headers for response in responses)


async def test_refusals_are_counted_by_limit(limited: nodes.Api) -> None:
    mine = await _caller(limited)
    for _ in range(11):
        await mine.http.get("/v1/agents")
    text = limited.running.metrics.render().decode()
    assert re.search(r'greenroom_rate_limited_total\{limit="principal"\} [1-9]', text)


def _scope(headers: dict[str, str], *, source: str) -> dict[str, object]:
    return {
        "type": "http",
        "method": "GET",
        "path": "/v1/agents",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": (source, 4711),
    }


async def _status(running: object, scope: dict[str, object]) -> int:
    """Ask the application itself: a client of httpx takes ten times as long."""
    sent: list[dict[str, object]] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b""}

    await running.app(scope, receive, send)  # type: ignore[attr-defined]
    status = sent[0]["status"]
    assert isinstance(status, int)
    return status


async def test_the_program_that_a_node_is_part_of_is_not_limited_and_those_whom_it_serves_are(tmp_path: Path) -> None:
    few = {"rate_limit_per_minute": 3, "tenant_rate_limit_per_minute": 3, "source_rate_limit_per_minute": 3}
    async with nodes.opened(tmp_path / "data", AGENTS, security=few) as opened:
        opened.running.access.exempt("a program")
        key = opened.running.access.owner_key.read_text().strip()
        owner = opened.of(key, source="a program")
        batch = {"tasks": [{"input": number, "agent": "echo"} for number in range(5)]}
        assert (await owner.http.post("/v1/tasks/batch", json=batch)).status_code == 202
        answers = [await owner.http.get("/v1/agents") for _ in range(8)]
        assert {answer.status_code for answer in answers} == {200}
        assert "ratelimit" not in answers[0].headers
        served = opened.of(await opened.key("user"), source="a program")
        assert [(await served.http.get("/v1/agents")).status_code for _ in range(4)] == [200, 200, 200, 429]
        elsewhere = opened.of(key, source="somewhere else")
        assert [(await elsewhere.http.get("/v1/agents")).status_code for _ in range(4)] == [200, 200, 200, 429]
