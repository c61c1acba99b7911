"""What an agent may say of itself: defaults, bounds, names, and the rules between keys."""

from __future__ import annotations

import datetime
from typing import Any

import msgspec
import pytest

from greenroom import settings
from greenroom.settings import AgentSettings, SettingsInvalid

FULL: dict[str, Any] = {
    "factory": "agents.team:build.it",
    "description": "Finds sources\nand sums them up",
    "skills": ["search", "summary"],
    "examples": ["Find three sources on rain"],
    "arguments": {"model": "gpt-4o-mini", "nested": {"list": [1, 2.5, None, True]}, "none": None},
    "env": ["OPENAI_API_KEY"],
    "secrets": {"SEARCH_API_KEY": "file:/run/secrets/search"},
    "include": ["prompts/**/*.txt", "data.json", "..hidden/x"],
    "python": ".venv-crew/bin/python3.12",
    "concurrency": 4,
    "sessions": True,
    "timeout_s": 10,
    "hang_after_s": 30,
    "max_attempts": 5,
    "retry_backoff_s": 0.5,
    "retry_on": ["openai.RateLimitError", "TimeoutError"],
    "on_replica_loss": "retry",
    "memory_mb": 512,
    "read_paths": [],
    "write_paths": [],
    "egress": ["any"],
    "max_running": 20,
    "scaling": {
        "min_replicas": 2,
        "max_replicas": 8,
        "target_queue_per_replica": 2.5,
        "target_busy_pct": 70,
        "stable_window_s": 30,
        "burst_window_s": 3,
        "stabilisation_s": 0,
        "cooldown_s": 0,
        "idle_s": 0,
    },
    "breaker": {"failure_pct": "off", "min_attempts": 5, "window_s": 10, "open_s": 0.5},
    "cache": {"ttl_s": 60, "max_entries": 100},
    "recycling": {"memory_mb": 400, "tasks": 1000},
    "health": {
        "window_s": 600,
        "min_samples": 5,
        "response_s": 120,
        "unhealthy_response_s": 200,
        "error_pct": 5,
        "unhealthy_error_pct": 20,
    },
    "slo": {"success_pct": 99.5, "latency_s": 30, "latency_pct": 95, "window_days": 7, "min_tasks": 10},
    "cost": {
        "input_usd_per_million_tokens": 0.15,
        "output_usd_per_million_tokens": 0.6,
        "usd_per_task": 0,
        "budget_usd_per_day": 20,
        "budget_tokens_per_day": 10_000_000,
        "on_budget": "refuse",
    },
    "rollout": {
        "strategy": "canary",
        "checks": ["agents:smoke"],
        "examples": [
            {
                "input": {"task": "Rain?"},
                "equals": None,
                "contains": "rain",
                "not_contains": ["sorry", "cannot"],
                "matches": r"^\d+ sources",
                "within_s": 30,
            },
            {"input": None},
        ],
        "weights": [10, 100],
        "max_surge": "25%",
        "max_unavailable": 0,
        "promotion": "manual",
        "hold_s": 60,
        "scale_down_delay_s": 10,
        "progress_deadline_s": 300,
    },
}


def _problems(name: str = "research", **given: Any) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        settings.parse_agent(name, {"factory": "agents:research"} | given)
    return dict(caught.value.problems)


def test_an_agent_needs_a_factory_only_and_the_rest_has_the_documented_defaults() -> None:
    agent = settings.parse_agent("research", {"factory": "agents:research"})
    assert (agent.concurrency, agent.sessions, agent.timeout_s, agent.max_attempts) == (1, False, 300, 3)
    assert agent.hang_after_s == 8
    assert (agent.retry_backoff_s, agent.retry_on, agent.on_replica_loss, agent.memory_mb) == (
        1,
        (),
        "retry",
        None,
    )
    assert (agent.scaling.min_replicas, agent.scaling.max_replicas) == (1, None)
    assert agent.scaling.target_queue_per_replica == 5
    rollout = agent.rollout
    assert (rollout.strategy, rollout.hold_s, rollout.scale_down_delay_s) == ("rolling", 0, 5)
    assert rollout.progress_deadline_s == 120


