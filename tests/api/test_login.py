"""Logging in with a browser: a link works once and soon, a cookie from our own pages alone; both end with the key."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

import nodes
from greenroom.api import cookies, login
from greenroom.security import keys, login_tokens
from greenroom.store import database, logins

pytestmark = pytest.mark.asyncio(loop_scope="session")

OURS = {"sec-fetch-site": "same-origin"}
HOST = "http://greenroom.test"
_sources = (f"10.7.{a}.{b}" for a, b in itertools.product(range(256), repeat=2))


def _without_id(response: httpx.Response) -> tuple[Any, ...]:
    return response.status_code, response.headers, re.sub(rb'"request_id":"[0-9a-f]+"', b"", response.content)


class Browser:
    """What a person's browser does: it keeps cookies, and says where its requests come from."""

    def __init__(self, api: nodes.Api) -> None:
        self.http = api.of(None, source=next(_sources)).http

    async def exchange(self, link: str, **headers: str) -> httpx.Response:
        given = OURS if not headers else {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/login", json={"link": link}, headers=given)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        given = OURS if not headers else {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.request(method, path, json=body, headers=given)


async def _link(api: nodes.Api) -> str:
    made = (await api.call("POST", "/v1/logins")).json()
    assert made["valid_s"] == 60
    path, _, held = made["path"].partition("#")
    assert path == "/login"
    return str(held)


@pytest_asyncio.fixture(loop_scope="session")
async def browser(api: nodes.Api) -> AsyncIterator[Browser]:
    made = Browser(api)
    assert (await made.exchange(await _link(api))).status_code == 204
    yield made
    await made.http.aclose()


async def test_a_link_logs_a_browser_in_with_what_its_key_may(api: nodes.Api) -> None:
    viewer = api.of(await api.key("viewer"))
    mine = Browser(api)
    answer = await mine.exchange(await _link(viewer))
    assert (answer.status_code, answer.content) == (204, b"")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("greenroom_session=gl_")
    assert cookie.partition("; ")[2] == "Path=/; Max-Age=28800; HttpOnly; SameSite=Strict"
    page = await mine.ask("GET", "/", sec_fetch_site="none")
    assert page.status_code == 200
    assert "viewer of the tenant default" in page.text
    assert (await mine.ask("GET", "/v1/agents")).status_code == 200
    assert (await mine.ask("POST", "/v1/tasks", {"agent": "echo", "input": 1})).status_code == 403


async def test_by_tls_the_cookie_is_bound_to_the_host(api: nodes.Api) -> None:
    transport = httpx.ASGITransport(app=api.running.app, client=("10.7.0.2", 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://greenroom.test") as http:
        answer = await http.post("/login", json={"link": await _link(api)}, headers=OURS)
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Host-greenroom_session=gl_")
        assert cookie.endswith("; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict; Secure")
        assert (await http.get("/", headers=OURS)).status_code == 200
        text = cookie.partition("=")[2].partition(";")[0]
        http.cookies.clear()
        plain = await http.get("/", headers={**OURS, "cookie": f"greenroom_session={text}"})
        assert plain.status_code == 401  # a neighbour's page without TLS could have set it
    behind_proxy = await Browser(api).exchange(await _link(api), origin="https://greenroom.test", host="greenroom.test")
    assert "; Secure" in behind_proxy.headers["set-cookie"]


async def test_a_link_works_once(api: nodes.Api) -> None:
    link = await _link(api)
    assert (await Browser(api).exchange(link)).status_code == 204
    assert (await Browser(api).exchange(link)).status_code == 401


async def test_to_look_at_a_link_uses_nothing_up_and_says_nothing(api: nodes.Api) -> None:
    link = await _link(api)
    mine = Browser(api)
    pages = {(await mine.http.get(path)).content for path in ("/login", f"/login?token={link}", f"/login?link={link}")}
    assert len(pages) == 1
    page = await mine.http.get("/login")
    assert "set-cookie" not in page.headers
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (await mine.http.head("/login")).status_code == 200
    assert (await mine.exchange(link)).status_code == 204


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
async def test_the_page_takes_nothing_else(api: nodes.Api, method: str) -> None:
    usual = _without_id(await api.of("gr_x", source=next(_sources)).http.get("/v1/agents"))
    assert _without_id(await Browser(api).http.request(method, "/login")) == usual


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"link": 1}',
        b'{"link": ""}',
        b'{"link": "gl_x"}',
        b'{"link": "gl_%s_%s"}' % (b"A" * 43, b"A" * 43),
        b'{"link": "x", "link": "y"}',
        b"\xff",
        b"x" * 5000,
    ],
)
async def test_what_is_no_link_is_refused_like_a_bad_key(api: nodes.Api, body: bytes) -> None:
    usual = _without_id(await api.of("gr_x", source=next(_sources)).http.get("/v1/agents"))
    answer = await Browser(api).http.post("/login", content=body, headers=OURS)
    assert _without_id(answer) == usual
    assert usual[0] == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://evil.example"},
        {"origin": "http://greenroom.test:81"},
        {"origin": "null"},
        {"origin": "http://[x"},
        {"sec-fetch-site": "cross-site", "origin": HOST},
        {"user-agent": "none of them"},
    ],
)
async def test_what_another_site_sends_by_a_persons_browser_is_nobodys(
    api: nodes.Api, browser: Browser, headers: dict[str, str]
) -> None:
    link = await _link(api)
    assert (await Browser(api).http.post("/login", json={"link": link}, headers=headers)).status_code == 401
    for method, path in (("POST", "/v1/tasks"), ("DELETE", "/v1/logins"), ("DELETE", "/v1/agents/echo")):
        assert (await browser.http.request(method, path, headers=headers)).status_code == 401
    assert (await browser.ask("GET", "/")).status_code == 200
    assert (await browser.ask("POST", "/v1/tasks", {"agent": "echo", "input": 1}, origin=HOST)).status_code == 202


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_site_does_not_even_read_by_a_persons_browser(browser: Browser, site: str) -> None:
    assert (await browser.ask("GET", "/v1/tasks", sec_fetch_site=site)).status_code == 401


