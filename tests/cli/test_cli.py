from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from fake_node import AT, LATER, SLOTS, TASK_ID, FakeNode, agent, event, problem, task
from greenroom import errors
from greenroom.cli import main as cli
from greenroom.cli import render
from greenroom.cli import tasks as task_commands
from greenroom.sdk import models

TASK = f"/v1/tasks/{TASK_ID}"
REPLICA = {
    "id": "research-3-7fe02c11",
    "agent": "research",
    "revision": 3,
    "pid": 4242,
    "state": "ready",
    "grade": "healthy",
    "busy": 1,
    "slots": 4,
    "memory_mb": 41.7,
    "started_at": AT,
}

SILENCE = {
    "id": "sil_1",
    "kind": "slow_*",
    "comment": "a known one",
    "created_by": "ann",
    "created_at": "2030-01-01T00:00:00Z",
    "until": "2030-01-01T01:30:00Z",
}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A node that the command finds by itself, in a folder of its own, on a screen of 80 columns."""
    node = FakeNode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    with node.serving() as url:
        folder = tmp_path / ".greenroom"
        folder.mkdir()
        (folder / "node.json").write_text(json.dumps({"url": url}))
        (folder / "local.key").write_text("gr_owner\n")
        yield node


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of nobody."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("GREENROOM_URL", url)
        yield url


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Submitting


def test_a_task_for_an_agent_prints_its_id_and_what_to_do_next(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    code, out, err = run(capsys, "submit", "research", "the news", "--session", "s", "--priority", "3")
    assert (code, out) == (0, f"{TASK_ID}\n")
    assert fake.last_body == {"agent": "research", "input": "the news", "session": "s", "priority": 3}
    assert fake.last.headers["authorization"] == "Bearer gr_owner"
    assert f"next: greenroom tasks watch {TASK_ID}" in err


def test_a_task_without_an_agent_is_routed_and_the_choice_is_explained(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("POST /v1/tasks", task("queued", routing={"agent": "research", "scores": SLOTS}))
    code, _, err = run(capsys, "submit", "the news")
    assert code == 0
    assert fake.last_body == {"input": "the news"}
    assert "chose research (research 0.91, writing 0.12)" in err


def test_no_route_lists_the_candidates_once(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    why = "cannot choose an agent: nobody fits; name one in `agent`: research (0.91), writing (0.12)"
    fake.put("POST /v1/tasks", problem(422, "no-route", why, candidates=SLOTS))
    assert run(capsys, "submit", "hm") == (1, "", f"error: {why}\n")


def test_waiting_prints_the_output_alone_on_stdout(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    fake.put(f"GET {TASK}", task("running"), task())
    code, out, _ = run(capsys, "submit", "research", "the news", "--wait")
    assert (code, out) == (0, "All is well.\n")


def test_waiting_or_cancelling_asks_once_and_holds_on(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/tasks", task())
    code, out, _ = run(capsys, "submit", "research", "the news", "--wait-s", "5", "--or-cancel")
    assert (code, out) == (0, "All is well.\n")
    assert dict(fake.last.query_params) == {"wait": "5.0", "or_cancel": "true"}
    fake.put("POST /v1/tasks", task("cancelled"))
    assert run(capsys, "submit", "research", "the news", "--wait", "--or-cancel")[0] == 1
    for wrong in (["--or-cancel"], ["--wait-s", "301", "--or-cancel"]):
        assert run(capsys, "submit", "research", "the news", *wrong)[0] == 2


@pytest.mark.parametrize("how", [["--wait"], ["--wait-s", "5"], ["--wait", "--json"]])
def test_waiting_for_an_agent_that_is_failed_says_so_at_once_and_goes_on(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    fake.put(f"GET {TASK}", task())
    fake.put("GET /v1/agents/research", agent(state="failed", reason="no module named x"))
    code, _, err = run(capsys, "submit", "research", "the news", *how)
    assert code == 0
    assert err.count("agent research is failed: no module named x; the task waits until it works again\n") == 1
    asked = [request.url.path for request, _ in fake.requests]
    assert asked[:2] == ["/v1/tasks", "/v1/agents/research"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"state": "quarantined", "reason": "it dies"}, "agent research is quarantined: it dies; the task waits until"),
        (
            {"breaker": {"state": "half_open", "reason": "20 of 20 attempts failed", "until": None}},
            "agent research: its circuit breaker is half-open, some tasks are tried: 20 of 20 attempts failed",
        ),
    ],
)
def test_a_queued_task_is_shown_with_what_keeps_it_from_beginning(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], told: str
) -> None:
    fake.put(f"GET {TASK}", task("queued"))
    fake.put("GET /v1/agents/research", agent(**fields))
    assert told in run(capsys, "tasks", "show", TASK_ID)[2]
    fake.put(f"GET {TASK}", task("running"))
    assert told not in run(capsys, "tasks", "show", TASK_ID)[2]


def test_an_agent_that_fails_while_its_task_waits_is_told_of_once(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("greenroom.cli.submit.LOOK_EVERY_S", 0.0)
    fake.put("POST /v1/tasks", task("queued"))
    fake.put(f"GET {TASK}", task("queued"), task("queued"), task("queued"), task())
    fake.put("GET /v1/agents/research", agent(state="starting"), agent(state="failed", reason="it died"))
    code, out, err = run(capsys, "submit", "research", "the news", "--wait")
    assert (code, out) == (0, "All is well.\n")
    assert err.count("agent research is failed: it died") == 1


@pytest.mark.parametrize("how", [["--wait"], ["--wait-s", "5"], ["--wait", "--json"]])
def test_waiting_for_a_task_that_fails_exits_with_one(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    fake.put(f"GET {TASK}", task("failed"))
    code, out, err = run(capsys, "submit", "research", "the news", *how)
    assert code == 1
    if "--json" in how:
        assert json.loads(out)["error"]["type"] == "ValueError"
    else:
        assert (out, "ValueError: no sources" in err) == ("", True)


def test_waiting_for_a_while_says_that_the_task_goes_on(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    fake.put(f"GET {TASK}", task("running"))
    code, _, err = run(capsys, "submit", "research", "the news", "--wait-s", "0.01")
    assert code == 1
    assert "has not ended yet: it is running and goes on" in err


def test_the_text_may_come_on_stdin(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.put("POST /v1/tasks", task("queued"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO('{"q": "ü"}\n'.encode())))
    assert run(capsys, "submit", "research", "-", "--json-input")[0] == 0
    assert fake.last_body == {"agent": "research", "input": {"q": "ü"}}


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["submit"], "AGENT"),
        (["submit", "--wiat", "x"], "no option --wiat"),
        (["submit", "a", "{", "--json-input"], "cannot read JSON"),
        (["submit", "a", '{"a":1,"a":2}', "--json-input"], "stands twice"),
        (["submit", "a", "b", "c", "--wait"], "quote it: greenroom submit a 'b c', or quote all of it"),
        (["submit", "a", "b", "c", "--wiat"], "Did you mean --wait?"),
        (["submit", "a", "b", "--priority", "high"], "high"),
        (["bogus"], "bogus"),
        (["tasks", "show"], "ID"),
        (["scale", "research", "-1"], "-1"),
        (["up", "--engine", "ray"], "local"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_wrong_usage_is_one_message_and_exits_with_two(
    capsys: pytest.CaptureFixture[str], argv: list[str], why: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert why in err
    assert "Traceback" not in err


# Keys


@pytest.mark.parametrize("expires", ["30", "0d", "-1d", "d", "1y", "1.5h", "9999999999d"])
def test_an_expiry_needs_a_unit(fake: FakeNode, capsys: pytest.CaptureFixture[str], expires: str) -> None:
    code, _, err = run(capsys, "keys", "create", "ci", f"--expires={expires}")
    assert code == 2
    assert "30d, 12h, 90m" in err
    assert not fake.asked("POST /v1/keys")


def test_the_list_of_keys_says_when_each_was_used_and_ends(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    row = {"id": "k1", "name": "ci", "role": "user"}
    rows = [
        row | {"last_used_at": (now - timedelta(hours=2, minutes=1)).isoformat()},
        row | {"expires_at": (now + timedelta(days=3, minutes=1)).isoformat(), "scopes": ["task:read"]},
        row | {"expires_at": (now - timedelta(days=3, minutes=1)).isoformat()},
        row | {"revoked_at": AT},
    ]
    fake.put("GET /v1/keys", {"items": rows})
    code, out, _ = run(capsys, "keys", "ls")
    told = [line.split()[3:] for line in out.splitlines()[1:]]
    assert (code, told) == (
        0,
        [
            ["all", "2h", "ago", "never", "valid"],
            ["task:read", "never", "in", "3d", "valid"],
            ["all", "never", "3d", "ago", "expired"],
            ["all", "never", "never", "revoked"],
        ],
    )


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--role", "user", "task:submit"), 0, 'yes: "task:submit" of the role user'),
        (("--role", "user", "system:shutdown"), 1, "no: the role user does not grant system:shutdown"),
        (("--role", "researcher", "task:read", "agent:research"), 0, 'yes: "task:*'),
        (("--role", "researcher", "task:read", "agent:writer"), 1, "no: the role researcher does not grant"),
        (("--role", "admin", "--tenant", "acme", "agent:deploy"), 1, "no: the tenant acme"),
        (("--role", "god", "task:read"), 2, "there is no role god"),
        (("--role", "user", "task:raed"), 2, 'did you mean "task:read"?'),
        (("--role", "user", "task:read", "research"), 2, "give agent:NAME"),
        (("--role", "user"), 2, "ACTION [RESOURCE]"),
        (("--role", "user", "key:read", "agent:a"), 2, "is done on no agent"),
        (("k1",), 2, "KEY_ID ACTION [RESOURCE]"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_what_a_role_may_do_is_told_without_a_node(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greenroom.toml").write_text('[security]\npolicy_file = "policy.toml"\n')
    (tmp_path / "policy.toml").write_text('[roles.researcher]\ngrants = ["task:* on agent:research"]\n')
    found, out, err = run(capsys, "keys", "can", *words)
    assert found == code
    assert told in out + err


def test_what_a_key_may_do_is_told_by_the_node(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    for allowed, code in ((True, 0), (False, 1)):
        fake.put("GET /v1/keys/k1/can", {"allowed": allowed, "action": "task:read", "reason": "because"})
        assert run(capsys, "keys", "can", "k1", "task:read")[:2] == (code, f"{'yes' if allowed else 'no'}: because\n")
    assert run(capsys, "keys", "can", "k1", "task:read", "--json")[0] == 1


def test_shutting_down_asks_before(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "shutdown")
    assert code == 2
    assert "--yes" in err
    assert not fake.asked("POST /v1/shutdown")


def test_validating_the_manifest_tells_of_files_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"tls_certificate": "cert.pem", "tls_key": "there.key", "encryption_key_file": "gone.key"}
    lines = [f'{name} = "{path}"' for name, path in named.items()]
    (tmp_path / "greenroom.toml").write_text("\n".join(["[security]", "tls = true", *lines]))
    (tmp_path / "there.key").touch()
    code, _, err = run(capsys, "config", "validate")
    assert code == 0
    assert "security.tls_certificate names cert.pem, which is not there" in err
    assert "security.encryption_key_file names gone.key, which is not there" in err
    assert "there.key" not in err


def test_validating_the_manifest_tells_of_roles_for_agents_that_it_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = '[security]\npolicy_file = "policy.toml"\n[agents.research]\nfactory = "a:b"\n'
    (tmp_path / "greenroom.toml").write_text(manifest)
    (tmp_path / "policy.toml").write_text('[roles.r]\ngrants = ["task:* on agent:reserch"]\n')
    code, _, err = run(capsys, "config", "validate")
    assert code == 0
    assert 'did you mean "agent:research"?' in err
    (tmp_path / "policy.toml").write_text('[roles.r]\ngrants = ["task:fly"]\n')
    code, _, err = run(capsys, "config", "validate")
    assert code == 2
    assert "roles.r.grants[0]" in err


# Errors


@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["agents"],
        ["replicas"],
        ["tasks", "ls"],
        ["submit", "a", "b"],
        ["keys", "ls"],
        ["audit", "ls"],
        ["security", "report"],
        ["doctor", "--security"],
        ["sessions", "ls"],
        ["tasks", "watch", "x"],
    ],
)
def test_where_there_is_no_node_every_verb_says_so_and_exits_with_three(
    nowhere: str, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (3, "")
    assert err.startswith(f"error: cannot reach a node at {nowhere}: Connection refused; start one with `greenroom up`")


def test_a_refusal_is_the_nodes_own_words(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/agents", problem(401, "unauthenticated", "cannot let you in: the key is unknown"))
    code, _, err = run(capsys, "agents")
    assert code == 1
    assert "error: cannot let you in: the key is unknown" in err
    assert "GREENROOM_KEY" in err


@pytest.mark.usefixtures("nowhere")
def test_debugging_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREENROOM_DEBUG", "1")
    with pytest.raises(errors.NodeUnreachable):
        cli.main(["status"])


# Tables and JSON


REPORT: dict[str, Any] = {
    "grade": "warning",
    "reason": "found in the last hour: failed_logins",
    "controls": [
        {"name": "audit log", "state": "on", "why": "7 entries were looked at: all sound"},
        {"name": "tls", "state": "off by setting", "why": "security.tls is off"},
    ],
    "found_last_hour": 1,
    "found_last_day": [{"at": AT, "rule": "failed_logins", "subject": "source:192.0.2.1", "reason": "20 " * 30}],
    "rejected": [{"subject": "192.0.2.1", "count": 51, "per_minute": 0.85}],
    "refused": [{"subject": "k1", "count": 43, "per_minute": 0.72, "share_pct": 100.0}],
    "measures": [{"subject": "source:192.0.2.1", "kind": "lock", "rule": "failed_logins", "until": AT}],
}


BURNING = {"severity": "page", "threshold": 14.4, "long_s": 3600.0, "long_rate": 20.0, "short_s": 300.0}
HEALTH = {
    "agent": "research",
    "grade": "degraded",
    "reason": "its tasks took 12.0 s on average " * 3,
    "replicas": [{"id": "research-1", "grade": "healthy"}, {"id": "research-2", "grade": "degraded", "reason": "slow"}],
    "recent": {
        "grade": "degraded",
        "reason": "its tasks took 12.0 s on average",
        "window_s": 300.0,
        "min_samples": 10,
        "judged": 40,
        "errors": 2,
        "error_pct": 5.0,
        "degraded_error_pct": 10.0,
        "unhealthy_error_pct": 30.0,
        "measured": 40,
        "response_s": 12.0,
        "wait_s": 0.5,
        "degraded_response_s": 10.0,
        "unhealthy_response_s": 30.0,
    },
    "slo": {
        "window_days": 30.0,
        "min_tasks": 20,
        "at": AT,
        "objectives": [
            {
                "name": "success",
                "target_pct": 99.0,
                "tasks": 123_456,
                "missed": 2_000,
                "met_pct": 98.3799,
                "budget_left_pct": -62.0,
                "burn_rates": [BURNING | {"short_rate": 15.0, "alerts": True}],
            },
            {"name": "latency", "target_pct": 95.0, "latency_s": 5.0, "measured_s": 5.657, "budget_left_pct": 40.0},
        ],
    },
}


def put_lists(fake: FakeNode) -> None:
    long = task("running", agent="a" * 63, input={"text": "x" * 300}, finished_at=None)
    fake.put("GET /v1/tasks", {"items": [task(), long], "next_cursor": "77"})
    fake.put(f"GET {TASK}", task())
    fake.put("GET /v1/agents", {"items": [agent(), agent("broken", state="failed", reason="no module named x")]})
    fake.put("GET /v1/agents/research", agent())
    fake.put("GET /v1/replicas", {"items": [REPLICA]})
    failure = {
        "agent": "research",
        "replica": REPLICA["id"],
        "kind": "crashed",
        "action": "restart",
        "reason": "x" * 99,
    }
    fake.put("GET /v1/failures", {"items": [failure | {"at": AT, "recovered_by": "research-4"}]})
    alert = {"id": "agent-research", "kind": "quarantined", "severity": "critical", "state": "firing", "first_at": AT}
    fake.put("GET /v1/alerts", {"items": [alert | {"reason": "it died " * 20}]})
    fake.put("GET /v1/silences", {"items": [SILENCE]})
    rule = {"name": "slow_tasks", "signal": "run_p95_s", "agents": ["*"], "except_agents": ["batch-" * 9], "above": 60}
    fake.put("GET /v1/alerts/rules", {"items": [rule | {"window_s": 600, "for_s": 60, "severity": "warning"}]})
    advice = {"id": 7, "rule": "more-replicas", "agent": "research", "state": "open", "opened_at": AT, "before": 9.5}
    fake.put("GET /v1/advice", {"items": [advice | {"what": "have more " * 20, "why": "w" * 99, "expected": "much"}]})
    seen = {"count": 123_456, "mean_s": 1.5, "p50_s": 1.234, "p95_s": 7_200.0}
    bucket = {"at": AT, "attempts": 123_456, "judged": 100_000, "errors": 50_000, "retries": 9, "tokens": 10**9}
    seen_too = {**seen, "p50_s": 0.0287, "p95_s": 0.0}
    bucket |= {"run": seen, "wait": seen_too, "response": seen}
    fake.put("GET /v1/agents/research/history", {"items": [bucket, bucket | {"run": seen_too, "wait": None}]})
    fake.put("GET /v1/agents/research/health", HEALTH)
    fake.put("GET /v1/logs", {"items": [LINE]})
    fake.put("GET /v1/sessions", {"items": [{"id": "s-1", "agent": "research", "tasks": 3, "updated_at": AT}]})
    fake.put("GET /v1/sessions/s-1", {"id": "s-1", "agent": "research", "state": {"n": 1}})
    fake.put("GET /v1/keys", {"items": [{"id": "k1", "name": "ci", "role": "user", "created_at": AT}]})
    entry = {
        "seq": 1234,
        "at": AT,
        "action": "agent.deploy",
        "outcome": "done",
        "object": "agent:research",
        "actor": "k1",
    }
    erased = entry | {"seq": 1233, "object": None, "actor": None, "is_erased": True}
    fake.put("GET /v1/audit", {"items": [entry | {"source": "2001:db8::7"}, erased]})
    fake.put("GET /v1/security", REPORT)
    fake.put(
        "GET /v1/status",
        {
            "environment": "development",
            "grade": "degraded",
            "grade_reason": "research: its tasks took 12.0 s on average",
            "node": {"id": "node-1", "state": "ready"},
            "agents": [
                {
                    "name": "research",
                    "state": "ready",
                    "replicas": {"ready": 2, "desired": 2},
                    "tasks": {"x": 1},
                }
            ],
            "tasks": {"queued": 3, "running": 1},
        },
    )


LINE = {"seq": 7, "at": AT, "level": "warning", "agent": "research", "replica": "research-1", "task": TASK_ID} | {
    "source": "stderr",
    "logger": "tools.search",
    "text": "it is\tslow",
}
READ_VERBS: list[list[str]] = [
    ["tasks", "ls"],
    ["tasks", "show", TASK_ID],
    ["agents"],
    ["agents", "research"],
    ["replicas"],
    ["failures"],
    ["alerts", "ls"],
    ["alerts", "silences"],
    ["alerts", "rules"],
    ["advice"],
    ["history", "research"],
    ["health"],
    ["health", "research"],
    ["logs", "-n", "1"],
    ["sessions", "ls"],
    ["sessions", "show", "s-1"],
    ["keys", "ls"],
    ["status"],
]


@pytest.mark.parametrize("argv", READ_VERBS, ids=" ".join)
def test_every_read_verb_prints_json_and_nothing_else(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    put_lists(fake)
    code, out, err = run(capsys, *argv, "--json")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)
    assert out.count("\n") == 1


@pytest.mark.parametrize("argv", READ_VERBS, ids=" ".join)
def test_every_table_fits_80_columns_with_its_ids_whole(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    put_lists(fake)
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert "\x1b" not in out
    if argv[-1] == "ls" or len(argv) == 1:
        assert all(len(line.rstrip()) <= 80 for line in out.splitlines()), out
        wanted = {
            "tasks": TASK_ID,
            "agents": "broken",
            "replicas": str(REPLICA["id"]),
            "failures": str(REPLICA["id"]),
            "alerts": "agent-research",
            "advice": "more-replicas",
            "sessions": "s-1",
            "keys": "k1",
            "audit": "1234",
        }
        assert wanted.get(argv[0], "research") in out


def test_the_status_tells_on_a_line_what_replicas_use_and_what_to_do_about_advice(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = {"limit": 1.5, "enforced": "affinity", "used": 0.25, "pct": 16.7}
    memory = {"limit": None, "enforced": "off", "used": None, "pct": None}
    held = {"cpu": cpu, "memory_mb": memory, "warnings": ["cluster.cpu = 1.5 is enforced as 2"]}
    fake.put("GET /v1/status", {"environment": "development", "resources": held, "advice": 2})
    out = run(capsys, "status")[1]
    assert "0.25 of 1.5 CPUs (affinity), ? MB\n" in out
    assert "warning: cluster.cpu = 1.5 is enforced as 2" in out
    assert "2 open; next: greenroom advice" in out


def test_lines_of_the_logs_are_in_order_and_command_no_terminal(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = LINE | {"seq": 8, "text": "\x1b[2J two\r\nlines \u202e", "logger": None, "level": "error"}
    told = LINE | {"seq": 9, "source": "greenroom", "task": None, "logger": None, "level": "info", "text": "ready"}
    fake.put("GET /v1/logs", {"items": [told, hostile], "next_cursor": "8"}, {"items": [LINE]})
    code, out, err = run(capsys, "logs", "--agent", "research", "-n", "3", "--level", "info", "--since", "2h")
    assert (code, err) == (0, "")
    first, second, third = out.splitlines()
    assert first.endswith(f"warning   research-1  {TASK_ID}  tools.search: it is   slow")
    assert second.endswith(f"error     research-1  {TASK_ID}  �[2J two��lines �")
    assert third.endswith("info      research-1  ready")
    assert (fake.last.query_params["cursor"], fake.last.query_params["limit"]) == ("8", "1")
    assert fake.last.query_params["agent"] == "research"
    run(capsys, "logs", "--task", TASK_ID)
    assert TASK_ID not in run(capsys, "logs", "--task", TASK_ID)[1]


def test_logs_are_followed_as_a_document_a_line(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    def sent(seq: int) -> bytes:
        return b"id: %d\nevent: line\ndata: %s\n\n" % (seq, json.dumps(LINE | {"seq": seq}).encode())

    fake.stream(sent(7), sent(8)[:40])
    fake.stream(sent(7) + b": still here\n\n" + sent(8), sent(9))
    fake.streams.append(problem(403, "forbidden", "you are locked"))
    code, out, err = run(capsys, "logs", "--follow", "--json", "--replica", "research-1", "-n", "5")
    assert code == 1
    assert "you are locked" in err
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [7, 8, 9]
    assert [request.headers.get("last-event-id") for request in fake.asked("GET /v1/logs/stream")] == [None, "7", "9"]
    assert dict(fake.last.query_params) == {"replica": "research-1", "limit": "5", "follow_s": "3600"}


def test_logs_without_a_line_say_so_and_what_cannot_be_asked_is_told(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("GET /v1/logs", {"items": []})
    code, out, err = run(capsys, "logs")
    assert (code, out) == (0, "")
    assert "no line" in err
    code, _, err = run(capsys, "logs", "--since", "yesterday")
    assert code == 2
    assert "give 90s, 15m, 2h, 3d, or an instant" in err
    assert run(capsys, "logs", "--level", "loud")[0] == run(capsys, "logs", "-n", "0")[0] == 2


@pytest.mark.parametrize(("hours", "step_s"), [(1, 60), (2, 300), (24, 900), (25, 3600), (720, 86_400)])
def test_history_is_asked_for_in_steps_that_fit_a_screen(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], hours: int, step_s: int
) -> None:
    put_lists(fake)
    out, err = run(capsys, "history", "research", "--hours", str(hours))[1:]
    assert re.search(r"^\d\d-\d\d \d\d:\d\d  123456", out, re.MULTILINE), out
    for words in ("50000 (50 %)", "1.23s", "28.7ms", " 0s ", "2h", "1000000000"):
        assert words in out
    assert "quantiles are within 10 %" in err
    assert fake.last.query_params["step_s"] == str(step_s)
    since = datetime.fromisoformat(fake.last.query_params["since"])
    assert abs((datetime.now(UTC) - since).total_seconds() - hours * 3600) < 60
    run(capsys, "history", "research", "--hours", str(hours), "--step-s", "86400")
    assert fake.last.query_params["step_s"] == "86400"


def test_what_has_a_price_says_what_it_cost_and_what_has_none_says_nothing(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    for cost_usd, told in ((1.5, "$1.50"), (0, "$0"), (None, None)):
        usage = {"input_tokens": 12, "output_tokens": 34, "cost_usd": cost_usd}
        fake.put(f"GET /v1/tasks/{TASK_ID}", task("succeeded", usage=usage))
        bucket = {"at": AT, "attempts": 1, "tokens": 46, "cost_usd": cost_usd}
        fake.put("GET /v1/agents/research/history", {"items": [bucket]})
        shown = [run(capsys, *words)[1] for words in (("tasks", "show", TASK_ID), ("history", "research"))]
        if told is None:
            assert not [each for each in shown if "cost" in each.lower() or "$" in each]
        else:
            assert [told in each and "cost" in each.lower() for each in shown] == [True, True], shown


def test_an_agent_that_has_done_nothing_says_what_to_do(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/agents/research/history", {"items": []})
    code, out, err = run(capsys, "history", "research")
    assert (code, out, "give more --hours" in err) == (0, "", True)
    assert run(capsys, "history", "research", "--step-s", "61")[0] == 2


def test_the_health_of_an_agent_says_what_it_is_graded_by_and_what_is_left_of_its_budgets(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    put_lists(fake)
    out, err = run(capsys, "health", "research")[1:]
    for words in (
        "research-2  degraded: slow",
        "5 % of 40 attempts in 5m; degraded from 10 % on, unhealthy from 30 %",
        "12s on average of 40 tasks, 500ms of it waiting; degraded from 10 s on, unhealthy from 30 s",
        "99 % succeed  ",
        "98.38 %",
        "-62 %",
        "95 % within 5 s (measured as 5.66 s)",
        "alerts: page",
    ):
        assert words in out, out
    assert "over 30 days" in err
    recent = {"grade": "unknown", "window_s": 60.0, "degraded_error_pct": None}
    fake.put("GET /v1/agents/research/health", {**HEALTH, "slo": None, "recent": recent, "replicas": []})
    out, err = run(capsys, "health", "research")[1:]
    assert "no attempt has ended in 1m; not graded by it" in out
    assert "next: give it one, in [agents.research.slo]" in err


def test_the_health_of_the_system_leaves_out_who_may_not_be_observed(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    put_lists(fake)
    agents = [{"name": "research"}, {"name": "others"}, {"name": "gone"}]
    fake.put("GET /v1/status", {"grade": "degraded", "grade_reason": "", "agents": agents})
    fake.put("GET /v1/agents/others/health", problem(403, "forbidden", "no"))
    fake.put("GET /v1/agents/gone/health", problem(404, "not-found", "no"))
    code, out, _ = run(capsys, "health")
    assert code == 0
    assert out.startswith("degraded\n")
    assert re.search(r"^research +degraded +5 % +12s +-62 % +its tasks", out, re.MULTILINE), out
    assert [each["agent"] for each in json.loads(run(capsys, "health", "--json")[1])["agents"]] == ["research"]


def test_the_status_says_how_the_system_is_and_why(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    put_lists(fake)
    out = run(capsys, "status")[1]
    assert re.search(r"^health +degraded: research: its tasks took 12.0 s on average$", out, re.MULTILINE), out


def test_advice_says_what_to_do_next_and_what_was_measured(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    done = {"id": 6, "rule": "memory-fattest", "state": "measured", "metric": "memory_pct", "before": 85.0}
    still = {"id": 7, "rule": "idle", "agent": "research", "state": "open", "what": "keep 1 replica"}
    measured = done | {"after": 71.2, "outcome": "better by 16 %"}
    fake.put("GET /v1/advice", {"items": [still, measured], "next_cursor": "6"})
    code, out, err = run(capsys, "advice", "--limit", "2")
    assert (code, "memory-fattest" in out) == (0, True)
    assert "next: keep 1 replica\n" in err
    assert "more: greenroom advice --cursor 6" in err
    fake.put("GET /v1/advice", {"items": []})
    assert "no advice" in run(capsys, "advice")[2]


def test_where_no_screen_is_nothing_is_cut(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_lists(fake)
    monkeypatch.delenv("COLUMNS")
    assert "x" * 300 in run(capsys, "tasks", "ls")[1]


def test_a_failed_agents_reason_and_more_pages_are_said(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    put_lists(fake)
    assert "broken: no module named x" in run(capsys, "agents")[2]
    assert "--cursor 77" in run(capsys, "tasks", "ls")[2]


@pytest.mark.parametrize("verb", ["agents", "status"])
def test_an_agent_that_is_not_well_says_why(fake: FakeNode, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    put_lists(fake)
    sick = agent("sick", grade="degraded", grade_reason="sick-1: its event loop answers after 1.5 s")
    well = agent("well", grade="healthy", grade_reason="it answers")
    fake.put("GET /v1/agents", {"items": [sick, well]})
    fake.put("GET /v1/status", {"agents": [sick, well]})
    _, out, err = run(capsys, verb)
    assert [line.split()[:3] for line in out.splitlines() if line.startswith(("sick", "well"))] == [
        ["sick", "ready", "degraded"],
        ["well", "ready", "healthy"],
    ]
    assert err == "sick: sick-1: its event loop answers after 1.5 s\n"


@pytest.mark.parametrize("verb", ["agents", "status"])
def test_an_agent_whose_tasks_wait_says_until_when_and_why(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    put_lists(fake)
    down = {"state": "open", "reason": "20 of 20 attempts failed", "until": LATER}
    some = [
        agent("down", breaker=down),
        agent("tried", breaker=down | {"state": "half_open", "until": None}),
        agent("well", breaker={"state": "closed", "reason": None, "until": None}),
        agent("old"),
    ]
    fake.put("GET /v1/agents", {"items": some})
    fake.put("GET /v1/status", {"agents": some})
    first, second = run(capsys, verb)[2].splitlines()
    assert first.startswith("down: its circuit breaker is open until 2026-01-0")
    assert first.endswith(", its tasks wait: 20 of 20 attempts failed")
    assert second == "tried: its circuit breaker is half-open, some tasks are tried: 20 of 20 attempts failed"
    fake.put("GET /v1/agents/research", agent(breaker=down))
    assert "its circuit breaker is open until" in run(capsys, "agents", "research")[1]
    fake.put("GET /v1/agents/research", agent())
    assert "breaker" in run(capsys, "agents", "research")[1]


def test_one_agent_is_shown_with_its_grade(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/agents/research", agent(grade="unknown", grade_reason="health checks are off"))
    out = run(capsys, "agents", "research")[1]
    assert "unknown" in out
    assert "health checks are off" in out


def test_empty_lists_say_so(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/tasks", {"items": []})
    assert run(capsys, "tasks", "ls") == (0, "", "no tasks\n")
    assert run(capsys, "tasks", "ls", "--json") == (0, '{"items":[],"next_cursor":null}\n', "")


def test_what_agents_write_cannot_command_the_terminal(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put(f"GET {TASK}", task(output="\x1b]0;owned\x07\x1b[31mred [bold]markup[/bold]\u202e\nsecond line"))
    _, out, _ = run(capsys, "tasks", "show", TASK_ID)
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[bold]markup[/bold]" in out
    assert "second line" in out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (1.25, "1.2s"), (59, "59s"), (3599, "59m"), (86400, "1d"), (1e6, "11d")],
)
def test_spans_are_short(seconds: float, text: str) -> None:
    assert render.span(seconds) == text


# Following a task


def test_watching_prints_the_events_and_the_output(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.stream(
        event(1, "state", {"state": "running"}),
        event(2, "message", {"source": "research", "content": "two\nlines \x1b[2J"}),
        event(3, "progress", {"done": 1, "of": 2}),
        event(4, "state", {"state": "succeeded"}),
    )
    fake.put(f"GET {TASK}", task())
    code, out, err = run(capsys, "tasks", "watch", TASK_ID)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=1)[1] for line in out.splitlines()[:4]]
    assert lines == [
        "state     running",
        "message   research: two lines �[2J",
        'progress  {"done":1,"of":2}',
        "state     succeeded",
    ]
    assert out.splitlines()[4:] == ["All is well."]


def test_watching_a_task_that_fails_exits_with_one_and_json_is_a_line_an_event(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.stream(event(1, "state", {"state": "failed"}))
    fake.put(f"GET {TASK}", task("failed"))
    code, out, _ = run(capsys, "tasks", "watch", TASK_ID, "--json")
    assert code == 1
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [1]


@pytest.mark.slow
def test_interrupting_a_watch_leaves_the_task_and_exits_with_130(fake: FakeNode) -> None:
    fake.put(f"GET {TASK}", task("running"))
    fake.stream(event(1, "state", {"state": "running"}))
    fake.streams += [[] for _ in range(1000)]  # connections that end at once: the command goes on asking
    program = "import sys; from greenroom.cli.main import main; sys.exit(main())"
    watching = subprocess.Popen(
        [sys.executable, "-c", program, "tasks", "watch", TASK_ID],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    try:
        assert watching.stdout is not None
        assert "running" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        _, err = watching.communicate(timeout=20)
    finally:
        watching.kill()
    assert watching.returncode == 130
    assert "goes on" in err
    assert "Traceback" not in err


# Scaling

DECISION = {
    "from_replicas": 1,
    "to_replicas": 10,
    "rule": "burst",
    "reason": "from 1 to 10: 200 tasks wait",
    "by": "autoscaler",
    "at": "2026-01-01T00:00:00Z",
}


def _scaling(**changes: Any) -> dict[str, Any]:
    known = {"agent": "research", "is_automatic": True, "max_replicas": 10, "replicas": 10, "ready": 4, "waiting": 12}
    return known | {"latest": DECISION, "items": [DECISION]} | changes


def _loads(count: int) -> dict[str, Any]:
    load = {"arrivals": 50, "ends": 50, "run_s": 1.0, "waiting": 3, "busy": 5.0, "replicas": 6, "start_s": 0.05}
    at = [f"2026-01-01T00:{place // 6:02}:{place % 6}0Z" for place in range(count)]
    return {"items": [load | {"at": each} for each in at]}


def test_explain_says_how_it_stands_and_why(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/agents/research/scaling", _scaling(), _scaling(is_automatic=False), _scaling())
    code, out, _ = run(capsys, "scale", "explain", "research")
    assert code == 0
    first = " ".join(out.split("\n\n")[0].split())
    assert first.startswith("research has 4 of 10 replicas ready; 12 tasks wait")
    assert "automatically between 1 and 10" in first
    assert "from 1 to 10: 200 tasks wait" in first
    assert "1 -> 10" in out
    assert "set by hand" in run(capsys, "scale", "explain", "research")[1]
    assert json.loads(run(capsys, "scale", "explain", "research", "--json")[1])["latest"]["rule"] == "burst"


@pytest.mark.parametrize("columns", ["40", "80"])
def test_explain_cuts_no_reason(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    reason = (
        "stays at 3: 60 tasks wait, 3 of 3 slots busy; cluster.max_replicas is 6, b wants 6, and its fair share is 3"
    )
    decision = DECISION | {"reason": reason, "rule": "stabilising"}
    fake.put("GET /v1/agents/research/scaling", _scaling(latest=None, items=[decision]))
    _, out, _ = run(capsys, "scale", "explain", "research")
    assert all(len(line.rstrip()) <= int(columns) for line in out.splitlines()), out
    assert "…" not in out
    told = out.split("\n\n")[1]
    assert all(word in told for word in reason.split())


def test_alerts_are_listed_with_the_begin_of_a_long_reason(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    alert = {"id": "a", "kind": "k", "severity": "warning", "state": "firing", "reason": "word " * 300, "count": 1}
    fake.put("GET /v1/alerts", {"items": [alert]})
    out = run(capsys, "alerts", "ls")[1]
    assert 30 <= out.count("word") <= 40
    assert run(capsys, "alerts", "ls", "--json")[1].count("word") == 300


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"replicas": 0, "ready": 0, "waiting": 1}, "research is asleep; 1 task waits, 0 of 0 slots busy"),
        ({"replicas": 0, "ready": 2, "waiting": 0}, "research goes to sleep when 2 replicas are gone; no tasks wait"),
        ({"replicas": 0, "beside": 2, "ready": 2}, "research has 2 of 2 replicas ready, 2 of them for its rollout"),
        (
            {"replicas": 1, "ready": 1, "busy": 1, "slots": 1},
            "has 1 of 1 replica ready; 12 tasks wait, 1 of 1 slot busy",
        ),
    ],
)
def test_explain_counts_as_people_do(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    fake.put("GET /v1/agents/research/scaling", _scaling(**changes))
    assert said in " ".join(run(capsys, "scale", "explain", "research")[1].split())


@pytest.mark.parametrize("columns", ["40", "200"])
def test_simulate_draws_both_on_any_screen(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    fake.put("GET /v1/agents", {"items": [agent()]})
    fake.put("GET /v1/agents/research", agent())
    fake.put("GET /v1/agents/research/scaling", _scaling())
    fake.put("GET /v1/agents/research/load", _loads(60))
    change = ("--set", "scaling.max_replicas=3")
    code, out, err = run(capsys, "scale", "simulate", "--from-history", *change)
    assert code == 0
    for words in ("load", "present replicas", "other replicas", "other waiting", "wait, p95", "replica hours", "█"):
        assert words in out
    assert "scaling.max_replicas=3" in err
    found = json.loads(run(capsys, "scale", "simulate", "research", "--from-history", *change, "--json")[1])
    assert found["other"]["most_replicas"] <= 3 < found["present"]["most_replicas"]
    assert found["other"]["wait_p95_s"] > found["present"]["wait_p95_s"]
    assert dict(fake.last.query_params) == {"hours": "24"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("research",), "--from-history"),
        (("research", "--from-history", "--set", "timeout_s=3"), "scaling.KEY=NUMBER"),
        (("research", "--from-history", "--set", "scaling.max_replicas=many"), "no number"),
        (("research", "--from-history", "--set", "scaling.max_replicas=0"), "max_replicas"),
        (("research", "--from-history", "--set", "scaling.nothing=1"), "nothing"),
    ],
)
def test_what_cannot_be_simulated_is_a_usage_error(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    fake.put("GET /v1/agents/research", agent())
    fake.put("GET /v1/agents/research/scaling", _scaling())
    fake.put("GET /v1/agents/research/load", _loads(1))
    code, _, err = run(capsys, "scale", "simulate", *words)
    assert (code, told in err) == (2, True), err


def test_without_recorded_load_there_is_nothing_to_replay(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/agents/research", agent())
    fake.put("GET /v1/agents/research/scaling", _scaling())
    fake.put("GET /v1/agents/research/load", {"items": []})
    code, _, err = run(capsys, "scale", "simulate", "research", "--from-history")
    assert (code, "no load was recorded" in err) == (0, True)


# Doing


def test_the_verbs_that_change_something(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put(f"POST {TASK}/cancel", task("cancelled"))
    fake.put(f"POST {TASK}/retry", task("queued", id="another"))
    fake.put("DELETE /v1/sessions/s", Response(status_code=204))
    fake.put("PATCH /v1/agents/research/scale", agent(replicas={"desired": 3, "ready": 2}))
    fake.put(f"POST /v1/replicas/{REPLICA['id']}/restart", REPLICA | {"state": "draining"})
    fake.put(f"POST /v1/replicas/{REPLICA['id']}/drain", REPLICA | {"state": "draining", "busy": 0})
    fake.put("POST /v1/agents/research/release", agent(state="starting"))
    fake.put("POST /v1/alerts/a/ack", {"id": "a", "kind": "k", "state": "acknowledged", "acknowledged_by": "owner"})
    fake.put("POST /v1/silences", SILENCE)
    fake.put("DELETE /v1/silences/sil_1", Response(status_code=204))
    fake.put("POST /v1/keys", {"id": "k", "name": "ci", "role": "user", "key": "gr_dev_secret"})
    fake.put("DELETE /v1/keys/k", Response(status_code=204))

    def out(*argv: str) -> str:
        code, printed, _ = run(capsys, *argv)
        assert code == 0
        return printed

    assert "cancelled" in out("tasks", "cancel", TASK_ID)
    assert "another" in out("tasks", "retry", TASK_ID)
    assert "removed" in out("sessions", "rm", "s")
    assert "3 replicas wanted, 2 ready" in out("scale", "research", "3")
    name = f"replica {REPLICA['id']} of research: draining; it"
    restarted = out("replicas", "restart", str(REPLICA["id"]))
    assert restarted == f"{name} finishes its tasks (1 running), and another takes its place\n"
    assert out("replicas", "drain", str(REPLICA["id"])) == f"{name} goes, and another takes its place\n"
    assert out("agents", "release", "research").endswith("judged anew; its replicas are started\n")
    fake.put("POST /v1/agents/research/release", agent(state="ready"))
    assert out("agents", "release", "research").endswith("judged anew; its circuit breaker is closed\n")
    assert out("alerts", "ack", "a") == "alert a: acknowledged, taken by owner\n"
    silenced = out("alerts", "silence", "--kind", "slow_*", "--for", "90m", "--comment", "a known one")
    assert silenced == "silence sil_1: kind=slow_* until 2030-01-01 01:30:00 UTC\n"
    assert fake.last_body == {"kind": "slow_*", "for_s": 5400.0, "comment": "a known one"}
    assert out("alerts", "unsilence", "sil_1") == "silence sil_1: ended\n"
    assert out("keys", "create", "ci") == "gr_dev_secret\n"
    assert fake.last_body == {"name": "ci", "role": "user"}
    assert "revoked" in out("keys", "revoke", "k")
    fake.put("POST /v1/audit/erase", {"entries": 7, "is_more": False})
    assert out("audit", "erase", "k", "--tenant", "acme") == "7 entries of k: erased\n"
    assert fake.last_body == {"actor": "k", "tenant": "acme"}
    fake.put("POST /v1/security/unlock", Response(status_code=204))
    assert out("security", "unlock", "source:192.0.2.1") == "source:192.0.2.1: let in again\n"
    assert fake.last_body == {"subject": "source:192.0.2.1"}
    scopes = ("--scope", "task:submit on agent:research", "--scope", "task:read")
    out("keys", "create", "ci", "--role", "viewer", *scopes, "--expires", "30d", "--tenant", "acme")
    assert fake.last_body == {
        "name": "ci",
        "role": "viewer",
        "scopes": ["task:submit on agent:research", "task:read"],
        "expires_in_s": 30 * 86_400.0,
        "tenant": "acme",
    }
    fake.put("POST /v1/shutdown", {"node": "node-1", "state": "draining"})
    assert out("shutdown", "--yes").startswith("node node-1: draining")


def test_the_security_report_says_what_to_do_next_and_a_degraded_control_fails_the_doctor(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("GET /v1/security", REPORT)
    code, out, err = run(capsys, "security", "report")
    assert (code, out.splitlines()[0]) == (0, "security: warning: found in the last hour: failed_logins")
    assert "off by setting" in out
    assert any(line.endswith("ago  failed_logins  source:192.0.2.1") for line in out.splitlines()), "whole"
    assert "next: greenroom security unlock source:192.0.2.1" in err
    code, out, _ = run(capsys, "doctor", "--security")
    assert (code, out.splitlines()[0]) == (0, "ok      audit log on: 7 entries were looked at: all sound")
    degraded = {"name": "audit log", "state": "degraded", "why": "entry 7 was changed"}
    fake.put("GET /v1/security", REPORT | {"controls": [degraded]})
    code, out, _ = run(capsys, "doctor", "--security")
    assert (code, "failed  audit log degraded: entry 7 was changed" in out) == (1, True)


def test_cancelling_what_has_ended_fails(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put(f"POST {TASK}/cancel", problem(409, "conflict", "cannot cancel: it has succeeded"))
    code, _, err = run(capsys, "tasks", "cancel", TASK_ID)
    assert (code, err) == (1, "error: cannot cancel: it has succeeded\n")


# Manifest and machine


def test_init_writes_a_manifest_that_is_valid_and_an_agent_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "init")
    assert (code, out) == (0, "wrote greenroom.toml\nwrote agents.py\n")
    assert "next: greenroom up" in err
    code, out, _ = run(capsys, "config", "validate")
    assert (code, out) == (0, "greenroom.toml is valid: development, 1 agent\n")
    written: dict[str, Any] = {}
    exec(compile((tmp_path / "agents.py").read_text(), "agents.py", "exec"), written)
    assert "hello" in written


def test_init_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agents.py").write_text("mine")
    code, _, err = run(capsys, "init")
    assert code == 1
    assert "agents.py: it is there already" in err
    assert not (tmp_path / "greenroom.toml").exists()
    assert run(capsys, "init", "new/folder")[0] == 0


def test_config_show_has_an_origin_for_every_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GREENROOM_CLUSTER__MAX_REPLICAS", "7")
    cli.main(["init"])
    capsys.readouterr()
    _, out, _ = run(capsys, "config", "show", "--json")
    rows = {row["path"]: row for row in json.loads(out)["items"]}
    assert rows["cluster.max_replicas"] == {
        "path": "cluster.max_replicas",
        "value": 7,
        "origin": "GREENROOM_CLUSTER__MAX_REPLICAS",
    }
    assert rows["agents.hello.factory"]["origin"] == "greenroom.toml"
    assert "GREENROOM_CLUSTER__MAX_REPLICAS" in run(capsys, "config", "show")[1]


def test_every_mistake_of_the_manifest_is_listed_and_exits_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greenroom.toml").write_text('environment = "prod"\n[cluster]\nmax_replicas = 0\n')
    for argv in (["config", "validate"], ["up"]):
        code, out, err = run(capsys, *argv)
        assert (code, out) == (2, "")
        assert "environment:" in err
        assert "cluster.max_replicas:" in err
    code, out, _ = run(capsys, "config", "validate", "--json")
    assert code == 2
    assert [problem["path"] for problem in json.loads(out)["problems"]] == [
        "environment",
        "cluster.max_replicas",
    ]


def test_doctor_says_what_each_agent_is_taken_for(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["init"])
    capsys.readouterr()
    failed = agent("broken", state="failed", reason="no module named x")
    dropped = agent("gone", state="dropped", reason="it is not in the manifest")
    fake.put("GET /v1/agents", {"items": [agent(), failed, dropped]})
    code, out, _ = run(capsys, "doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(out)["items"]}
    assert code == 1
    assert findings["agent research"]["found"] == "an AutoGen agent"
    assert findings["agent broken"]["result"] == "failed"
    assert (findings["agent gone"]["result"], findings["agent gone"]["found"]) == ("warn", "it is not in the manifest")
    assert findings["manifest"]["result"] == "ok"
    assert {"python", "kernel", "sqlite", "isolation", "pidfd", "node"} <= set(findings)


AGENTS = """
import os

