"""Which settings make a revision, which stay with the agent, and what a deployment would change."""

from __future__ import annotations

import doctest
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import settings
from greenroom.settings import AgentSettings, Change, revisions

BEFORE = settings.parse_agent("a", {"factory": "a:b"})
OTHER: dict[str, Any] = {
    "factory": "other:agent",
    "description": "another",
    "skills": ["x"],
    "examples": ["x"],
    "arguments": {"x": 1},
    "env": ["A"],
    "secrets": {"B": "env:B"},
    "include": ["a.txt"],
    "python": "venv/bin/python",
    "concurrency": 2,
    "sessions": True,
    "timeout_s": 1,
    "max_attempts": 1,
    "retry_backoff_s": 2,
    "retry_on": ["ValueError"],
    "on_replica_loss": "fail",
    "hang_after_s": 3,
    "memory_mb": 512,
    "read_paths": ["/a"],
    "write_paths": ["/b"],
    "egress": ["example.com"],
    "max_running": 20,
    "scaling": {"min_replicas": 2},
    "breaker": {"failure_pct": "off"},
    "cache": {"ttl_s": 60},
    "recycling": {"tasks": 1000},
    "health": {"response_s": 60},
    "slo": {"success_pct": 99},
    "cost": {"usd_per_task": 0.01},
    "rollout": {"strategy": "canary"},
}


def _with(key: str) -> AgentSettings:
    # Past `parse_agent`, for what is not yet built.
    value = msgspec.convert({"factory": "a:b"} | {key: OTHER[key]}, AgentSettings)
    return msgspec.structs.replace(BEFORE, **{key: getattr(value, key)})


def test_each_setting_is_the_revisions_or_the_agents() -> None:
    both = [*revisions.OF_REVISION, *revisions.OF_AGENT]
    assert sorted(both) == sorted(AgentSettings.__struct_fields__)
    assert OTHER.keys() == set(both)


@pytest.mark.parametrize("key", AgentSettings.__struct_fields__)
def test_another_value_is_another_revision_if_the_setting_is_the_revisions(key: str) -> None:
    is_another = settings.revision_part(_with(key)) != settings.revision_part(BEFORE)
    assert is_another == (key in revisions.OF_REVISION)


def test_the_part_of_a_revision_is_canonical() -> None:
    def part(**given: Any) -> bytes:
        return settings.revision_part(settings.parse_agent("a", {"factory": "a:b"} | given))

    assert part(arguments={"b": {"y": 1, "x": 2}, "a": 1}) == part(arguments={"a": 1, "b": {"x": 2, "y": 1}})
    assert part(timeout_s=300) == part()
    assert msgspec.json.decode(part()).keys() == set(revisions.OF_REVISION)
    assert part(description="another", scaling={"min_replicas": 9}) == part()
    assert part(arguments={"x": 1}) != part(arguments={"x": True})


@pytest.mark.parametrize("key", AgentSettings.__struct_fields__)
def test_an_agent_that_goes_back_keeps_what_is_its_own(key: str) -> None:
    new = _with(key)
    back = settings.with_revision_part(new, BEFORE)
    assert settings.revision_part(back) == settings.revision_part(BEFORE)
    assert back == (BEFORE if key in revisions.OF_REVISION else new)


@pytest.mark.parametrize("key", AgentSettings.__struct_fields__)
def test_a_change_of_one_setting_is_one_change(key: str) -> None:
    [change] = settings.changes(BEFORE, _with(key))
    assert change.key.startswith(key)
    assert settings.changes(BEFORE, BEFORE) == []


def test_changes_have_dotted_keys_and_no_secrets() -> None:
    before = {"model": "small", "api_key": "s3cret", "llm": {"token": "s3cret"}, "gone": 1}
    after = {"model": "large", "api_key": "other", "llm": {"token": "other"}, "new": {"a b": 2}}
    old, new = (
        settings.parse_agent("a", {"factory": "a:b", "arguments": before, "scaling": {"min_replicas": 1}}),
        settings.parse_agent(
            "a",
            {
                "factory": "a:b",
                "arguments": after,
                "scaling": {"min_replicas": 3},
                "rollout": {"strategy": "canary", "examples": [{"input": "x"}]},
            },
        ),
    )
    changes = settings.changes(old, new)
    assert changes == [
        Change("arguments.model", "small", "large"),
        Change("arguments.api_key", "***", "***"),
        Change("arguments.llm", {"token": "***"}, {"token": "***"}),
        Change("arguments.gone", 1, None),
        Change("scaling.min_replicas", 1, 3),
        Change("rollout.strategy", "rolling", "canary"),
        Change("rollout.examples", (), (settings.Example(input="x"),)),
        Change("arguments.new", None, {"a b": 2}),
    ]
    assert b"s3cret" not in msgspec.json.encode(changes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, 1.0, "", "1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(st.sampled_from("xy"), JSON, max_size=2)


@given(before=ARGUMENTS, after=ARGUMENTS)
def test_who_gets_another_revision_is_told_why(before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = (settings.parse_agent("a", {"factory": "a:b", "arguments": arguments}) for arguments in (before, after))
    is_another = settings.revision_part(old) != settings.revision_part(new)
    assert bool(settings.changes(old, new)) == is_another


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(revisions).attempted > 0
    assert doctest.testmod(revisions).failed == 0