def test_every_key_is_taken() -> None:
    assert set(FULL) == set(AgentSettings.__struct_fields__)
    for name in ("scaling", "breaker", "cache", "recycling", "health", "slo", "cost"):
        assert set(FULL[name]) == set(type(getattr(settings.parse_agent("a", FULL), name)).__struct_fields__)
    assert set(FULL["rollout"]) == set(settings.Rollout.__struct_fields__)
    assert set(FULL["rollout"]["examples"][0]) == set(settings.Example.__struct_fields__)
    agent = settings.parse_agent("research", FULL)
    assert agent.skills == ("search", "summary")
    assert agent.arguments == FULL["arguments"]
    assert agent.scaling.min_replicas == 2


@pytest.mark.parametrize("given", [FULL, {"factory": "a:b"}])
def test_an_agent_survives_json(given: dict[str, Any]) -> None:
    agent = settings.parse_agent("research", given)
    encoded = msgspec.json.encode(agent)
    assert msgspec.convert(msgspec.json.decode(encoded), AgentSettings) == agent
    again = settings.parse_agent("research", msgspec.json.decode(encoded))
    assert msgspec.json.encode(again) == encoded


def test_a_default_said_aloud_is_the_same_bytes() -> None:
    said = {
        "factory": "a:b",
        "timeout_s": 300,
        "retry_backoff_s": 1,
        "scaling": {"target_queue_per_replica": 5},
    }
    silent = settings.parse_agent("a", {"factory": "a:b"})
    assert msgspec.json.encode(settings.parse_agent("a", said)) == msgspec.json.encode(silent)


