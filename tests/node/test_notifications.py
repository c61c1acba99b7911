"""Alerts of a real node, told to a real Alertmanager and a real receiver, whatever happens to either."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import debian
import nodes
import receivers
from greenroom import telemetry, webhooks
from greenroom.core import notifications
from greenroom.core import webhooks as signing
from greenroom.store.alerts import Raised, Resolved
from nodes import Folder
from receivers import Message, Receiver

AGENTS = {"echo": nodes.agent("echo")}
HOSTILE = '"} <script>alert(1)</script> {{ .Labels }}\n\x1b[31m'


class Alertmanager:
    """A running one; it may be started again at the same place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "alertmanager.yml").write_text("route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._http = httpx.Client(base_url=self.url, timeout=10)
        self.start()

    def start(self) -> None:
        with (self._folder / "alertmanager.log").open("a") as output:
            self._process = subprocess.Popen(
                [
                    debian.program("prometheus-alertmanager"),
                    "--config.file=alertmanager.yml",
                    "--storage.path=data",
                    "--cluster.listen-address=",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                ],
                cwd=self._folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        nodes.wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "alertmanager.log").read_text()[-2000:]
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.kill()
        self._http.close()

    async def alerts(self) -> dict[str, Any]:
        """What it holds, by the alerts' ids."""
        answer = await asyncio.to_thread(self._http.get, "/api/v2/alerts")
        return {each["labels"]["alert"]: each for each in answer.json()}


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Alertmanager]:
    folder = tmp_path / "alertmanager"
    folder.mkdir()
    made = Alertmanager(folder)
    try:
        yield made
    finally:
        made.close()


async def say(api: nodes.Api, change: Raised | Resolved) -> None:
    await api.running.store.alerts.tell(change)
    api.running.facts.emit(telemetry.AlertChanged(change.id, "firing"))


@pytest.mark.slow
async def test_alertmanager_holds_what_fires_also_after_its_restart_and_no_longer_what_is_over(
    data_dir: Path, alertmanager: Alertmanager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "RESEND_S", 0.5)
    monkeypatch.setattr(signing, "FIRST_DELAY_S", 0.5)
    told = {
        "receivers": {"am": {"type": "alertmanager", "url": alertmanager.url}},
        "group_wait_s": 0,
        "link": "https://greenroom.example/",
    }
    async with nodes.opened(data_dir, AGENTS, cluster={"alert_delivery": True}, alerts=told) as api:
        await say(api, Raised("a", "slow", "echo", "warning", HOSTILE))
        await say(api, Raised("b", "audit", None, "critical", "it does not verify"))

        async def holds_both() -> Any:
            found = await alertmanager.alerts()
            return found if {*found} == {"a", "b"} else None

        found = (await nodes.eventually(holds_both))["a"]
        assert found["labels"]["alertname"] == "slow"
        assert found["labels"]["agent"] == "echo"
        assert found["annotations"]["description"] == HOSTILE
        assert found["generatorURL"] == "https://greenroom.example/"
        alertmanager.kill()
        alertmanager.start()
        await nodes.eventually(holds_both)
        await say(api, Resolved("a"))

        async def holds_one() -> bool:
            return {*await alertmanager.alerts()} == {"b"}

        assert await nodes.eventually(holds_one)
        (receiver,) = (await api.get("/v1/receivers"))["items"]
        assert (receiver["name"], receiver["status"]) == ("am", 200)
        tested = (await api.call("POST", "/v1/receivers/am/test")).json()
        assert tested == {"receiver": "am", "is_taken": True, "status": 200, "error": None}
        assert (await api.get("/v1/status"))["alert_delivery"] == "on, to am"
        metrics = (await api.http.get("/metrics")).text
        assert re.search(r'greenroom_notifications_total\{outcome="taken",type="alertmanager"\} [1-9]', metrics)
        acts = (await api.get("/v1/audit?action=receiver.test"))["items"]
        assert [act["object"] for act in acts] == ["receiver:am"]


async def test_delivery_without_receivers_and_receivers_without_delivery_are_said(data_dir: Path) -> None:
    async with nodes.opened(data_dir, AGENTS, cluster={"alert_delivery": True}) as api:
        assert (await api.get("/v1/status"))["alert_delivery"] == "on, but there is no receiver: nobody is told"
    told = {"receivers": {"am": {"type": "alertmanager", "url": "http://127.0.0.1:9"}}}
    async with nodes.opened(data_dir, AGENTS, alerts=told) as api:
        assert (await api.get("/v1/status"))["alert_delivery"] == "off, though there are receivers: nobody is told"
        assert (await api.call("POST", "/v1/receivers/am/test")).status_code == 409
        assert [each["state"] for each in (await api.get("/v1/receivers"))["items"]] == ["off"]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receivers.receiving() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "project")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
@pytest.mark.long
async def test_a_node_that_is_killed_before_it_has_told_of_an_alert_tells_of_it_in_its_next_life(
    folder: Folder, receiver: Receiver
) -> None:
    secret = signing.secret_text(b"s" * 32)
    folder.environment = {"PEOPLE_URL": f"http://127.0.0.1:{receiver.port}/people?token=hidden", "PEOPLE_KEY": secret}
    folder.manifest(
        f'[server]\nwebhook_hosts = ["127.0.0.1"]\nwebhook_ports = [{receiver.port}]\n'
        "[cluster]\nalert_delivery = true\n[alerts]\ngroup_wait_s = 2\n"
        '[alerts.receivers.people]\ntype = "webhook"\nurl_env = "PEOPLE_URL"\nsecret_env = "PEOPLE_KEY"\n'
        '[agents.echo]\nfactory = "agents:echo"\n'
    )

    def answer(message: Message) -> bytes:
        return receivers.OK if "/people" in message.line else receivers.status(410)

    receiver.answer = answer
    up = await asyncio.to_thread(folder.up)
    hook = {"url": f"http://127.0.0.1:{receiver.port}/hook"}
    made = (await asyncio.to_thread(up.call, "POST", "/v1/webhooks", hook)).json()
    await asyncio.to_thread(up.submit, "echo", 1)

    async def fires() -> Any:  # the receiver of the task's end is gone, and that is an alert
        return (await asyncio.to_thread(up.call, "GET", "/v1/alerts")).json()["items"]

    await nodes.eventually(fires)
    up.process.kill()
    await asyncio.to_thread(up.ended, within_s=30)
    assert [message for message in receiver.messages if "/people" in message.line] == []
    up = await asyncio.to_thread(folder.up)
    message = (await receiver.until(2))[1]
    found = webhooks.verify(message.body, message.headers, secret)
    assert (found["type"], found["data"]["alerts"][0]["id"]) == ("alert.firing", f"webhook-{made['id']}")
    await asyncio.to_thread(up.call, "PATCH", f"/v1/webhooks/{made['id']}", {"enabled": True})
    message = (await receiver.until(3))[2]
    assert webhooks.verify(message.body, message.headers, secret)["type"] == "alert.resolved"
    assert "hidden" not in folder.log.read_text()
