"""schemathesis against a real server: what its document says is what it does, and nothing is a 500."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import nodes
from greenroom import node
from greenroom.api import openapi, routes
from greenroom.core import rates

OPERATIONS = len((*routes.ROUTES, openapi.ROUTE))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "ignored_auth",
)


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[nodes.Api, str]]:
    monkeypatch.setattr(rates.Rejections, "LIMIT_PER_MINUTE", 10**9)  # all of it comes from one address
    agents = {"echo": nodes.agent("echo", concurrency=8)}
    opened = nodes.opened(tmp_path / "data", agents, server={"accept_code": True})
    async with opened as api, node.listening(api.running) as url:
        yield api, url


async def _fuzz(url: str, folder: Path, *words: str) -> str:
    """What it found; raises if that is anything."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *words),
        *("--seed", "20301", "--no-shrink", "--continue-on-failure", "--request-timeout", "20"),
        cwd=folder,
        env=os.environ
        | {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(Path(__file__).parent), "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        told, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, told.decode()[-6000:]
    return told.decode()


@pytest.mark.slow
async def test_with_a_credential_every_route_keeps_what_it_promises(
    served: tuple[nodes.Api, str], tmp_path: Path
) -> None:
    api, url = served
    told = await _fuzz(
        url,
        tmp_path,
        *("-H", f"Authorization: {api.http.headers['authorization']}"),
        *("--phases", "fuzzing", "--max-examples", "8", "--checks", ",".join(CHECKS)),
    )
    assert f"Tested: {OPERATIONS - 1}" in told  # not its own document, which it has fetched
    assert api.running.failure is None


@pytest.mark.slow
async def test_without_a_credential_every_route_is_closed(served: tuple[nodes.Api, str], tmp_path: Path) -> None:
    api, url = served
    schema = tmp_path / "openapi.json"
    schema.write_bytes((await api.http.get("/openapi.json")).content)
    told = await _fuzz(
        str(schema).removesuffix("/openapi.json"),
        tmp_path,
        *("--url", url, "--phases", "fuzzing", "--max-examples", "2"),
        *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
    )
    assert f"Tested: {OPERATIONS}" in told
    assert (await api.get("/v1/tasks"))["items"] == []
