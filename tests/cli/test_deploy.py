"""`greenroom deploy`: what it plans, what it begins, and how it tells of the end."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nodes
from fake_node import FakeNode, agent, plan, problem, rollout, route_of
from greenroom.cli import main as cli
from greenroom.engine import archives, snapshots

PLAN, PUT = "PUT /v1/agents/{}?dry_run", "PUT /v1/agents/{}"
ROLLOUT = "GET /v1/rollouts/{}"
MOVES = "research: rollout 7 to revision 4"
MANIFEST = """
[agents.research]
factory = "agents:research"
timeout_s = 60
rollout = { strategy = "canary", weights = [5, 25, 50, 100] }

[agents.writing]
factory = "agents:writing"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A node that the command finds by itself, in a folder with two agents, whose rollouts come through at once."""
    node = FakeNode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("greenroom.cli.following.LOOK_EVERY_S", 0.0)
    (tmp_path / "greenroom.toml").write_text(MANIFEST)
    (tmp_path / "agents.py").write_text("async def research(input): ...\nasync def writing(input): ...\n")
    with node.serving() as url:
        folder = tmp_path / ".greenroom"
        folder.mkdir()
        (folder / "node.json").write_text(json.dumps({"url": url}))
        (folder / "local.key").write_text("gr_owner\n")
        for id, name in ((7, "research"), (8, "writing")):
            node.put(PLAN.format(name), plan(agent=name, digest=digest(tmp_path)))
            node.put(PUT.format(name), agent(name, rollout=rollout(agent=name, id=id)))
            node.put(ROLLOUT.format(id), rollout("complete", agent=name, id=id))
        yield node


def digest(folder: Path) -> str:
    return snapshots.digest_of(folder, include=(), data_dir=folder / ".greenroom")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["deploy", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def put(fake: FakeNode, name: str = "research") -> list[Any]:
    """The bodies with which an agent was deployed."""
    return [json.loads(body) for request, body in fake.requests if route_of(request) == PUT.format(name)]


# Plans


def test_the_plan_is_shown_and_the_rollout_followed_to_its_end(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put(ROLLOUT.format(7), rollout(), rollout(stage=3, weight_pct=50, ready=2), rollout("complete"))
    code, out, err = run(capsys, "research")
    assert (code, err) == (0, "")
    assert [" ".join(line.split()) for line in out.splitlines() if line] == [
        "research: new revision 4 in the place of 3, rolling",
        "SETTING BEFORE AFTER",
        "timeout_s 300.0 60.0",
        "code changed agents.py; added tool_0.py, tool_1.py, tool_2.py, tool_3.py, tool_4.py and 4 more",
        "STAGE TRAFFIC NEW OLD WATCHED",
        "1 50 % 1 2",
        "2 100 % 2 1",
        "at most 1 replica beside its 2 meanwhile",
        f"{MOVES}, canary 25 %, stage 2/4; 1/1 ready; 40 tasks, 0 errors, 1 slow; watched for 60 s",
        f"{MOVES}, canary 50 %, stage 3/4; 2/2 ready; watched for 60 s",
        "research: revision 4 serves everything, after 1.5s",
    ]


def test_all_agents_of_the_manifest_are_deployed_with_their_settings_and_the_code_of_the_plan(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert [line for line in out.splitlines() if "serves everything" in line] == [
        "research: revision 4 serves everything, after 1.5s",
        "writing: revision 4 serves everything, after 1.5s",
    ]
    assert [spec["factory"] for spec in put(fake) + put(fake, "writing")] == ["agents:research", "agents:writing"]
    assert put(fake)[0]["timeout_s"] == 60
    assert put(fake)[0]["rollout"]["weights"] == [5, 25, 50, 100]
    assert not fake.asked("POST /v1/code")
    assert fake.asked(PUT.format("research"))[0].query_params["code"] == digest(Path.cwd())


def test_the_strategy_and_the_hold_can_be_another_for_once(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "research", "--strategy", "blue-green", "--hold-s", "2.5")[0] == 0
    for route in (PLAN, PUT):
        (asked,) = fake.asked(route.format("research"))
        assert (asked.query_params["strategy"], asked.query_params["hold_s"]) == ("blue-green", "2.5")
    assert (put(fake)[0]["rollout"]["strategy"], put(fake)[0]["rollout"]["hold_s"]) == ("canary", 0)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["resarch"], "the agents of greenroom.toml are research, writing"),
        (["--strategy", "red-green"], "red-green"),
        (["--hold-s", "-1"], "agents.research.rollout.hold_s"),
        (["--manifest", "other.toml"], "other.toml"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_node_is_asked(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], argv: list[str], told: str
) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert told in err
    assert not fake.requests


def test_what_serves_already_stays_and_is_not_followed(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    unchanged = plan("stay", digest=digest(Path.cwd()), changes=[], files={}, stages=[])
    fake.put(PLAN.format("research"), unchanged)
    fake.put(PUT.format("research"), agent(rollout=rollout("rolled_back", reason="an older one")))
    code, out, err = run(capsys, "research")
    assert (code, out.strip(), err) == (0, "research: nothing changes: revision 3 serves already", "")
    assert not fake.asked(ROLLOUT.format(7))


@pytest.mark.parametrize(
    ("action", "headline"),
    [("begin", "new revision 4 in the place of 3, rolling"), ("stay", "revision 3 serves and stays")],
)
def test_the_plan_names_the_rollout_that_the_deployment_ends(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], action: str, headline: str
) -> None:
    fake.put(PLAN.format("research"), plan(action, digest=digest(Path.cwd()), changes=[], ends_rollout=5))
    _, out, _ = run(capsys, "research", "--no-watch")
    assert out.splitlines()[:2] == [f"research: {headline}", "rollout 5, which is on its way, is undone"]


def test_one_refused_agent_stops_them_all(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    why = "cannot roll out writing: blue-green needs 10 replicas beside its 10"
    fake.put(PLAN.format("writing"), plan(agent="writing", digest=digest(Path.cwd()), refusal=why))
    code, _, err = run(capsys)
    assert code == 1
    assert err.splitlines() == [f"error: {why}", "nothing was begun, for none of the agents"]
    assert not put(fake)
    assert not put(fake, "writing")


# Trying


def test_a_dry_run_tries_everything_and_changes_nothing(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    tried = plan(digest=digest(Path.cwd()), sessions={"stored": 40, "tried": 12})
    fake.put(PLAN.format("research"), tried)
    code, out, err = run(capsys, "research", "--dry-run")
    assert code == 0
    assert "12 of 40 stored ones were tried, 0 failed" in out
    assert out.endswith("it can be deployed; nothing was changed\n")
    assert err == "next: the same without --dry-run\n"
    assert fake.last.query_params["sessions"] == "true"
    assert not put(fake)


BROKEN = {"error": "cannot import agents:\n no module named x"}
STRANDED = {
    "stored": 40,
    "tried": 40,
    "failed": 12,
    "failures": {f"s{number}": "KeyError: 'a'" for number in range(12)},
}
NAMED = "; ".join(f"s{number}: KeyError: 'a'" for number in range(10))


@pytest.mark.parametrize("how", ["--dry-run", "--sessions"])
@pytest.mark.parametrize(
    ("found", "told"),
    [
        (BROKEN, "cannot deploy research: cannot import agents: no module named x"),
        ({"sessions": STRANDED}, f"cannot take over 12 sessions of research: {NAMED}; and 2 more"),
    ],
)
def test_what_fails_on_trial_is_said_in_a_line_and_nothing_is_begun(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], how: str, found: dict[str, Any], told: str
) -> None:
    fake.put(PLAN.format("research"), plan(digest=digest(Path.cwd()), **found))
    code, _, err = run(capsys, "research", how)
    assert (code, err) == (1, f"error: {told}\n")
    assert not put(fake)


def test_without_a_wish_nothing_is_tried(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "research")[0] == 0
    asked = fake.asked(PLAN.format("research"))
    assert ["sessions" in request.query_params for request in asked] == [False]


# Code


def test_another_code_than_the_nodes_is_brought_once_for_all_agents(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = digest(Path.cwd())
    fake.put("POST /v1/code", {"digest": ours, "files": 1, "bytes": 60})
    for name in ("research", "writing"):
        fake.put(PLAN.format(name), plan(agent=name), plan(agent=name, digest=ours))
    assert run(capsys)[0] == 0
    (archive,) = (body for request, body in fake.requests if route_of(request) == "POST /v1/code")
    assert archives.read(archive, max_files=9, max_bytes=999) == {"agents.py": Path("agents.py").read_bytes()}
    asked = [request.query_params.get("code") for request in fake.asked(PLAN.format("writing"))]
    assert asked == [None, ours]
    assert fake.asked(PUT.format("research"))[0].query_params["code"] == ours


def test_a_node_whose_folder_lacks_what_this_one_has_is_brought_it(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = digest(Path.cwd())
    fake.put("POST /v1/code", {"digest": ours})
    lacking = problem(422, "agent-invalid", "cannot deploy research: rollout.checks names agents:smoke")
    fake.put(PLAN.format("research"), lacking, plan(digest=ours))
    assert run(capsys, "research")[0] == 0


def test_what_the_node_finds_wrong_is_said_where_it_takes_no_code(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "cannot deploy research: rollout.checks names agents:smoke, and there is none"
    fake.put(PLAN.format("research"), problem(422, "agent-invalid", why))
    fake.put("POST /v1/code", problem(403, "forbidden", "cannot take code"))
    assert run(capsys, "research") == (1, "", f"error: {why}\n")


def test_a_node_that_takes_no_code_is_not_deployed_another_one(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put(PLAN.format("research"), plan())
    fake.put("POST /v1/code", problem(403, "forbidden", "cannot take code: server.accept_code is off"))
    code, _, err = run(capsys, "research")
    assert code == 1
    assert f"the code in {Path.cwd()} is not what the node at http://127.0.0.1:" in err
    assert "start the node here, or set server.accept_code = true" in err
    assert not put(fake)


# Following


@pytest.mark.parametrize(
    ("how", "is_followed"),
    [
        ([], True),
        (["--watch"], True),
        (["--watch=yes"], True),
        (["--watch", "yes"], True),
        (["--watch=no"], False),
        (["--watch", "no"], False),
        (["--no-watch"], False),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_watching_can_be_left_out_in_all_ways(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], how: list[str], is_followed: bool, is_named: bool
) -> None:
    code, out, err = run(capsys, *(["research"] if is_named else []), *how)
    assert code == 0
    assert bool(fake.asked(ROLLOUT.format(7))) == is_followed
    assert len(put(fake, "writing")) == (0 if is_named else 1)
    if not is_followed:
        assert "research: rollout 7 to revision 4, canary 25 %, stage 2/4; it goes on" in out
        assert "next: greenroom rollout status research" in err


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            rollout("rolled_back", weight_pct=0, reason="cannot import agents:research:\n  No module named 'x'"),
            "revision 4 was rolled back, and 3 serves everything: cannot import agents:research: No module named 'x'",
        ),
        (
            rollout("failed", from_revision=None, reason="it died"),
            "revision 4 failed, and there was none before: it died",
        ),
        (rollout("aborted", reason="ann undid it"), "rollout 7 to revision 4 was aborted: ann undid it"),
        (rollout("superseded"), "rollout 7 to revision 4 was superseded"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_rollout_that_fails_exits_with_one_and_the_reason_in_one_line(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], end: dict[str, Any], told: str, how: list[str]
) -> None:
    fake.put(ROLLOUT.format(7), rollout(), end)
    code, _, err = run(capsys, "research", *how)
    assert code == 1
    assert err.splitlines() == [
        f"error: cannot deploy research: {told}",
        "next: greenroom rollout status research",
    ]


def test_the_first_failure_ends_the_following_and_the_others_go_on(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put(ROLLOUT.format(7), rollout())
    fake.put(ROLLOUT.format(8), rollout("rolled_back", agent="writing", id=8, reason="it died"))
    code, out, err = run(capsys)
    assert code == 1
    assert "cannot deploy writing: revision 4 was rolled back, and 3 serves everything: it died" in err
    assert out.endswith("research: rollout 7 to revision 4, canary 25 %, stage 2/4; it goes on\n")


@pytest.mark.parametrize(("awaits_promotion", "verb"), [(True, "promote"), (False, "resume")])
def test_a_rollout_that_waits_for_a_person_exits_with_nought_and_says_what_to_do(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], awaits_promotion: bool, verb: str
) -> None:
    paused = rollout("paused", reason="it waits for a promotion", awaits_promotion=awaits_promotion)
    fake.put(ROLLOUT.format(7), rollout(), paused)
    code, out, err = run(capsys, "research")
    assert code == 0
    assert out.splitlines()[-1] == f"{MOVES}, canary 25 %, stage 2/4, paused: it waits for a promotion"
    assert err == f"next: greenroom rollout {verb} research\n"


@pytest.mark.usefixtures("fake")
def test_programs_get_plans_and_rollouts_in_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "research", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert [each["action"] for each in document["plans"]] == ["begin"]
    assert [each["state"] for each in document["rollouts"]] == ["complete"]
    code, out, err = run(capsys, "research", "--json", "--dry-run")
    assert (code, err, json.loads(out).keys()) == (0, "", {"plans"})


def test_a_refusal_on_the_way_says_which_rollouts_go_on(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put(PUT.format("writing"), problem(422, "agent_invalid", "cannot deploy writing: it is broken"))
    code, _, err = run(capsys)
    assert code == 1
    assert err.splitlines() == [
        "error: cannot deploy writing: it is broken",
        "  rollout 7 to revision 4, canary 25 %, stage 2/4 of research goes on",
    ]


NO_ROOM = problem(409, "conflict", "cannot roll out research: 1 are missing")


def test_who_finds_no_room_is_tried_again_when_the_others_are_through(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put(PUT.format("research"), NO_ROOM, NO_ROOM, agent("research", rollout=rollout()))
    code, out, err = run(capsys)
    assert code == 0
    assert "research: no room yet" in err
    assert [line.split(":")[0] for line in out.splitlines() if "serves everything" in line] == ["writing", "research"]
    assert len(put(fake, "research")) == 3
    assert len(put(fake, "writing")) == 1


@pytest.mark.parametrize("how", [[], ["--watch=no"]])
def test_who_can_really_not_be_had_is_told_at_the_end(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    monkeypatch.setattr("greenroom.cli.deploy._room_after_s", lambda _: 0.0)
    fake.put(PUT.format("research"), NO_ROOM)
    code, out, err = run(capsys, *how)
    assert code == 1
    assert err.splitlines()[-1] == "error: cannot roll out research: 1 are missing"
    assert ("it goes on" if how else "serves everything") in out


@pytest.mark.usefixtures("fake")
def test_without_a_node_it_exits_with_three(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENROOM_URL", "http://127.0.0.1:1")
    assert run(capsys)[0] == 3


# With a node


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nodes.Folder]:
    """A folder in which a node runs, with an agent that answers ``one``."""
    made = nodes.Folder(tmp_path / "folder")
    made.manifest('agents.greeting = { factory = "greeting:greet", rollout = { scale_down_delay_s = 0 } }')
    greeting(made, "one")
    monkeypatch.chdir(made.path)
    try:
        yield made
    finally:
        made.close()


def greeting(folder: nodes.Folder, text: str, *, above: str = "") -> None:
    (folder.path / "greeting.py").write_text(f"{above}\n\nasync def greet(input):\n    return {text!r}\n")


def answer(up: nodes.Up) -> Any:
    return up.end_of(up.submit("greeting", "hello"))["output"]


def known(up: nodes.Up) -> tuple[int, int]:
    """The revision that serves, and the newest."""
    newest = up.call("GET", "/v1/agents/greeting/revisions").json()["items"][0]
    return up.call("GET", "/v1/agents/greeting").json()["revision"], newest["number"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["rolling", "blue-green"])
def test_a_changed_folder_is_deployed_and_serves(
    folder: nodes.Folder, capsys: pytest.CaptureFixture[str], strategy: str
) -> None:
    up = folder.up()
    assert answer(up) == "one"
    greeting(folder, "two")
    code, out, err = run(capsys, "--strategy", strategy)
    assert (code, err) == (0, "")
    assert "code  changed greeting.py" in out
    assert "greeting: revision 2 serves everything" in out
    assert (answer(up), known(up)) == ("two", (2, 2))
    code, out, _ = run(capsys, "--strategy", strategy)
    assert code == 0
    assert "nothing changes: revision 2 serves already" in out


@pytest.mark.slow
def test_code_that_cannot_be_imported_exits_with_one_and_its_message_and_the_old_one_serves(
    folder: nodes.Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    up = folder.up()
    greeting(folder, "two", above="import a_module_that_nobody_has")
    code, _, err = run(capsys)
    assert code == 1
    reason, following = err.splitlines()
    assert reason.startswith("error: cannot deploy greeting: revision 2 was rolled back, and 1 serves everything: ")
    assert "No module named 'a_module_that_nobody_has'" in reason
    assert following == "next: greenroom rollout status greeting"
    assert (answer(up), known(up)[0]) == ("one", 1)


@pytest.mark.slow
def test_a_dry_run_tells_what_would_fail_and_changes_nothing(
    folder: nodes.Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    up = folder.up()
    greeting(folder, "two")
    code, out, _ = run(capsys, "--dry-run")
    assert code == 0
    assert "greeting: new revision 2 in the place of 1, rolling" in out
    greeting(folder, "two", above="import a_module_that_nobody_has")
    code, _, err = run(capsys, "--dry-run")
    assert code == 1
    assert "No module named 'a_module_that_nobody_has'" in err
    assert (answer(up), known(up)) == ("one", (1, 1))


PROGRAM = "import sys; from greenroom.cli.main import main; sys.exit(main())"


@pytest.mark.slow
def test_interrupting_leaves_the_rollout_and_says_how_to_look_at_it(fake: FakeNode) -> None:
    fake.put(ROLLOUT.format(7), rollout())
    deploying = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "deploy", "research"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert deploying.stdout is not None
        assert any("stage 2/4" in line for line in deploying.stdout)
        deploying.send_signal(signal.SIGINT)
        _, err = deploying.communicate(timeout=20)
    finally:
        deploying.kill()
    assert deploying.returncode == 130
    assert "rollout 7 of research goes on; next: greenroom rollout status research" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_on_a_terminal_a_table_shows_how_it_goes(fake: FakeNode) -> None:
    fake.put(ROLLOUT.format(7), *[rollout()] * 4, rollout("complete"))
    ours, theirs = pty.openpty()
    deploying = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "deploy", "research"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "COLUMNS": "110", "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        shown = read_all(ours)
        assert deploying.wait(20) == 0
    finally:
        deploying.kill()
        os.close(ours)
    assert "━━──────── " in shown
    assert "40 tasks, 0 errors" in shown
    assert "revision 4 serves everything" in shown


def read_all(descriptor: int) -> str:
    """What comes until the other side closes."""
    read = b""
    while select.select([descriptor], [], [], 20)[0]:
        try:
            read += os.read(descriptor, 65536)
        except OSError:  # Linux's way of saying that nobody has the other side
            break
    return read.decode()
