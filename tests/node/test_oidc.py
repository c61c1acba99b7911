"""A token of an OpenID Connect provider, end to end: a real provider, a real ``greenroom up``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from nodes import Folder
from provider import Provider

pytestmark = pytest.mark.slow

MANIFEST = """
[security]
{allowed}

[[security.issuers]]
issuer = "{url}"
algorithms = ["ES256"]
tenant_claim = "org"
roles = {{ staff = "user" }}

[agents.echo]
factory = "agents:echo"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    yield made
    made.close()


def test_a_token_of_the_provider_submits_a_task_and_sees_only_its_tenant(folder: Folder) -> None:
    provider = Provider()
    try:
        folder.manifest(MANIFEST.format(url=provider.url, allowed="tenants_below_t2 = true"))
        up = folder.up()
        theirs = up.submit("echo", "not yours")
        good, bad = provider.token(org="acme", roles=["staff"]), provider.token(org="acme", roles=["staff"], aud="x")
        with httpx.Client(base_url=up.http.base_url, headers={"authorization": f"Bearer {good}"}, timeout=60) as mine:
            task = mine.post("/v1/tasks?wait=30", json={"agent": "echo", "input": "hello"}).json()
            assert (task["state"], task["output"]) == ("succeeded", "hello")
            assert [each["id"] for each in mine.get("/v1/tasks").json()["items"]] == [task["id"]]
            assert mine.get(f"/v1/tasks/{theirs}").status_code == 404
            assert mine.get("/v1/keys").status_code == 403
            refused = mine.get("/v1/tasks", headers={"authorization": f"Bearer {bad}"})
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    finally:
        provider.close()


def test_an_issuers_tenants_need_what_keeps_tenants_apart(folder: Folder) -> None:
    folder.manifest(MANIFEST.format(url="http://127.0.0.1:9", allowed=""))
    code, output = folder.refused()
    assert code == 1
    assert "cannot start: tokens of http://127.0.0.1:9 are of other tenants than default" in output
    assert "security.tenants_below_t2 = true" in output
    assert "Traceback" not in output
