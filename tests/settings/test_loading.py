"""Files, variables and overrides: which wins, what each may say, and how mistakes in them are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors, settings
from greenroom.settings import SettingsInvalid, loading, showing, sources

Write = Callable[[str], Path]
AGENT = '[agents.research]\nfactory = "agents:research"\n'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "greenroom.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def _problems(manifest: Path | None = None, environ: dict[str, str] | None = None, **overrides: Any) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(manifest, environ or {}, overrides=overrides)
    return dict(caught.value.problems)


def test_a_variable_overrides_the_manifest_and_an_override_both(write: Write) -> None:
    manifest = write(
        'environment = "production"\n[cluster]\nmax_replicas = 20\nmax_connections = 30\njson_logs = false'
    )
    environ = {"GREENROOM_CLUSTER__MAX_REPLICAS": "21", "GREENROOM_CLUSTER__MAX_CONNECTIONS": "31"}
    loaded = settings.load(manifest, environ, overrides={"cluster": {"max_connections": 32, "json_logs": None}})
    cluster = loaded.cluster
    assert (cluster.json_logs, cluster.max_replicas, cluster.max_connections) == (False, 21, 32)
    assert loaded.origins["environment"] == "greenroom.toml"
    assert loaded.origins["cluster.json_logs"] == "greenroom.toml"
    assert loaded.origins["cluster.max_replicas"] == "GREENROOM_CLUSTER__MAX_REPLICAS"
    assert loaded.origins["cluster.max_connections"] == "override"
    assert loaded.origins["cluster.log_level"] == "default of production"
    assert loaded.origins["server.port"] == "default"
    assert loaded.origins["cluster.alert_delivery"] == "default of production"


def test_every_value_has_an_origin(write: Write) -> None:
    loaded = settings.load(write(AGENT), {})
    assert [path for path, _, _ in settings.rows(loaded)] == list(loaded.origins)


def test_variables_change_agents_by_their_name_in_capitals(write: Write) -> None:
    manifest = write('[agents.deep-research]\nfactory="a:b"\n[agents.a]\nfactory="a:b"\n[agents.a__b]\nfactory="a:b"\n')
    environ = {
        "GREENROOM_AGENTS__DEEP_RESEARCH__TIMEOUT_S": "7.5",
        "GREENROOM_AGENTS__DEEP_RESEARCH__SCALING__MIN_REPLICAS": "2",
        "GREENROOM_AGENTS__DEEP_RESEARCH__ENV": '["A", "B"]',
        "GREENROOM_AGENTS__DEEP_RESEARCH__DESCRIPTION": "reads, and reads",
        "GREENROOM_AGENTS__DEEP_RESEARCH__ARGUMENTS__MODEL": "gpt-4o",
        "GREENROOM_AGENTS__A__SESSIONS": "true",
        "GREENROOM_AGENTS__A__B__MAX_ATTEMPTS": "9",
    }
    loaded = settings.load(manifest, environ)
    agent = loaded.agents["deep-research"]
    assert (agent.timeout_s, agent.scaling.min_replicas, agent.env) == (7.5, 2, ("A", "B"))
    assert (agent.description, agent.arguments) == ("reads, and reads", {"model": "gpt-4o"})
    assert loaded.agents["a"].sessions
    assert loaded.agents["a__b"].max_attempts == 9
    assert loaded.origins["agents.deep-research.arguments.model"] == "GREENROOM_AGENTS__DEEP_RESEARCH__ARGUMENTS__MODEL"


def test_a_variable_that_may_mean_two_agents_is_refused(write: Write) -> None:
    manifest = write('[agents.a-b]\nfactory="a:b"\n[agents.a_b]\nfactory="a:b"\n')
    problems = _problems(manifest, {"GREENROOM_AGENTS__A_B__TIMEOUT_S": "1"})
    assert problems == {"GREENROOM_AGENTS__A_B__TIMEOUT_S": "may mean each of the agents a-b, a_b"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain words", "plain words"),
        ('"quoted"', "quoted"),
        ("2026-01-01", "2026-01-01"),
        ("x\ny = 1", "x\ny = 1"),
        ('"x"\nfactory = "evil:it"', '"x"\nfactory = "evil:it"'),
        ("", ""),
        ("[" * 100_000, None),
    ],
)
def test_a_variable_that_is_not_toml_is_text(text: str, value: str | None, write: Write) -> None:
    environ = {"GREENROOM_AGENTS__RESEARCH__DESCRIPTION": text}
    if value is None:  # longer than a description may be
        assert list(_problems(write(AGENT), environ)) == ["agents.research.description"]
    else:
        assert settings.load(write(AGENT), environ).agents["research"].description == value


@pytest.mark.parametrize(
    ("variable", "path", "message"),
    [
        ("GREENROOM_CLUSTER__MAX_REPLICA", "cluster.max_replica", 'did you mean "max_replicas"?'),
        ("GREENROOM_CLUSTR__METRICS", "GREENROOM_CLUSTR__METRICS", 'did you mean "GREENROOM_CLUSTER__…"?'),
        ("GREENROOM_SERVER_PORT", "GREENROOM_SERVER_PORT", 'did you mean "GREENROOM_SERVER__PORT"?'),
        ("GREENROOM_ENV", "GREENROOM_ENV", 'did you mean "GREENROOM_ENVIRONMENT"?'),
        ("GREENROOM_AGENTS__RESERCH__ENV", "GREENROOM_AGENTS__RESERCH__ENV", 'did you mean "research"?'),
        ("GREENROOM_AGENTS__RESEARCH__TIMEOUT", "agents.research.timeout", 'did you mean "timeout_s"?'),
        ("GREENROOM_CLUSTER__MAX_REPLICAS", "cluster.max_replicas", "(GREENROOM_CLUSTER__MAX_REPLICAS)"),
    ],
)
def test_a_wrong_variable_is_refused_with_a_suggestion(variable: str, path: str, message: str, write: Write) -> None:
    problems = _problems(write(AGENT), {variable: "some text"})
    assert list(problems) == [path]
    assert message in problems[path]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("AGENTS_RESEARCH_TIMEOUT_S", "AGENTS__RESEARCH__TIMEOUT_S"),
        ("AGENTS__RESEARCH_TIMEOUT_S", "AGENTS__RESEARCH__TIMEOUT_S"),
        ("AGENT_RESEARCH_TIMEOUT", "AGENTS__RESEARCH__TIMEOUT_S"),
        ("RESEARCH_SCALING_MIN_REPLICAS", "AGENTS__RESEARCH__SCALING__MIN_REPLICAS"),
        ("CLUSTER_MAX_REPLICA", "CLUSTER__MAX_REPLICAS"),
        ("MAX_REPLICAS", "CLUSTER__MAX_REPLICAS"),
        ("SERVER_PORT", "SERVER__PORT"),
        ("PORT", "SERVER__PORT"),
        ("CLUSTER", "CLUSTER__…"),
        ("AGENTS", "AGENTS__…"),
        ("ENVIROMENT", "ENVIRONMENT"),
        ("API_KEY", "KEY"),
        ("DATADIR", "DATA_DIR"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_spelling_that_was_meant(name: str, meant: str, write: Write) -> None:
    problems = _problems(write(AGENT), {f"GREENROOM_{name}": "5"})
    assert list(problems) == [f"GREENROOM_{name}"]
    assert f'did you mean "GREENROOM_{meant}"?' in problems[f"GREENROOM_{name}"]


def test_an_unknown_variable_that_resembles_nothing_is_refused_with_the_forms() -> None:
    problems = _problems(None, {"GREENROOM_QUUX": "5"})
    assert "GREENROOM_<SECTION>__<KEY>" in problems["GREENROOM_QUUX"]


def test_variables_of_others_are_left_alone() -> None:
    kubernetes = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_7080_TCP", "PORT_7080_TCP_ADDR"]
    others = ["URL", "KEY", "TEST_POSTGRES", "DATA_DIR", "DEBUG", *kubernetes, *(f"API_{name}" for name in kubernetes)]
    environ = {f"GREENROOM_{name}": "tcp://10.0.0.1:80" for name in others} | {
        "HOME": "/",
        "greenroom_cluster__x": "1",
    }
    assert settings.load(None, environ) == settings.load(None, {})


def test_what_the_code_reads_beside_the_settings_is_known() -> None:
    source = Path(settings.__file__).parents[1]
    files = [path for path in source.rglob("*.py") if path.parent.name not in {"settings", "testing"}]
    names = {
        name for path in files for name in re.findall(r"\bGREENROOM_([A-Z]+(?:_[A-Z]+)*)(?![A-Z_])", path.read_text())
    }
    assert names == sources.NO_SETTINGS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cluster\n", "line 1, column 9"),
        ("a = 1\na = 2\n", "line 2"),
        ("x = " + "1" * 5000, "is not TOML"),
        ("x = " + "[" * 50_000, "nested too deeply"),
        ("#" * 1_100_000, "larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_mistake(text: str, message: str, write: Write) -> None:
    problems = _problems(write(text), {"GREENROOM_NONSENSE__X": "1"})
    assert list(problems) == ["greenroom.toml"]
    assert message in problems["greenroom.toml"]


def test_a_file_that_cannot_be_read_is_one_mistake(tmp_path: Path) -> None:
    assert "`greenroom init` writes one" in _problems(tmp_path / "greenroom.toml")["greenroom.toml"]
    assert "directory" in _problems(tmp_path)[tmp_path.name]
    assert _problems(Path("a\0b")) == {"a\0b": "is not a path"}
    (tmp_path / "latin").write_bytes(b"\xff")
    assert _problems(tmp_path / "latin") == {"latin": "is not UTF-8: byte 0"}


@pytest.mark.parametrize(
    ("overrides", "path", "message"),
    [
        ({"clusters": {}}, "clusters", 'did you mean "cluster"?'),
        ({"": 1}, '""', "unknown key"),
        ({"cluster": 5}, "cluster", "expected a table, got 5"),
        ({"cluster": {"log_level": "info"}}, "cluster.log_level", 'did you mean "INFO"?'),
        (
            {"cluster": {"max_replicas": True}},
            "cluster.max_replicas",
            "expected a whole number from 1 to 10000, got true",
        ),
        ({"server": {"port": 65_536}}, "server.port", "from 0 to 65535"),
        ({"server": {"host": "0.0.0.0"}}, "server.host", "requires security.tls"),
        ({"server": {"host": "example.com"}}, "server.host", "requires security.tls"),
        ({"server": {"host": "local host"}}, "server.host", "expected an IP address or host name"),
        ({"security": {"authentication": False}}, "security.authentication", "cannot be switched off"),
        ({"environment": {}}, "environment", "got a table"),
        ({"agents": []}, "agents", "got a list of 0"),
        ({"agents": {"a": None, "b": 5}}, "agents.b", "expected a table, got 5"),
        (
            {"agents": {"a": {"factory": "a:b", "scaling": {"min_replicas": 0}}}},
            "cluster.autoscaling",
            "is off, and scaling.min_replicas of a is 0: nothing would start a replica again",
        ),
        (
            {"agents": {"a": {"factory": "a:b", "scaling": {"max_replicas": 11}}}},
            "cluster.max_replicas",
            "10 is less than the scaling.max_replicas of a",
        ),
        (
            {"server": {"max_queued_tasks": 10, "max_queued_tasks_per_tenant": 11}},
            "server.max_queued_tasks_per_tenant",
            "11 is more than max_queued_tasks, 10",
        ),
        ({"optimizer": {"target_response_s": 0}}, "optimizer.target_response_s", "got 0"),
        (
            {"history": {"keep_minutes_days": 8}},
            "history.keep_minutes_days",
            "expected a whole number from 1 to 7, got 8",
        ),
        (
            {
                "history": {"keep_hours_days": 7},
                "agents": {"a": {"factory": "m:a", "slo": {"success_pct": 99}}, "b": {"factory": "m:b"}},
            },
            "agents.a.slo.window_days",
            "30 days are more than the history is kept (history.keep_hours_days, 7); shorten the window, or keep more",
        ),
        (
            {"history": {"keep_hours_days": 0}},
            "history.keep_hours_days",
            "expected a whole number from 1 to 3650, got 0",
        ),
        ({"logs": {"keep_days": -1}}, "logs.keep_days", "expected a whole number from 0 to 3650, got -1"),
        ({"logs": {"max_lines": 999}}, "logs.max_lines", "expected a whole number from 1000 to 10000000, got 999"),
        ({"logs": {"max_mb": 0}}, "logs.max_mb", "expected a whole number from 1 to 100000, got 0"),
        ({"logs": {"lines_per_second": 0}}, "logs.lines_per_second", "expected a whole number from 1 to 1000, got 0"),
        (
            {"tracing": {"headers_env": "OTLP"}, "agents": {"a": {"factory": "a:b", "env": ["OTLP"]}}},
            "tracing.headers_env",
            "the agent a is given it",
        ),
        ({"tracing": {"sample_ratio": 1.5}}, "tracing.sample_ratio", "expected a number from 0 to 1, got 1.5"),
        ({"tracing": {"endpoint": "collector:4318"}}, "tracing.endpoint", "expected a URL of https://…"),
        ({"tracing": {"ui_url": "javascript:alert(1)//{trace_id}"}}, "tracing.ui_url", "{trace_id}"),
        ({"tracing": {"ui_url": "https://jaeger/trace"}}, "tracing.ui_url", "{trace_id}"),
        ({"cluster": {"max_surge": -1}}, "cluster.max_surge", "expected a whole number from 0 to 10000, got -1"),
        ({"cluster": {"max_surge": "25%"}}, "cluster.max_surge", 'got "25%"'),
        ({"server": {"accept_code": "yes"}}, "server.accept_code", "expected true or false"),
        ({"server": {"max_code_bytes": 1023}}, "server.max_code_bytes", "bytes from 1024 to 67108864, got 1023"),
        ({"server": {"max_code_bytes": 2**26 + 1}}, "server.max_code_bytes", "got 67108865"),
        (
            {"server": {"host": "0.0.0.0"}, "security": {"tls": True}},
            "server.host",
            "requires security.tls_certificate and security.tls_key",
        ),
        (
            {"server": {"host": "0.0.0.0"}, "environment": "production", "cluster": {"alert_delivery": False}},
            "server.host",
            "requires security.tls_certificate and security.tls_key",
        ),
        (
            {"security": {"tls": True, "tls_certificate": "a.pem"}},
            "security.tls_certificate",
            "security.tls_key is missing",
        ),
        ({"security": {"tls": True, "tls_key": "a.pem"}}, "security.tls_certificate", "tls_certificate is missing"),
        (
            {"security": {"tls_certificate": "a.pem", "tls_key": "a.pem"}},
            "security.tls_certificate",
            "set security.tls = true",
        ),
        ({"security": {"tls": True, "tls_client_ca": "a.pem"}}, "security.tls_client_ca", "the node has none itself"),
        ({"server": {"trusted_proxies": ["10.0.0.300"]}}, "server.trusted_proxies", '"10.0.0.300" is no IP address'),
        ({"server": {"trusted_proxies": ["::/0"]}}, "server.trusted_proxies", '"::/0" is nearly everybody'),
        ({"server": {"trusted_proxies": ["128.0.0.0/1"]}}, "server.trusted_proxies", "is nearly everybody"),
        (
            {"server": {"trusted_proxies": ["10.0.0.7", "0.0.0.0/0", "10.0.0.300"]}},
            "server.trusted_proxies",
            'for example 10.0.0.7 or 10.0.0.0/8; "10.0.0.300" is no IP address',
        ),
        ({"security": {"tls": True}}, "security.tls", "there is no certificate: set security.tls_certificate"),
        ({"security": {"rate_limit_per_minute": 0}}, "security.rate_limit_per_minute", "from 1 to 1000000"),
        (
            {"security": {"rate_limit_per_minute": 10, "tenant_rate_limit_per_minute": 9}},
            "security.tenant_rate_limit_per_minute",
            "9 is less than rate_limit_per_minute, 10",
        ),
        (
            {"security": {"audit_log": False, "intrusion_rules": True}},
            "security.intrusion_rules",
            "needs security.audit_log",
        ),
        (
            {"security": {"audit_log": False, "audit_export": ["stdout"]}},
            "security.audit_export",
            "security.audit_log is off",
        ),
        (
            {"security": {"intrusion": {"failed_logins": "revoke"}}},
            "security.intrusion.failed_logins",
            'expected "off", "alert", "throttle", "lock"',
        ),
        *(
            ({"security": {"intrusion": {name: "lock"}}}, f"security.intrusion.{name}", 'expected "off", "alert"')
            for name in ("blocked_agent", "broken_audit", "clock_jump")
        ),
    ],
)
def test_a_wrong_key_is_named(overrides: dict[str, Any], path: str, message: str) -> None:
    problems = _problems(**overrides)
    assert list(problems) == [path]
    assert message in problems[path]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_tls(host: str) -> None:
    assert settings.load(None, {}, overrides={"server": {"host": host}}).server.host == host


def test_code_by_api_is_off_and_can_be_switched_on() -> None:
    assert not settings.load(None, {}).server.accept_code
    server = settings.load(None, {}, overrides={"server": {"accept_code": True, "max_code_bytes": 2048}}).server
    assert (server.accept_code, server.max_code_bytes) == (True, 2048)


def test_surge_is_bounded_where_somebody_says_so() -> None:
    assert settings.load(None, {}).cluster.max_surge is None
    assert settings.load(None, {"GREENROOM_CLUSTER__MAX_SURGE": "0"}).cluster.max_surge == 0


def test_the_minimums_have_to_fit() -> None:
    agents = {name: {"factory": "a:b", "scaling": {"min_replicas": 6}} for name in ("a", "b")}
    problems = _problems(agents=agents)
    assert problems == {"cluster.max_replicas": "10 is less than the agents' scaling.min_replicas together, 12"}
    settings.load(None, {}, overrides={"agents": agents, "cluster": {"max_replicas": 12}})


def test_one_replica_is_left_to_wake_those_that_sleep_with() -> None:
    minimums = {"a": 2, "b": 2, "c": 0, "d": 0}
    agents = {name: {"factory": "a:b", "scaling": {"min_replicas": least}} for name, least in minimums.items()}
    cluster = {"max_replicas": 4, "autoscaling": True}
    problems = _problems(agents=agents, cluster=cluster)
    assert problems["cluster.max_replicas"].startswith(
        "4 is what the agents' scaling.min_replicas are together: none is left to wake c, d with; raise it to 5"
    )
    settings.load(None, {}, overrides={"agents": agents, "cluster": cluster | {"max_replicas": 5}})


def test_mistakes_everywhere_are_told_at_once_and_readably(write: Write) -> None:
    manifest = write(AGENT + 'timeout_s = "10"\n[cluster]\nmax_replicas = 0\n[sevrer]\nport = 1\n')
    with pytest.raises(errors.SettingsInvalid) as caught:
        settings.load(manifest, {"GREENROOM_SERVER__PORT": "x"})
    assert str(caught.value) == (
        "cannot use these settings: 4 mistakes\n"
        '  sevrer: unknown key; did you mean "server"? (greenroom.toml:6)\n'
        "  cluster.max_replicas: expected a whole number from 1 to 10000, got 0 (greenroom.toml:5)\n"
        '  server.port: expected a whole number from 0 to 65535, got "x" (GREENROOM_SERVER__PORT)\n'
        '  agents.research.timeout_s: expected a number of seconds > 0 and at most 604800, got "10" (greenroom.toml:3)'
    )


def test_the_starter_manifest_is_valid_as_it_is_and_with_its_comments_made_real(write: Write) -> None:
    text = settings.starter_manifest()
    assert "GREENROOM_AGENTS__HELLO__TIMEOUT_S" in text
    assert list(settings.load(write(text), {}).agents) == ["hello"]
    lines = [line.removeprefix("# ") if " = " in line or line.startswith("# [") else line for line in text.splitlines()]
    everything = settings.load(write("\n".join(lines)), {})
    assert everything.agents["hello"].scaling.min_replicas == 2
    assert everything.agents["hello"].rollout.examples[0].contains == ("Ada",)
    assert everything.cluster.max_connections == 128


def test_secrets_among_the_arguments_are_not_shown() -> None:
    def loaded(secret: str) -> settings.Settings:
        arguments = {
            "model": "m",
            "max_tokens": 5,
            "api_key": secret,
            "llm": {"list": [{"Token": secret, "top_k": 1}]},
        }
        return settings.load(None, {}, overrides={"agents": {"a": {"factory": "a:b", "arguments": arguments}}})

    values = {path: value for path, value, _ in settings.rows(loaded("s3cret"))}
    assert "s3cret" not in str(values)
    assert values["agents.a.arguments.api_key"] == "***"
    assert values["agents.a.arguments.max_tokens"] == 5
    assert values["agents.a.arguments.llm"] == {"list": [{"Token": "***", "top_k": 1}]}
    changed = settings.diff(loaded("s3cret"), loaded("other"))
    assert ("agents.a.arguments.api_key", "***", "***") in changed
    assert "s3cret" not in str(changed)


@pytest.mark.parametrize(
    "name",
    ["api_key", "apikey", "OPENAI_API_KEY", "key", "accessKey", "hf_token", "db_password", "client_secret"],
)
def test_a_name_of_a_secret_is_known(name: str) -> None:
    assert showing.masked(("agents", "a", "arguments", name), "x") == "***"


@pytest.mark.parametrize("name", ["max_tokens", "monkey", "keyboard", "model"])
def test_a_name_that_only_resembles_one_is_shown(name: str) -> None:
    assert showing.masked(("agents", "a", "arguments", name), "x") == "x"


def test_a_diff_has_what_changed_and_nothing_else() -> None:
    agent = {"factory": "a:b"}
    old = settings.load(None, {}, overrides={"agents": {"a": agent, "gone": agent}})
    new = settings.load(None, {}, overrides={"agents": {"a": agent | {"concurrency": 2}}, "server": {"port": 1}})
    changes = settings.diff(old, new)
    assert ("server.port", 7080, 1) in changes
    assert ("agents.a.concurrency", 1, 2) in changes
    assert ("agents.gone.factory", "a:b", None) in changes
    assert [change for change in changes if change.key == "agents.gone.arguments"] == []
    assert not [change for change in changes if change.before == change.after and change.after is not None]
    assert settings.diff(old, old) == []


def test_every_section_can_be_set_by_variables() -> None:
    assert {*sources.SECTIONS, "environment", "agents"} == set(loading.TOP_KEYS)
    environ = {
        "GREENROOM_OPTIMIZER__APPLY": "true",
        "GREENROOM_HISTORY__KEEP_HOURS_DAYS": "7",
        "GREENROOM_LOGS__MAX_MB": "2",
    }
    found = settings.load(None, environ)
    assert (found.optimizer.apply, found.history.keep_hours_days, found.logs.max_mb) == (True, 7, 2)
