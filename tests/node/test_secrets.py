"""No secret leaves the node (I51): canaries are planted, everything is done and fails, and every output is searched."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import forge
import nodes
from nodes import Folder, Up

pytestmark = pytest.mark.slow

AGENTS = """
import os, sys

KEY = os.environ["OPENAI_API_KEY"]
print("importing with", KEY, flush=True)
print("and to stderr", KEY, file=sys.stderr, flush=True)


async def says(input):
    print("my key is", KEY)
    print("by reference:", os.environ["REFERRED"])
    print("as an address:", f"https://user:{KEY}@api.example/v1")
    return sorted(os.environ)


async def raises(input):
    raise RuntimeError(f"Incorrect API key provided: {KEY}; Authorization: Bearer {input['bearer']}")


async def dies(input):
    print("last words:", KEY, file=sys.__stderr__, flush=True)
    os._exit(3)


def unbuilt():
    raise ValueError(f"cannot log in with {KEY}")


def reveals(input):
    return KEY
"""

MANIFEST = """
[cluster]
json_logs = {json_logs}
log_level = "DEBUG"

[security]
tenants_below_t2 = true
encryption_at_rest = true
audit_log = true

[server]
webhook_hosts = ["127.0.0.1"]
webhook_ports = [1]

[[security.issuers]]
issuer = "https://id.example"
algorithms = ["HS256"]
key_file = "jwks.json"
tenant = "acme"
role = "user"

[agents.says]
factory = "leaky:says"
env = ["OPENAI_API_KEY"]
secrets = {{ REFERRED = "file:{referred}" }}
arguments = {{}}
[agents.raises]
factory = "leaky:raises"
env = ["OPENAI_API_KEY"]
max_attempts = 1
[agents.dies]
factory = "leaky:dies"
env = ["OPENAI_API_KEY"]
max_attempts = 1
[agents.unbuilt]
factory = "leaky:unbuilt"
env = ["OPENAI_API_KEY"]
[agents.dsn]
factory = "agents:echo"
description = "reads postgresql://ann:{dsn}@db/x"
"""


class Canaries:
    """Secrets that stand somewhere in the node, and the search for them."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}
        self.outputs: dict[str, str] = {}

    def plant(self, name: str, value: str | None = None) -> str:
        self.planted[name] = value or f"c4n{secrets.token_hex(12)}"
        return self.planted[name]

    def take(self, name: str, output: str) -> str:
        self.outputs[name] = output
        return output

    def found(self) -> list[tuple[str, str]]:
        return [
            (output, secret)
            for secret, value in self.planted.items()
            for output, text in self.outputs.items()
            if any(form in text for form in _forms(value))
        ]


def _forms(value: str) -> set[str]:
    data = value.encode()
    encoded = {base64.b64encode(data).decode().rstrip("="), base64.urlsafe_b64encode(data).decode().rstrip("=")}
    return {value, quote(value, safe=""), json.dumps(value)[1:-1], data.hex(), *encoded}


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture(params=["true", "false"], ids=["json", "people"])
def folder(
    tmp_path: Path, canaries: Canaries, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    (made.path / "leaky.py").write_text(AGENTS)
    monkeypatch.setenv("OPENAI_API_KEY", canaries.plant("llm key"))
    monkeypatch.setenv("UNRELATED_SECRET", canaries.plant("a variable that no agent is given"))
    signing = canaries.plant("token key", secrets.token_hex(16))
    jwks = made.path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [forge.public_jwk(signing.encode(), kid="k")]}))
    jwks.chmod(0o600)
    referred = made.path / "referred.txt"
    referred.write_text(canaries.plant("a secret by reference") + "\n")
    made.manifest(
        MANIFEST.format(json_logs=request.param, dsn=canaries.plant("password in a setting"), referred=referred)
    )
    yield made
    made.close()


def _token(canaries: Canaries) -> str:
    import time

    now_s = int(time.time())
    claims = {"iss": "https://id.example", "aud": "greenroom", "sub": "a", "jti": "j", "iat": now_s, "exp": now_s + 60}
    return forge.Forge(canaries.planted["token key"].encode(), "HS256", claims, kid="k").token()


def _plant_the_nodes_own(canaries: Canaries, data: Path) -> None:
    canaries.plant("owner's key", (data / "local.key").read_text().strip().split("_")[3])
    key = (data / "encryption.key").read_text().strip().partition(":")[2]
    canaries.plant("key-encryption key", key)
    canaries.plant("key-encryption key in base64", base64.b64encode(bytes.fromhex(key)).decode().rstrip("="))
    for name, value in json.loads((data / "secrets").read_text()).items():
        canaries.plant(name, value.rstrip("="))


