"""Browsers that are logged in to a node that listens: what the tests of the dashboard stand on."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, ViewportSize

import nodes

WIDE, PHONE = ViewportSize(width=1280, height=860), ViewportSize(width=390, height=844)


class Site:
    """A node that listens, and browsers that are logged in to it."""

    def __init__(self, api: nodes.Api, url: str, browser: Browser) -> None:
        self.api, self.url, self._browser = api, url, browser
        self.pages: dict[str, str] = {}  # addresses of pages, by their paths in the table

    @contextlib.asynccontextmanager
    async def context(self, role: str | None = None, **options: Any) -> AsyncIterator[BrowserContext]:
        """A browser of its own, logged in as *role*; None: as the node's owner."""
        api = self.api if role is None else self.api.of(await self.api.key(role))
        made = await self._browser.new_context(base_url=self.url, **{"viewport": WIDE, **options})
        try:
            await self._log_in(made, (await api.call("POST", "/v1/logins")).json()["path"])
            yield made
        finally:
            await made.close()

    async def _log_in(self, context: BrowserContext, path: str) -> None:
        """Exchange the link as its page does, which needs a script: that one is tested by `test_login`."""
        answer = await context.request.post(
            "/login", data={"link": path.partition("#")[2]}, headers={"sec-fetch-site": "same-origin"}
        )
        assert answer.status == 204

    @contextlib.asynccontextmanager
    async def page(self, path: str = "/", role: str | None = None, **options: Any) -> AsyncIterator[Page]:
        """A page that is open, and at the end has said nothing to the console and asked nobody else for anything."""
        async with self.context(role, **options) as context:
            page = await context.new_page()
            heard: list[str] = []
            page.on("console", lambda message: heard.append(message.text))
            page.on("pageerror", lambda error: heard.append(str(error)))
            page.on("dialog", lambda dialog: heard.append(f"dialog: {dialog.message}"))
            page.on("request", lambda request: heard.extend([request.url] * (not request.url.startswith(self.url))))
            await page.goto(path)
            yield page
            assert heard == []


CANARY = {"strategy": "canary", "weights": [25, 50, 100], "hold_s": 600, "scale_down_delay_s": 60}


async def begun_canary(api: nodes.Api, *, timeout_s: float = 50.0) -> int:
    """Deploy `echo` anew, and wait until its revision has proven itself in the first stage; nothing moves it on."""
    spec = nodes.agent("echo", concurrency=8, timeout_s=timeout_s, rollout=CANARY)
    id: int = (await api.call("PUT", "/v1/agents/echo", spec)).json()["rollout"]["id"]

    async def is_proven() -> bool:
        return bool((await api.get(f"/v1/rollouts/{id}"))["is_proven"])

    await nodes.eventually(is_proven)
    return id
