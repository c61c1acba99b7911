"""`greenroom up` as a process of its own: how it stops, dies, starts again, and refuses to start."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import apsw
import pytest

from nodes import Folder, marked, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    made.manifest(
        '[agents.gated]\nfactory = "agents:gated"\nconcurrency = 4\n[agents.first]\nfactory = "agents:parent"\n'
    )
    try:
        yield made
    finally:
        made.close()


def _lines(path: Path, count: int) -> list[str]:
    wait_until(lambda: path.exists() and len(path.read_text().splitlines()) >= count)
    return path.read_text().splitlines()


# A pause of the node


def test_a_node_that_was_stopped_blames_none_of_its_replicas(folder: Folder, ledger: Path, gate: Path) -> None:
    """They block their loops meanwhile, so that questions are open when the node stops and when it goes on."""
    spec = "hang_after_s = 2\nscaling = { min_replicas = 2 }\n"
    folder.manifest(f'[agents.dozing]\nfactory = "agents:dozing"\n{spec}')
    up = folder.up()
    pids = set(up.pids())
    ids = [up.submit("dozing", {"ledger": str(ledger), "gate": str(gate)}) for _ in range(2)]
    _lines(ledger, 2)
    for _ in range(2):
        up.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # longer than the deadline: what is tested is the passing of time
        up.process.send_signal(signal.SIGCONT)
        assert up.call("GET", "/v1/status").status_code == 200
    gate.touch()
    assert [(up.end_of(id)["state"], up.end_of(id)["attempt"]) for id in ids] == [("succeeded", 1)] * 2
    assert set(up.pids()) == pids


# Stop


def test_a_shutdown_by_the_api_lets_running_tasks_end_and_exits_with_0(
    folder: Folder, ledger: Path, gate: Path
) -> None:
    up = folder.up()
    up.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    _lines(ledger, 1)
    asked = up.call("POST", "/v1/shutdown")
    assert (asked.status_code, asked.json()["state"]) == (202, "draining")
    wait_until(lambda: up.http.get("/readyz").status_code == 503)
    assert up.process.poll() is None
    gate.touch()
    assert up.ended(within_s=30) == 0
    assert not marked(folder.path)
    with contextlib.closing(apsw.Connection(str(folder.path / ".greenroom" / "greenroom.db"))) as database:
        acts = database.execute("select action, actor from audit_entry order by seq").fetchall()
    (who,) = [actor for action, actor in acts if action == "node.shutdown"]
    assert str(who) in (folder.path / ".greenroom" / "local.key").read_text()


def test_a_node_does_not_serve_tenants_whom_nothing_keeps_apart(folder: Folder) -> None:
    allowed = '[security]\ntenants_below_t2 = true\n[agents.gated]\nfactory = "agents:gated"\n'
    folder.manifest(allowed)
    up = folder.up()
    assert up.call("POST", "/v1/keys", {"name": "n", "tenant": "acme"}).status_code == 201
    up.process.send_signal(signal.SIGTERM)
    assert up.ended(within_s=30) == 0
    folder.manifest('[agents.gated]\nfactory = "agents:gated"\n')
    code, output = folder.refused()
    assert code == 1
    assert "keys of other tenants (acme)" in output
    assert "security.tenants_below_t2 = true" in output
    folder.manifest(allowed)
    assert folder.up().call("GET", "/v1/status").status_code == 200


def test_a_node_whose_terminal_goes_ends_in_good_order(folder: Folder) -> None:
    up = folder.up()
    up.process.send_signal(signal.SIGHUP)
    assert up.ended(within_s=30) == 0
    assert not marked(folder.path)


def test_sigterm_lets_running_tasks_end_and_exits_with_0(folder: Folder, ledger: Path, gate: Path) -> None:
    up = folder.up()
    id = up.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    _lines(ledger, 1)
    up.process.send_signal(signal.SIGTERM)
    wait_until(lambda: up.http.get("/readyz").status_code == 503)
    assert up.call("POST", "/v1/tasks", {"agent": "gated", "input": 1}).status_code == 503
    gate.touch()
    assert up.ended(within_s=10) == 0
    assert marked(folder.path) == set()
    again = folder.up()
    task = again.end_of(id)
    assert (task["state"], [attempt["reason"] for attempt in task["attempts"]]) == ("succeeded", ["ok"])


def test_a_second_sigterm_hands_running_tasks_over_uncharged(folder: Folder, ledger: Path, gate: Path) -> None:
    up = folder.up()
    work = {"ledger": str(ledger), "gate": str(gate)}
    ids = [up.submit("gated", work) for _ in range(3)]
    _lines(ledger, 3)
    up.process.send_signal(signal.SIGTERM)
    wait_until(lambda: up.http.get("/readyz").status_code == 503)
    hurried_s = time.monotonic()
    up.process.send_signal(signal.SIGTERM)
    assert up.ended(within_s=8) == 0
    assert time.monotonic() - hurried_s < 6
    again = folder.up()
    _lines(ledger, 6)
    gate.touch()
    for id in ids:
        task = again.end_of(id)
        assert (task["state"], task["attempt"]) == ("succeeded", 1)
        assert [attempt["reason"] for attempt in task["attempts"]] == ["drained", "ok"]


def test_sigterm_ends_open_streams_well(folder: Folder, ledger: Path, gate: Path) -> None:
    up = folder.up()
    id = up.submit("gated", {"ledger": str(ledger), "gate": str(gate)})
    _lines(ledger, 1)
    with up.http.stream("GET", f"/v1/tasks/{id}/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "id: 1"
        up.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line.startswith("id: ")] == ["id: 2"]
    assert up.process.poll() is None
    gate.touch()
    assert up.ended(within_s=10) == 0


def test_who_waits_for_a_task_gets_an_answer_from_a_node_that_stops(folder: Folder, ledger: Path, gate: Path) -> None:
    up = folder.up()
    ids = [up.submit("gated", {"ledger": str(ledger), "gate": place}) for place in (str(gate), "/nonexistent")]
    _lines(ledger, 2)
    with futures.ThreadPoolExecutor() as threads:
        waits = [threads.submit(up.call, "GET", f"/v1/tasks/{id}?wait=60") for id in ids]
        up.process.send_signal(signal.SIGTERM)
        wait_until(lambda: up.http.get("/readyz").status_code == 503)
        gate.touch()
        ended = waits[0].result(timeout=10)
        assert (ended.status_code, ended.json()["state"]) == (200, "succeeded")
        up.process.send_signal(signal.SIGTERM)
        handed_over = waits[1].result(timeout=10)
        assert handed_over.status_code in (202, 503), handed_over.text
        assert handed_over.json()
    assert up.ended(within_s=10) == 0


def test_a_parent_that_waits_for_what_nobody_starts_is_handed_over(folder: Folder, ledger: Path, gate: Path) -> None:
    folder.manifest('[agents.gated]\nfactory = "agents:gated"\n[agents.first]\nfactory = "agents:parent"\n')
    up = folder.up()
    up.submit("gated", {"ledger": str(ledger), "gate": str(gate), "name": "holds"})
    _lines(ledger, 1)
    child = {"ledger": str(ledger), "name": "child"}
    parent = up.submit("first", {"ledger": str(ledger), "agent": "gated", "child": child})
    wait_until(lambda: up.call("GET", f"/v1/tasks/{parent}").json()["state"] == "waiting")
    up.process.send_signal(signal.SIGTERM)
    wait_until(lambda: up.http.get("/readyz").status_code == 503)
    gate.touch()
    assert up.ended(within_s=8) == 0
    again = folder.up()
    task = again.end_of(parent)
    assert (task["state"], task["attempt"], task["output"]["answer"]["attempt"]) == ("succeeded", 1, 1)
    assert [line.split()[0] for line in ledger.read_text().splitlines()].count("child") == 1


# Death


def test_no_process_outlives_a_killed_node(folder: Folder, ledger: Path) -> None:
    up = folder.up()
    for _ in range(2):
        up.submit("gated", {"ledger": str(ledger), "gate": "/nonexistent"})
    _lines(ledger, 2)
    assert len(marked(folder.path)) >= 3
    up.process.kill()
    up.process.wait()
    wait_until(lambda: marked(folder.path) == set(), within_s=5)


def test_what_was_accepted_ends_after_the_node_was_killed(folder: Folder, ledger: Path) -> None:
    folder.manifest('[agents.gated]\nfactory = "agents:gated"\nconcurrency = 4\nscaling = {min_replicas = 2}\n')
    up = folder.up()
    ids: list[str] = []
    for start in range(0, 200, 20):
        tasks = [{"agent": "gated", "input": {"ledger": str(ledger), "name": str(n)}} for n in range(start, start + 20)]
        ids += [item["id"] for item in up.call("POST", "/v1/tasks/batch", {"tasks": tasks}).json()["items"]]
        if start == 100:
            up.process.kill()
            up.process.wait()
            up = folder.up()
    ended = [up.end_of(id) for id in ids]
    assert len(ended) == 200
    assert {task["state"] for task in ended} == {"succeeded"}
    runs = [line.split()[0] for line in ledger.read_text().splitlines()]
    assert set(runs) == {str(n) for n in range(200)}
    assert max(runs.count(name) for name in set(runs)) <= 2


# Revisions


def test_unchanged_code_keeps_its_revision_and_changed_code_is_served(folder: Folder) -> None:
    manifest = '[agents.word]\nfactory = "word:say"\n'
    folder.manifest(manifest)
    code = folder.path / "word.py"
    for text, revision in (("one", 1), ("one", 1), ("two", 2)):
        code.write_text(f"async def say(input):\n    return {text!r}\n")
        up = folder.up()
        task = up.end_of(up.submit("word", 1))
        assert (task["output"], task["revision"]) == (text, revision)
        up.process.terminate()
        assert up.ended(within_s=10) == 0


# Refusals


def _assert_one_message(output: str, *words: str) -> None:
    assert "Traceback" not in output
    for word in words:
        assert word in output, output
    assert output.count("cannot") == 1, output


def test_a_second_node_on_the_same_file_is_refused(folder: Folder) -> None:
    up = folder.up()
    code, output = folder.refused()
    assert code == 1
    _assert_one_message(output, "greenroom.db")
    assert up.end_of(up.submit("gated", {"ledger": "/dev/null"}))["state"] == "succeeded"


def test_an_occupied_port_is_one_message(folder: Folder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = folder.refused("--port", str(port))
    assert code == 1
    _assert_one_message(output, f"127.0.0.1:{port}", "--port")
    assert marked(folder.path) == set()


@pytest.mark.parametrize("place", ["/proc/greenroom", "/dev/null/greenroom", "taken", "/proc/sys"])
def test_a_data_directory_that_cannot_be_written_is_one_message(folder: Folder, place: str) -> None:
    (folder.path / "taken").touch()
    code, output = folder.refused("--data-dir", place)
    assert code == 1
    _assert_one_message(output, "--data-dir")


def test_a_manifest_with_mistakes_is_one_message_with_all_of_them(folder: Folder) -> None:
    folder.manifest(
        'environment = "developement"\n[cluster]\nautoscalling = true\n'
        '[agents.a]\nfactory = "agents"\nconcurrency = 0\n'
    )
    code, output = folder.refused()
    assert code == 2
    _assert_one_message(output, "environment", "autoscalling", "agents.a.factory", "agents.a.concurrency")
    folder.manifest("[agents.a\n")
    code, output = folder.refused()
    assert code == 2
    _assert_one_message(output, "greenroom.toml", "line 1")


def test_a_store_that_is_none_is_one_message(folder: Folder) -> None:
    code, output = folder.refused("--store", "mysql://localhost/x")
    assert code == 1
    _assert_one_message(output, "sqlite:///")
    (folder.path / "not.db").write_text("this is no database, and long enough to be looked at as one" * 100)
    code, output = folder.refused("--store", f"sqlite:///{folder.path}/not.db")
    assert code == 1
    assert "Traceback" not in output
    code, output = folder.refused("--store", "postgresql://127.0.0.1:1/x")
    assert code == 1
    assert "Traceback" not in output
    assert "cannot" in output
