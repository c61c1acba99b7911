"""The metrics: what they say, their bounds, and that documents, rules and the dashboard name those that there are."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from prometheus_client import parser

import debian
from greenroom import telemetry
from greenroom.telemetry import families
from greenroom.telemetry import metrics as node_metrics

ROOT = Path(__file__).parents[1]
PROMETHEUS, DASHBOARD = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana" / "greenroom.json"
REFERENCE = ROOT / "docs" / "metrics.md"
_ROW = re.compile(r"\| `(greenroom_\w+)(?:\{([\w, ]+)\})?` \| (\w+) \| (.+) \|")


def _value(metrics: telemetry.Metrics, name: str, seen: telemetry.Seen | None = None, **labels: str) -> float | None:
    """The value of the only sample of *name* and *labels*; None if there is none."""
    found = [
        sample.value
        for family in parser.text_string_to_metric_families(metrics.render(seen).decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) <= 1, f"{name} {labels}: {found}"
    return found[0] if found else None


def _end(agent: str = "a", revision: int = 1, state: str = "succeeded", **given: Any) -> telemetry.AttemptEnded:
    return telemetry.AttemptEnded(agent, state, given.pop("reason", "ok"), 0.2, "r", revision=revision, **given)


def _filled() -> tuple[telemetry.Metrics, telemetry.Seen]:
    """Metrics with a value in every family, and what the store says."""
    metrics = telemetry.Metrics()
    for family in metrics.families:
        labels = [f"some-{label}" for label in family.labels]
        match family:
            case families.Total():
                family.add(*labels)
            case families.Level():
                family.set(1.0, *labels)
            case families.Histogram():
                family.add(0.1, *labels)
    metrics(_end(tokens=7, input_tokens=5, wait_us=100_000))
    metrics(_end(state="queued", reason="oom"))
    metrics.requests("GET", "/v1/tasks").add(200, 0.01)
    seen = telemetry.Seen(
        agents=["a", "some-agent"],
        open={("a", "queued"): 3},
        queue={"a": (2, 9.5)},
        replicas={("a", 1, "ready", "healthy"): 2},
        traffic={("a", 1): 100},
        alerts={("quarantined", "critical", "firing"): 1},
        queue_limit=10,
    )
    return metrics, seen


# What they say


def test_an_attempt_is_counted_by_agent_revision_and_what_became_of_it() -> None:
    metrics = telemetry.Metrics()
    metrics(_end(revision=1, tokens=7, input_tokens=5, wait_us=3_000_000))
    metrics(_end(revision=2, state="queued", reason="oom", wait_us=0))
    metrics(_end(revision=2, state="failed", reason="agent_error"))
    ended = "greenroom_attempts_total"
    assert _value(metrics, ended, agent="a", revision="1", state="succeeded", reason="ok") == 1
    assert _value(metrics, ended, agent="a", revision="2", state="failed", reason="agent_error") == 1
    assert _value(metrics, "greenroom_task_retries_total", agent="a") == 1
    assert _value(metrics, "greenroom_task_retries_total", revision="2", reason="oom") == 1
    assert _value(metrics, "greenroom_tokens_total", revision="1", type="input") == 5
    assert _value(metrics, "greenroom_tokens_total", revision="1", type="output") == 2
    assert _value(metrics, "greenroom_attempt_seconds_count", revision="2") == 2
    assert _value(metrics, "greenroom_task_wait_seconds_sum", revision="1") == 3.0
    assert _value(metrics, "greenroom_task_wait_seconds_count", revision="2") == 1  # a retry has not waited for a first


def test_what_tasks_cost_is_counted_by_agent_and_only_where_it_is_known() -> None:
    metrics = telemetry.Metrics()
    metrics(_end())
    assert "greenroom_cost_usd_total{" not in metrics.render(telemetry.Seen()).decode()
    metrics.spent("research", 0.25)
    metrics.spent("research", 0.0001)
    assert _value(metrics, "greenroom_cost_usd_total", agent="research") == pytest.approx(0.2501)


def test_tasks_are_counted_by_their_final_state_and_begin_at_none() -> None:
    metrics = telemetry.Metrics()
    metrics.tasks_ended("a", "failed", 3)
    assert _value(metrics, "greenroom_tasks_total", agent="a", outcome="failed") == 3
    assert _value(metrics, "greenroom_tasks_total", agent="a", outcome="succeeded") == 0


def test_what_the_store_says_is_of_this_scrape_alone_and_a_store_that_is_silent_is_told() -> None:
    metrics, seen = _filled()
    for name, labels, value in (
        ("greenroom_store_up", {}, 1),
        ("greenroom_queue_tasks", {"agent": "a"}, 2),
        ("greenroom_queue_tasks", {"agent": "some-agent"}, 0),
        ("greenroom_queue_oldest_wait_seconds", {"agent": "a"}, 9.5),
        ("greenroom_tasks_open", {"agent": "a", "state": "queued"}, 3),
        ("greenroom_replicas", {"agent": "a", "revision": "1", "state": "ready", "grade": "healthy"}, 2),
        ("greenroom_revision_traffic_ratio", {"agent": "a", "revision": "1"}, 1),
        ("greenroom_alerts", {"kind": "quarantined", "severity": "critical", "state": "firing"}, 1),
        ("greenroom_queue_limit_tasks", {}, 10),
    ):
        assert _value(metrics, name, seen, **labels) == value, name
    assert _value(metrics, "greenroom_store_up") == 0
    assert _value(metrics, "greenroom_queue_tasks") is None
    assert _value(metrics, "greenroom_attempt_seconds_count", agent="a", revision="1") == 2  # counted all the same


def test_requests_are_counted_by_route_and_class_of_status() -> None:
    metrics = telemetry.Metrics()
    route = metrics.requests("POST", "/v1/tasks")
    for status in (200, 202, 404, 503):
        route.add(status, 0.01)
    counted = {
        status: _value(metrics, "greenroom_http_requests_total", method="POST", route="/v1/tasks", status=status)
        for status in ("2xx", "4xx", "5xx")
    }
    assert counted == {"2xx": 2, "4xx": 1, "5xx": 1}
    assert _value(metrics, "greenroom_http_request_seconds_count", route="/v1/tasks") == 4


def test_starts_are_told_apart() -> None:
    metrics = telemetry.Metrics()
    for is_cold, is_restart in ((True, False), (True, False), (False, True), (False, False)):
        metrics(telemetry.ReplicaReady("a", "r", 0.1, is_cold, is_restart))
    assert _value(metrics, "greenroom_replica_start_seconds_count", agent="a") == 4
    assert _value(metrics, "greenroom_cold_starts_total", agent="a") == 2
    assert _value(metrics, "greenroom_replica_restarts_total", agent="a") == 1


def test_scalings_and_moves_of_rollouts_are_counted() -> None:
    metrics = telemetry.Metrics()
    for before, replicas in ((1, 4), (4, 2), (2, 1)):
        metrics(telemetry.AgentScaled("a", before, replicas, "burst", "why", "autoscaler"))
    metrics(telemetry.RolloutMoved("a", 1, "complete", 2, 1, 100))
    assert _value(metrics, "greenroom_scalings_total", direction="up") == 1
    assert _value(metrics, "greenroom_scalings_total", direction="down") == 2
    assert _value(metrics, "greenroom_rollout_moves_total", agent="a", phase="complete") == 1


# They are bounded


def _series(metrics: telemetry.Metrics, seen: telemetry.Seen | None = None) -> int:
    return sum(not line.startswith(b"#") for line in metrics.render(seen).splitlines())


def test_agents_beyond_the_bound_share_a_series_and_nothing_is_lost() -> None:
    metrics, count = telemetry.Metrics(), node_metrics.MAX_AGENTS + 50
    for number in range(count):
        metrics(_end(f"agent-{number}"))
        metrics(telemetry.TaskAccepted(f"agent-{number}"))
        metrics.tasks_ended(f"agent-{number}", "succeeded", 1)
    assert _value(metrics, "greenroom_attempts_total", agent=families.OTHER, revision=families.OTHER) == 50
    assert _value(metrics, "greenroom_tasks_accepted_total", agent=families.OTHER) == 50
    assert _value(metrics, "greenroom_tasks_total", agent=families.OTHER, outcome="succeeded") == 50
    text = metrics.render().decode()
    assert len(set(re.findall(r'agent="([^"]+)"', text))) == node_metrics.MAX_AGENTS + 1


def test_levels_of_agents_beyond_the_bound_are_added_up_or_left_out() -> None:
    metrics, agents = telemetry.Metrics(), [f"agent-{number:03}" for number in range(node_metrics.MAX_AGENTS + 2)]
    seen = telemetry.Seen(
        agents=agents,
        open={(agent, "queued"): 1 for agent in agents},
        queue={agent: (1, number) for number, agent in enumerate(agents)},
        traffic={(agent, 1): 100 for agent in agents},
    )
    assert _value(metrics, "greenroom_tasks_open", seen, agent=families.OTHER) == 2
    assert _value(metrics, "greenroom_queue_tasks", seen, agent=families.OTHER) == 2
    assert (
        _value(metrics, "greenroom_queue_oldest_wait_seconds", seen, agent=families.OTHER)
        == node_metrics.MAX_AGENTS + 1
    )
    assert _value(metrics, "greenroom_revision_traffic_ratio", seen, agent=families.OTHER) is None


def test_an_agent_that_is_gone_is_forgotten_and_makes_room() -> None:
    metrics = telemetry.Metrics()
    before = _series(metrics, telemetry.Seen())
    for generation in range(5):
        agents = [f"agent-{generation}-{number}" for number in range(node_metrics.MAX_AGENTS)]
        for agent in agents:
            metrics(_end(agent))
            metrics(telemetry.ReplicaExited(agent, "r", "oom"))
            metrics(telemetry.BreakerMoved(agent, "open"))
        metrics.render(telemetry.Seen(agents=agents[:50]))  # asked before the last ones came: they are kept
        text = metrics.render(telemetry.Seen(agents=agents)).decode()
        assert set(re.findall(r'agent="([^"]+)"', text)) == set(agents)
        metrics.render(telemetry.Seen())
        assert _series(metrics, telemetry.Seen()) == before
    assert all(len(family._heads) <= len(family.values) for family in metrics.families)  # nor are its lines kept


def test_only_the_latest_revisions_of_an_agent_have_series() -> None:
    metrics = telemetry.Metrics()
    for revision in range(1, 20):
        metrics(_end(revision=revision))
    found = set(re.findall(r'revision="(\d+)"', metrics.render().decode()))
    assert found == {"16", "17", "18", "19"}
    metrics(_end(revision=3))  # somebody undoes to it
    assert _value(metrics, "greenroom_attempts_total", revision="3") == 1


def test_a_family_has_no_more_series_than_its_bound_whatever_its_labels_are() -> None:
    metrics = telemetry.Metrics()
    for number in range(families.MAX_SERIES + 10):
        metrics(telemetry.StoreTrouble(f"where-{number}", "why"))
    assert _value(metrics, "greenroom_store_troubles_total", where=families.OTHER) == 10
    assert len(re.findall(r"store_troubles_total\{", metrics.render().decode())) == families.MAX_SERIES + 1


def test_a_name_that_is_hostile_is_inert() -> None:
    metrics = telemetry.Metrics()
    name = 'a"} 9\ngreenroom_store_up 7 # \\'
    metrics(_end(name))
    assert _value(metrics, "greenroom_attempts_total", agent=name) == 1
    assert _value(metrics, "greenroom_store_up") == 0


def test_what_is_written_is_to_the_letter_what_prometheus_own_client_writes() -> None:
    metrics, seen = _filled()
    for name in ('a"} 9\ngreenroom_store_up 7 # \\', "a\\n", "ä", ""):
        metrics(_end(name, tokens=3_000_000_000, wait_us=1))
        metrics(telemetry.EnvelopeMeasured({name: 1234567.25}, {name: 12.5}, {"cpu": 33.3}))
        metrics(telemetry.TaskAccepted(name, 1_000_000))
    for _ in range(2):  # the second time with what it remembers
        assert metrics.render(seen) == prometheus_client.generate_latest(metrics)
        assert metrics.render() == prometheus_client.generate_latest(metrics)


# Conventions, documents, rules and the dashboard


def _tool(*words: str, input: bytes | None = None, cwd: Path = PROMETHEUS) -> str:
    done = subprocess.run(
        [debian.program("promtool"), *words], check=False, input=input, cwd=cwd, capture_output=True, timeout=60
    )
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, output
    return output


def test_promtool_finds_no_fault_in_the_metrics() -> None:
    metrics, seen = _filled()
    assert _tool("check", "metrics", input=metrics.render(seen)) == ""


def test_the_reference_lists_every_metric_as_the_code_has_it() -> None:
    listed = {
        name: (labels or "", kind, help) for name, labels, kind, help in _ROW.findall(REFERENCE.read_text("utf-8"))
    }
    made = {
        family.shown: (", ".join(family.labels), family.kind, family.help) for family in telemetry.Metrics().families
    }
    assert listed == made


def test_the_rules_are_valid_and_do_what_they_say() -> None:
    assert "SUCCESS" in _tool("check", "rules", "rules.yml")
    assert "SUCCESS" in _tool("test", "rules", "rules_test.yml")
    assert "SUCCESS" in _tool("check", "config", "--syntax-only", "prometheus.yml")


@functools.cache
def _rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]
    ]


def _known() -> set[str]:
    """The names that queries may use."""
    known = {"up"} | {rule["record"] for rule in _rules() if "record" in rule}
    for family in telemetry.Metrics().families:
        suffixes = ("_bucket", "_count", "_sum") if family.kind == "histogram" else ("",)
        known |= {f"{family.shown}{suffix}" for suffix in suffixes}
    return known


def _names(query: str) -> set[str]:
    return set(re.findall(r"(?:[a-z_]+:)?greenroom_\w+(?::\w+)?|\bup\b", query))


def test_rules_name_only_what_there_is_and_every_alert_says_what_to_do() -> None:
    known = _known()
    for rule in _rules():
        assert _names(rule["expr"]), rule
        assert _names(rule["expr"]) <= known, rule
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_seen_to_fire_in_the_tests_of_the_rules() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert {rule["alert"] for rule in _rules() if "alert" in rule} == fired


def _queries() -> Iterator[tuple[str, str]]:
    """Yield every query of the dashboard, and where it is."""
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def test_every_query_of_the_dashboard_is_one_and_names_only_what_there_is(tmp_path: Path) -> None:
    known, rules = _known(), list[dict[str, str]]()
    for title, query in _queries():
        assert _names(query), title
        assert _names(query) <= known, title
        plain = query.replace("$__rate_interval", "5m").replace("$agent", ".*")
        assert "$" not in plain, title
        rules.append({"record": f"query:{len(rules)}", "expr": plain})
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in _tool("check", "rules", "queries.yml", cwd=tmp_path)


def test_the_dashboard_shows_every_metric_and_no_panel_lies_over_another() -> None:
    shown = {name for _, query in _queries() for name in _names(query)}
    for family in telemetry.Metrics().families:
        assert any(name.startswith(family.shown) for name in shown), family.shown
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_queries_of_the_dashboard_use_labels_that_their_metric_has() -> None:
    labels = {family.shown: {*family.labels, "le", "job", "instance"} for family in telemetry.Metrics().families}
    for title, query in _queries():
        for name, matchers in re.findall(r"(greenroom_\w+)\{([^}]*)\}", query):
            base = re.sub(r"_(bucket|count|sum)$", "", name)
            if base in labels:
                assert set(re.findall(r"(\w+)(?:=~|!=|=)", matchers)) <= labels[base], title


@pytest.mark.parametrize("name", ["promtool", "prometheus"])
def test_the_programs_of_debians_package_are_there(name: str) -> None:
    assert Path(debian.program(name)).exists()
