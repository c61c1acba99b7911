"""A real browser before a real node. GREENROOM_TEST_SHOTS names a folder for pictures of every page."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

import debian
import nodes
from browsers import Site
from greenroom.node import serving
from greenroom.store.alerts import Raised
from greenroom.store.recovery import NewFailure, Noted

HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>\x1b[31m"
AGENTS = {
    "echo": nodes.agent(
        "echo", concurrency=8, description=f"Repeats what it is told {HOSTILE[:-5]}", cost={"usd_per_task": 0.25}
    ),
    "failing": nodes.agent("failing", max_attempts=1),
    "gated": nodes.agent("gated", concurrency=4),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and "site" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(
            executable_path=debian.program("chromium"), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield made
        await made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A node with some of everything that pages show."""
    folder = tmp_path_factory.mktemp("dashboard")
    async with nodes.opened(folder / "data", AGENTS) as api, serving.listening(api.running) as url:
        for number in range(4):
            await api.run("echo", number)
        await api.run("failing", HOSTILE)
        recovery = api.running.store.recovery
        failure = NewFailure("failing-9-dead", "failing", 1, "node", "exited", HOSTILE, "restart")
        alert = Raised("dashboard", "recurring", "failing", "warning", HOSTILE)
        await recovery.note(Noted("failing", None, failures=(failure,), alert=alert))
        yield Site(api, url, browser)


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("GREENROOM_TEST_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