def test_null_is_absent() -> None:
    nulls: dict[str, Any] = {key: None for key in FULL if key != "factory"}
    assert settings.parse_agent("a", {"factory": "a:b"} | nulls) == settings.parse_agent("a", {"factory": "a:b"})
    nulls["rollout"] = dict.fromkeys(settings.Rollout.__struct_fields__)
    assert settings.parse_agent("a", {"factory": "a:b"} | nulls) == settings.parse_agent("a", {"factory": "a:b"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("timeout_s", "10", 'expected a number of seconds > 0 and at most 604800, got "10"'),
        ("timeout_s", 0, "got 0"),
        ("timeout_s", True, "got true"),
        ("timeout_s", float("nan"), "got nan"),
        ("timeout_s", float("inf"), "got inf"),
        ("timeout_s", 604_801, "got 604801"),
        ("timeout_s", 10**400, "got a number of 1329 bits"),
        ("hang_after_s", 1.9, "expected a number of seconds from 2 to 3600, got 1.9"),
        ("hang_after_s", 3601, "got 3601"),
        ("concurrency", 0, "expected a whole number from 1 to 1024, got 0"),
        ("concurrency", 1025, "got 1025"),
        ("concurrency", 2.0, "got 2.0"),
        ("concurrency", True, "got true"),
        pytest.param("concurrency", 10**5000, "got a number of 16610 bits", id="concurrency-huge"),
        ("sessions", 1, "expected true or false, got 1"),
        ("max_attempts", 101, "from 1 to 100"),
        ("retry_backoff_s", -1, "expected a number of seconds from 0"),
        ("memory_mb", 0, "a whole number of megabytes from 1"),
        ("on_replica_loss", "retri", 'did you mean "retry"?'),
        ("env", "OPENAI_API_KEY", "expected a list of at most 200"),
        ("env", ["A"] * 201, "got a list of 201"),
        ("description", 5, "expected text of at most 2000 characters, got 5"),
        ("description", "x" * 2001, "got"),
        ("description", "bell\x07", "expected text"),
        ("description", "\ud800", "expected text"),
        ("factory", "agents.research", '"module:attribute"'),
        ("factory", "../agents:research", '"module:attribute"'),
        ("factory", "agents:research\n", '"module:attribute"'),
        ("factory", "agents/x:research", '"module:attribute"'),
        ("factory", "agents:a:b", '"module:attribute"'),
        ("factory", "1agents:a", '"module:attribute"'),
        ("factory", ".agents:a", '"module:attribute"'),
        ("factory", "agents:class", '"class" cannot be a name in Python'),
        ("factory", "agents:x²", '"x²" cannot be a name in Python'),
        ("python", "../python", 'the path of a Python interpreter, without ".."'),
        ("python", "venv/../bin/python", "got"),
        ("python", "/bin/sh", "got"),
        ("python", "python -c x", "got"),
        ("arguments", [], "expected a table, got a list of 0"),
        ("arguments", {"x": "a" * 300_000}, "expected at most 262144 bytes"),
        ("scaling", 3, "expected a table, got 3"),
        ("on_replica_loss", "fail", '"fail" requires concurrency = 1, got 4'),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, message: str) -> None:
    given: dict[str, Any] = {key: value} | ({"concurrency": 4} if value == "fail" else {})
    problems = _problems(**given)
    assert list(problems) == [f"agents.research.{key}"]
    assert message in problems[f"agents.research.{key}"]


@pytest.mark.parametrize(
    "pattern", ["/etc/passwd", "../x", "a/../b", "a/..", "..", ".", "./a", "a//b", "a\\..\\b", "", "a\0b"]
)
def test_a_pattern_stays_inside_the_folder(pattern: str) -> None:
    assert list(_problems(include=["ok.txt", pattern])) == ["agents.research.include[1]"]


@pytest.mark.parametrize("name", ["GREENROOM_KEY", "1A", "A-B", "", "A=1", "A\n", "É"])
def test_a_variable_needs_a_valid_name_that_is_not_ours(name: str) -> None:
    assert list(_problems(env=["A", name])) == ["agents.research.env[1]"]


def test_a_secret_written_by_mistake_is_not_repeated() -> None:
    assert "sk-1" not in str(_problems(env=["OPENAI_API_KEY=sk-1"]))


@pytest.mark.parametrize("name", ["", "-a", "_a", "A", "a" * 64, "a/b", "..", "a.b", "a\n", "a\0", "é", "a b"])
def test_a_name_that_is_no_name_is_refused_and_hides_nothing(name: str) -> None:
    problems = _problems(name, concurrency=2, on_replica_loss="fail")
    assert len(problems) == 2
    assert all(path.startswith("agents.") for path in problems)


@pytest.mark.parametrize("name", ["a", "0", "research-2_b", "a" * 63])
def test_a_good_name_is_taken(name: str) -> None:
    settings.parse_agent(name, {"factory": "a:b"})


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ({"x": {"y": [1, float("nan")]}}, "arguments.x.y[1]", "expected a finite number"),
        ({"when": datetime.date(2026, 1, 1)}, "arguments.when", "expected a JSON value, got a date"),
        ({"big": 2**63}, "arguments.big", "at most 64 bits"),
        ({"a b": "\udfff"}, 'arguments."a b"', "text in Unicode"),
        ({5: 1}, "arguments.5", "expected a key that is text"),
    ],
)
def test_arguments_are_json(value: object, path: str, message: str) -> None:
    problems = _problems(arguments=value)
    assert list(problems) == [f"agents.research.{path}"]
    assert message in problems[f"agents.research.{path}"]


def test_arguments_may_not_be_bottomless() -> None:
    bottomless: dict[str, Any] = {}
    bottomless["again"] = bottomless
    [message] = _problems(arguments=bottomless).values()
    assert message == "expected at most 32 levels of nesting"


