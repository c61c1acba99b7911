"""`greenroom top` and the sentences of `greenroom status`: frames of canned answers, and keys on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich import console as consoles

import nodes
from fake_node import AT, FakeNode, agent, problem
from greenroom import errors
from greenroom.cli import main as cli
from greenroom.cli import summary, top, top_frame
from greenroom.sdk import client, models

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
HOSTILE = "\x1b]0;owned\x07[bold red]evil[/]\u202e\nnext"
BUCKETS: list[dict[str, Any]] = [
    {"at": "2026-01-02T03:03:00Z", "attempts": 4, "judged": 4, "errors": 1, "tokens": 70, "response": {"p95_s": 2.5}},
    {
        "at": "2026-01-02T03:04:00Z",
        "attempts": 8,
        "judged": 4,
        "errors": 0,
        "tokens": 30,
        "cost_usd": 0.5,
        "response": {"p95_s": 0.5},
    },
]


def status(*agents: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "environment": "production",
        "node": {"id": "n1", "state": "ready", "started_at": AT},
        "agents": list(agents),
        "replicas": {"total": 3, "by_state": {"ready": 2, "starting": 1}},
        "tasks": {"succeeded": 90, "running": 4, "queued": 2},
        "alerts": {},
        **fields,
    }


def working(name: str, *, running: int = 0, queued: int = 0, **fields: Any) -> dict[str, Any]:
    return agent(name, grade="healthy", tasks={"running": running, "queued": queued}, **fields)


def look(*agents: dict[str, Any], alerts: tuple[models.Alert, ...] = (), **fields: Any) -> top_frame.Look:
    import msgspec

    buckets = msgspec.convert(BUCKETS, list[models.HistoryBucket])
    return top_frame.Look(NOW, status(*agents, **fields), alerts, {each["name"]: buckets for each in agents[:1]})


def drawn(seen: top_frame.Look, *, width: int = 80, **how: Any) -> list[str]:
    console = consoles.Console(width=width, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(top_frame.frame(seen, width=width, **how))
    return captured.get().splitlines()


ALERT = models.Alert(id="agent-a", kind="failures", state="firing", severity="warning", reason="half of its tasks fail")


def test_the_status_is_a_sentence() -> None:
    some = [working("a"), working("b"), agent("c", grade="degraded")]
    fatal = models.Alert(id="disk", kind="disk", state="firing", severity="critical", reason="the disk is full")
    assert summary.sentences(status(*some), [ALERT, fatal]) == [
        "production node n1 is ready: 2 of 3 agents healthy (1 degraded), 3 replicas, 4 tasks running, 2 queued.",
        "2 alerts are firing, the first: the disk is full; next: greenroom alerts ls",
    ]
    assert summary.sentences({}) == ["node is there: no agents."]


def test_the_frame_shows_what_each_agent_does_and_what_is_wrong() -> None:
    rollout = {"id": 7, "state": "progressing", "to_revision": 4, "weight_pct": 25}
    lines = drawn(look(working("a", running=4, rollout=rollout), working("b", queued=2), alerts=(ALERT,)))
    row = next(line.split() for line in lines if line.startswith("a "))
    assert row == ["a", "healthy", "2/2", "4", "0", "500ms", "12", "%", "100"]
    text = "\n".join(lines)
    assert "ended/minute" in text
    assert "▄█  2.4" in text, text
    assert "2 ready, 1 starting" in text
    assert "warning agent-a: half of its tasks fail" in text
    assert "rollout of a to revision 4: progressing, 25 %" in text


@pytest.mark.parametrize("width", [1, 10, 24, 40, 80, 200])
def test_a_frame_fits_any_width_and_what_is_hostile_is_inert(width: int) -> None:
    evil = models.Alert(id=HOSTILE, kind="x", state="firing", severity=HOSTILE, reason=HOSTILE)
    lines = drawn(look(working(HOSTILE), working("b" * 300), alerts=(evil,), environment=HOSTILE), width=width)
    assert all(len(line) <= width for line in lines), lines
    assert all(char.isprintable() for line in lines for char in line)
    if width >= 80:
        assert "[bold red]" in "\n".join(lines)


def test_a_low_terminal_says_how_many_agents_it_does_not_show() -> None:
    seen = look(*(working(f"a{number:02}") for number in range(30)))
    lines = drawn(seen, height=20, keys=top_frame.KEYS)
    assert len(lines) == 20
    shown = sum(line.startswith("a") and line[1:3].isdigit() for line in lines)
    assert f"… and {30 - shown} more agents" in lines
    assert lines[-1] == top_frame.KEYS


@pytest.mark.parametrize(
    ("order", "first"), [("name", "a"), ("queued", "b"), ("running", "c"), ("p95", "a"), ("errors", "a")]
)
def test_agents_are_sorted_by_what_one_asks_for(order: str, first: str) -> None:
    seen = look(working("a"), working("b", queued=9), working("c", running=9))
    assert top_frame.agents(seen, order=order)[0].name == first


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    node = FakeNode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    node.put("GET /v1/status", status(working("a"), working("b"), alerts={"warning": 1}))
    node.put("GET /v1/alerts", {"items": [{"id": "x", "kind": "k", "state": "firing", "reason": "it is slow"}]})
    for name in "ab":
        node.put(f"GET /v1/agents/{name}/history", {"items": BUCKETS})
    with node.serving() as url:
        monkeypatch.setenv("GREENROOM_URL", url)
        monkeypatch.setenv("GREENROOM_KEY", "gr_owner")
        yield node


@pytest.mark.usefixtures("fake")
def test_once_prints_a_frame_and_json_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once"]) == 0
    out = capsys.readouterr().out
    assert "production node n1 is ready: 2 of 2 agents healthy" in out
    assert "it is slow" in out
    assert "\x1b" not in out
    assert cli.main(["top", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"status", "alerts", "history"}
    assert len(document["history"]["a"]) == 2


def test_where_there_is_no_node_top_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GREENROOM_URL", "http://127.0.0.1:1")
    assert cli.main(["top"]) == 3
    assert "cannot reach a node" in capsys.readouterr().err


def test_looks_are_gentle_and_a_restart_is_seen(fake: FakeNode) -> None:
    watch = top.Watch(client.Client, lambda: NOW)
    watch.look()
    assert watch.requests == 4  # the status, the alerts, and the history of both
    assert watch.restarted_at is None
    reborn = {"id": "n1", "state": "ready", "started_at": "2026-01-02T05:00:00Z"}
    fake.put("GET /v1/status", status(working("a"), working("b"), alerts={"warning": 1}, node=reborn))
    watch.look()
    assert watch.requests == 2
    assert str(watch.restarted_at) == str(NOW)
    watch.close()


@pytest.mark.parametrize(
    "shape",
    [
        {"agents": [{"grade": "healthy"}]},
        {"agents": ["a"]},
        {"agents": 7},
        {"agents": [working("a", running="many"), working("b")]},  # type: ignore[arg-type]
        {"node": "n1"},
        {"alerts": ["one"]},
        {"replicas": {"by_state": 3}},
        {"environment": 9},
    ],
)
def test_an_answer_of_another_shape_is_an_error_that_is_told_and_the_next_is_asked_for(
    fake: FakeNode, shape: dict[str, Any]
) -> None:
    watch = top.Watch(client.Client, lambda: NOW)
    fake.put("GET /v1/status", status(working("a"), working("b")) | shape)
    with pytest.raises(errors.GreenroomError, match="cannot read the answer"):
        watch.look()
    fake.put("GET /v1/status", status(working("a"), working("b")))
    assert set(watch.look().histories) == {"a", "b"}
    watch.close()


def test_who_may_not_observe_an_agent_sees_the_rest(fake: FakeNode) -> None:
    fake.put("GET /v1/agents/b/history", problem(403, "forbidden", "cannot show it"))
    watch = top.Watch(client.Client, lambda: NOW)
    assert {name: len(each) for name, each in watch.look().histories.items()} == {"a": 2, "b": 0}
    watch.close()


@pytest.mark.slow
def test_keys_on_a_terminal_sort_pause_and_quit_and_leave_it_as_it_was(fake: FakeNode) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "greenroom.cli", "top", "--interval", "1"],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(theirs)
    try:
        _until(ours, b"by name")
        os.write(ours, b"s")
        _until(ours, b"by queued")
        os.write(ours, b"p")
        _until(ours, b"paused")
        os.write(ours, b"p")
        fake.put("GET /v1/status", *[problem(503, "unavailable", "the store is away")] * 50)
        _until(ours, b"the store is away")
        os.write(ours, b"q")
        _until(ours, b"\x1b[?1049l")  # the screen that was there before
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until(terminal: int, words: bytes, *, timeout_s: float = 20.0) -> None:
    import select

    seen, deadline_s = b"", time.monotonic() + timeout_s
    while words not in seen:
        assert select.select([terminal], [], [], max(0.0, deadline_s - time.monotonic()))[0], seen[-2000:]
        seen += os.read(terminal, 65536)


@pytest.mark.slow
def test_a_real_node_is_watched_over_its_restart_which_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GREENROOM_URL", raising=False)
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest('[agents.echo]\nfactory = "agents:echo"\n')
    watch = top.Watch(lambda: client.Client(data_dir=folder.path / ".greenroom"))
    try:
        up = folder.up()
        up.end_of(up.submit("echo", "hello"))
        before = watch.look()
        assert summary.sentences(before.status)[0].endswith("1 replica, 0 tasks running, 0 queued.")
        up.process.terminate()
        up.ended(within_s=nodes.DEADLINE_S)
        with pytest.raises(errors.NodeUnreachable):
            watch.look()
        folder.up()  # at another port
        after = watch.look()
        assert watch.restarted_at is not None
        assert sum(bucket.attempts for bucket in after.histories["echo"]) == 1
        assert "echo" in "\n".join(drawn(after))
    finally:
        watch.close()
        folder.close()