class Research:
    def __init__(self, model):
        self.model = model

    def execute_task(self, payload):
        return payload

def broken():
    os.environ["FORGOTTEN_API_KEY"]
"""
MANIFEST = """
[agents.research]
factory = "team:Research"
arguments = { model = "m" }
[agents.broken]
factory = "team:broken"
env = ["FORGOTTEN_API_KEY"]
[agents.missing]
factory = "nothing_here:agent"
[agents.bare]
factory = "team:Research"
arguments = { model = "m" }
include = ["prompts/*.txt"]
"""


@pytest.mark.slow
@pytest.mark.usefixtures("nowhere")
def test_doctor_without_a_node_tries_each_agent_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "team.py").write_text(AGENTS)
    (tmp_path / "greenroom.toml").write_text(MANIFEST)
    code, out, _ = run(capsys, "doctor", "--json")
    findings = {finding["check"]: finding for finding in json.loads(out)["items"]}
    assert code == 1
    assert findings["node"]["result"] == "warn"
    assert "start it with greenroom up" in findings["node"]["found"]
    took = findings["agent research"]
    assert (took["result"], took["found"]) == (
        "ok",
        "team:Research is a class: an instance for each task; it builds a function, or an object with execute_task",
    )
    for name, words in {
        "broken": "FORGOTTEN_API_KEY is in the agent's `env`, and the node does not have it",
        "missing": "No module named 'nothing_here'",
        "bare": "prompts/*.txt",
    }.items():
        assert findings[f"agent {name}"]["result"] == "failed"
        assert words in findings[f"agent {name}"]["found"]
    assert {path.name for path in tmp_path.iterdir()} == {"team.py", "greenroom.toml"}


@pytest.mark.slow
@pytest.mark.usefixtures("nowhere")
def test_doctor_is_content_with_what_init_writes(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["init"])
    capsys.readouterr()
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "agents:hello is the agent itself" in out


@pytest.mark.usefixtures("nowhere")
def test_doctor_tries_nothing_of_a_manifest_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "greenroom.toml").write_text(MANIFEST + "[cluster]\nmax_replica = 1")
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "max_replica" in out
    assert "agent research" not in out


# Help


def test_help_lists_the_verbs_and_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for verb, _, summary in cli.VERBS:
        assert verb in out
        code, shown, _ = run(capsys, verb, "--help")
        assert code == 0
        assert summary.removesuffix(".") in " ".join(shown.split())


@pytest.mark.slow
def test_a_node_that_starts_imports_nothing_of_what_may_be_off() -> None:
    program = (
        "import sys, greenroom.cli.node, greenroom.node.composition\n"
        "late = {'apprise', 'jinja2', 'opentelemetry', 'requests', 'rich.live', 'autogen', 'autogen_core'}\n"
        "sys.exit(' '.join(late & set(sys.modules)) or None)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_help_is_quick_and_imports_no_web_library() -> None:
    program = (
        "import sys; from greenroom.cli.main import main; code = main(['--help'])\n"
        "late = {'httpx', 'uvicorn', 'greenroom.settings', 'greenroom.node'}\n"
        "sys.exit(code or bool(late & set(sys.modules)))"
    )
    start_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0
    assert time.monotonic() - start_s < 4.0  # a fifth of a second on an idle machine


def test_a_task_that_was_answered_from_the_cache_says_whose_result_it_has() -> None:
    told = dict(task_commands._facts(models.Task(id="x", state="succeeded", cached_from="y")))
    assert told["from the cache"] == "result of task y"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, None),
        ({"trace_id": "0af7"}, "0af7"),
        ({"trace_id": "0af7", "trace_url": "https://t/0af7"}, "https://t/0af7"),
    ],
)
def test_a_task_says_which_trace_it_is_in(given: dict[str, Any], shown: str | None) -> None:
    told = dict(task_commands._facts(models.Task(id="x", state="succeeded", **given)))
    assert told.get("trace") == shown


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"queued": 3, "running": 1}, "tasks wait for it (3): what may run now wakes it again at once"),
        ({"queued": 0, "running": 2}, "2 of its tasks run, and are ended first; the next task wakes it again"),
    ],
)
def test_to_scale_to_nought_says_what_wakes_it_again(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], shown: dict[str, Any], said: str
) -> None:
    fake.put("PATCH /v1/agents/research/scale", agent(replicas={"desired": 0, "ready": 1}, **shown))
    code, _, err = run(capsys, "scale", "research", "0")
    assert (code, err.splitlines()[0]) == (0, said)


def test_simulate_says_itself_how_far_back_it_can_look(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "scale", "simulate", "research", "--from-history", "--hours", "0")
    assert (code, fake.requests) == (2, [])
    assert "hours" in err
    assert ">= 1" in err


# Webhooks

WEBHOOK = {"id": "wh_0123456789abcdef", "url": "https://hooks.example.com/in", "events": ["task.failed"]}
DELIVERY = {"id": "msg_1", "type": "webhook.test", "state": "pending", "attempts": 0, "created_at": AT}
IN_WEBHOOK = f"/v1/webhooks/{WEBHOOK['id']}"


def test_the_secret_of_a_webhook_is_all_that_is_on_stdout(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/webhooks", WEBHOOK | {"secret": "whsec_x"})
    code, out, err = run(capsys, "webhooks", "add", str(WEBHOOK["url"]), "--events", "task.failed", "task.expired")
    assert (code, out) == (0, "whsec_x\n")
    assert f"next: greenroom webhooks test {WEBHOOK['id']}" in err
    assert fake.last_body["events"] == ["task.failed", "task.expired"]
    run(capsys, "webhooks", "add", str(WEBHOOK["url"]), "--none")
    assert fake.last_body["events"] == []
    assert run(capsys, "webhooks", "add", "x", "--none", "--events", "task.failed")[0] == 2


def test_a_webhook_is_shown_with_its_last_deliveries(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    failed = DELIVERY | {"state": "failed", "status": 500, "attempts": 1}
    fake.put(f"GET {IN_WEBHOOK}", WEBHOOK | {"state": "disabled", "reason": "its receiver answered 410"})
    fake.put(f"GET {IN_WEBHOOK}/deliveries", {"items": [failed], "next_cursor": None})
    code, out, err = run(capsys, "webhooks", "show", str(WEBHOOK["id"]))
    assert code == 0
    assert "its receiver answered 410" in out
    assert "500" in out
    assert f"greenroom webhooks enable {WEBHOOK['id']}" in err


@pytest.mark.parametrize(
    ("ended", "code", "told"),
    [
        ({"state": "delivered", "status": 204}, 0, "taken, answered 204"),
        ({"state": "failed", "status": 404}, 1, "answered 404, and 2xx is expected"),
        ({"state": "failed", "error": "no connection"}, 1, "no connection"),
    ],
)
def test_a_test_says_what_was_answered(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], ended: dict[str, Any], code: int, told: str
) -> None:
    fake.put(f"POST {IN_WEBHOOK}/test", DELIVERY)
    fake.put(f"GET {IN_WEBHOOK}/deliveries", {"items": [DELIVERY | ended], "next_cursor": None})
    found, out, err = run(capsys, "webhooks", "test", str(WEBHOOK["id"]))
    assert found == code
    assert told in out + err


def test_webhooks_are_listed_changed_and_removed(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("GET /v1/webhooks", {"items": [WEBHOOK], "next_cursor": None})
    fake.put(f"PATCH {IN_WEBHOOK}", WEBHOOK | {"state": "disabled"})
    fake.put(f"DELETE {IN_WEBHOOK}", Response(status_code=204))
    id = str(WEBHOOK["id"])
    assert id in run(capsys, "webhooks", "ls")[1]
    assert run(capsys, "webhooks", "disable", id)[1] == f"webhook {id}: disabled\n"
    assert fake.last_body == {"enabled": False}
    assert run(capsys, "webhooks", "rm", id)[1] == f"webhook {id}: removed\n"
