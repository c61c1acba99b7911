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

FILLED = {"name": "echo", "id": "4"}  # what the parameters of paths stand for here
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": WIDE, "color_scheme": "light"},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": PHONE, "color_scheme": "light", "has_touch": True},
}
RULES: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"runOnly": ["color-contrast"]},  # what the dark look alone can be wrong in
    "phone": {"runOnly": ["cat.tables", "cat.name-role-value"]},
}


def _paths(site: Site) -> list[tuple[str, str]]:
    """The pages, by names for pictures of them; `Site.pages` knows those whose parameters have no fixed value."""
    found = [(entry.path, site.pages.get(entry.path) or entry.path.format(**FILLED)) for entry in pages.PAGES]
    return [(path.strip("/").replace("/", "-") or "overview", filled) for path, filled in found]


@pytest.mark.parametrize("look", LOOKS)
async def test_everybody_can_use_every_page(site: Site, look: str, shots: Path) -> None:
    async with site.page(**LOOKS[look]) as page:
        for name, path in _paths(site):
            await page.goto(path)
            await expect(page.locator("#live-text")).to_have_text("live")
            await page.screenshot(path=shots / f"{name}-{look}.png", full_page=True)
            found = await Axe().run(page, options=RULES[look])
            assert found.violations_count == 0, f"{path}: {found.generate_report()}"
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
            assert len(ids) == len(set(ids)), f"{path} has two elements of one id"
            wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{path} is {wider} pixels wider than the window"


async def test_every_page_works_without_a_script(site: Site) -> None:
    async with site.page(java_script_enabled=False) as page:
        for _, path in _paths(site):
            answer = await page.goto(path)
            assert answer is not None
            assert answer.status == 200
            await expect(page.locator("h1")).to_be_visible()


async def test_a_viewer_sees_every_page_and_no_button_that_works(site: Site) -> None:
    async with site.page(role="viewer") as page:
        for name, path in _paths(site):
            answer = await page.context.request.get(path, headers={"sec-fetch-site": "same-origin"})
            if answer.status == 403:
                assert "role viewer" in await answer.text(), name
                continue
            assert answer.status == 200, name
            await page.goto(path)
            enabled = page.locator("main form[method=post] button:enabled")
            assert await enabled.count() == 0, name


async def test_every_page_of_the_navigation_has_a_key_of_its_own() -> None:
    keys = [entry.key for entry in pages.PAGES if entry.group]
    assert all(keys)
    assert len(keys) == len(set(keys))


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
