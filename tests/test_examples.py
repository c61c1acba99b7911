"""The examples do what their README says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from greenroom import node, settings
from greenroom.cli.local_model import LocalModel
from greenroom.sdk.async_client import AsyncClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_the_closing_program_prints_what_its_readme_shows(tmp_path: Path) -> None:
    program = [sys.executable, str(EXAMPLES / "closing_program.py")]
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    shown = (EXAMPLES / "README.md").read_text().split("closing_program.py\n", 2)[1].split("```")[0]
    assert ended.stdout == shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
async def test_the_autogen_manifest_serves_its_agents_with_a_real_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalModel() as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        found = settings.load(EXAMPLES / "autogen" / "greenroom.toml")
        options = node.Options(settings=found, folder=EXAMPLES / "autogen", data_dir=tmp_path, port=0)
        async with node.opened(options, grace_s=0) as started, node.listening(started) as url:
            await started.host.settled.wait()
            async with AsyncClient(url, (tmp_path / "local.key").read_text().strip()) as client:
                assert {agent.name: agent.state for agent in await client.agents()} == {
                    "assistant": "ready",
                    "newsroom": "ready",
                }
                first = await client.submit("Say hello.", "assistant", session="ada", wait_s=60)
                second = await client.submit("Say hello again.", "assistant", session="ada", wait_s=60)
                assert first.succeeded, first.error
                assert second.usage.input_tokens > first.usage.input_tokens, "it remembers what was said"
