"""What operators do on pages: keys are made and revoked, alerts taken, the audit log looked through."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from browsers import Site

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(site: Site) -> None:
    async with site.page("/keys") as page:
        await page.get_by_label("Name").fill("from-the-page")
        await page.get_by_label("No more than").fill("task:read, task:submit on agent:echo")
        async with page.expect_response(lambda response: response.request.method == "POST") as waited:
            await page.get_by_role("button", name="Make it").click()
        answer = await waited.value
        assert "no-store" in answer.headers["cache-control"]
        assert "set-cookie" not in answer.headers
        text = await page.locator("#key").inner_text()
        assert text not in page.url
        got = await page.context.request.get("/v1/tasks", headers={"authorization": f"Bearer {text}"})
        assert got.status == 200
        got = await page.context.request.get("/v1/audit", headers={"authorization": f"Bearer {text}"})
        assert got.status == 403
        await page.goto("/keys")
        assert text not in await page.content()
        row = page.locator("#living tr", has_text="from-the-page")
        await expect(row).to_contain_text("task:submit on agent:echo")
        await row.locator("summary").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(page.locator("#ended tr", has_text="from-the-page")).to_contain_text("revoked")
        got = await page.context.request.get("/v1/tasks", headers={"authorization": f"Bearer {text}"})
        assert got.status == 401


async def test_what_a_key_cannot_be_is_said_on_the_page(site: Site) -> None:
    async with site.page("/keys") as page:
        await page.get_by_label("Name").fill("odd")
        await page.get_by_label("No more than").fill("fly")
        await page.get_by_role("button", name="Make it").click()
        await expect(page.locator(".flash.error")).to_contain_text("scopes[0]")


async def test_an_alert_is_taken_on_its_page(site: Site) -> None:
    async with site.page("/alerts") as page:
        await page.locator("#open").get_by_role("button", name="I look after it").first.click()
        await expect(page.locator(".flash.ok")).to_contain_text("You look after")
        await expect(page.locator("#open")).to_contain_text("owner")
        await page.locator("#open").get_by_role("button", name="Silence").first.click()
        await expect(page.locator("#open")).to_contain_text("silenced")
        await page.locator("#silences").get_by_role("button", name="End it").click()
        await expect(page.locator("#silences")).to_contain_text("None")


async def test_a_receiver_is_tested_on_the_page_of_alerts(site: Site) -> None:
    async with site.page("/alerts") as page:
        receivers = page.locator("#receivers")
        await receivers.get_by_role("button", name="Test pager").click()
        await expect(page.locator(".flash.ok")).to_contain_text("pager has taken the test alert")
        await receivers.get_by_role("button", name="Test gone").click()
        await expect(page.locator(".flash.error")).to_contain_text("gone has not taken the test alert: ")
    async with site.page("/alerts", role="viewer") as page:
        await expect(page.locator("#open")).to_be_visible()
        await expect(page.locator("#receivers")).to_have_count(0)


async def test_the_audit_log_is_filtered_by_its_form(site: Site) -> None:
    async with site.page("/audit") as page:
        await page.get_by_label("Act").fill("key.*")
        await page.get_by_role("button", name="Filter").click()
        acts = await page.locator("#entries td[data-label=Act]").all_inner_texts()
        assert acts
        assert all(act.startswith("key.") for act in acts)
