"""`greenroom dashboard` against a real node: the link logs a browser in, until its key is revoked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import nodes
from nodes import Folder

pytestmark = pytest.mark.slow

OURS = {"sec-fetch-site": "same-origin"}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    made.manifest('[agents.echo]\nfactory = "agents:echo"\n')
    yield made
    made.close()


def _dashboard(folder: Folder, *words: str, key: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": nodes.SOURCE, "GREENROOM_KEY": key}
    return subprocess.run(
        [sys.executable, "-m", "greenroom.cli", "dashboard", *words],
        cwd=folder.path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_browser_is_logged_in_by_the_link_and_out_with_the_key(folder: Folder) -> None:
    up = folder.up()
    made = up.call("POST", "/v1/keys", {"name": "ann", "role": "user"}).json()
    told = _dashboard(folder, "--json", key=made["key"])
    assert told.returncode == 0, told.stderr
    address, _, link = json.loads(told.stdout)["url"].partition("#")
    assert address == f"{str(up.http.base_url).rstrip('/')}/login"
    with httpx.Client(base_url=up.http.base_url, headers=OURS) as browser:
        page = browser.get(address)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert browser.get("/").status_code == 401
        assert browser.post("/login", json={"link": link}).status_code == 204
        assert browser.post("/login", json={"link": link}).status_code == 401
        assert "<b>ann</b>" in browser.get("/").text
        assert browser.post("/v1/tasks", json={"agent": "echo", "input": 1}).status_code == 202
        foreign = browser.post(
            "/v1/tasks", json={"agent": "echo", "input": 1}, headers={"sec-fetch-site": "cross-site"}
        )
        assert foreign.status_code == 401
        assert up.call("DELETE", f"/v1/keys/{made['id']}").status_code == 204
        assert browser.get("/").status_code == 401
    assert link not in folder.log.read_text()


def test_all_browsers_of_a_key_are_logged_out_and_a_link_is_printed_for_people(folder: Folder) -> None:
    up = folder.up()
    told = _dashboard(folder)
    assert told.stdout.startswith(f"{str(up.http.base_url).rstrip('/')}/login#gl_")
    assert "within 1m; it works once" in told.stderr
    link = told.stdout.strip().partition("#")[2]
    with httpx.Client(base_url=up.http.base_url, headers=OURS) as browser:
        assert browser.post("/login", json={"link": link}).status_code == 204
        ended = _dashboard(folder, "--end")
        assert (ended.returncode, ended.stdout) == (0, "every browser of this key is logged out\n")
        assert browser.get("/").status_code == 401
    assert _dashboard(folder, "--open", "--end").returncode == 2
