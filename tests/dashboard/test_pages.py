"""Every page of the table: everybody can use it, in light, in dark, on a phone, without rights and without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from browsers import PHONE, WIDE, Site
from greenroom.api.dashboard import pages

pytestmark = pytest.mark.asyncio(loop_scope="session")

FILLED = {"name": "echo"}  # what the parameters of paths stand for here
PATHS = [entry.path.format(**FILLED) for entry in pages.PAGES]
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
}


def _name(path: str) -> str:
    return path.strip("/").replace("/", "-") or "overview"


@pytest.mark.parametrize("look", LOOKS)
async def test_everybody_can_use_every_page(site: Site, look: str, shots: Path) -> None:
    async with site.page(**LOOKS[look]) as page:
        for path in PATHS:
            await page.goto(path)
            await expect(page.locator("#live-text")).to_have_text("live")
            await page.screenshot(path=shots / f"{_name(path)}-{look}.png", full_page=True)
            found = await Axe().run(page)
            assert found.violations_count == 0, f"{path}: {found.generate_report()}"
            wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{path} is {wider} pixels wider than the window"


async def test_every_page_works_without_a_script(site: Site) -> None:
    async with site.page(java_script_enabled=False) as page:
        for path in PATHS:
            answer = await page.goto(path)
            assert answer is not None
            assert answer.status == 200
            await expect(page.locator("h1")).to_be_visible()


async def test_a_viewer_sees_every_page_and_no_button_that_works(site: Site) -> None:
    async with site.page(role="viewer") as page:
        for entry, path in zip(pages.PAGES, PATHS, strict=True):
            answer = await page.context.request.get(path, headers={"sec-fetch-site": "same-origin"})
            if answer.status == 403:
                assert "role viewer" in await answer.text(), entry
                continue
            assert answer.status == 200, entry
            await page.goto(path)
            enabled = page.locator("main form button:enabled")
            assert await enabled.count() == 0, entry


async def test_every_page_of_the_navigation_has_a_key_of_its_own() -> None:
    keys = [entry.key for entry in pages.PAGES if entry.group]
    assert all(keys)
    assert len(keys) == len(set(keys))


async def test_what_an_agent_costs_is_shown_where_it_has_a_price(site: Site) -> None:
    await site.api.running.history.step()
    async with site.context() as context:
        shown = {
            path: await (await context.request.get(path)).text() for path in ("/", "/agents/echo", "/agents/gated")
        }
    figure = "<dt>Cost</dt><dd>$1.00"
    assert [figure in shown["/"], figure in shown["/agents/echo"]] == [True, True]
    assert "<dt>Cost</dt>" not in shown["/agents/gated"]


async def test_hostile_text_is_inert(site: Site) -> None:
    async with site.page("/agents/failing") as page:  # its console, dialogs and requests are looked at
        await expect(page.locator("#failures")).to_contain_text("<img src=x onerror=alert(1)>")
        assert await page.locator("main img, main script").count() == 0


async def test_the_browser_is_told_to_load_nothing_of_others(site: Site) -> None:
    async with site.context() as context:
        answer = await context.request.get("/", headers={"sec-fetch-site": "same-origin"})
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        text = await answer.text()
        assert " style=" not in text
        assert "<style" not in text
        assert " on" not in "".join(part.split(">")[0] for part in text.split("<button")[1:])
