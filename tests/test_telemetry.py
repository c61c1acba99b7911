"""Facts reach their subscribers, and a log that cannot be written stops nobody."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime

import pytest

from greenroom import telemetry


class _NobodyReads(io.StringIO):
    """A stderr whose reader has left: ``greenroom up 2>&1 | head -1``."""

    def write(self, text: str) -> int:  # noqa: ARG002 - the stream's own
        raise BrokenPipeError


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("kind", [_NobodyReads, io.StringIO])
def test_a_log_that_cannot_be_written_stops_nobody(
    kind: type[io.StringIO], as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = kind()
    monkeypatch.setattr(sys, "stderr", stream)
    log = telemetry.Log(level="DEBUG", as_json=as_json)
    monkeypatch.undo()
    if kind is io.StringIO:
        stream.close()  # every write is a ValueError now
    heard: list[telemetry.Fact] = []
    facts = telemetry.Telemetry()
    facts.subscribe(log, *log.KINDS)
    facts.subscribe(heard.append)
    facts.emit(telemetry.NodeChanged("node-1", "ready"))
    assert heard == [telemetry.NodeChanged("node-1", "ready")]


def test_the_metrics_of_breakers_and_ejections() -> None:
    metrics = telemetry.Metrics()
    for state, value in (("open", 2), ("half_open", 1), ("closed", 0)):
        metrics(telemetry.BreakerMoved("agent", state, "it is down"))
        assert f'greenroom_breaker_state{{agent="agent"}} {value}.0'.encode() in metrics.render()
    metrics(telemetry.ReplicaEjected("agent", "agent-1", "it fails"))
    assert b'greenroom_replica_ejections_total{agent="agent"} 1.0' in metrics.render()


def test_the_metric_of_the_newest_backup_is_of_when_it_was_made_whenever_that_is_told() -> None:
    metrics = telemetry.Metrics()
    metrics(telemetry.NewestBackup(datetime(2030, 1, 1, tzinfo=UTC)))
    metrics(telemetry.BackupMade("later", 1.0, 2, 3))
    metrics(telemetry.BackupFailed("cannot"))
    at = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    line = next(each for each in metrics.render().splitlines() if each.startswith(b"greenroom_backup_last_success"))
    assert float(line.split()[1]) == at


def test_the_wanted_number_of_replicas_and_the_rules_that_decided_are_metrics() -> None:
    metrics = telemetry.Metrics()
    for replicas, rule in ((3, "burst"), (3, "enough"), (2, "idle")):
        metrics(telemetry.ScalingDecided("a", replicas, rule))
    text = metrics.render().decode()
    assert 'greenroom_replicas_wanted{agent="a"} 2.0' in text
    assert 'greenroom_scaling_decisions_total{agent="a",rule="burst"} 1.0' in text


def test_what_ends_is_counted_by_agent_and_its_time_falls_into_buckets() -> None:
    metrics = telemetry.Metrics()
    metrics(telemetry.TaskAccepted("a", 3))
    for duration_s in (0.001, 0.005, 0.2, 1000.0):
        metrics(telemetry.AttemptEnded("a", "succeeded", "ok", duration_s, "r"))
    metrics(telemetry.AttemptEnded("b", "failed", "agent_error", 0.02, "r"))
    lines = metrics.render().decode().splitlines()
    assert 'greenroom_tasks_accepted_total{agent="a"} 3.0' in lines
    assert 'greenroom_attempts_total{agent="a",reason="ok",revision="0",state="succeeded"} 4.0' in lines
    assert 'greenroom_attempts_total{agent="b",reason="agent_error",revision="0",state="failed"} 1.0' in lines
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if "attempt_seconds_" in line}
    buckets = {
        bound: found[f'greenroom_attempt_seconds_bucket{{agent="a",le="{bound}",revision="0"}}'] for bound in _BOUNDS
    }
    assert buckets == {"0.005": 2, "0.01": 2, "0.1": 2, "0.5": 3, "1.0": 3, "300.0": 3, "+Inf": 4}
    assert found['greenroom_attempt_seconds_count{agent="a",revision="0"}'] == 4
    assert found['greenroom_attempt_seconds_sum{agent="a",revision="0"}'] == pytest.approx(1000.206)


_BOUNDS = ("0.005", "0.01", "0.1", "0.5", "1.0", "300.0", "+Inf")