def test_arguments_are_a_copy() -> None:
    arguments = {"list": [1]}
    agent = settings.parse_agent("a", {"factory": "a:b", "arguments": arguments})
    arguments["list"].append(2)
    assert agent.arguments == {"list": [1]}


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"egress": ["any", "a.example"]}, "egress", '"any" lets everything through'),
        ({"egress": ["a.example:0", "b:"]}, "egress", "names no port from 1 to 65535; 'b:' names no port"),
        ({"egress": ["a.example:"]}, "egress", "names no port after its colon"),
        ({"egress": ["a.example:0"]}, "egress", "names no port from 1 to 65535"),
        ({"egress": ["a.example:99999"]}, "egress", "names no port from 1 to 65535"),
        ({"egress": ["https://a.example"]}, "egress", "is no destination"),
        ({"egress": ["*.example"]}, "egress", "is no destination"),
        ({"egress": ["10.0.0.300"]}, "egress", "is no destination"),
        ({"egress": ["[::1"]}, "egress", "is no address in brackets"),
        ({"secrets": {"A": "sk-12345"}}, "secrets", '"A" is no reference'),
        ({"secrets": {"A": "x", "B": "env:B", "C": "y"}}, "secrets", 'stored with the agent; "C" is no reference'),
        ({"secrets": {"A": 7}}, "secrets", '"A" is no reference'),
        ({"secrets": {"A": "file:relative"}}, "secrets", '"A" is no reference'),
        ({"secrets": {"A": "env:GREENROOM_STORE"}}, "secrets", '"A" is no reference'),
        ({"secrets": {"GREENROOM_A": "env:A"}}, "secrets", "is no name of an environment variable"),
        ({"secrets": {"A": "env:A"}, "env": ["A"]}, "secrets", '"A" stands in env, too'),
        (
            {"arguments": {"key": [{"secret": "A"}]}},
            "arguments",
            'ask for the secret "A", and the agent\'s secrets are',
        ),
    ],
)
def test_what_keeps_an_agent_in_its_room_is_checked(given: dict[str, Any], path: str, message: str) -> None:
    problems = _problems(**given)
    assert list(problems) == [f"agents.research.{path}"]
    assert message in problems[f"agents.research.{path}"]
    assert "sk-12345" not in str(problems)


def test_a_room_may_be_as_open_as_it_is_said_to_be() -> None:
    agent = settings.parse_agent(
        "a",
        {
            "factory": "a:b",
            "egress": ["api.openai.com", "localhost:11434", "[::1]:80", "10.0.0.1:5432", "::1"],
            "read_paths": ["/srv", "data"],
            "write_paths": ["/var/lib/reports"],
            "secrets": {"A": "file:/run/secrets/a", "B": "env:B"},
            "arguments": {"key": {"secret": "A"}, "plain": {"secret": 1}},
        },
    )
    assert agent.read_paths == ("/srv", "data")
    assert agent.secrets == {"A": "file:/run/secrets/a", "B": "env:B"}


def test_all_mistakes_are_found_at_once() -> None:
    problems = _problems(
        concurency=1,
        timeout_s=0,
        env=[1, "A", "2"],
        scaling={"min_replica": 1, "min_replicas": -1},
        rollout=[],
    )
    assert set(problems) == {
        "agents.research.concurency",
        "agents.research.timeout_s",
        "agents.research.env[0]",
        "agents.research.env[2]",
        "agents.research.scaling.min_replica",
        "agents.research.scaling.min_replicas",
        "agents.research.rollout",
    }
    assert 'did you mean "concurrency"?' in problems["agents.research.concurency"]


