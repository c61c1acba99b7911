"""A real browser before a real node. GREENROOM_TEST_SHOTS names a folder for pictures of every page."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

import debian
import nodes
from browsers import Site, begun_canary
from greenroom.node import serving
from greenroom.store.alerts import Raised
from greenroom.store.recovery import NewFailure, Noted
from receivers import receiving

REFUSING_PORT = 9
HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>\x1b[31m"
AGENTS = {
    "echo": nodes.agent("echo", concurrency=8, description=f"Repeats what it is told {HOSTILE[:-5]}"),
    "failing": nodes.agent("failing", max_attempts=1),
    "gated": nodes.agent("gated", concurrency=4),
    "talking": nodes.agent("talking"),
    "chained": nodes.agent("chained", sessions=True),
    "parallel": nodes.agent("parallel"),
    "third": nodes.agent("third", concurrency=4),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and {"site", "canary_site"} & {
            *getattr(item, "fixturenames", ())
        }:
            item.add_marker(pytest.mark.slow)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(
            executable_path=debian.program("chromium"), args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield made
        await made.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A node with some of everything that pages show."""
    async with receiving() as receiver, _opened(browser, tmp_path_factory, receiver.port) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def canary_site(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Another one: what is done to its canary cannot be undone."""
    async with _opened(browser, tmp_path_factory) as found:
        yield found


@contextlib.asynccontextmanager
async def _opened(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory, receiver_port: int = REFUSING_PORT
) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("dashboard")
    ports = {"pager": receiver_port, "gone": REFUSING_PORT}
    told = {name: {"type": "alertmanager", "url": f"http://127.0.0.1:{port}"} for name, port in ports.items()}
    given: dict[str, Any] = {"cluster": {"alert_delivery": True}, "alerts": {"receivers": told, "group_wait_s": 3600}}
    async with nodes.opened(folder / "data", AGENTS, **given) as api, serving.listening(api.running) as url:
        for number in range(4):
            await api.run("echo", number)
        await api.run("failing", HOSTILE)
        recovery = api.running.store.recovery
        failure = NewFailure("failing-9-dead", "failing", 1, "node", "exited", HOSTILE, "restart")
        alert = Raised("dashboard", "recurring", "failing", "warning", HOSTILE)
        await recovery.note(Noted("failing", None, failures=(failure,), alert=alert))
        canary = await begun_canary(api)
        await api.call("PATCH", "/v1/agents/echo/scale", {"replicas": 1})
        for word in "ab":
            await api.run("chained", [word, None], session="mine")
        parent = await api.run("parallel", [HOSTILE, 1], metadata={"note": HOSTILE})
        found = Site(api, url, browser)
        found.pages |= {
            "/tasks/{id}": f"/tasks/{parent['id']}",
            "/sessions/{id}": "/sessions/mine?agent=chained",
            "/rollouts/{id}": f"/rollouts/{canary}",
        }
        yield found


@pytest.fixture(scope="session")
def shots() -> Path | None:
    """Where pictures are wanted, which nobody looks at otherwise."""
    if not (name := os.environ.get("GREENROOM_TEST_SHOTS")):
        return None
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
