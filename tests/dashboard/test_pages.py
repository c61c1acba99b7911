"""Every page of the table: everybody can use it, in light, in dark, on a phone, without rights and without a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import ViewportSize, expect

from browsers import PHONE, WIDE, Site
from greenroom.api.dashboard import pages

pytestmark = pytest.mark.asyncio(loop_scope="session")

AXE = {"resultTypes": ["violations"]}
LOOKS: dict[str, tuple[ViewportSize, Literal["light", "dark"], dict[str, Any]]] = {  # with the rules of axe
    "light": (WIDE, "light", {}),
    "dark": (WIDE, "dark", {"runOnly": ["color-contrast"]}),  # what the dark look alone can be wrong in
    "phone": (PHONE, "light", {"runOnly": ["cat.tables", "cat.name-role-value"]}),
}


def _paths(site: Site) -> list[tuple[str, str]]:
    """The pages, by names for pictures of them; `Site.pages` knows those whose parameters have no fixed value."""
    found = [(entry.path, site.pages.get(entry.path) or entry.path.format(name="echo")) for entry in pages.PAGES]
    return [(path.strip("/").replace("/", "-") or "overview", filled) for path, filled in found]


async def test_everybody_can_use_every_page_in_light_in_dark_and_on_a_phone(site: Site, shots: Path | None) -> None:
    async with site.page() as page:
        for name, path in _paths(site):
            await page.goto(path)
            await expect(page.locator("#live-text")).to_have_text("live")
            await page.evaluate(AXE_SCRIPT)
            for look, (size, scheme, rules) in LOOKS.items():
                await page.set_viewport_size(size)
                await page.emulate_media(color_scheme=scheme)
                if shots is not None:
                    await page.screenshot(path=shots / f"{name}-{look}.png", full_page=True)
                found = await page.evaluate("options => axe.run(options)", {**AXE, **rules})
                assert found["violations"] == [], f"{path}, {look}"
                wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wider <= 0, f"{path} is {wider} pixels wider than the window, {look}"
            ids = await page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
            assert len(ids) == len(set(ids)), f"{path} has two elements of one id"


async def test_a_phone_shows_where_one_is_below_a_head_of_two_lines(site: Site) -> None:
    async with site.page("/audit", viewport=PHONE) as page:  # the last page of the navigation
        await expect(page.locator(".side [aria-current]")).to_be_in_viewport(ratio=1)
        brand, tools = [await page.locator(name).bounding_box() for name in (".brand", ".tools")]
        assert brand is not None
        assert tools is not None
        assert tools["y"] < brand["y"] + brand["height"]


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