def test_a_missing_factory_is_named() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        settings.parse_agent("research", {})
    assert caught.value.problems[0].path == "agents.research.factory"
    assert caught.value.problems[0].message.startswith("is missing")


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"scaling": {"min_replicas": 3, "max_replicas": 2}}, "scaling.min_replicas", "3 is more than max_replicas, 2"),
        (
            {"scaling": {"burst_window_s": 10, "stable_window_s": 9.5}},
            "scaling.burst_window_s",
            "10 is more than stable_window_s, 9.5",
        ),
        (
            {"memory_mb": 512, "recycling": {"memory_mb": 512}},
            "recycling.memory_mb",
            "512 is not less than memory_mb, 512, at which a replica is killed",
        ),
        (
            {"health": {"response_s": 60, "unhealthy_response_s": 60}},
            "health.unhealthy_response_s",
            "60 is not more than response_s, 60, from which on it is degraded; raise it, or remove the key",
        ),
        (
            {"health": {"error_pct": "off", "unhealthy_error_pct": 20}},
            "health.unhealthy_error_pct",
            'is given, and error_pct is "off"; give error_pct a number below 20, or remove the key',
        ),
        ({"health": {"error_pct": 101}}, "health.error_pct", "at most 100"),
        ({"health": {"window_s": 59}}, "health.window_s", "from 60 to 3600, got 59"),
        ({"slo": {"success_pct": 100}}, "slo.success_pct", "100 leaves no error budget"),
        ({"slo": {"success_pct": 0}}, "slo.success_pct", "0 is no goal"),
        ({"slo": {"success_pct": 100.5}}, "slo.success_pct", "from 0 to 100, got 100.5"),
        ({"slo": {"latency_s": 5, "latency_pct": 100}}, "slo.latency_pct", "try 99.9 or less"),
        ({"slo": {"latency_s": 5}}, "slo.latency_s", "5 needs latency_pct, how many of the tasks have to meet it"),
        ({"slo": {"latency_pct": 95}}, "slo.latency_pct", "95 needs latency_s"),
        (
            {"slo": {"success_pct": 99, "window_days": 0.04}},
            "slo.window_days",
            "0.04 days are less than an hour, of which nobody has a budget; try 7 or 30",
        ),
        (
            {"cost": {"input_usd_per_million_tokens": 3}},
            "cost.input_usd_per_million_tokens",
            "3 needs output_usd_per_million_tokens, too: no price is not 0; give 0 if those tokens are free",
        ),
        (
            {"cost": {"output_usd_per_million_tokens": 3}},
            "cost.output_usd_per_million_tokens",
            "3 needs input_usd_per_million_tokens, too",
        ),
        (
            {"cost": {"budget_usd_per_day": 5}},
            "cost.budget_usd_per_day",
            "5 cannot be kept: without a price nobody knows what is spent; give input_usd_per_million_tokens",
        ),
        (
            {"cost": {"on_budget": "refuse"}},
            "cost.on_budget",
            'is "refuse", and there is no budget; give budget_usd_per_day or budget_tokens_per_day',
        ),
        ({"cost": {"budget_tokens_per_day": 0}}, "cost.budget_tokens_per_day", "got 0"),
        ({"cost": {"on_budget": "stop"}}, "cost.on_budget", "refuse"),
        ({"cost": {"usd_per_task": -1}}, "cost.usd_per_task", "from 0 to 1000000, got -1"),
        ({"scaling": {"target_busy_pct": 0}}, "scaling.target_busy_pct", "from 1 to 100, got 0"),
        ({"breaker": {"failure_pct": "on"}}, "breaker.failure_pct", '"off"'),
        ({"cache": {"ttl_s": 0}}, "cache.ttl_s", "got 0"),
        ({"max_running": 0}, "max_running", "from 1 to 100000, got 0"),
    ],
)
def test_what_contradicts_itself_is_refused_where_it_stands(given: dict[str, Any], path: str, message: str) -> None:
    problems = _problems(**given)
    assert list(problems) == [f"agents.research.{path}"]
    assert message in problems[f"agents.research.{path}"]


def test_nonsense_by_the_megabyte_costs_little() -> None:
    nonsense = {f"timeout_{number}": number for number in range(100_000)}
    with pytest.raises(SettingsInvalid) as caught:
        settings.parse_agent("research", nonsense)
    assert len(caught.value.problems) == 1000
    assert len(str(caught.value)) < 10_000
