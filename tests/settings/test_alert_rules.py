"""Rules of alerts: the built-in ones, what changes them, and what a rule of one's own may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom import settings
from greenroom.core.signals import OF_NODE, OVER_WINDOW, WITH_VOLUME
from greenroom.settings.alert_rules import BUILT_IN, MAX_RULES


def load(rules: Any) -> settings.Settings:
    return settings.load(overrides={"alerts": {"rules": rules}})


def told(rules: Any) -> dict[str, str]:
    with pytest.raises(settings.SettingsInvalid) as caught:
        load(rules)
    return {path.removeprefix("alerts.rules."): message for path, message in caught.value.problems}


def test_built_in_rules_are_there_and_what_is_given_changes_them_key_by_key() -> None:
    found = load({"slow_tasks": {"above": 90, "except_agents": ["batch-*"]}, "disk_free": {"enabled": False}})
    rules = found.alerts.rules
    assert list(rules) == list(BUILT_IN)
    slow, before = rules["slow_tasks"], BUILT_IN["slow_tasks"]
    assert (slow.above, slow.except_agents, slow.window_s) == (90.0, ("batch-*",), before.window_s)
    assert not rules["disk_free"].enabled
    assert rules["failure_rate"] == BUILT_IN["failure_rate"]
    assert found.origins["alerts.rules.slow_tasks.above"] == "override"
    assert found.origins["alerts.rules.slow_tasks.for_s"] == "default"


def test_built_in_rules_keep_to_what_rules_may_say() -> None:
    for name, rule in BUILT_IN.items():
        assert (rule.above is None) != (rule.below is None), name
        assert rule.signal in OVER_WINDOW or rule.window_s == 300.0, name
        assert rule.signal in WITH_VOLUME or rule.min_volume == 1, name
        assert rule.signal not in OF_NODE or rule.agents == ("*",), name
    load({name: {"signal": str(rule.signal)} for name, rule in BUILT_IN.items()})


def test_a_rule_of_ones_own_needs_a_signal_and_a_bound() -> None:
    rule = load({"few": {"signal": "replicas", "below": 2, "agents": ["research"]}}).alerts.rules["few"]
    assert (rule.below, rule.agents, rule.severity, rule.for_s) == (2.0, ("research",), "warning", 60.0)
    assert told({"few": {"below": 2}})["few.signal"].startswith('is missing; expected one of "run_p95_s"')
    assert told({"few": {"signal": "replicas"}}) == {"few": "has no bound: give above or below"}


@pytest.mark.parametrize(
    ("name", "rule", "path", "message"),
    [
        ("slow_tasks", {"below": 1}, "slow_tasks.below", "stands beside above = 60"),
        ("slow_tasks", {"signal": "queued"}, "slow_tasks.signal", "is built in, and about run_p95_s"),
        ("failure_rate", {"above": 100}, "failure_rate.above", "is never above 100"),
        ("disk_free", {"agents": ["a"]}, "disk_free.agents", "is of no agent"),
        ("queue_age", {"window_s": 60}, "queue_age.window_s", "over no window"),
        ("restarts", {"min_volume": 5}, "restarts.min_volume", "could be too few"),
        ("own", {"signal": "queud", "above": 1}, "own.signal", 'did you mean "queued"?'),
        ("own", {"signal": "queued", "above": "1"}, "own.above", "expected a number"),
        ("own", {"signal": "queued", "above": 1, "agents": ["A b"]}, "own.agents[0]", "the name of an agent"),
        ("own", {"signal": "queued", "above": 1, "severity": "bad"}, "own.severity", 'one of "critical", "warning"'),
        ("own", {"signal": "queued", "abov": 1, "above": 1}, "own.abov", 'did you mean "above"?'),
        ("own", {"signal": "run_p95_s", "above": 1, "window_s": 7200}, "own.window_s", "from 60 to 3600"),
        ("own", 5, "own", "expected a table"),
        ("Own rule", {"signal": "queued", "above": 1}, '"Own rule"', "expected a name"),
    ],
)
def test_a_rule_with_a_mistake_is_refused(name: str, rule: Any, path: str, message: str) -> None:
    found = told({name: rule})
    assert list(found) == [path] if rule != 5 else path in found
    assert message in found[path]


def test_there_may_be_only_so_many() -> None:
    many = {f"rule-{number}": {"signal": "queued", "above": 1} for number in range(MAX_RULES + 1)}
    with pytest.raises(settings.SettingsInvalid, match="expected at most 100, got 101"):
        load(many)


def test_a_mistake_in_the_manifest_is_told_with_its_line_and_variables_change_rules_too(tmp_path: Path) -> None:
    manifest = tmp_path / "greenroom.toml"
    manifest.write_text('[alerts.rules.slow_tasks]\nabove = 90\n\n[alerts.rules.own]\nsignal = "queued"\nfor_s = -1\n')
    with pytest.raises(settings.SettingsInvalid) as caught:
        settings.load(manifest, {"GREENROOM_ALERTS__RULES__QUEUE_AGE__ABOVE": "x"})
    places = {path: message.rpartition("(")[2] for path, message in caught.value.problems}
    assert places == {
        "alerts.rules.queue_age.above": "GREENROOM_ALERTS__RULES__QUEUE_AGE__ABOVE)",
        "alerts.rules.own.for_s": "greenroom.toml:6)",
    }
    manifest.write_text("")
    found = settings.load(manifest, {"GREENROOM_ALERTS__RULES__QUEUE_AGE__ABOVE": "5"})
    assert found.alerts.rules["queue_age"].above == 5.0
