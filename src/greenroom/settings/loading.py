"""The way from files, variables and dicts to settings that can be trusted: read, overlay, check, name the
origins.

`load` is for the node and the command, `parse_agent` and `rollout_for_once` for the API's PUT and for programs. All
raise `SettingsInvalid` with every mistake, and nothing else. Apart from reading the manifest, and the policy file that
it names, they look at their arguments only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from greenroom.core import permissions
from greenroom.settings import (
    alert_rules,
    issuer_rules,
    objectives,
    policy_file,
    receiver_rules,
    revisions,
    rules,
    sources,
)
from greenroom.settings.checking import Checker
from greenroom.settings.environments import DEFAULT_ENVIRONMENT, DESIGNS
from greenroom.settings.lines import lines_of
from greenroom.settings.problems import KeyPath, Problem, SettingsInvalid, dotted
from greenroom.settings.schema import (
    AgentName,
    AgentSettings,
    Alerts,
    Backups,
    Cluster,
    Environment,
    History,
    Logs,
    Optimizer,
    Receiver,
    Rollout,
    Security,
    Server,
    Settings,
    Tracing,
)
from greenroom.settings.showing import leaves
from greenroom.settings.sources import Document, Given, Source

OVERRIDE = "override"
MAX_AGENTS, MAX_RECEIVERS = 1000, 50
TOP_KEYS = ["environment", *sources.SECTIONS, "agents"]


def load(
    manifest: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    is_for_node: bool = True,
) -> Settings:
    """The settings of *manifest*, overridden by the variables of *environ*, overridden by *overrides*.

    *overrides* has the manifest's shape. Without a manifest and an environment name it is development's
    defaults without agents. *is_for_node* false: variables that only the node needs may be missing here. Raises
    `SettingsInvalid`.
    """
    checker = Checker()
    document = None if manifest is None else sources.read_manifest(manifest)
    fixed = [] if manifest is None or document is None else [Source(manifest.name, document.table)]
    last = [Source(OVERRIDE, overrides or {})]
    agents = sources.overlay(fixed + last).table.get("agents")
    names = agents.keys() if isinstance(agents, dict) else ()
    given = sources.overlay([*fixed, *sources.from_variables(environ or {}, names, checker), *last])
    settings = _settings(given, checker, (environ or {}) if is_for_node else None)
    policy_problems = _check_roles(settings.security, Path() if manifest is None else manifest.parent, checker)
    if checker.found or policy_problems:
        found_at = _places(manifest, document, given)
        problems = [_problem(path, message, found_at(path)) for path, message in checker.found]
        raise SettingsInvalid(problems + policy_problems)
    return settings


def _check_roles(security: Security, folder: Path, checker: Checker) -> list[Problem]:
    """Report issuers whose roles are none; return what is wrong with the policy file."""
    if not checker.is_sound(("security", "policy_file")):
        return []
    try:
        roles = (
            permissions.ROLES if security.policy_file is None else policy_file.read_roles(folder / security.policy_file)
        )
    except SettingsInvalid as invalid:
        return list(invalid.problems)
    issuers: KeyPath = ("security", "issuers")
    if checker.is_sound(issuers) and (message := issuer_rules.unknown_role(security, roles)) is not None:
        checker.report(issuers, message)
    return []


def parse_agent(name: str, given: Mapping[str, Any]) -> AgentSettings:
    """The agent *name* as *given*, which has the shape of a manifest's agent. Raises `SettingsInvalid`."""
    checker = Checker()
    agent = _agent(name, given, checker)
    if checker.found:
        raise SettingsInvalid(Problem(dotted(path), message) for path, message in checker.found)
    return agent


def rollout_for_once(
    name: str, given: Mapping[str, Any], *, strategy: str | None = None, hold_s: object = None
) -> Rollout | None:
    """The rollout of the agent *name* as *given*, with another strategy or hold; None where neither is wanted.

    *given* is one that `parse_agent` takes. Raises `SettingsInvalid`.
    """
    if strategy is None and hold_s is None:
        return None
    rollout = dict(given.get("rollout") or {})
    if strategy is not None:
        rollout = revisions.with_strategy(rollout, strategy)
    if hold_s is not None:
        rollout["hold_s"] = hold_s
    return parse_agent(name, {**given, "rollout": rollout}).rollout


