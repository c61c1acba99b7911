"""The pages of rollouts and of scaling: what they say, and that what is pressed there is done."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from playwright.async_api import Page, expect

from browsers import Site, begun_canary
from greenroom.api.dashboard import rollouts, scaling
from greenroom.sdk import models

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
STAGES = tuple(
    models.Stage(weight_pct=weight_pct, replicas=replicas, old_replicas=2, hold_s=60)
    for weight_pct, replicas in ((25, 1), (50, 1), (100, 2))
)
CANARY = models.Rollout(
    id=7,
    agent="echo",
    strategy="canary",
    from_revision=1,
    to_revision=2,
    state="progressing",
    stage=2,
    stages=STAGES,
    weight_pct=25,
    ready=1,
    created_at=NOON,
    updated_at=NOON + timedelta(seconds=70),
    due_at=NOON + timedelta(seconds=190),
    moments=(
        models.Moment(state="progressing", stage=1, weight_pct=25, at=NOON + timedelta(seconds=4)),
        models.Moment(state="progressing", stage=2, weight_pct=25, at=NOON + timedelta(seconds=70)),
    ),
)
NOW = NOON + timedelta(seconds=80)


def _at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


def test_steps_say_what_became_of_each_stage_and_when() -> None:
    found = rollouts.steps(CANARY)
    assert [step.state for step in found] == ["done", "progressing", "next"]
    assert [(step.began_at, step.took_s) for step in found] == [(NOON, 70), (_at(70), None), (None, None)]
    ended = rollouts.steps(replace(CANARY, state="rolled_back", ended_at=_at(100)))
    assert [step.state for step in ended] == ["done", "rolled_back", "skipped"]
    assert ended[1].took_s == 30


def test_a_stage_that_was_entered_before_moments_were_kept_has_no_time() -> None:
    first, second, _ = rollouts.steps(replace(CANARY, moments=()))
    assert (first.took_s, second.began_at) == (None, None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ready": 0}, "It waits for its replicas: 0 of 1 are ready"),
        ({}, "Its replicas are ready; it waits for their checks"),
        ({"is_proven": True, "held_s": 1.0}, "It is watched"),
        ({"is_proven": True, "held_s": 55.0, "reason": "20 more"}, "It waits for tasks to judge it by: 20 more"),
        ({"state": "paused"}, "A person has paused it"),
        ({"state": "paused", "awaits_promotion": True}, "It has done all that this stage asks"),
    ],
)
def test_an_open_rollout_says_what_it_waits_for(changed: dict[str, object], told: str) -> None:
    found = rollouts.waiting(replace(CANARY, **changed), NOW)
    assert found is not None
    assert found.text.startswith(told)
    assert (found.until is None) == ("state" in changed)


def test_the_story_is_told_in_words() -> None:
    failed = models.Moment(state="rolled_back", stage=2, reason="3 of its 4 tasks failed", at=_at(99))
    paused = models.Moment(state="paused", stage=2, weight_pct=25, reason="it was paused", at=_at(75))
    found = rollouts.story(replace(CANARY, begun_by="ann", moments=(*CANARY.moments, paused, failed)))
    assert [told.what for told in found] == [
        "ann has begun it",
        "revision 2 has proven itself, and gets 25 % of the tasks",
        "stage 2 of 3 begins",
        "it is paused: it was paused",
        "it is rolled back: 3 of its 4 tasks failed",
    ]


def test_only_what_an_agent_serves_by_can_be_rolled_back() -> None:
    complete = replace(CANARY, state="complete")
    assert rollouts.back_to(complete, {"revision": 2, "rollout": complete}) == 1
    assert rollouts.back_to(complete, {"revision": 2, "rollout": replace(CANARY, id=8, state="rolled_back")}) == 1
    assert rollouts.back_to(complete, {"revision": 2, "rollout": replace(CANARY, id=8)}) is None
    assert rollouts.back_to(complete, {"revision": 3, "rollout": complete}) is None
    assert rollouts.back_to(CANARY, {"revision": 2, "rollout": CANARY}) is None


def test_the_wanted_replicas_of_an_hour_are_those_of_its_decisions() -> None:
    decisions = (
        models.ScalingDecision(from_replicas=4, to_replicas=2, at=NOON - timedelta(minutes=10)),
        models.ScalingDecision(from_replicas=1, to_replicas=4, at=NOON - timedelta(minutes=30)),
    )
    load = models.Load(at=NOON - timedelta(minutes=30), waiting=9, busy=3.0, arrivals=12, replicas=1)
    found = scaling.laid_out(models.AgentScaling(agent="echo", replicas=2, items=decisions), [load], NOON)
    assert [len(list(each)) for each in (found.wanted, found.waited)] == [60, 60]
    assert (found.wanted[27], found.wanted[28], found.wanted[-1]) == (1, 4, 2)
    assert (found.waited[29], found.busy[29], found.arrivals[29], sum(found.waited)) == (9, 3.0, 12, 9)


async def _press(page: Page, name: str) -> None:
    await page.locator(".card summary, #ended summary, #state summary").filter(has_text=name).first.click()
    await page.get_by_role("dialog").locator("#confirm-yes").click()


@pytest.mark.asyncio(loop_scope="session")
async def test_a_canary_moves_without_a_reload_is_promoted_and_rolled_back_from_the_page(canary_site: Site) -> None:
    async with canary_site.page("/rollouts") as page:
        card = page.locator(".card")
        await expect(card.locator("[aria-current=step]")).to_contain_text("25 %")
        await card.evaluate("each => { each.isTheSame = true; }")
        for _ in range(4):
            await canary_site.api.run("echo", "hello")
        open_one = (await canary_site.api.get("/v1/agents/echo"))["rollout"]["id"]
        assert (await canary_site.api.call("POST", f"/v1/rollouts/{open_one}/promote")).status_code == 200
        await expect(card.locator("[aria-current=step]")).to_contain_text("50 %", timeout=10_000)
        assert await card.evaluate("each => each.isTheSame")
        await expect(card.locator(".traffic")).to_contain_text("50 %", timeout=10_000)
        await page.locator(".card summary", has_text="Promote").click()  # a question about stage 2, which is left now
        assert (await canary_site.api.call("POST", f"/v1/rollouts/{open_one}/promote")).status_code == 200
        await expect(card.locator("[aria-current=step]")).to_contain_text("100 %", timeout=10_000)
        await page.locator("#confirm-yes").click()
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(page.locator(".flash")).to_have_count(0)
        assert (await canary_site.api.get(f"/v1/rollouts/{open_one}"))["stage"] == 3
        await expect(card.locator("summary", has_text="Promote")).to_be_visible(timeout=10_000)
        await _press(page, "Promote")
        await expect(page.locator(".flash.ok")).to_contain_text("was promoted")
        await expect(page.locator("#open .empty")).to_be_visible(timeout=10_000)
        assert (await canary_site.api.get("/v1/agents/echo"))["revision"] == 2
        await _press(page, "Roll back to 1")
        await expect(page.locator(".flash.ok")).to_contain_text("goes back to revision 1")
        assert (await canary_site.api.get("/v1/agents/echo"))["revision"] == 1


@pytest.mark.asyncio(loop_scope="session")
async def test_a_canary_is_paused_resumed_and_aborted_from_its_page(canary_site: Site) -> None:
    id = await begun_canary(canary_site.api, timeout_s=51)
    async with canary_site.page(f"/rollouts/{id}") as page:
        await _press(page, "Pause")
        await expect(page.locator(".waits")).to_contain_text("A person has paused it")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator(".waits")).to_contain_text("It is watched")
        await _press(page, "Abort")
        await expect(page.locator("#state .sentence")).to_contain_text("aborted")
        states = await page.locator("#story tbody .badge").all_inner_texts()
        assert states == ["progressing", "progressing", "paused", "progressing", "aborted"]
        assert (await canary_site.api.get("/v1/agents/echo"))["revision"] == 1


@pytest.mark.asyncio(loop_scope="session")
async def test_a_number_that_is_set_on_the_page_is_a_decision_that_says_so(canary_site: Site) -> None:
    async with canary_site.page("/scaling/gated") as page:
        await page.get_by_role("spinbutton", name="Replicas").fill("2")
        await page.get_by_role("button", name="Scale").click()
        await expect(page.locator(".flash.ok")).to_contain_text("is to have 2 replicas")
        await expect(page.locator("#decisions tbody tr").first).to_contain_text("1 → 2")
        await page.goto("/scaling")
        await expect(page.locator("tr", has_text="gated")).to_contain_text("of 2")
