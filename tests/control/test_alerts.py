"""Alerts of one kind are told once for each reason, end, and are taken up from the life before."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom import errors, telemetry
from greenroom.control.alerts import Alerts
from greenroom.store.alerts import Raised
from greenroom.testing import databases

A = Raised("test-a", "test", None, "warning", "why")


async def test_an_alert_is_told_once_for_each_reason_and_taken_up_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with databases.sqlite(tmp_path) as scratch:
        store, facts, heard = await scratch.open(), telemetry.Telemetry(), list[telemetry.Fact]()
        facts.subscribe(heard.append, telemetry.AlertChanged)
        await store.alerts.tell(Raised("other", "another", None, "warning", "why"))
        alerts = Alerts(store, facts, "test")

        async def rows() -> dict[str, tuple[str, int]]:
            return {row.id: (row.state, row.count) for row in await store.alerts.list() if row.kind == "test"}

        await alerts.tell(A)
        await alerts.tell(A)
        assert await rows() == {"test-a": ("firing", 1)}
        await Alerts(store, facts, "test").tell(A)  # of the next life
        assert await rows() == {"test-a": ("firing", 1)}
        await alerts.tell(Raised("test-a", "test", None, "warning", "another reason"))
        assert await rows() == {"test-a": ("firing", 2)}
        await alerts.tell(Raised("test-a", "test", None, "critical", "another reason"))
        assert await rows() == {"test-a": ("firing", 3)}
        again = Alerts(store, facts, "test")
        await again.only([Raised("test-b", "test", None, "critical", "why")])
        assert await rows() == {"test-a": ("resolved", 3), "test-b": ("firing", 1)}
        await again.resolve("test-a")

        async def fails(_: object) -> None:
            raise errors.StoreUnavailable("a test said so")

        with monkeypatch.context() as patch:
            patch.setattr(store.alerts, "tell", fails)
            with pytest.raises(errors.StoreUnavailable):
                await again.resolve("test-b")
        await again.only([])
        assert (await rows())["test-b"] == ("resolved", 1)
        assert [(fact.alert, fact.state) for fact in heard if isinstance(fact, telemetry.AlertChanged)] == [
            ("test-a", "firing"),
            ("test-a", "firing"),
            ("test-a", "firing"),
            ("test-a", "resolved"),
            ("test-b", "firing"),
            ("test-b", "resolved"),
        ]
        assert [row.state for row in await store.alerts.list() if row.id == "other"] == ["firing"]