def _settings(given: Given, checker: Checker, environ: Mapping[str, str] | None) -> Settings:
    table = checker.mapping(given.table, (), known=TOP_KEYS)
    environment = _environment(table.get("environment"), checker)
    defaults = DESIGNS[environment]
    settings = Settings(
        environment=environment,
        cluster=checker.table(Cluster, table.get("cluster"), ("cluster",), defaults=defaults.cluster),
        server=checker.table(Server, table.get("server"), ("server",)),
        security=checker.table(Security, table.get("security"), ("security",), defaults=defaults.security),
        backups=checker.table(Backups, table.get("backups"), ("backups",)),
        optimizer=checker.table(Optimizer, table.get("optimizer"), ("optimizer",)),
        history=checker.table(History, table.get("history"), ("history",)),
        logs=checker.table(Logs, table.get("logs"), ("logs",)),
        alerts=_alerts(table.get("alerts"), checker, environ),
        tracing=checker.table(Tracing, table.get("tracing"), ("tracing",)),
        agents=_agents(table.get("agents"), checker),
        origins={},
    )
    for index, issuer in enumerate(settings.security.issuers):
        rules.apply(issuer_rules.ISSUER_RULES, issuer, path=("security", "issuers", index), checker=checker)
    rules.apply(issuer_rules.SECURITY_RULES, settings.security, path=("security",), checker=checker)
    rules.apply(rules.SETTINGS_RULES, settings, path=(), checker=checker)
    _check_kept(settings, checker)
    if given.origin(("security", "tls")) is not None:
        rules.apply(rules.TLS_RULES, settings, path=(), checker=checker)
    origins = {dotted(path): _origin(path, given, environment) for path, _ in leaves(settings)}
    return structs.replace(settings, origins=origins)


def _check_kept(settings: Settings, checker: Checker) -> None:
    """Report SLOs over more than the history keeps."""
    for name, agent in settings.agents.items():
        path: KeyPath = ("agents", name, "slo")
        if all(map(checker.is_sound, (path, ("history",)))) and (
            message := objectives.longer_than_kept(agent.slo, settings.history)
        ):
            checker.report((*path, "window_days"), message)


def _environment(given: object, checker: Checker) -> Environment:
    named = None if given is None else checker.scalar(Environment, given, ("environment",))
    return named or DEFAULT_ENVIRONMENT


def _alerts(given: object, checker: Checker, environ: Mapping[str, str] | None) -> Alerts:
    path: KeyPath = ("alerts", "receivers")
    read = ("rules", "receivers")  # by themselves
    own = {key: value for key, value in given.items() if key not in read} if isinstance(given, Mapping) else given
    alerts = checker.table(Alerts, own, path[:1])
    alerts = structs.replace(
        alerts, rules=alert_rules.read(given.get("rules") if isinstance(given, Mapping) else None, checker)
    )
    tables = checker.mapping(given.get("receivers") if isinstance(given, Mapping) else None, path)
    if len(tables) > MAX_RECEIVERS:
        checker.report(path, f"expected at most {MAX_RECEIVERS}, got {len(tables)}")
        return alerts
    receivers = {}
    for name, table in tables.items():
        sound = receiver_rules.without_secrets(table, (*path, name), checker)
        receivers[name] = receiver = checker.table(Receiver, sound, (*path, name))
        rules.apply(receiver_rules.rules(environ), receiver, path=(*path, name), checker=checker)
        checker.scalar(AgentName, name, (*path, name))
    return structs.replace(alerts, receivers=receivers)


def _agents(given: object, checker: Checker) -> dict[str, AgentSettings]:
    tables = checker.mapping(given, ("agents",))
    if len(tables) > MAX_AGENTS:
        checker.report(("agents",), f"expected at most {MAX_AGENTS}, got {len(tables)}")
        return {}
    return {name: _agent(name, table, checker) for name, table in tables.items()}


def _agent(name: str, given: object, checker: Checker) -> AgentSettings:
    path: KeyPath = ("agents", name)
    agent = checker.table(AgentSettings, given, path)
    rules.apply(rules.AGENT_RULES, agent, path=path, checker=checker)
    for index, example in enumerate(agent.rollout.examples):
        rules.apply(rules.EXAMPLE_RULES, example, path=(*path, "rollout", "examples", index), checker=checker)
    checker.scalar(AgentName, name, path)  # last: a bad name would silence the agent's rules
    return agent


def _origin(path: KeyPath, given: Given, environment: Environment) -> str:
    if origin := given.origin(path):
        return origin
    return f"default of {environment}" if path[0] in ("cluster", "security") else "default"


def _problem(path: KeyPath, message: str, place: str | None) -> Problem:
    return Problem(dotted(path), message if place is None else f"{message} ({place})")


def _places(manifest: Path | None, document: Document | None, given: Given) -> Callable[[KeyPath], str | None]:
    """Return what tells where a mistake was made: a line of the manifest, a variable, or an override.

    What is missing stands where its table does.
    """
    lines = {} if document is None else lines_of(document.text)

    def place(path: KeyPath) -> str | None:
        origin = given.origin(path)
        if origin is not None and (origin == OVERRIDE or origin.startswith(sources.PREFIX)):
            return origin
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        line = next((lines[prefix] for prefix in prefixes if prefix in lines), None)
        return None if line is None or manifest is None else f"{manifest.name}:{line}"

    return place
