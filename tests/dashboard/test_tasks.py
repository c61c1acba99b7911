"""The pages of tasks and sessions: events come as they are emitted, and what may be done about a task is done there."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from playwright.async_api import expect

from browsers import Site
from greenroom.engine import said
from greenroom.store.logs import Line
from greenroom.store.rows import Event

HOSTILE = "<img src=x onerror=alert(1)>"

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_events_of_a_running_task_appear_and_the_oldest_make_room(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    task = await site.api.submit("talking", {"count": 1200, "gate": str(gate)})
    await site.api.until(task["id"], "running")
    async with site.page(f"/tasks/{task['id']}") as page:
        rows = page.locator("#events > li")
        await expect(rows.last).to_contain_text('{"number":599}')
        told = Event(task["id"], 1, "<b>bold", json.dumps({"text": "<img src=x onerror=alert(1)>"}).encode())
        assert await site.api.running.store.tasks.append(told)
        await expect(rows.last.locator("code")).to_have_text('{"text":"<img src=x onerror=alert(1)>"}')
        assert await page.locator("#events img, #events b > b").count() == 0
        gate.touch()
        await expect(rows.last).to_contain_text('"succeeded"', timeout=15_000)
        await expect(rows).to_have_count(500)
        await expect(page.locator("#events-earlier")).to_be_visible()
        await expect(page.locator("#state .badge").first).to_have_text("succeeded", timeout=10_000)
        numbers = [int(text) for text in await rows.locator(".num").all_text_contents()]
        assert numbers == [*range(numbers[-1] - 499, numbers[-1] + 1)]


async def test_hostile_text_is_inert_on_the_page_of_a_task(site: Site) -> None:
    async with site.page(site.pages["/tasks/{id}"]) as page:  # its console, dialogs and requests are looked at
        for part in ("Input", "Output", "Metadata"):
            await expect(page.locator(f"pre[aria-label={part}]")).to_contain_text("<img src=x")
        assert await page.locator("main img, main script").count() == 0


async def test_what_a_task_has_said_is_on_its_page_and_on_its_agents_page(site: Site) -> None:
    id = site.pages["/tasks/{id}"].rpartition("/")[2]
    line = Line(
        at=time.time_ns() // 1000,
        tenant="default",
        agent="parallel",
        task=id,
        of_task=True,
        level=said.LEVELS["warning"],
        source="stderr",
        text=HOSTILE,
    )
    async with site.page(f"/tasks/{id}") as page:
        await site.api.running.store.logs.put([line])
        await expect(page.locator("#logs li").last).to_contain_text(HOSTILE, timeout=10_000)
        await expect(page.locator("#logs b").last).to_have_text("warning")
        await page.locator("#state a").first.click()
        await expect(page.locator("#logs li", has_text=HOSTILE).locator("a")).to_have_attribute("href", f"/tasks/{id}")
        assert await page.locator("main img").count() == 0
        for name, heading in (
            ("Its scaling", "Scaling of parallel"),
            ("Its agent", "parallel"),
            ("Its tasks", "Tasks"),
        ):
            await page.get_by_role("link", name=name, exact=True).click()
            await expect(page.locator("h1")).to_have_text(heading)


async def test_a_task_is_submitted_and_its_page_follows(site: Site) -> None:
    async with site.page("/tasks") as page:
        await page.locator("summary", has_text="Submit a task").click()
        await page.get_by_label("Input").fill('{"number": 7}')
        await page.get_by_label("It is JSON").check()
        await page.locator("form.submit select").select_option("echo")
        await page.get_by_role("button", name="Submit", exact=True).click()
        await expect(page.locator(".flash.ok")).to_contain_text("accepted")
        await expect(page.locator("pre[aria-label=Output]")).to_contain_text('"number": 7', timeout=10_000)


async def test_a_running_task_is_cancelled_and_retried_as_a_new_one(site: Site, tmp_path: Path) -> None:
    task = await site.api.submit("gated", {"ledger": str(tmp_path / "ledger"), "gate": str(tmp_path / "gate")})
    await site.api.until(task["id"], "running")
    async with site.page(f"/tasks/{task['id']}") as page:
        await page.locator("#state summary", has_text="Cancel").click()
        await page.get_by_role("dialog").get_by_role("button", name="Cancel", exact=True).last.click()
        await expect(page.locator("#state .badge").first).to_have_text("cancelled")
        (tmp_path / "gate").touch()
        await page.locator("#state summary", has_text="Retry").click()
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await expect(page.locator(".flash.ok")).to_contain_text(task["id"])
        assert task["id"] not in page.url
        await expect(page.locator("#state")).to_contain_text(f"{task['id']} again")


async def test_filters_and_pages_are_links(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("greenroom.api.dashboard.tasks.PER_PAGE", 2)
    async with site.page("/tasks?agent=echo&state=&session=", java_script_enabled=False) as page:
        rows = page.locator("#tasks tbody tr")
        first = await rows.first.get_attribute("data-key")
        await page.get_by_role("link", name="Older").click()
        assert "agent=echo" in page.url
        assert await rows.first.get_attribute("data-key") != first
        await page.get_by_role("link", name="Newest").click()
        assert await rows.first.get_attribute("data-key") == first
        await page.goto(f"/tasks?id={first}")
        await expect(rows).to_have_count(1)
        await page.goto("/tasks?id=nothing")
        await expect(page.locator("#tasks .empty")).to_contain_text("cannot find the task nothing")
        answer = await page.request.get("/tasks?state=nonsense", headers={"sec-fetch-site": "same-origin"})
        assert answer.status == 422
        assert "cannot filter by state" in await answer.text()


async def test_a_session_is_forgotten_after_a_question(site: Site) -> None:
    await site.api.run("chained", ["x", None], session="brief")
    async with site.page("/sessions/brief?agent=chained") as page:
        await expect(page.locator("#kept pre")).to_contain_text('"count": 1')
        await page.locator("#figures summary", has_text="Forget").click()
        await page.get_by_role("dialog").get_by_role("button", name="Forget").click()
        await expect(page.locator(".flash.ok")).to_contain_text("brief is forgotten")
        assert page.url.endswith("/sessions")


async def test_the_sub_tasks_of_a_task_are_listed(site: Site) -> None:
    parent = site.pages["/tasks/{id}"].rpartition("/")[2]
    found = await site.api.get(f"/v1/tasks?parent={parent}")
    assert {task["agent"] for task in found["items"]} == {"third"}
    assert {task["parent"] for task in found["items"]} == {parent}
    async with site.page(f"/tasks/{parent}") as page:
        await page.locator(".timeline a").first.click()
        await expect(page.locator("#state")).to_contain_text(f"sub-task of {parent}")
