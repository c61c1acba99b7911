"""The audit log of a real node: killed while it writes, cut, set back to an older state, and flooded."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

import nodes
from greenroom.cli import main as cli

MANIFEST = 'environment = "development"\n[security]\naudit_export = ["anchor.jsonl"]\n'

GUESSES = 50  # from each of fifty sources; thirty of them are looked at


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[nodes.Folder]:
    made = nodes.Folder(tmp_path / "project")
    made.manifest(MANIFEST)
    yield made
    made.close()


class Command:
    """The command, run in this process and in a node's folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, Any]:
        code = cli.main([*words, "--json"])
        out, err = self._capsys.readouterr()
        return code, json.loads(out) if out.startswith("{") else err


@pytest.fixture
def command(folder: nodes.Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(folder.path)
    return Command(capsys)


def entries(folder: nodes.Folder) -> list[tuple[int, str, str]]:
    with contextlib.closing(_database(folder)) as database:
        return list(database.execute("select seq, action, object from audit_entry order by seq"))


def _database(folder: nodes.Folder) -> apsw.Connection:
    return apsw.Connection(str(folder.path / ".greenroom" / "greenroom.db"))


@pytest.mark.slow
def test_a_node_that_is_killed_while_it_writes_loses_no_act_that_was_answered(
    folder: nodes.Folder, command: Command
) -> None:
    made: list[str] = []
    for _ in range(2):
        up = folder.up()

        def create(http: httpx.Client = up.http) -> None:
            with contextlib.suppress(httpx.HTTPError):
                while True:
                    answer = http.post("/v1/keys", json={"name": "k"})
                    if answer.status_code == 201:
                        made.append(answer.json()["id"])

        writers = [threading.Thread(target=create) for _ in range(4)]
        for writer in writers:
            writer.start()
        wanted = len(made) + 40
        nodes.wait_until(functools.partial(_has_grown, made, wanted))
        nodes.kill(up.process.pid)
        for writer in writers:
            writer.join()
        up.ended(within_s=10)
        code, verdict = command("audit", "verify")
        assert (code, verdict["findings"]) == (0, [])
    audited = [object for _, action, object in entries(folder) if action == "key.create"]
    assert {f"key:{id}" for id in made} <= set(audited)
    with contextlib.closing(_database(folder)) as database:
        stored = {f"key:{id}" for (id,) in database.execute("select key_id from principal")}
    assert stored == set(audited), "no act without its entry, and no entry without its act"
    up = folder.up()
    up.process.terminate()
    assert up.ended(within_s=20) == 0
    code, verdict = command("audit", "verify", "--anchor", "anchor.jsonl")
    assert (code, verdict["findings"]) == (0, [])
    last = entries(folder)[-1]
    assert (last[1], verdict["signed"], verdict["exported"]) == ("node.stop", last[0], last[0])
    assert [action for _, action, _ in entries(folder)].count("node.start") == 3


def _has_grown(made: list[str], wanted: int) -> bool:
    return len(made) > wanted


@pytest.mark.slow
def test_an_older_state_is_told_by_the_anchor_and_is_an_act(folder: nodes.Folder, command: Command) -> None:
    up = folder.up()
    assert up.call("POST", "/v1/keys", {"name": "before"}).status_code == 201
    up.process.terminate()
    up.ended(within_s=20)
    assert command("backup", "create")[0] == 0
    length = len(entries(folder))
    up = folder.up()
    for _ in range(5):
        up.call("POST", "/v1/keys", {"name": "after"})
    up.process.terminate()
    up.ended(within_s=20)
    assert command("audit", "verify", "--anchor", "anchor.jsonl")[0] == 0
    code, said = command("backup", "restore", "--replace")
    assert code == 0, said
    code, verdict = command("audit", "verify")
    assert code == 0, "without an anchor it looks whole"
    code, verdict = command("audit", "verify", "--anchor", "anchor.jsonl")
    assert (code, verdict["findings"][0]["index"], verdict["findings"][0]["kind"]) == (1, length + 1, "truncated")
    up = folder.up()
    up.process.terminate()
    up.ended(within_s=20)
    assert "backup.restore" in {action for _, action, _ in entries(folder)[length:]}
    assert command("audit", "verify")[0] == 0
    code, verdict = command("audit", "verify", "--anchor", "anchor.jsonl")
    assert (code, verdict["findings"][0]["index"]) == (1, length + 1)


@pytest.mark.slow
def test_what_is_verified_needs_only_the_public_key(folder: nodes.Folder, command: Command, tmp_path: Path) -> None:
    up = folder.up()
    up.process.terminate()
    up.ended(within_s=20)
    key = command("audit", "key")[1]["key"]
    store = f"sqlite:///{folder.path / '.greenroom' / 'greenroom.db'}"
    elsewhere = ["--store", store, "--data-dir", str(tmp_path / "nothing")]
    assert command("audit", "verify", *elsewhere)[0] == 2
    assert command("audit", "verify", *elsewhere, "--key", key)[0] == 0
    code, verdict = command("audit", "verify", *elsewhere, "--key", "ab" * 32)
    assert (code, verdict["findings"][0]["kind"]) == (1, "forged")
    assert command("audit", "verify", *elsewhere, "--key", "zz")[0] == 1
    empty = tmp_path / "empty.jsonl"
    empty.write_text("nothing\n")
    assert command("audit", "verify", "--anchor", str(empty))[0] == 1


async def test_thousands_of_guesses_are_one_alert_and_few_entries_and_hold_up_nobody(tmp_path: Path) -> None:
    security = {"intrusion_rules": True}
    agents = {"echo": nodes.agent("echo")}
    async with nodes.opened(tmp_path / "data", agents, security=security) as api:
        guessing = [api.of("gr_dev_guess", source=f"192.0.2.{n}") for n in range(50)]
        statuses = []

        async def guess(one: nodes.Api) -> None:
            statuses.extend([(await one.http.get("/v1/status")).status_code for _ in range(GUESSES)])

        guesses = asyncio.gather(*(guess(one) for one in guessing))
        served = 0
        while not guesses.done():
            assert (await api.run("echo", served))["state"] == "succeeded"
            served += 1
        await guesses
        assert (len(statuses), set(statuses)) == (50 * GUESSES, {401, 429})
        assert statuses.count(401) == 50 * 30
        assert served

        async def told() -> bool:
            alerts = [row for row in await api.running.store.alerts.list() if row.kind == "intrusion"]
            return len(alerts) == 1 and "And 47 more" in alerts[0].reason

        await nodes.eventually(told)
        await api.running.security.auditor.write(all_of_it=True)
        found = await api.running.store.audit.after(0)
        assert len([entry for entry in found if entry.action == "login.reject"]) <= 64 * 3
        report = await api.get("/v1/security")
        assert (report["grade"], report["found_last_hour"]) == ("warning", 50)
        assert sum(rate["count"] for rate in report["rejected"]) == GUESSES * 20
