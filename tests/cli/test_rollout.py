"""`greenroom rollout`, and where the other verbs tell of a rollout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_node import AT, LATER, FakeNode, agent, problem, rollout
from greenroom.cli import main as cli

AGENT = "GET /v1/agents/research"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A node with an agent whose canary is on its way, on a screen of 80 columns."""
    node = FakeNode()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("greenroom.cli.following.LOOK_EVERY_S", 0.0)
    with node.serving() as url:
        monkeypatch.setenv("GREENROOM_URL", url)
        monkeypatch.setenv("GREENROOM_KEY", "gr_owner")
        node.put(AGENT, agent(rollout=rollout()))
        yield node


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def words(text: str) -> list[str]:
    """The lines that say something, with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines() if line]


# Showing


def test_the_status_shows_the_last_rollout_of_each_agent_and_what_to_do_about_open_ones(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rollout("rolled_back", agent="writing", id=8, weight_pct=0, reason="7 of its 25 tasks failed, and 2 of 475")
    found = [agent(rollout=rollout()), agent("writing", rollout=done), agent("old")]
    fake.put("GET /v1/agents", {"items": found})
    code, out, err = run(capsys, "rollout", "status")
    assert (code, err) == (0, "next: greenroom rollout status research\n")
    assert words(out)[1] == "research 7 canary 3 -> 4 progressing 2/4 25 % 1/1"
    assert words(out)[2].startswith("writing 8 canary 3 -> 4 rolled back 2/4 0 %")
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines()), out
    assert json.loads(run(capsys, "rollout", "status", "--json")[1])["items"][1]["id"] == 8


@pytest.mark.usefixtures("fake")
def test_one_rollout_is_shown_with_its_stages_and_the_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "rollout", "status", "research")
    assert (code, err) == (0, "next: greenroom rollout abort research\n")
    shown = words(out)
    assert {"state progressing", "traffic 25 % to revision 4", "proven yes", "watched 12s", "by owner"} < set(shown)
    assert shown[shown.index("STAGE TRAFFIC NEW OLD WATCHED") :] == [
        "STAGE TRAFFIC NEW OLD WATCHED",
        "1 5 % 1 4 1m done",
        "2 25 % 1 4 1m now",
        "3 50 % 2 4 1m",
        "4 100 % 4 4 1m",
        "TRAFFIC REVISION TASKS ERRORS REFUSALS SLOW COSTLY",
        "95 % 3 500 2 0 0 0",
        "5 % 4 25 0 0 0 0",
        "75 % 3 120 0 0 0 0",
        "25 % 4 40 0 0 1 0",
    ]


@pytest.mark.parametrize(
    ("found", "mark", "verbs"),
    [
        (rollout("paused", reason="ann looks at it", awaits_promotion=True), "paused", ["promote", "abort"]),
        (rollout("paused", reason="it was paused before its promotion"), "paused", ["resume", "abort"]),
        (rollout("rolled_back", weight_pct=0, reason="it died"), "rolled back", ["history"]),
        (rollout("complete", stage=4, weight_pct=100), "done", ["history"]),
    ],
)
def test_a_stage_is_marked_by_what_became_of_it_and_the_next_step_fits(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], found: dict[str, Any], mark: str, verbs: list[str]
) -> None:
    fake.put(AGENT, agent(rollout=found))
    _, out, err = run(capsys, "rollout", "status", "research")
    stages = [line for line in words(out) if line.startswith(f"{found['stage']} ")]
    assert stages[0].endswith(f"1m {mark}")
    assert err.splitlines() == [f"next: greenroom rollout {verb} research" for verb in verbs]
    assert found.get("reason", "") in out


def test_an_older_rollout_is_shown_by_its_id_with_its_whole_reason(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("GET /v1/rollouts/5", rollout("failed", id=5, reason="Traceback:\n  line 1\n" + "x" * 200))
    code, out, _ = run(capsys, "rollout", "status", "research", "--id", "5")
    assert code == 0
    assert "x" * 200 in out
    fake.put("GET /v1/rollouts/5", rollout("failed", id=5, agent="writing"))
    code, _, err = run(capsys, "rollout", "status", "research", "--id", "5")
    assert (code, err) == (1, "error: cannot show rollout 5: it is of writing, not of research\n")
    assert run(capsys, "rollout", "status", "--id", "5")[0] == 2


def test_the_history_lists_them_with_who_began_them_and_how_long_they_took(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    first = rollout("complete", id=1, from_revision=None, to_revision=1, strategy="first", begun_by="the manifest")
    fake.put("GET /v1/agents/research/rollouts", {"items": [rollout("rolled_back", reason="y" * 99), first]})
    code, out, err = run(capsys, "rollout", "history", "research")
    assert (code, err) == (0, "next: greenroom rollout status research --id 7\n")
    shown = words(out)
    assert shown[1].startswith("7 canary 3 -> 4 rolled back")
    assert " 1.5s owner yyy" in shown[1]
    assert shown[2].startswith("1 first none -> 1 complete")
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines()), out
    assert "y" * 99 in run(capsys, "rollout", "history", "research", "--json")[1]


def test_revisions_are_listed_with_what_became_of_them(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        {"agent": "research", "number": 4, "digest": "d" * 64, "created_at": AT},
        {"agent": "research", "number": 3, "digest": "c" * 64, "created_at": AT, "proven_at": AT},
        {"agent": "research", "number": 2, "digest": "b" * 64, "created_at": AT, "retired_at": LATER},
    ]
    fake.put("GET /v1/agents/research/revisions", {"items": found})
    code, out, _ = run(capsys, "rollout", "revisions", "research")
    assert code == 0
    rows = [line.split() for line in words(out)[1:]]
    assert [(number, state, digest, proven) for number, state, digest, _, proven in rows] == [
        ("4", "stands", "d" * 12, "no"),
        ("3", "serves", "c" * 12, "yes"),
        ("2", "retired", "b" * 12, "no"),
    ]


def test_the_nodes_status_tells_of_open_rollouts_as_much_as_it_says(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = {"id": 7, "state": "progressing", "to_revision": 4, "weight_pct": 25}
    fake.put("GET /v1/status", {"agents": [agent(rollout=brief, tasks={})]})
    code, _, err = run(capsys, "status")
    assert (code, err) == (0, "research: rollout 7 to revision 4, 25 %; next: greenroom rollout status research\n")


@pytest.mark.parametrize("verb", [["status"], ["agents"], ["agents", "research"]], ids=" ".join)
def test_the_verbs_that_show_agents_tell_of_an_open_rollout(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    told = "research: rollout 7 to revision 4, canary 25 %, stage 2/4; next: greenroom rollout status research\n"
    for found, count in ((rollout(), 1), (rollout("complete"), 0), (None, 0)):
        shown = agent(rollout=found)
        fake.put(AGENT, shown)
        fake.put("GET /v1/agents", {"items": [shown]})
        fake.put("GET /v1/status", {"agents": [shown | {"tasks": {}}]})
        code, _, err = run(capsys, *verb)
        assert (code, err.count(told)) == (0, count)


# Deciding


@pytest.mark.parametrize(
    ("verb", "answer", "told", "then"),
    [
        ("promote", rollout(stage=3), "canary 25 %, stage 3/4; it goes on", "status"),
        ("promote", rollout("complete", stage=4), "revision 4 serves everything, after 1.5s", "none"),
        ("pause", rollout("paused", reason="it was paused"), "canary 25 %, stage 2/4, paused: it was paused", "resume"),
        ("resume", rollout(), "canary 25 %, stage 2/4; it goes on", "status"),
        ("abort", rollout("aborted"), "revision 3 serves everything; rollout 7 was aborted", "status"),
    ],
)
def test_people_decide_on_the_last_rollout(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], verb: str, answer: dict[str, Any], told: str, then: str
) -> None:
    fake.put(f"POST /v1/rollouts/7/{verb}", answer)
    code, out, err = run(capsys, "rollout", verb, "research")
    assert code == 0
    assert out.startswith("research: ")
    assert out.endswith(f"{told}\n")
    assert err == ("" if then == "none" else f"next: greenroom rollout {then} research\n")
    assert json.loads(run(capsys, "rollout", verb, "research", "--json")[1])["state"] == answer["state"]


def test_the_stage_that_was_looked_at_is_the_one_that_is_promoted(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put("POST /v1/rollouts/7/promote", rollout(stage=3))
    assert run(capsys, "rollout", "promote", "research")[0] == 0
    assert fake.last_body == {"stage": 2}


def test_what_cannot_be_decided_is_said_as_the_node_says_it(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    why = "cannot promote rollout 7: revision 4 has not proven itself in this stage yet"
    fake.put("POST /v1/rollouts/7/promote", problem(409, "conflict", why))
    assert run(capsys, "rollout", "promote", "research") == (1, "", f"error: {why}\n")


@pytest.mark.parametrize("found", [None, rollout("complete")])
def test_without_an_open_rollout_there_is_nothing_to_abort(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], found: dict[str, Any] | None
) -> None:
    fake.put(AGENT, agent(rollout=found))
    code, out, err = run(capsys, "rollout", "abort", "research")
    assert (code, out, err) == (0, "nothing to abort: research has no open rollout\n", "")
    assert run(capsys, "rollout", "abort", "research", "--json")[0] == 0
    assert [request.method for request, _ in fake.requests] == ["GET", "GET"]


@pytest.mark.parametrize("verb", ["status", "promote", "pause", "resume"])
def test_an_agent_without_a_rollout_is_said_to_have_had_none(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    fake.put(AGENT, agent())
    code, _, err = run(capsys, "rollout", verb, "research")
    assert code == 1
    assert "of research: it has had none; next: greenroom deploy research" in err


# Going back


def test_undoing_goes_back_and_is_followed(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    back: dict[str, Any] = {"from_revision": 4, "to_revision": 2}
    fake.put("POST /v1/agents/research/rollback", rollout(**back))
    fake.put("GET /v1/rollouts/7", rollout(**back, stage=3), rollout("complete", **back))
    code, out, err = run(capsys, "rollout", "undo", "research", "--to", "2")
    assert (code, err) == (0, "")
    assert fake.requests[0][1] == b'{"to":2}'
    assert out.splitlines()[-1] == "research: revision 2 serves everything, after 1.5s"


def test_undoing_is_not_followed_where_nobody_wants_it(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/agents/research/rollback", rollout())
    for how in ("--no-watch", "--watch=no"):
        code, out, _ = run(capsys, "rollout", "undo", "research", how)
        assert code == 0
        assert "it goes on" in out
    assert not fake.asked("GET /v1/rollouts/7")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (rollout("aborted", reason="owner undid it"), "revision 3 serves everything; rollout 7 was aborted"),
        (rollout("complete", to_revision=3), "revision 3 serves everything"),
        (
            rollout("aborted", from_revision=None, weight_pct=100),
            "revision 4 goes on serving, for there was none before; rollout 7 was aborted",
        ),
        (
            rollout("aborted", from_revision=None, weight_pct=0),
            "nothing serves, for there was no revision before; rollout 7 was aborted",
        ),
    ],
)
def test_undoing_at_once_says_what_serves(
    fake: FakeNode, capsys: pytest.CaptureFixture[str], answer: dict[str, Any], told: str
) -> None:
    fake.put("POST /v1/agents/research/rollback", answer)
    fake.put("POST /v1/rollouts/7/abort", answer | {"ended_at": None})
    code, out, _ = run(capsys, "rollout", "undo", "research")
    assert (code, out) == (0, f"research: {told}\n")
    code, out, _ = run(capsys, "rollout", "abort", "research")
    assert (code, out) == (0, f"research: {told}\n")


def test_undoing_that_fails_exits_with_one(fake: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    fake.put("POST /v1/agents/research/rollback", rollout())
    fake.put("GET /v1/rollouts/7", rollout("rolled_back", reason="it died"))
    code, _, err = run(capsys, "rollout", "undo", "research")
    assert code == 1
    assert "revision 4 was rolled back, and 3 serves everything: it died" in err


def test_a_canary_that_waits_for_tasks_says_that_a_person_may_promote_it(
    fake: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.put(AGENT, agent(rollout=rollout(is_proven=True, reason="2 tasks so far; about 23 more are needed")))
    _, _, err = run(capsys, "rollout", "status", "research")
    assert err.splitlines() == [
        "next: greenroom rollout promote research",
        "next: greenroom rollout abort research",
    ]
