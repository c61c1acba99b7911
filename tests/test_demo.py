"""The demonstration as a user runs it: another process, real replicas, real kills. Its output is read, and what it
leaves behind is looked for.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from greenroom.cli import local_model
from greenroom.cli.demo import models, story

COMMAND = "import sys; from greenroom.cli.main import main; sys.exit(main(sys.argv[1:]))"
TIMEOUT_S = 120
EDITED = "Models learned to reason, to run on laptops, and to use tools."  # what the replayed editor says


@contextmanager
def running(tmp_path: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", COMMAND, "demo", *arguments]
    variables = {**os.environ, "TMPDIR": str(tmp_path), models.CHOICE: "replay", **(env or {})}
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def demonstrate(tmp_path: Path, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    with running(tmp_path, *arguments, env=env) as process:
        output, _ = process.communicate(timeout=TIMEOUT_S)
        return process.returncode, output


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the demonstration ended without {text!r}:\n{read}")


def replicas_that_live(output: str) -> list[str]:
    pids = re.findall(r"\(pid (\d+)\)", output)
    assert len(pids) == 3, output
    return [pid for pid in pids if Path("/proc", pid).exists()]


@pytest.mark.slow
def test_the_killed_agent_alone_runs_again_and_the_node_can_be_asked_until_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with running(tmp_path, "--keep", "--data-dir", str(folder)) as process:
        output = read_until(process, "next, in another terminal")
        ask = [sys.executable, "-c", COMMAND, "tasks", "ls", "--data-dir", str(folder)]
        tasks = subprocess.run(ask, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
        process.send_signal(signal.SIGINT)
        output += process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 0, output
    assert "model: none: prepared answers are replayed" in output
    assert "its text fits research best" in output
    assert re.search(r"analysis runs again, on analysis-\w+, \d+ ms after the kill", output)
    assert "run again: analysis; run once: research, writing" in output
    assert f"answer: {EDITED}" in " ".join(output.split())  # the screen may be narrow
    assert re.search(r"tasks +3 succeeded", output)
    assert re.search(r"of 7 processes none is left", output)
    assert replicas_that_live(output) == []
    assert tasks.count("succeeded") == 3
    assert (folder / "greenroom.db").exists()
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
def test_it_runs_on_the_real_local_model_and_leaves_nothing(tmp_path: Path) -> None:
    code, output = demonstrate(tmp_path, env={models.CHOICE: "local"})
    assert code == 0, output
    assert f"model: {local_model.LocalModel.name} on this machine" in output
    assert re.search(r"writing +succeeded +1 +writing-\w+ +[1-9]\d* +[1-9]\d* ", output), "its tokens are counted"
    assert re.search(r"of 8 processes none is left", output)
    assert replicas_that_live(output) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_interrupted_demonstration_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        output = read_until(process, "kill -9")
        process.send_signal(signal.SIGINT)
        output += process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 130, output
    assert replicas_that_live(output) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer_fails_the_demonstration_with_its_error(tmp_path: Path) -> None:
    nowhere = {models.CHOICE: "", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    code, output = demonstrate(tmp_path, env=nowhere)
    assert code == 1
    assert "model: gpt-4o-mini at http://127.0.0.1:9/v1" in output
    assert "failed: APIConnectionError: Connection error." in output
    assert replicas_that_live(output) == []


def test_the_usual_variables_name_the_endpoint() -> None:
    environ = {"OPENAI_API_KEY": "secret", "OPENAI_MODEL": "gpt-4.1-mini"}
    with models.chosen(environ) as model:
        assert model.about == "gpt-4.1-mini at OpenAI"
        assert model.arguments["model"] == "gpt-4.1-mini"
        assert "secret" not in str(model), "the key goes to the replicas as a variable, not through the store"


def test_an_endpoint_without_a_key_is_asked_without_one() -> None:
    with models.chosen({"OPENAI_BASE_URL": "http://127.0.0.1:8000/v1"}) as model:
        assert model.arguments["base_url"] == "http://127.0.0.1:8000/v1"
        assert model.arguments["api_key"] == "none"
        assert model.arguments["model_info"]["function_calling"] is False


def test_the_agents_are_packaged_beside_the_story() -> None:
    assert {path.name for path in story.FOLDER.iterdir()} >= {"agents.py", "greenroom.toml"}
