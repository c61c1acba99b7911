"""The rules of alerts that there are without a word in the manifest, and what a rule may say."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from greenroom.core.grades import DISK_UNHEALTHY_MB
from greenroom.core.signals import OF_NODE, OVER_WINDOW, WITH_VOLUME, Signal
from greenroom.settings.checking import Checker
from greenroom.settings.problems import KeyPath
from greenroom.settings.rules import Rule, apply
from greenroom.settings.schema import AgentName, AlertRule

MAX_RULES = 100
PATH: KeyPath = ("alerts", "rules")

BUILT_IN: Mapping[str, AlertRule] = {
    # A model's answer takes seconds, a team's a minute: what takes longer is to have a rule of its own.
    "slow_tasks": AlertRule(signal=Signal.RUN_P95_S, above=60.0, window_s=600.0, min_volume=20),
    "failure_rate": AlertRule(signal=Signal.FAILURE_PCT, above=50.0, min_volume=10, severity="critical"),
    "queue_age": AlertRule(signal=Signal.OLDEST_WAIT_S, above=300.0),
    # What dies for a reason of its code is found by recovery at once; this is for what dies now and again.
    "restarts": AlertRule(signal=Signal.RESTARTS, above=5.0, window_s=3600.0, for_s=0.0),
    # Half of what automatic renewal leaves: those of 90 days are renewed when they have 30 left.
    "certificate_expiry": AlertRule(signal=Signal.CERTIFICATE_DAYS, below=14.0, for_s=0.0),
    "disk_free": AlertRule(signal=Signal.DISK_FREE_PCT, below=10.0),
    # From where on the node is unhealthy, however large its disk is.
    "disk_full": AlertRule(signal=Signal.DISK_FREE_MB, below=DISK_UNHEALTHY_MB, severity="critical"),
    "backup_age": AlertRule(signal=Signal.BACKUP_OVERDUE_S, above=3600.0, for_s=0.0),
}
_DEFAULT = AlertRule(signal=Signal.QUEUED)


def read(given: object, checker: Checker) -> dict[str, AlertRule]:
    """Return the built-in rules as *given* changes them, and then those that are given beside them."""
    tables = checker.mapping(given, PATH)
    if len(tables) > MAX_RULES:
        checker.report(PATH, f"expected at most {MAX_RULES}, got {len(tables)}")
        return dict(BUILT_IN)
    names = [*BUILT_IN, *(name for name in tables if name not in BUILT_IN)]
    return {name: _read(name, tables.get(name), checker) for name in names}


def _read(name: str, given: Any, checker: Checker) -> AlertRule:
    path = (*PATH, name)
    rule = checker.table(AlertRule, given, path, defaults=BUILT_IN.get(name))
    if name in BUILT_IN:
        same = Rule[AlertRule]((("signal",),), functools.partial(_built_in_is_the_same, name))
        apply((same,), rule, path=path, checker=checker)
    apply(_RULES, rule, path=path, checker=checker)
    checker.scalar(AgentName, name, path)  # last: a bad name would silence the rule's own mistakes
    return rule


def _built_in_is_the_same(name: str, rule: AlertRule) -> str | None:
    signal = BUILT_IN[name].signal
    return None if rule.signal is signal else f"{name} is built in, and about {signal}: give your rule another name"


def _there_is_a_bound(rule: AlertRule) -> str | None:
    if rule.above is None and rule.below is None:
        return "has no bound: give above or below"
    return None


def _there_is_one_bound(rule: AlertRule) -> str | None:
    if rule.above is not None and rule.below is not None:
        return f"stands beside above = {rule.above:g}: a rule has one of the two"
    return None


def _it_can_fire(rule: AlertRule) -> str | None:
    if rule.signal.endswith("_pct") and rule.above is not None and rule.above >= 100:
        return f"{rule.signal} is never above {rule.above:g}: expected less than 100"
    return None


def _what_is_the_nodes_is_of_no_agent(rule: AlertRule) -> str | None:
    if rule.signal in OF_NODE and (rule.agents, rule.except_agents) != (_DEFAULT.agents, _DEFAULT.except_agents):
        return f"{rule.signal} is of no agent: leave agents and except_agents out"
    return None


def _a_window_means_something(rule: AlertRule) -> str | None:
    if rule.signal not in OVER_WINDOW and rule.window_s != _DEFAULT.window_s:
        return f"{rule.signal} is as it is now, over no window: leave it out"
    return None


def _a_volume_means_something(rule: AlertRule) -> str | None:
    if rule.signal not in WITH_VOLUME and rule.min_volume != _DEFAULT.min_volume:
        return f"{rule.signal} is of nothing that could be too few: leave it out"
    return None


_RULES: tuple[Rule[AlertRule], ...] = (
    Rule(((), ("above",), ("below",)), _there_is_a_bound),
    Rule((("below",), ("above",)), _there_is_one_bound),
    Rule((("above",), ("signal",)), _it_can_fire),
    Rule((("agents",), ("except_agents",), ("signal",)), _what_is_the_nodes_is_of_no_agent),
    Rule((("window_s",), ("signal",)), _a_window_means_something),
    Rule((("min_volume",), ("signal",)), _a_volume_means_something),
)