async def test_a_cookie_is_for_requests_that_bring_nothing_else(browser: Browser) -> None:
    answer = await browser.ask("GET", "/v1/agents", sec_fetch_site="same-origin", authorization="Bearer gr_garbage")
    assert answer.status_code == 401


async def test_two_cookies_of_the_name_are_none(api: nodes.Api, browser: Browser) -> None:
    text = browser.http.cookies["greenroom_session"]
    twice = f"greenroom_session={text}; greenroom_session={text}"
    bare = Browser(api).http
    assert (await bare.get("/", headers={**OURS, "cookie": twice})).status_code == 401
    assert (await bare.get("/", headers={**OURS, "cookie": f"x=y; greenroom_session={text}"})).status_code == 200


async def test_to_log_out_ends_the_login_and_no_other(api: nodes.Api, browser: Browser) -> None:
    other = Browser(api)
    assert (await other.exchange(await _link(api))).status_code == 204
    text = browser.http.cookies["greenroom_session"]
    gone = await browser.ask("DELETE", "/v1/logins")
    assert gone.status_code == 204
    assert "Max-Age=0" in gone.headers["set-cookie"]
    kept = Browser(api).http
    assert (await kept.get("/", headers={**OURS, "cookie": f"greenroom_session={text}"})).status_code == 401
    assert (await other.ask("GET", "/")).status_code == 200


async def test_a_key_ends_all_its_logins_and_with_it_they_end(api: nodes.Api) -> None:
    text = await api.key("user")
    mine, first, second = api.of(text), Browser(api), Browser(api)
    for each in (first, second):
        assert (await each.exchange(await _link(mine))).status_code == 204
    assert (await mine.call("DELETE", "/v1/logins")).status_code == 204
    for each in (first, second):
        assert (await each.ask("GET", "/")).status_code == 401
    assert (await first.exchange(await _link(mine))).status_code == 204
    unused = await _link(mine)
    presented = keys.parse(text)
    assert presented is not None
    assert (await api.http.delete(f"/v1/keys/{presented.id}")).status_code == 204
    assert (await first.ask("GET", "/")).status_code == 401
    assert (await second.exchange(unused)).status_code == 401


async def test_a_login_makes_no_other(browser: Browser) -> None:
    assert (await browser.ask("POST", "/v1/logins")).status_code == 403