def _ask_everything(up: Up, canaries: Canaries) -> None:
    """What succeeds and what fails, with secrets where they do not belong."""
    key = canaries.plant("created key", up.call("POST", "/v1/keys", {"name": "ci", "role": "user"}).json()["key"])
    token = canaries.plant("token", _token(canaries))
    bearer = canaries.plant("bearer in a payload")
    payload = canaries.plant("payload of another tenant")
    link = up.call("POST", "/v1/logins").json()["path"].partition("#")[2]
    canaries.plant("link", link)
    begun = httpx.post(f"{up.http.base_url}/login", json={"link": link}, headers={"sec-fetch-site": "same-origin"})
    canaries.plant("cookie", begun.headers["set-cookie"].partition("=")[2].partition(";")[0])

    def ask(name: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        answer = up.http.request(method, path, json=body, headers=headers)
        canaries.take(name, answer.text + str(answer.headers))
        return answer

    url = f"http://127.0.0.1:1/in/{canaries.plant('path of a webhook')}"
    told = up.call("POST", "/v1/webhooks", {"url": url})
    webhook = told.json()["id"]
    canaries.plant("webhook secret", told.json()["secret"])
    rotated = up.call("POST", f"/v1/webhooks/{webhook}/rotate").json()["secret"]
    canaries.plant("rotated webhook secret", rotated)
    theirs = httpx.Client(base_url=up.http.base_url, headers={"authorization": f"Bearer {token}"}, timeout=60)
    with theirs:
        other = theirs.post("/v1/tasks?wait=30", json={"agent": "dsn", "input": payload}).json()
        assert other["state"] == "succeeded"
    said = up.end_of(up.submit("says", "x"))
    assert said["state"] == "succeeded"
    assert "OPENAI_API_KEY" in said["output"]
    assert "UNRELATED_SECRET" not in said["output"]
    raised = up.end_of(up.submit("raises", {"bearer": bearer}))
    assert "***" in raised["error"]["message"]
    died = up.end_of(up.submit("dies", "x"))
    assert died["state"] == "failed"
    for task in (said, raised, died):
        canaries.take(f"task {task['agent']}", json.dumps({**task, "input": None}))
        ask(f"events {task['agent']}", "GET", f"/v1/tasks/{task['id']}/events")
    ask("a path", "GET", f"/v1/tasks/{key}")
    ask("a token in a path", "GET", f"/{token}")
    ask("a query", "GET", f"/v1/tasks?limit={key}")
    ask("a body", "POST", "/v1/tasks", {"agent": key, "input": 1})
    ask("an unknown key of a body", "POST", "/v1/tasks", {f"Bearer {bearer}": key})
    ask("a name", "PUT", f"/v1/agents/x{key[:20]}", {"factory": f"a:{key}"})
    ask("a foreign task", "GET", f"/v1/tasks/{other['id']}")
    ask("a credential twice", "GET", "/v1/status", authorization=f"Bearer {key} {token}")
    lists = ("status", "agents", "agents/unbuilt", "agents/dsn", "replicas", "failures", "alerts", "advice", "keys")
    for path in (*lists, "tasks?limit=200", "agents/dsn/revisions", "agents/dsn/rollouts", "backups", "sessions"):
        answer = ask(path, "GET", f"/v1/{path}")
        assert answer.status_code == 200, path
        if path.startswith("tasks"):  # inputs are their owners'
            canaries.outputs[path] = json.dumps([{**each, "input": None} for each in answer.json()["items"]])
    for path in (
        "webhooks",
        f"webhooks/{webhook}",
        f"webhooks/{webhook}/deliveries",
        "encryption",
        "security",
        "audit",
    ):
        answer = ask(path, "GET", f"/v1/{path}")
        assert answer.status_code == 200, path
        if path.startswith("webhooks"):  # its owner sees where it leads
            canaries.outputs[path] = answer.text.replace(url, "")
    ask("metrics", "GET", "/metrics")
    ask("openapi", "GET", "/openapi.json")


def _command(folder: Folder, canaries: Canaries, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "greenroom.cli", *words],
        cwd=folder.path,
        env={**os.environ, "PYTHONPATH": nodes.SOURCE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    canaries.take(" ".join(words[:3]), done.stdout + done.stderr)


def test_no_secret_is_in_any_output(folder: Folder, canaries: Canaries, request: pytest.FixtureRequest) -> None:
    up = folder.up()
    _plant_the_nodes_own(canaries, folder.path / ".greenroom")
    _ask_everything(up, canaries)
    password = canaries.plant("password of a store")
    wrong = f"postgresql://ann:{password}@127.0.0.1:1/x"
    commands: list[tuple[str, ...]] = [
        ("up", "--port", "0", "--data-dir", str(folder.path / "other"), "--store", wrong)
    ]
    if "json" in request.node.name:  # the form of the log is the node's alone
        commands += [("config", "show"), ("config", "show", "--json"), ("status",), ("agents",), ("failures", "--json")]
        commands += [("status", "--url", f"http://ann:{password}@127.0.0.1:1")]
    with futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda words: _command(folder, canaries, *words), commands))
    processes = {pid for pid in nodes.marked(folder.path) if pid != os.getpid()}
    node, replicas = up.process.pid, processes - {up.process.pid}
    assert replicas
    for pid in processes:
        canaries.take(f"argv of {pid}", Path(f"/proc/{pid}/cmdline").read_text())
    variables = {pid: Path(f"/proc/{pid}/environ").read_text() for pid in processes}
    up.process.terminate()
    up.ended(within_s=60)
    canaries.take("log", folder.log.read_text())
    assert canaries.found() == []
    assert "***" in canaries.outputs["log"]  # it was about to say them
    for pid in replicas:
        for name, secret in canaries.planted.items():
            assert name == "llm key" or secret not in variables[pid], (name, pid)
    for name, secret in canaries.planted.items():
        is_given = name in ("llm key", "a variable that no agent is given")
        assert is_given or secret not in variables[node], name
