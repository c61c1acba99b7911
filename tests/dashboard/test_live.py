"""Pages that are kept live: only what changes is sent, and nothing that a person does with the page is lost by it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from playwright.async_api import expect

from browsers import Site
from greenroom.api.dashboard import live, pages
from greenroom.store.news import Hub, News
from greenroom.testing.fakes import FakeClock

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_page_follows_what_happens_and_keeps_what_is_typed(site: Site, tmp_path: Path) -> None:
    async with site.page("/agents/gated") as page:
        await expect(page.locator("#live-text")).to_have_text("live")
        field = page.get_by_role("spinbutton", name="Replicas")
        await field.fill("7")
        mark = page.locator("#state .figures")
        await mark.evaluate("each => { each.isSameNode = 'yes'; }")
        task = await site.api.submit("gated", {"ledger": str(tmp_path / "ledger"), "gate": str(tmp_path / "gate")})
        running = page.locator("#state .figure", has_text="Running")
        await expect(running).to_contain_text("1", timeout=10_000)
        assert await field.input_value() == "7"
        assert await field.evaluate("each => each === document.activeElement")
        assert await mark.evaluate("each => each.isSameNode") == "yes"
        (tmp_path / "gate").touch()
        await site.api.end_of(task["id"])
        await expect(running).to_contain_text("0", timeout=10_000)


async def test_a_page_says_that_its_login_has_ended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "CHECK_S", 0.0)
    async with site.context("viewer") as context:
        page = await context.new_page()
        await page.goto("/")
        await expect(page.locator("#live-text")).to_have_text("live")
        await context.request.delete("/v1/logins", headers={"sec-fetch-site": "same-origin"})
        await expect(page.locator("#live-text")).to_contain_text("login has ended", timeout=15_000)


async def test_keys_lead_to_pages_and_tell_of_themselves(site: Site) -> None:
    async with site.page("/") as page:
        await page.keyboard.press("g")
        await page.keyboard.press("a")
        await expect(page.locator("h1")).to_have_text("Agents")
        await page.keyboard.press("/")
        await page.keyboard.type("fail")
        await expect(page.locator("tbody tr:visible")).to_have_count(1)
        await page.locator("h1").click()
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("Overview")


class Renders:
    """A page that is another one each time, and counts how often it was asked for."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> live.Regions:
        self.count += 1
        return {"now": live.Region(str(self.count), f"<p>{self.count}</p>")}


async def _turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_sees_the_same_shares_its_rendering() -> None:
    feeds, render = live.Feeds(FakeClock(), Hub()), Renders()
    watching = [feeds.watch("page", render) for _ in range(50)]
    for each in watching:
        await anext(each)
    await _turn()
    assert render.count == 1
    assert [(await anext(each)).regions["now"].version for each in watching] == ["1"] * 50
    for each in watching:
        await each.aclose()  # type: ignore[attr-defined]


async def test_news_are_shown_at_once_but_never_more_often_than_the_pace() -> None:
    clock, hub = FakeClock(), Hub()
    feeds, render = live.Feeds(clock, hub), Renders()
    watching = feeds.watch("page", render)
    await anext(watching)
    await _turn()
    seen: Counter[float] = Counter()
    for step in range(16):  # 4 s, and news at each quarter of them
        hub.publish(News())
        clock.advance(0.25)
        await _turn()
        seen[step // 4] = render.count
    assert [seen[second] for second in range(4)] == [2, 3, 4, 5]
    await watching.aclose()  # type: ignore[attr-defined]


async def test_nobody_watches_and_nothing_is_done() -> None:
    clock, hub = FakeClock(), Hub()
    feeds, render = live.Feeds(clock, hub), Renders()
    watching = feeds.watch("page", render)
    await anext(watching)
    await _turn()
    await watching.aclose()  # type: ignore[attr-defined]
    await _turn()
    clock.advance(60)
    await _turn()
    assert render.count == 1
    assert not hub._subscribers


async def test_who_comes_later_is_shown_nothing_older_than_their_page() -> None:
    clock = FakeClock()
    feeds, render = live.Feeds(clock, Hub()), Renders()
    first = feeds.watch("page", render)
    await anext(first)
    await _turn()
    clock.advance(3)
    await _turn()
    second = feeds.watch("page", render)
    assert (await anext(second)).regions == {}
    await _turn()
    assert (await anext(second)).regions["now"].version == "2"
    for each in (first, second):
        await each.aclose()  # type: ignore[attr-defined]
