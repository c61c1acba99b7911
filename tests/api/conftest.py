"""One node for each store, for all tests of the API: they name what is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import nodes
from greenroom.testing import databases

# What these ask does not depend on the database: SQLite answers for both, but for `make long`.
ALIKE = (
    "test_access.py",
    "test_login.py",
    "test_matrix.py",
    "test_openapi.py",
    "test_rollouts.py",
    "test_webhooks.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in ALIKE and "postgresql" in item.name:
            item.add_marker(pytest.mark.long)


AGENTS = {
    "echo": nodes.agent("echo", concurrency=8, description="Repeats what it is told", skills=["repeat"]),
    "failing": nodes.agent("failing", max_attempts=1),
    "gated": nodes.agent("gated", concurrency=4),
    "talking": nodes.agent("talking", concurrency=4),
    "chained": nodes.agent("chained", sessions=True),
    "parent": nodes.agent("parent"),
    "queue": nodes.agent("gated", description="Finds and summarises sources", skills=["research"]),
}
NOBODY = {"type": "alertmanager", "url": "http://127.0.0.1:9"}  # a port that refuses
SETTINGS: dict[str, Any] = {
    "server": {"accept_code": True},
    "security": {"encryption_at_rest": True},
    "cluster": {"alert_delivery": True},
    "alerts": {"receivers": {"matrix": NOBODY}, "group_wait_s": 3600},
}


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    """The PostgreSQL server; None: the test is SQLite's turn."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def api(server: databases.Server | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[nodes.Api]:
    folder = tmp_path_factory.mktemp("api")
    if server is None:
        async with nodes.opened(folder / "data", AGENTS, **SETTINGS) as opened:
            yield opened
        return
    async with (
        server.scratch() as scratch,
        nodes.opened(folder / "data", AGENTS, **SETTINGS, store_url=scratch.url) as opened,
    ):
        yield opened
