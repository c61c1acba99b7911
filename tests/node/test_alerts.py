"""The monitor of a real node: what fires stands through restarts, and the node's own gauges are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import nodes
from greenroom import settings
from greenroom.core.signals import OF_NODE, Signal
from greenroom.node import alerts
from greenroom.sdk import models

QUICK = {"for_s": 0, "keep_s": 0}
OFF = {name: {"enabled": False} for name in settings.load().alerts.rules}  # this machine's disk is no matter
FEW = {"few": {"signal": "replicas", "below": 5, "agents": ["echo"], "severity": "critical", "for_s": 0, "keep_s": 0}}


async def states(api: nodes.Api) -> dict[str, str]:
    return {item["id"]: item["state"] for item in (await api.get("/v1/alerts"))["items"]}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True)
async def test_an_alert_of_a_rule_stands_through_a_restart_and_ends_with_the_rule(
    data_dir: Path, store_url: str | None
) -> None:
    def opened(rules: dict[str, Any]) -> Any:
        given = {"rules": OFF | rules}
        return nodes.opened(data_dir, {"echo": nodes.agent("echo")}, store_url=store_url, alerts=given)

    async with opened(FEW) as api:
        assert await nodes.eventually(lambda: states(api)) == {"rule:few:echo": "firing"}
        assert (await api.call("POST", "/v1/alerts/rule:few:echo/ack")).json()["state"] == "acknowledged"
    async with opened(FEW) as api:
        assert await states(api) == {"rule:few:echo": "acknowledged"}
    async with opened({}) as api:

        async def is_over() -> bool:
            return await states(api) == {"rule:few:echo": "resolved"}

        await nodes.eventually(is_over)


def test_a_certificate_expires_in_days_and_none_never_does() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    shown = cast("Any", SimpleNamespace(expires_at=now + timedelta(days=2)))
    assert alerts.certificate_days(shown, now) == 2.0
    assert alerts.certificate_days(None, now) > 1e9


async def test_each_signal_of_the_node_is_read(data_dir: Path) -> None:
    rules = {f"of-{signal}": {"signal": str(signal), "above": 0, "for_s": 0} for signal in OF_NODE}
    away = {f"of-{Signal.BACKUP_OVERDUE_S}": {"signal": str(Signal.BACKUP_OVERDUE_S), "below": 1, "for_s": 0}}
    async with nodes.opened(data_dir, {"echo": nodes.agent("echo")}, alerts={"rules": OFF | rules | away}) as api:

        async def all_fire() -> bool:
            return {*await states(api)} == {f"rule:of-{signal}" for signal in OF_NODE}

        await nodes.eventually(all_fire)


def test_the_disk_says_what_is_free_of_it_and_a_folder_that_is_gone_nothing(tmp_path: Path) -> None:
    free = alerts.disk_free_pct(tmp_path)
    assert free is not None
    assert 0 <= free <= 100
    assert alerts.disk_free_pct(tmp_path / "gone") is None


@pytest.mark.parametrize(
    ("every_s", "age_s", "overdue_s"),
    [(None, 9e9, 0.0), (3600.0, 3500.0, -100.0), (3600.0, 9000.0, 5400.0), (3600.0, None, -3540.0)],
)
def test_a_backup_is_overdue_where_there_should_have_been_one(
    every_s: float | None, age_s: float | None, overdue_s: float
) -> None:
    assert alerts.overdue_s(models.Backups(every_s=every_s, age_s=age_s), up_s=60.0) == overdue_s


def test_rules_that_are_off_are_not_looked_at() -> None:
    found = settings.load(overrides={"alerts": {"rules": {"disk_free": {"enabled": False}, "slow_tasks": QUICK}}})
    rules = {rule.name: rule for rule in alerts.rules(found.alerts)}
    assert "disk_free" not in rules
    assert (rules["slow_tasks"].for_s, rules["slow_tasks"].above) == (0.0, 60.0)
