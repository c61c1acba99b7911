"""The rules that concern more than one key, or more than a type can say.

A rule names the keys it needs and is asked only where those are sound, so that it never speaks about a value
that is already reported. Its message is shown at its first key.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import keyword
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Generic, TypeVar

import msgspec

from greenroom.core import isolation
from greenroom.settings import addresses, objectives, spending
from greenroom.settings.checking import Checker
from greenroom.settings.problems import KeyPath, quoted
from greenroom.settings.schema import STRATEGY_KEYS, AgentSettings, Example, Rollout, Settings

MAX_SECRETS = 100
SHOWN_ITEMS = 10  # mistakes of one list
LEAST_PREFIX = {4: 8, 6: 7}  # of proxies' networks: the widest that are anybody's own are 10.0.0.0/8 and fc00::/7
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")
_REFERENCE = re.compile(r"file:/[^\x00-\x1f\x7f\ud800-\udfff]{1,1000}|env:(?!GREENROOM_)[A-Za-z_][A-Za-z0-9_]{0,199}")
MAX_GROUPS = 100  # Python's compiler takes three calls for each level of nesting, and there are 1000

Subject = TypeVar("Subject")


class Rule(msgspec.Struct, Generic[Subject], frozen=True):
    """*broken* answers with the message, or None where the rule is kept."""

    needs: tuple[KeyPath, ...]
    broken: Callable[[Subject], str | None]


def apply(rules: tuple[Rule[Subject], ...], subject: Subject, *, path: KeyPath, checker: Checker) -> None:
    """Report which of *rules* the *subject*, which stands at *path*, breaks."""
    for rule in rules:
        if all(checker.is_sound((*path, *key)) for key in rule.needs) and (message := rule.broken(subject)):
            checker.report((*path, *rule.needs[0]), message)


def _factory_is_importable(agent: AgentSettings) -> str | None:
    return _not_importable(agent.factory)


def _checks_are_importable(agent: AgentSettings) -> str | None:
    return next(filter(None, map(_not_importable, agent.rollout.checks)), None)


def _not_importable(reference: str) -> str | None:
    for name in reference.replace(":", ".").split("."):
        if keyword.iskeyword(name) or not name.isidentifier():
            return f"{quoted(name)} cannot be a name in Python"
    return None


def _losing_a_replica_fails_one_task(agent: AgentSettings) -> str | None:
    if agent.on_replica_loss == "fail" and agent.concurrency != 1:
        # A blocked task is killed with its process; its neighbours must be retried.
        return f'"fail" requires concurrency = 1, got {agent.concurrency}'
    return None


def _bursts_are_short(agent: AgentSettings) -> str | None:
    scaling = agent.scaling
    if scaling.burst_window_s > scaling.stable_window_s:
        return f"{scaling.burst_window_s:g} is more than stable_window_s, {scaling.stable_window_s:g}"
    return None


def _recycled_before_its_limit(agent: AgentSettings) -> str | None:
    recycled_mb, most_mb = agent.recycling.memory_mb, agent.memory_mb
    if recycled_mb is not None and most_mb is not None and recycled_mb >= most_mb:
        return f"{recycled_mb} is not less than memory_mb, {most_mb}, at which a replica is killed"
    return None


def _together(messages: Iterable[str]) -> str | None:
    """Return what is wrong with the items of a list as one message; None where nothing is."""
    found = list(messages)
    more = [f"and {len(found) - SHOWN_ITEMS} more"] if len(found) > SHOWN_ITEMS else []
    return "; ".join(found[:SHOWN_ITEMS] + more) or None


def _egress_is_clear(agent: AgentSettings) -> str | None:
    return _together(_egress_faults([[each] for each in agent.egress])) or _together(_egress_faults([agent.egress]))


def _egress_faults(lists: Iterable[Sequence[str]]) -> Iterator[str]:
    for destinations in lists:
        try:
            isolation.egress(destinations)
        except ValueError as error:
            yield str(error)


def _secrets_are_references(agent: AgentSettings) -> str | None:
    if len(agent.secrets) > MAX_SECRETS:
        return f"are {len(agent.secrets)}, and may be {MAX_SECRETS}"
    return _together(_secret_faults(agent))


def _secret_faults(agent: AgentSettings) -> Iterator[str]:
    """Yield what is wrong with each, and never what stands there: it may be the secret itself."""
    for name, reference in agent.secrets.items():
        if not _VARIABLE.fullmatch(name) or name.startswith("GREENROOM_"):
            yield f"{quoted(name)} is no name of an environment variable (letters, digits and _, not GREENROOM_…)"
        elif name in agent.env:
            yield f"{quoted(name)} stands in env, too; take it out of one of them"
        elif not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
            yield (
                f'{quoted(name)} is no reference; expected "file:/PATH" or "env:NAME", never the secret itself: it'
                " would be stored with the agent"
            )


def _asked_secrets_are_there(agent: AgentSettings) -> str | None:
    for name in _secrets_in(agent.arguments):
        if name not in agent.secrets:
            there = ", ".join(agent.secrets) or "none"
            return f"ask for the secret {quoted(name)}, and the agent's secrets are {there}; add it there"
    return None


def _secrets_in(value: object) -> Iterator[str]:
    match value:
        case {"secret": str(name), **others} if not others:
            yield name
        case dict():
            for inner in value.values():
                yield from _secrets_in(inner)
        case list():
            for inner in value:
                yield from _secrets_in(inner)


def _replicas_are_a_range(agent: AgentSettings) -> str | None:
    scaling = agent.scaling
    if scaling.max_replicas is not None and scaling.min_replicas > scaling.max_replicas:
        return f"{scaling.min_replicas} is more than max_replicas, {scaling.max_replicas}"
    return None


def _weights_reach_all_traffic(agent: AgentSettings) -> str | None:
    weights = agent.rollout.weights
    rises = all(before < after for before, after in itertools.pairwise(weights))
    if rises and weights[-1:] == (100,):
        return None
    return f"the weights have to rise and end at 100 (all traffic), got {list(weights)}"


def _something_can_move(agent: AgentSettings) -> str | None:
    rollout = agent.rollout
    if all(share in (0, "0%") for share in (rollout.max_surge, rollout.max_unavailable)):
        return f"is {_said(rollout.max_surge)} and max_unavailable too: nothing could move; expected one above 0"
    return None


def _means_something(key: str, strategy: str) -> Callable[[AgentSettings], str | None]:
    default = getattr(Rollout(), key)

    def broken(agent: AgentSettings) -> str | None:
        rollout = agent.rollout
        if rollout.strategy == strategy or getattr(rollout, key) == default:
            return None
        return (
            f'is of strategy = "{strategy}" only, and the strategy is "{rollout.strategy}"; '
            f"remove the key, or leave it {_said(default)}"
        )

    return broken


def _strategy_rules() -> Iterator[Rule[AgentSettings]]:
    for strategy, keys in STRATEGY_KEYS.items():
        for key in keys:
            yield Rule((("rollout", key), ("rollout", "strategy")), _means_something(key, strategy))


def _said(value: object) -> str:
    return json.dumps(value)


def _expression_compiles(example: Example) -> str | None:
    if example.matches is None:
        return None
    if example.matches.count("(") > MAX_GROUPS:
        return f"has more than {MAX_GROUPS} opening parentheses"
    try:
        with warnings.catch_warnings(action="error"):  # what Python only warns of will mean something else one day
            re.compile(example.matches)
    except (re.error, OverflowError, Warning) as error:
        why = "".join(letter if letter.isprintable() else " " for letter in str(error))
        return f"cannot be read as a regular expression: {why[:200]}"
    return None


def _authentication_is_on(settings: Settings) -> str | None:
    if settings.security.authentication:
        return None
    return "is always on and cannot be switched off; remove the key"


def _only_loopback_is_plain(settings: Settings) -> str | None:
    security = settings.security
    if (security.tls and security.tls_certificate is not None) or addresses.is_loopback(settings.server.host):
        return None
    missing = "security.tls" if not security.tls else "security.tls_certificate and security.tls_key"
    return (
        f"expected a loopback address (127.0.0.1, ::1, localhost), got {quoted(settings.server.host)}: "
        f"any other requires {missing}; or stay on loopback, with a TLS proxy before it"
    )


def _certificate_has_its_key(settings: Settings) -> str | None:
    security = settings.security
    if (security.tls_certificate is None) == (security.tls_key is None):
        return None
    missing = "tls_key" if security.tls_key is None else "tls_certificate"
    return f"is one of two: security.{missing} is missing"


def _tls_has_a_certificate(settings: Settings) -> str | None:
    """Say so of `security.tls` that somebody has set; an environment's default is off on loopback, and says so.

    For any other address, the address is what is wrong.
    """
    security = settings.security
    if not security.tls or security.tls_certificate is not None or not addresses.is_loopback(settings.server.host):
        return None
    return "is on, and there is no certificate: set security.tls_certificate and tls_key, or remove it"


def _clients_are_known_by_tls(settings: Settings) -> str | None:
    security = settings.security
    if security.tls_client_ca is None or security.tls_certificate is not None:
        return None
    return "asks callers for certificates, and the node has none itself: set security.tls_certificate and tls_key"


def _certificates_are_used(settings: Settings) -> str | None:
    if settings.security.tls or settings.security.tls_certificate is None:
        return None
    return "is given, and security.tls is off: set security.tls = true, or remove it"


def _proxies_are_networks(settings: Settings) -> str | None:
    return _together(filter(None, map(_proxy_fault, settings.server.trusted_proxies)))


def _proxy_fault(text: str) -> str | None:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"{quoted(text)} is no IP address or network, for example 10.0.0.7 or 10.0.0.0/8"
    if network.prefixlen < LEAST_PREFIX[network.version]:
        return (
            f"{quoted(text)} is nearly everybody, and everybody could invent where they call from; name your proxies, "
            "for example 10.0.0.7 or 10.0.0.0/8"
        )
    return None


def _tenants_hold_a_principal(settings: Settings) -> str | None:
    each, together = settings.security.rate_limit_per_minute, settings.security.tenant_rate_limit_per_minute
    if isinstance(each, int) and isinstance(together, int) and together < each:
        return f"{together} is less than rate_limit_per_minute, {each}: one principal could not reach its own"
    return None


def _intrusions_are_recorded(settings: Settings) -> str | None:
    security = settings.security
    if security.intrusion_rules and not security.audit_log:
        return "is on and needs security.audit_log, which has what was found and done; switch both on, or both off"
    return None


def _there_is_something_to_export(settings: Settings) -> str | None:
    if settings.security.audit_export and not settings.security.audit_log:
        return "names where the audit log goes, and security.audit_log is off; switch it on, or remove the key"
    return None


def _can_be_answered(rule: str, allowed: tuple[str, ...]) -> Callable[[Settings], str | None]:
    def broken(settings: Settings) -> str | None:
        policy = getattr(settings.security.intrusion, rule)
        if policy in allowed:
            return None
        return f"{quoted(policy)} is nothing that can be done about this; expected {', '.join(map(quoted, allowed))}"

    return broken


def _intrusion_rules() -> Iterator[Rule[Settings]]:
    """A key cannot be revoked because somebody guesses at it, nor an agent, a clock or the log itself be locked."""
    for rule in ("blocked_agent", "broken_audit", "clock_jump"):
        yield Rule((("security", "intrusion", rule),), _can_be_answered(rule, ("off", "alert")))
    rule, allowed = "failed_logins", ("off", "alert", "throttle", "lock")
    yield Rule((("security", "intrusion", rule),), _can_be_answered(rule, allowed))


def _minimums_fit(settings: Settings) -> str | None:
    room = settings.cluster.max_replicas
    minimums = sum(agent.scaling.min_replicas for agent in settings.agents.values())
    if minimums > room:
        return f"{room} is less than the agents' scaling.min_replicas together, {minimums}"
    return None


def _sleepers_can_wake(settings: Settings) -> str | None:
    room, agents = settings.cluster.max_replicas, settings.agents
    asleep = [name for name, agent in agents.items() if agent.scaling.min_replicas == 0]
    minimums = sum(agent.scaling.min_replicas for agent in agents.values())
    if not settings.cluster.autoscaling or not asleep or minimums != room:
        return None  # more than there is room for is another rule's business
    return (
        f"{room} is what the agents' scaling.min_replicas are together: none is left to wake {', '.join(asleep)} "
        f"with; raise it to {room + 1} at least, or lower another one's scaling.min_replicas"
    )


def _maximums_fit(settings: Settings) -> str | None:
    room = settings.cluster.max_replicas
    over = [name for name, agent in settings.agents.items() if (agent.scaling.max_replicas or 0) > room]
    if over:
        return f"{room} is less than the scaling.max_replicas of {', '.join(over)}"
    return None


def _something_wakes_them(settings: Settings) -> str | None:
    asleep = [name for name, agent in settings.agents.items() if agent.scaling.min_replicas == 0]
    if asleep and not settings.cluster.autoscaling:
        return (
            f"is off, and scaling.min_replicas of {', '.join(asleep)} is 0: nothing would start a replica again; "
            "switch it on, or have at least 1"
        )
    return None


def _one_tenant_fits(settings: Settings) -> str | None:
    server = settings.server
    most = server.max_queued_tasks_per_tenant
    if most is not None and most > server.max_queued_tasks:
        return f"{most} is more than max_queued_tasks, {server.max_queued_tasks}"
    return None


def _key_is_apart_from_backups(settings: Settings) -> str | None:
    file, to = settings.security.encryption_key_file, settings.backups.to
    if file is None or to is None or to.startswith("s3://") or not PurePosixPath(file).is_relative_to(to):
        return None
    return f"{quoted(file)} is where the backups go, {quoted(to)}: whoever has those would have their key, too"


AGENT_RULES: tuple[Rule[AgentSettings], ...] = (
    Rule((("factory",),), _factory_is_importable),
    Rule((("on_replica_loss",), ("concurrency",)), _losing_a_replica_fails_one_task),
    Rule((("scaling", "min_replicas"), ("scaling", "max_replicas")), _replicas_are_a_range),
    Rule((("scaling", "burst_window_s"), ("scaling", "stable_window_s")), _bursts_are_short),
    Rule((("recycling", "memory_mb"), ("memory_mb",)), _recycled_before_its_limit),
    Rule((("rollout", "checks"),), _checks_are_importable),
    Rule((("egress",),), _egress_is_clear),
    Rule((("secrets",), ("env",)), _secrets_are_references),
    Rule((("arguments",), ("secrets",)), _asked_secrets_are_there),
    Rule((("rollout", "weights"),), _weights_reach_all_traffic),
    *_strategy_rules(),
    Rule((("rollout", "max_surge"), ("rollout", "max_unavailable")), _something_can_move),
    *(Rule(needs, broken) for needs, broken in (*objectives.RULES, *spending.RULES)),
)

EXAMPLE_RULES: tuple[Rule[Example], ...] = (Rule((("matches",),), _expression_compiles),)


# The minimum of an agent that has a problem counts as its default, 1: never more than what was meant.
def _agents_cannot_speak_for_the_node(found: Settings) -> str | None:
    variable = found.tracing.headers_env
    for name, agent in found.agents.items():
        if variable is not None and (variable in agent.env or f"env:{variable}" in agent.secrets.values()):
            return f"{variable} holds the collector's credential, and the agent {name} is given it; give it another"
    return None


SETTINGS_RULES: tuple[Rule[Settings], ...] = (
    Rule(
        (("server", "host"), ("security", "tls"), ("security", "tls_certificate"), ("security", "tls_key")),
        _only_loopback_is_plain,
    ),
    Rule((("security", "tls_certificate"), ("security", "tls_key")), _certificate_has_its_key),
    Rule((("security", "tls_client_ca"), ("security", "tls_certificate")), _clients_are_known_by_tls),
    Rule((("security", "tls_certificate"), ("security", "tls")), _certificates_are_used),
    Rule((("server", "trusted_proxies"),), _proxies_are_networks),
    Rule(
        (("security", "tenant_rate_limit_per_minute"), ("security", "rate_limit_per_minute")), _tenants_hold_a_principal
    ),
    Rule((("security", "authentication"),), _authentication_is_on),
    Rule((("security", "intrusion_rules"), ("security", "audit_log")), _intrusions_are_recorded),
    Rule((("security", "audit_export"), ("security", "audit_log")), _there_is_something_to_export),
    *_intrusion_rules(),
    Rule((("security", "encryption_key_file"), ("backups", "to")), _key_is_apart_from_backups),
    Rule((("tracing", "headers_env"),), _agents_cannot_speak_for_the_node),
    Rule((("cluster", "max_replicas"),), _minimums_fit),
    Rule((("cluster", "max_replicas"), ("cluster", "autoscaling")), _sleepers_can_wake),
    Rule((("cluster", "max_replicas"),), _maximums_fit),
    Rule((("cluster", "autoscaling"),), _something_wakes_them),
    Rule((("server", "max_queued_tasks_per_tenant"), ("server", "max_queued_tasks")), _one_tenant_fits),
)

# Where somebody has set `security.tls`.
TLS_RULES: tuple[Rule[Settings], ...] = (
    Rule(
        (("security", "tls"), ("server", "host"), ("security", "tls_certificate"), ("security", "tls_client_ca")),
        _tls_has_a_certificate,
    ),
)
