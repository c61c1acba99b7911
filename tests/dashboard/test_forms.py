"""Forms do what the API does, for who may, from our own pages alone, and the page says how it went."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from browsers import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")

OURS = {"sec-fetch-site": "same-origin"}


async def test_a_replica_is_replaced_after_a_question(site: Site) -> None:
    async with site.page("/agents/echo") as page:
        await page.locator("#replicas summary", has_text="Restart").first.click()
        await expect(page.get_by_role("dialog")).to_contain_text("Put a new replica in the place of")
        await page.get_by_role("dialog").get_by_role("button", name="Restart").click()
        await expect(page.locator(".flash.ok")).to_contain_text("is being replaced")
        await page.reload()
        await expect(page.locator(".flash")).to_have_count(0)


async def test_without_a_script_the_question_unfolds(site: Site) -> None:
    async with site.page("/agents/gated", java_script_enabled=False) as page:
        await page.locator(".actions summary").click()
        await page.locator(".actions details button").click()
        await expect(page.locator(".flash.ok")).to_contain_text("judged anew")
        assert page.url.endswith("/agents/gated")


async def test_what_is_wrong_is_said_on_the_page(site: Site) -> None:
    async with site.page("/agents/gated", java_script_enabled=False) as page:
        await page.get_by_role("spinbutton", name="Replicas").fill("0")
        await page.get_by_role("button", name="Scale").click()
        await expect(page.locator(".flash.error, .flash.ok")).to_be_visible()


async def test_a_form_counts_only_with_the_token_of_its_login(site: Site) -> None:
    async with site.context() as context:
        for token in ("", "0" * 64):
            answer = await context.request.post(
                "/ui/agents/gated/scale", form={"replicas": "1", "token": token}, headers=OURS, max_redirects=0
            )
            assert answer.status == 403


async def test_a_form_counts_only_from_our_own_pages(site: Site) -> None:
    async with site.context() as context:
        text = await (await context.request.get("/agents/gated", headers=OURS)).text()
        token = text.split('name="token" value="')[1].split('"')[0]
        form: dict[str, str | float | bool] = {"replicas": "1", "token": token, "back": "https://evil.example/"}
        for headers in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
            answer = await context.request.post("/ui/agents/gated/scale", form=form, headers=headers, max_redirects=0)
            assert answer.status == 401
        answer = await context.request.post("/ui/agents/gated/scale", form=form, headers=OURS, max_redirects=0)
        assert (answer.status, answer.headers["location"]) == (303, "/")


async def test_who_logs_out_sees_where_to_log_in_and_nothing_else(site: Site) -> None:
    async with site.context("viewer") as context:
        page = await context.new_page()
        await page.goto("/")
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/login")
        answer = await page.goto("/")
        assert answer is not None
        assert answer.status == 401
        await expect(page.locator("h1")).to_have_text("Log in")
