"""Which code comes by API to a node that accepts none: that of its folder, and what its manifest names."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import pytest

import nodes

COMPONENT = {
    "provider": "autogen_core.tools.FunctionTool",
    "component_type": "tool",
    "config": {
        "name": "f",
        "description": "",
        "source_code": "def f(): open('MARKER', 'w').close()",
        "global_imports": [],
        "has_cancellation_support": False,
    },
}
LOADERS: list[dict[str, Any]] = [
    {"factory": "autogen_core:ComponentLoader.load_component", "arguments": {"model": COMPONENT}},
    {"factory": "autogen_core.tools:FunctionTool.load_component", "arguments": {"model": COMPONENT}},
    {"factory": "autogen_core.tools:FunctionTool._from_config", "arguments": {"config": COMPONENT["config"]}},
    {"factory": "builtins:exec", "arguments": {"source": "open('MARKER', 'w').close()"}},
    {"factory": "builtins:eval", "arguments": {}},
    {"factory": "os:system", "arguments": {"command": "touch MARKER"}},
    {"factory": "subprocess:run", "arguments": {"args": ["touch", "MARKER"]}},
    {"factory": "pickle:loads", "arguments": {}},
    {"factory": "agents:os.system", "arguments": {"command": "touch MARKER"}},
    {"factory": "agents:echo", "rollout": {"checks": ["os:system"]}},
]


@pytest.mark.parametrize("query", ["", "?dry_run=true", "?dry_run=true&sessions=true"])
async def test_no_loader_is_deployed_by_api(data_dir: Path, tmp_path: Path, query: str) -> None:
    marker = tmp_path / "marker"
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}) as api:
        for number, spec in enumerate(LOADERS):
            text = str(spec).replace("MARKER", str(marker))
            response = await api.call("PUT", f"/v1/agents/loader{number}{query}", ast.literal_eval(text))
            assert response.status_code == 422, (spec["factory"], response.text)
            assert response.json()["type"] == "agent-invalid"
        names = {agent["name"] for agent in (await api.get("/v1/agents"))["items"]}
    assert names == {"echo"}
    assert not marker.exists()


async def test_what_the_manifest_names_is_deployed_from_anywhere(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(nodes.AGENTS, folder)
    installed = {"factory": "textwrap:dedent"}
    async with nodes.opened(data_dir, {"named": installed}, folder=folder) as api:
        assert (await api.call("PUT", "/v1/agents/again", installed)).status_code == 200
        other = {"factory": "textwrap:indent"}
        assert (await api.call("PUT", "/v1/agents/other", other)).status_code == 422
        (folder / "greenroom.toml").write_text('[agents.other]\nfactory = "textwrap:indent"\n')
        assert (await api.call("PUT", "/v1/agents/other", other)).status_code == 200


async def test_who_accepts_code_accepts_any(data_dir: Path) -> None:
    server = {"accept_code": True}
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, server=server) as api:
        assert (await api.call("PUT", "/v1/agents/other", {"factory": "textwrap:dedent"})).status_code == 200
