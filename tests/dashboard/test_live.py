"""Pages that are kept live: only what changes is sent, and nothing that a person does with the page is lost by it."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from browsers import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_page_follows_what_happens_and_keeps_what_is_typed(site: Site) -> None:
    async with site.page("/agents/gated") as page:
        await expect(page.locator("#live-text")).to_have_text("live")
        await page.get_by_role("spinbutton", name="Replicas").fill("7")
        await page.evaluate("document.querySelector('#state .figures').dataset.kept = 'yes'")
        tasks = [await site.api.submit("gated", number) for number in range(2)]
        queued = page.locator("#state .figure", has_text="Running")
        await expect(queued).to_contain_text("1", timeout=10_000)
        assert await page.get_by_role("spinbutton", name="Replicas").input_value() == "7"
        for task in tasks:
            await site.api.call("POST", f"/v1/tasks/{task['id']}/cancel")


async def test_a_page_says_that_its_login_has_ended(site: Site) -> None:
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
        await page.keyboard.press("Escape")
        await page.locator("h1").click()
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog")).to_contain_text("Overview")
