"""No text of a caller becomes a path: whatever is asked for, the node opens and touches no file that is named so."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nodes
from greenroom import errors, settings
from greenroom.api import routes, schemas
from greenroom.core import sessions

MARKER = "zq7marker"
HOSTILE = (
    f"../{MARKER}",
    f"..%2f{MARKER}",
    f"%2e%2e%2f{MARKER}",
    f"%252e%252e%252f{MARKER}",
    f"..%5c{MARKER}",
    f"%c0%ae%c0%ae%c0%af{MARKER}",
    f"%e0%80%ae/{MARKER}",
    f"/{MARKER}",
    f"//{MARKER}",
    f"%2f{MARKER}",
    f"{MARKER}%00.py",
    f"{MARKER}%0a",
    f"{MARKER}/../../x",
    f"file:%2f%2f%2f{MARKER}",
    f"~{MARKER}",
    f"$HOME-{MARKER}",
    f"{MARKER}.",
    f"-{MARKER}",
    f"{MARKER}" + "x" * 300,
)
WELL_FORMED = MARKER  # reaches no path either

# What Python does to files, as its audit hooks are told; what SQLite does is in C, and its one file is the store's.
_FILES = re.compile(r"open|os\.(?!putenv|unsetenv)|shutil\.|pathlib\.|glob\.|tempfile\.|import|sqlite3\.connect")
_seen: list[tuple[str, str]] | None = None


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if _seen is not None and _FILES.match(event):
        text = repr(args)
        if MARKER in text:
            _seen.append((event, text[:200]))


sys.addaudithook(_hook)  # for good: there is no way back, and it does nothing unless a test looks


@pytest.fixture
def touched() -> Iterator[list[tuple[str, str]]]:
    global _seen  # noqa: PLW0603 - the hook has no other way to know
    found: list[tuple[str, str]] = []
    _seen = found
    yield found
    _seen = None


def test_the_hook_sees_what_is_touched(touched: list[tuple[str, str]], tmp_path: Path) -> None:
    for touch in (
        (tmp_path / MARKER).mkdir,
        (tmp_path / MARKER / "x").touch,
        lambda: list((tmp_path / MARKER).iterdir()),
    ):
        before = len(touched)
        touch()
        assert len(touched) > before


async def test_no_part_of_a_request_reaches_a_path(data_dir: Path, touched: list[tuple[str, str]]) -> None:
    agents = {"chained": nodes.agent("chained", sessions=True), "echo": nodes.agent("echo")}
    async with nodes.opened(data_dir, agents, server={"accept_code": True}) as api:
        touched.clear()
        for text in (*HOSTILE, WELL_FORMED):
            for route in routes.ROUTES:
                for name in re.findall(r"\{(\w+)\}", route.path):
                    path = route.path.replace(f"{{{name}}}", text)
                    # A node's own names are refused by their form, or are nobody's.
                    status = (await api.call(route.method, path, {} if route.body else None)).status_code
                    assert status in {400, 404, 405, 415, 422}, (route.method, path, status)
                for query in route.query:
                    if route.method == "GET":
                        await api.http.get(re.sub(r"\{\w+\}", "echo", route.path) + f"?{query}={text}")
            for code in (text, f"../../{text}"):
                response = await api.call("PUT", f"/v1/agents/new?code={code}", nodes.agent("echo"))
                assert response.status_code in {400, 404, 422}
            body = {"agent": "echo", "input": text, "session": text, "metadata": {text: text}}
            await api.call("POST", "/v1/tasks", body, headers={"idempotency-key": "k" + text[:100]})
            await api.call("POST", "/v1/keys", {"name": text[:100], "role": text})
            await api.call("POST", "/v1/webhooks", {"url": f"https://a.example/{text}", "description": text[:200]})
        told = await api.run("chained", [WELL_FORMED, None], session=WELL_FORMED)
        assert told["state"] == "succeeded"
    assert touched == []


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


NAMES = ("a", "0", "a-b_c", "x" * 63)
NO_NAMES = ("", "A", "-a", "_a", "a.b", "a/b", "..", "a\n", "a\0", "ä", "a" * 64, "a b", "%61", "a\\b")


@pytest.mark.parametrize("name", [*NAMES, *NO_NAMES])
def test_names_are_of_one_form_everywhere(name: str) -> None:
    form = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
    assert (name in NAMES) == bool(form.fullmatch(name))
    agents = {name: {"factory": "agents:echo"}}
    try:
        settings.load(overrides={"agents": agents}, environ={})
        is_taken = True
    except settings.SettingsInvalid:
        is_taken = False
    assert is_taken == (name in NAMES)
    try:
        schemas.convert({"input": 1, "agent": name}, schemas.Submission)
        is_taken = True
    except errors.BodyInvalid:
        is_taken = False
    assert is_taken == (name in NAMES)


@pytest.mark.parametrize("text", ["", ".", "..", "../x", "/x", "x/y", "x\\y", "x\0", "x\n", "%2e", "é", "x" * 129])
def test_what_stands_in_a_route_is_no_path(text: str) -> None:
    assert not re.fullmatch(sessions.NAME_PATTERN, text)
