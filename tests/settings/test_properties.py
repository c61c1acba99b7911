"""Whatever is given: settings that can be trusted, or `SettingsInvalid` with paths. Never anything else."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from greenroom import settings
from greenroom.core.signals import Signal
from greenroom.settings import AgentSettings, SettingsInvalid

SURROGATES = st.text(st.characters(codec=None))
KEYS = st.sampled_from(
    [
        *("environment", "cluster", "server", "security", "agents", "research", "a-b", "a_b"),
        *settings.Cluster.__struct_fields__,
        *settings.Server.__struct_fields__,
        *settings.Security.__struct_fields__,
        *settings.Scaling.__struct_fields__,
        *settings.Rollout.__struct_fields__,
        *settings.Example.__struct_fields__,
        *settings.AlertRule.__struct_fields__,
        *AgentSettings.__struct_fields__,
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, 2**63, 10**4000, -(10**4000), 1e400, "agents:research", "any", "off", "INFO", "::1", "25%"]),
    st.floats(),
    SURROGATES,
    st.dates(),
    st.datetimes(),
    st.times(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS | SURROGATES, inner, max_size=5)),
    max_leaves=20,
)
EXAMPLES = st.fixed_dictionaries(
    {"input": VALUES},
    optional={
        "equals": VALUES,
        "contains": st.text() | st.lists(st.text(), max_size=3) | VALUES,
        "not_contains": st.text() | VALUES,
        "matches": st.text("ab(?[<=\\\n\x85)]{*,9}") | st.text() | VALUES,
        "within_s": st.floats(0, 90_000) | VALUES,
    },
)
SHARES = st.integers(-1, 10_001) | st.integers(-1, 101).map("{}%".format) | VALUES
ROLLOUTS = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["rolling", "blue-green", "canary"]) | VALUES,
        "checks": st.lists(st.just("a:smoke") | SURROGATES, max_size=2),
        "examples": st.lists(EXAMPLES | VALUES, max_size=3) | VALUES,
        "weights": st.lists(st.integers(0, 101), max_size=4).map(lambda weights: [*sorted(weights), 100]) | VALUES,
        "max_surge": SHARES,
        "max_unavailable": SHARES,
        "promotion": st.sampled_from(["automatic", "manual"]) | VALUES,
    },
)
TABLES = st.dictionaries(KEYS | SURROGATES, VALUES, max_size=5)
AGENTS = st.dictionaries(
    st.sampled_from(["research", "a-b", "a_b", "a__b", "Bad name"]) | SURROGATES,
    TABLES | st.just({"factory": "a:b"}),
    max_size=4,
)
RULES = st.dictionaries(
    st.sampled_from(["slow_tasks", "disk_free", "own", "Bad name"]) | SURROGATES,
    TABLES
    | st.fixed_dictionaries(
        {"signal": st.sampled_from(Signal).map(str) | VALUES},
        optional={
            "above": st.floats(-1, 101) | VALUES,
            "below": st.floats(-1, 101) | VALUES,
            "agents": st.lists(st.sampled_from(["*", "a-*", "b"]) | SURROGATES, max_size=2) | VALUES,
            "window_s": st.integers(59, 3601) | VALUES,
            "min_volume": st.integers(0, 2) | VALUES,
        },
    )
    | VALUES,
    max_size=3,
)
MANIFESTS = TABLES | st.fixed_dictionaries(
    {},
    optional={
        "environment": st.sampled_from(["production", "prod"]) | VALUES,
        "cluster": TABLES,
        "server": TABLES,
        "security": TABLES,
        "alerts": st.fixed_dictionaries({"rules": RULES}) | TABLES,
        "agents": AGENTS,
    },
)
VARIABLES = st.dictionaries(
    st.builds(
        "GREENROOM_{}".format,
        st.lists(KEYS | st.text(max_size=5), min_size=1, max_size=4).map(lambda parts: "__".join(parts).upper()),
    )
    | st.text(),
    SURROGATES | st.sampled_from(["1", "true", "[1]", "{a=1}", "nan", "1979-05-27", "1" * 5000]),
    max_size=4,
)


def _bottomless() -> dict[str, Any]:
    table: dict[str, Any] = {}
    table["cluster"] = table["agents"] = table["arguments"] = table
    return table


@given(manifest=MANIFESTS, environ=VARIABLES)
@example(manifest=_bottomless(), environ={})
@example(
    manifest={"environment": "\ud800", "\udfff": 1, "cluster": {"log_level": "\ud800"}},
    environ={"GREENROOM_\ud800__X": "\ud800"},
)
@example(
    manifest={"agents": {"a": {"arguments": _bottomless()}}},
    environ={"GREENROOM_AGENTS__A__ARGUMENTS__X": "1"},
)
@example(manifest={"agents": {"a": {"factory": "a:b", "arguments": {"at": datetime.date.max}}}}, environ={})
def test_arbitrary_tables_give_settings_or_their_mistakes(manifest: Mapping[str, Any], environ: dict[str, str]) -> None:
    try:
        loaded = settings.load(None, environ, overrides=manifest)
    except SettingsInvalid as error:
        assert error.problems
        assert all(problem.path and problem.message for problem in error.problems)
        assert all("\n" not in problem.message for problem in error.problems)
        str(error).encode()  # can be printed and sent
        assert len(set(error.problems)) == len(error.problems)
    else:
        for agent in loaded.agents.values():
            assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(agent)), AgentSettings) == agent
        for rule in loaded.alerts.rules.values():
            assert (rule.above is None) != (rule.below is None)
            assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(rule)), settings.AlertRule) == rule
        assert all(settings.rows(loaded))


@given(name=SURROGATES | st.just("a"), table=TABLES | st.fixed_dictionaries({"rollout": ROLLOUTS}))
def test_arbitrary_agents_are_parsed_or_refused(name: str, table: dict[str, Any]) -> None:
    try:
        agent = settings.parse_agent(name, {"factory": "a:b"} | table)
    except SettingsInvalid as error:
        assert all(problem.path.startswith("agents.") for problem in error.problems)
        assert all("\n" not in problem.message for problem in error.problems)
    else:
        assert settings.parse_agent(name, msgspec.to_builtins(agent)) == agent
        assert msgspec.json.decode(msgspec.json.encode(agent), type=AgentSettings) == agent
