"""`greenroom chaos` as its users run it: on a node that runs here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nodes
from fake_node import FakeNode
from greenroom.cli import chaos
from greenroom.cli import main as cli
from greenroom.cli.options import Usage
from nodes import Folder, Up

MANIFEST = '[agents.gated]\nfactory = "agents:gated"\nconcurrency = 4\n[agents.stubborn]\nfactory = "agents:stubborn"\n'
STATUS = {
    "environment": "production",
    "node": {"store": "postgresql"},
    "agents": [],
    "replicas": {"limit": 3},
}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = Folder(tmp_path_factory.mktemp("chaos") / "project")
    folder.manifest(MANIFEST)
    try:
        yield folder.up()
    finally:
        folder.close()


def start(up: Up, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "greenroom.cli", "chaos", *words],
        cwd=up.folder,
        env=os.environ | {"PYTHONPATH": nodes.SOURCE},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(up: Up, *words: str) -> tuple[int, str, str]:
    process = start(up, *words)
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, out, err


def agents(up: Up) -> set[str]:
    return {item["name"] for item in up.call("GET", "/v1/agents").json()["items"]}


def is_up_to(up: Up, doing: str) -> bool:
    """Whether an agent that was deployed for the time has tasks in this state."""
    items = up.call("GET", "/v1/agents").json()["items"]
    return any(item["name"].startswith("chaos-") and item[doing] for item in items)


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_left_behind(up: Up) -> None:
    kinds = "kill,slow,poison,disk-full,lock"
    code, out, err = run(up, "--for", "4s", "--tasks", "120", "--faults", kinds, "--seed", "3", "--yes", "--json")
    assert code == 0, (out, err)
    document = json.loads(out)
    report: dict[str, Any] = document["report"]
    assert document["passed"] is True
    assert report["acknowledged"] >= 120
    assert (report["lost"], report["recorded_twice"], report["unknown"], report["seed"]) == (0, 0, 0, 3)
    assert {kind: (count["planned"], count["injected"]) for kind, count in report["faults"].items()} == dict.fromkeys(
        kinds.split(","), (1, 1)
    )
    assert "kill a replica" in err
    assert agents(up) == {"gated", "stubborn"}
    assert up.call("GET", "/v1/sessions").json()["items"] == []


@pytest.mark.slow
def test_what_a_killed_run_has_left_behind_the_next_one_removes(up: Up) -> None:
    process = start(up, "--for", "10m", "--rate", "20/s", "--faults", "slow", "--yes")
    try:
        nodes.wait_until(lambda: is_up_to(up, "running"))
    finally:
        process.kill()
        process.communicate(timeout=nodes.DEADLINE_S)
    (left,) = agents(up) - {"gated", "stubborn"}
    code, out, err = run(up, "--for", "1s", "--tasks", "5", "--faults", "kill", "--yes")
    assert code == 0, (out, err)
    assert f"{left} is removed" in err
    assert agents(up) == {"gated", "stubborn"}


@pytest.mark.slow
def test_an_agent_of_ones_own_gets_its_input_and_its_poison(up: Up) -> None:
    given = ("--agent", "stubborn", "--input", '{"how": "echo"}', "--poison", '{"how": "exit"}')
    code, out, err = run(up, *given, "--for", "2s", "--rate", "20/s", "--faults", "kill,poison", "--yes")
    assert code == 0, (out, err)
    assert "what agent stubborn does outside happens" in err
    assert "nothing was lost" in out
    tasks = up.call("GET", "/v1/tasks?agent=stubborn&limit=200").json()["items"]
    assert sum(task["input"] == {"how": "echo"} for task in tasks) == 40
    assert sum(task["input"] == {"how": "exit"} for task in tasks) == 1


@pytest.mark.slow
def test_what_cannot_be_injected_is_told_and_fails_the_run_that_asked_for_it(up: Up) -> None:
    given = ("--agent", "stubborn", "--input", '{"how": "echo"}', "--for", "1s", "--tasks", "4", "--yes")
    code, out, err = run(up, *given, "--faults", "poison")
    assert code == 1, (out, err)
    assert "cannot be injected: no input of the agent is known" in err
    assert "not as planned: poison: 0 of 1 planned faults were injected" in out
    assert "nothing was lost, but the run was not what was planned" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_finds_the_node_as_it_was(up: Up, number: signal.Signals) -> None:
    process = start(up, "--for", "10m", "--rate", "20/s", "--faults", "slow,lock", "--yes")
    try:
        nodes.wait_until(lambda: is_up_to(up, "running"))
        process.send_signal(number)
        out, err = process.communicate(timeout=nodes.DEADLINE_S)
    finally:
        process.kill()
    assert process.returncode == cli.INTERRUPTED, (out, err)
    assert "Traceback" not in err
    assert agents(up) == {"gated", "stubborn"}
    assert up.end_of(up.submit("gated", {"ledger": "/dev/null"}))["state"] == "succeeded"


@pytest.mark.slow
def test_nobody_is_asked_where_no_terminal_is_and_nothing_is_done(up: Up) -> None:
    code, _, err = run(up, "--for", "5s")
    assert code == cli.USAGE
    assert "give --yes" in err
    assert agents(up) == {"gated", "stubborn"}


@pytest.fixture
def production(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    node = FakeNode()
    node.put("GET /v1/status", STATUS)
    monkeypatch.chdir(tmp_path)
    with node.serving() as url:
        monkeypatch.setenv("GREENROOM_URL", url)
        monkeypatch.setenv("GREENROOM_KEY", "gr_owner")
        yield node


@pytest.mark.parametrize("words", [(), ("--yes",), ("--in-production",)])
def test_production_is_refused_unless_both_words_are_given(
    production: FakeNode, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert cli.main(["chaos", *words]) == cli.USAGE
    err = capsys.readouterr().err
    assert "--yes --in-production" in err
    assert {request.method for request, _ in production.requests} == {"GET"}
    for kind in ("kill", "stop", "slow", "disk-full", "lock"):
        assert f"not {kind}: " in err
    assert "name it with --store" in err
    assert "--data-dir" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--faults", "kill,flood"), "cannot inject flood"),
        (("--for", "soon"), "30s or 5m"),
        (("--for", "2d"), "30s or 5m"),
        (("--rate", "fast"), "20/s"),
        (("--rate", "5/s", "--tasks", "3"), "not both"),
        (("--tasks", "0"), "at least one"),
        (("--input", "1"), "--agent"),
        (("--agent", "a"), "--input JSON"),
        (("--agent", "a", "--input", "hello"), "'\"hello\"'"),
    ],
)
def test_words_that_make_no_sense_are_refused_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert cli.main(["chaos", *words]) == cli.USAGE
    assert told in capsys.readouterr().err


def test_times_are_read() -> None:
    assert [chaos.seconds(text) for text in ("90", "30s", "1.5m", "1h")] == [90.0, 30.0, 90.0, 3600.0]
    with pytest.raises(Usage):
        chaos.seconds("0s")