async def test_names_are_text_on_the_page(api: nodes.Api) -> None:
    made = (await api.call("POST", "/v1/keys", {"name": "<script>alert(1)</script>", "role": "viewer"})).json()
    mine = Browser(api)
    assert (await mine.exchange(await _link(api.of(made["key"])))).status_code == 204
    page = (await mine.ask("GET", "/")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page


async def test_what_is_stored_logs_nobody_in(api: nodes.Api, browser: Browser) -> None:
    rows = await api.running.store.db.read("select id, cookie from login", {})
    held = browser.http.cookies["greenroom_session"]
    for id, cookie in rows:
        assert str(id) not in held
        assert str(cookie) not in held
        assert (await Browser(api).exchange(f"gl_{id}")).status_code == 401


# The credential itself, on a clock that the test moves


class Held:
    def __init__(self, api: nodes.Api) -> None:
        from greenroom.testing.fakes import FakeClock

        self.store = api.running.store.logins
        self.clock = FakeClock()
        self.key = bytes(range(32))
        self.logins = cookies.Logins(self.store, self.clock, key=self.key)

    async def at(self, at_us: int, cookie: str, logins_: cookies.Logins | None = None) -> bool:
        self.clock.advance((at_us - database.microseconds(self.clock.now())) / 1e6)
        headers = {b"cookie": f"greenroom_session={cookie}".encode(), b"sec-fetch-site": b"same-origin"}
        return await (logins_ or self.logins).current(headers, method="GET", is_tls=False) is not None

    async def begun(self) -> tuple[str, int]:
        """The cookie of a new login, and when it began."""
        begun = await self.logins.begin(await self.logins.link("key"))
        assert begun is not None
        digest = login_tokens.digest_of(begun.cookie, "cookie", self.key)
        assert digest is not None
        row = await self.store.get(digest)
        assert row is not None
        return begun.cookie, row.created_at


async def test_a_login_ends_after_its_time_and_when_nobody_uses_it(api: nodes.Api) -> None:
    held = Held(api)
    second_us = 1_000_000
    cookie, at_us = await held.begun()
    assert await held.at(at_us + 3599 * second_us, cookie)
    assert not await held.at(at_us + 3599 * second_us + 3600 * second_us, cookie)
    used, at_us = await held.begun()
    for minute in range(50, 480, 50):
        assert await held.at(at_us + minute * 60 * second_us, used)
    assert not await held.at(at_us + 480 * 60 * second_us, used)


async def test_what_another_node_has_ended_ends_here_within_a_second(api: nodes.Api) -> None:
    held = Held(api)
    cookie, at_us = await held.begun()
    there = cookies.Logins(held.store, held.clock, key=held.key)
    assert await held.at(at_us, cookie, there)
    digest = login_tokens.digest_of(cookie, "cookie", held.key)
    assert digest is not None
    row = await held.store.get(digest)
    assert row is not None
    await held.logins.end(row)
    assert not await held.at(at_us + int(cookies.LOOK_EVERY_S * 1e6), cookie, there)


async def test_a_link_is_no_cookie_and_another_nodes_key_makes_neither(api: nodes.Api) -> None:
    held = Held(api)
    link = await held.logins.link("key")
    cookie, at_us = await held.begun()
    assert not await held.at(at_us, link)
    assert await held.logins.begin(cookie) is None
    assert login_tokens.digest_of(link, "cookie", held.key) is None
    assert login_tokens.digest_of(cookie, "link", held.key) is None
    other = cookies.Logins(held.store, held.clock, key=bytes(32))
    assert not await held.at(at_us, cookie, other)
    assert await other.begin(link) is None
    assert await held.logins.begin(link) is not None


async def test_a_link_that_is_over_is_worthless(api: nodes.Api) -> None:
    held = Held(api)
    text, digest = login_tokens.mint("link", held.key)
    await held.store.link(logins.NewLink(digest, "key", 0))
    assert await held.logins.begin(text) is None


async def test_a_key_has_twenty_logins_at_most(api: nodes.Api) -> None:
    held = Held(api)
    links = [await held.logins.link("crowd") for _ in range(25)]
    count = "select count(*) from login where key_id = 'crowd'"
    assert (await api.running.store.db.read(count, {}))[0][0] == logins.MAX_PER_KEY
    assert await held.logins.begin(links[0]) is None
    assert await held.logins.begin(links[-1]) is not None


async def test_the_login_page_has_the_script_that_its_policy_names() -> None:
    page = login.LOGIN_PAGE
    policy = dict(page.headers)[b"content-security-policy"].decode()
    script = re.search(rb"<script>(.*)</script>", bytes(page.document), re.DOTALL)
    assert script is not None
    assert login._source(script.group(1).decode()) in policy
    assert Path("/login").name in script.group(1).decode()
