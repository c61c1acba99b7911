"""Every setting, with its type, bounds and default: the one table that validation, the API and the docs read.

Frozen values; whoever holds one may trust it. A bound is written once, in the type, and the error messages
are made from it. Defaults here are those without an environment. An absent key and null are the same.
Numbers that may be fractions are floats from the start (``300.0``), so that a value and its JSON round trip are the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from greenroom.core.signals import Signal

MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S
MIB = 1024 * 1024


def _whole(pattern: str) -> str:
    # `$` alone also matches before a last newline; `\Z` says it, but JSON Schema does not know it.
    return rf"^(?:{pattern})(?!\n)$"


_IDENTIFIER = r"[^\W\d]\w*"
_DOTTED = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_TEXT = r"[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]*"  # no control characters but tabs and line ends
_SEGMENT = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f\ud800-\udfff]+"  # a name between slashes, never `.` or `..`

AgentName = Annotated[
    str,
    Meta(
        pattern=_whole(r"[a-z0-9][a-z0-9_-]{0,62}"),
        title="a name of at most 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
    ),
]
VariableName = Annotated[
    str,
    Meta(
        pattern=_whole(r"(?!GREENROOM_)[A-Za-z_][A-Za-z0-9_]*"),
        max_length=200,
        title="the name of an environment variable (letters, digits and _, not GREENROOM_…)",
    ),
]
Factory = Annotated[
    str,
    Meta(
        pattern=_whole(rf"{_DOTTED}:{_DOTTED}"),
        max_length=500,
        title='"module:attribute", for example "agents:research"',
    ),
]
ExceptionName = Annotated[
    str,
    Meta(
        pattern=_whole(_DOTTED),
        max_length=500,
        title='the name of an exception, for example "openai.RateLimitError"',
    ),
]
Pattern = Annotated[
    str,
    Meta(
        pattern=_whole(rf"{_SEGMENT}(?:/{_SEGMENT})*"),
        max_length=500,
        title='a pattern inside the manifest\'s folder, without ".."',
    ),
]
Interpreter = Annotated[
    str,
    Meta(
        pattern=_whole(rf"/?(?:{_SEGMENT}/)*python[0-9.]*"),
        max_length=1000,
        title='the path of a Python interpreter, without "..", for example ".venv-crew/bin/python"',
    ),
]
Folder = Annotated[
    str,
    Meta(pattern=_whole(rf"/?{_SEGMENT}(?:/{_SEGMENT})*/?"), max_length=1000, title='a path without ".."'),
]
Destination = Annotated[
    str, Meta(pattern=_whole(_TEXT), min_length=1, max_length=300, title="a host, host:port, or any")
]
Place = Annotated[
    str,
    Meta(
        pattern=_whole(
            rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](?:/{_SEGMENT})*/?|(?!s3:)/?{_SEGMENT}(?:/{_SEGMENT})*/?"
        ),
        max_length=1000,
        title='a folder without "..", or s3://BUCKET/PREFIX',
    ),
]
Host = Annotated[str, Meta(pattern=_whole(r"[A-Za-z0-9.:_-]+"), max_length=253, title="an IP address or host name")]
Text = Annotated[str, Meta(pattern=_whole(_TEXT), max_length=2000, title="text")]
Skill = Annotated[str, Meta(pattern=_whole(_TEXT), min_length=1, max_length=100, title="text")]
Phrase = Annotated[
    str, Meta(pattern=_whole(_TEXT), min_length=1, max_length=2000, title="text of 1 to 2000 characters")
]
Expression = Annotated[
    str,
    Meta(pattern=_whole(_TEXT), min_length=1, max_length=500, title="a regular expression of at most 500 characters"),
]
Percentage = Annotated[str, Meta(pattern=_whole(r"(?:100|[1-9]?[0-9])%"), title='a percentage from "0%" to "100%"')]
# One alone is taken too, by `checking`. Not as a union: of a text that may also be a list, msgspec 0.22 looks for the
# pattern in the wrong place, and corrupts memory.
Phrases = Annotated[
    tuple[Phrase, ...],
    Meta(max_length=20, title="text or a list", extra_json_schema={"type": ["array", "string"]}),
]

Replicas = Annotated[int, Meta(ge=1, le=10_000)]
Share = Annotated[int, Meta(ge=0, le=10_000, title="a number of replicas")] | Percentage
WeightPct = Annotated[int, Meta(ge=1, le=100)]
Concurrency = Annotated[int, Meta(ge=1, le=1024)]
Attempts = Annotated[int, Meta(ge=1, le=100)]
MemoryMb = Annotated[int, Meta(ge=1, le=16 * MIB, title="a whole number of megabytes")]
Cpus = Annotated[float, Meta(gt=0, le=4096, title="a number of CPUs")]
TaskSeconds = Annotated[float, Meta(gt=0, le=7 * DAY_S, title="a number of seconds")]
DelaySeconds = Annotated[float, Meta(ge=0, le=HOUR_S, title="a number of seconds")]
HoldSeconds = Annotated[float, Meta(ge=0, le=DAY_S, title="a number of seconds")]
WindowSeconds = Annotated[float, Meta(ge=1, le=HOUR_S, title="a number of seconds")]
HangSeconds = Annotated[float, Meta(ge=2, le=HOUR_S, title="a number of seconds")]
Off = Literal["off"]
Strategy = Literal["rolling", "blue-green", "canary"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class Environment(StrEnum):
    """Which column of product.md's table the defaults come from."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """All agents together. ``cpu`` and ``memory_mb`` are the envelope that measured use is compared with."""

    max_replicas: Replicas
    """Of steady state; a rollout may surge beside it."""
    max_surge: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    """Replicas that all rollouts together may have beside the steady state; None: as many as ``max_replicas``."""
    max_connections: Annotated[int, Meta(ge=1, le=100_000)]
    metrics: bool
    """Whether ``GET /metrics`` tells what the node has counted; false: nothing is, and it answers 409."""
    json_logs: bool
    log_level: LogLevel
    """Audit and lifecycle events are separate and never dropped."""
    autoscaling: bool = False
    cpu: Cpus | Off = "off"
    memory_mb: MemoryMb | Off = "off"
    health_checks: bool = False
    """Off: replicas are not graded; hung ones are still found."""
    performance_rules: bool = False
    alert_delivery: bool = False
    """To the receivers of ``alerts.receivers``."""
    tracing: bool = False
    result_cache: bool = False
    scheduled_backups: bool = False


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP API of a node."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 7080
    """0: any free port."""
    trusted_proxies: Annotated[tuple[Network, ...], Meta(max_length=100)] = ()
    """Whose ``X-Forwarded-For`` is believed; of anybody else the connection's own address counts."""
    webhook_ports: Annotated[tuple[Annotated[int, Meta(ge=1, le=65_535)], ...], Meta(max_length=20)] = (443,)
    """Where webhooks may go to."""
    webhook_hosts: Annotated[tuple[Host, ...], Meta(max_length=100)] = ()
    """Hosts whose webhooks may go to inner addresses and by plain HTTP, for receivers of one's own."""
    accept_code: bool = False
    """An archive of code by API, from a caller with the deploy permission: as powerful as a shell."""
    max_code_bytes: Annotated[int, Meta(ge=1024, le=64 * MIB, title="a whole number of bytes")] = 16 * MIB
    """Of such an archive."""
    max_body_bytes: Annotated[int, Meta(ge=1024, le=16 * MIB, title="a whole number of bytes")] = MIB
    """At most 16 MiB: a task has to fit a replica's frame, beside its session's state."""
    max_queued_tasks: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Submissions beyond it are answered 429."""
    max_queued_tasks_per_tenant: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    """None: as many as there may be in all."""


RulePolicy = Literal["off", "alert", "throttle", "lock", "revoke"]
RatePerMinute = Annotated[int, Meta(ge=1, le=1_000_000, title="a number of requests a minute")]
Algorithm = Literal["EdDSA", "ES256", "ES384", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "HS256"]
Network = Annotated[
    str, Meta(pattern=_whole(r"[0-9A-Fa-f.:]+(?:/[0-9]{1,3})?"), max_length=50, title="an IP address or network")
]
Address = Annotated[
    str,
    Meta(pattern=_whole(r"https?://[^\s\x00-\x1f\x7f\ud800-\udfff]+"), max_length=2000, title="a URL of https://…"),
]
TraceUrl = Annotated[
    str,
    Meta(
        pattern=_whole(r"https?://[^\s\x00-\x1f\x7f\ud800-\udfff]*\{trace_id\}[^\s\x00-\x1f\x7f\ud800-\udfff]*"),
        max_length=2000,
        title="a URL of https://… with {trace_id} in it",
    ),
]
Claim = Annotated[
    str, Meta(pattern=_whole(r"[A-Za-z0-9_:./-]+"), max_length=200, title='the name of a claim, for example "roles"')
]
Command = Annotated[tuple[Phrase, ...], Meta(max_length=50, title="a command as a list of texts")]
AuditPlace = Annotated[
    str,
    Meta(
        pattern=_whole(rf"stdout|syslog|/?{_SEGMENT}(?:/{_SEGMENT})*|https://[^\s\x00-\x1f\x7f\ud800-\udfff]+"),
        max_length=2000,
        title='"stdout", "syslog", the path of a file, or a URL of https://…',
    ),
]


class Issuer(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are taken, and for whom they stand. What the token itself says about how to verify it is ignored."""

    issuer: Address
    """Exactly as the claim ``iss`` has it."""
    audience: Annotated[str, Meta(pattern=_whole(_TEXT), min_length=1, max_length=500, title="text")] = "greenroom"
    algorithms: Annotated[tuple[Algorithm, ...], Meta(min_length=1, max_length=10)] = ("EdDSA", "ES256")
    jwks_url: Address | None = None
    """None, without ``key_file``: what the issuer's ``/.well-known/openid-configuration`` names."""
    key_file: Folder | None = None
    """A file of keys (JWKS, or one as PEM) instead."""
    type: Annotated[str, Meta(pattern=_whole(r"[A-Za-z0-9+./-]+"), max_length=100, title="a media type")] = "at+jwt"
    """What the header ``typ`` has to say; identity tokens of OpenID Connect say "JWT"."""
    max_lifetime_s: Annotated[float, Meta(gt=0, le=DAY_S, title="a number of seconds")] = 3600.0
    tenant: AgentName | None = None
    """Of all its principals; None: what ``tenant_claim`` says."""
    tenant_claim: Claim | None = None
    role: AgentName | None = None
    """Of all its principals; None: the first role of Greenroom's that ``roles_claim`` or ``roles`` names."""
    roles_claim: Claim = "roles"
    roles: dict[str, Any] = {}  # what the claim says -> the role that it stands for, checked by `checking` and `rules`
    scopes_claim: Claim | None = None
    """Narrows the role to the permissions that it names (``task:submit task:read``); None: the role alone."""
    name_claim: Claim = "sub"


class Intrusion(msgspec.Struct, frozen=True, kw_only=True):
    """What each rule of ``security.intrusion_rules`` does when it finds something, beside the entry in the audit log:
    nothing, raise an alert, slow the principal or source down, lock it for a while, or revoke its key.
    """

    failed_logins: RulePolicy = "alert"
    """Rejected credentials in a burst, from one source or for one key."""
    many_networks: RulePolicy = "alert"
    """One key from many networks at once."""
    scope_probing: RulePolicy = "alert"
    """Mostly refused: a principal who tries what it may do."""
    foreign_ids: RulePolicy = "alert"
    """Ids that are not there, or another tenant's."""
    forged_requests: RulePolicy = "alert"
    """Forged tokens, paths that climb, webhooks to inner addresses, smuggled requests."""
    blocked_agent: RulePolicy = "alert"
    """An agent that tries what its sandbox forbids."""
    sudden_load: RulePolicy = "alert"
    """A principal who submits many times what it used to."""
    broken_audit: RulePolicy = "alert"
    """The audit log does not verify."""
    clock_jump: RulePolicy = "alert"
    """The clock went backwards."""
    lock_s: Annotated[float, Meta(gt=0, le=DAY_S, title="a number of seconds")] = 900.0


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call and what is kept of it. ``authentication`` is stated, not switched: nobody is ever
    anonymous.
    """

    authentication: bool = True
    issuers: Annotated[tuple[Issuer, ...], Meta(max_length=20)] = ()
    """Whose tokens are taken beside Greenroom's own keys."""
    policy_file: Folder | None = None
    """Roles beside the built-in ones, and what they may do."""
    tenants_below_t2: bool = False
    """Let several tenants share this node though nothing keeps its agents from reading what another tenant's keep."""
    rate_limit_per_minute: RatePerMinute | Off = "off"
    """Per principal."""
    tenant_rate_limit_per_minute: RatePerMinute | Off | None = None
    """Of all principals of a tenant together; None: ten times that of one."""
    source_rate_limit_per_minute: RatePerMinute | Off | None = None
    """Of an address, before anybody knows who calls; None: a hundred times that of one principal."""
    encryption_at_rest: bool = False
    encryption_key_file: Folder | None = None
    """None, without ``encryption_command``: ``encryption.key`` in the data directory."""
    encryption_command: Command = ()
    """Of a key management service instead: called with ``wrap`` or ``unwrap``, base64 on standard input and output."""
    tls: bool = False
    """For any address but loopback; where certificates are given, also there."""
    tls_certificate: Folder | None = None
    tls_key: Folder | None = None
    tls_client_ca: Folder | None = None
    """Mutual TLS: callers have to show a certificate of this authority, beside their credential."""
    audit_log: bool = False
    audit_export: Annotated[tuple[AuditPlace, ...], Meta(max_length=10)] = ()
    """Where signed checkpoints and entries are copied to: what somebody who owns the database cannot rewrite."""
    intrusion_rules: bool = False
    intrusion: Intrusion = Intrusion()
    isolation: Literal["auto", "T0", "T1", "T2"] = "auto"
    """How far an agent's room is closed, at least; auto: T1 where the kernel can, else T0, said aloud."""
    first_agent_uid: Annotated[int, Meta(ge=1, le=2**31)] = 60_706
    """Of T2 where the node is root: this user and the 477 after it are the agents'; nobody else may have them."""


class Backups(msgspec.Struct, frozen=True, kw_only=True):
    """Where backups of the whole store go, how often and how long they are kept. ``cluster.scheduled_backups`` is
    the switch; without it they are made when somebody asks.
    """

    to: Place | None = None
    """None: ``backups`` in the data directory, which does not outlive the disk that it is on."""
    every_s: Annotated[float, Meta(ge=10, le=7 * DAY_S, title="a number of seconds")] = 3600.0
    keep_last: Annotated[int, Meta(ge=1, le=10_000)] = 24
    keep_days: Annotated[int, Meta(ge=0, le=3650)] = 7
    """Beside those: the last one of each of so many days."""
    key_file: Folder | None = None
    """None: ``backup.key`` in the data directory."""


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """What the rules of ``cluster.performance_rules`` look at, and whether they act."""

    apply: bool = False
    """Off: advice only."""
    target_response_s: Annotated[float, Meta(gt=0, le=DAY_S, title="a number of seconds")] = 5.0
    """From acceptance to the end of a task, on average."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """How long it is kept what became of each agent's attempts, and how long they took."""

    keep_minutes_days: Annotated[int, Meta(ge=1, le=7)] = 1
    """Minute by minute."""
    keep_hours_days: Annotated[int, Meta(ge=1, le=3650)] = 30
    """Hour by hour."""


class Logs(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept of what replicas and tasks say, and of what befell them."""

    keep_days: Annotated[int, Meta(ge=0, le=3650)] = 7
    """0: no line is kept, and none is looked at."""
    max_lines: Annotated[int, Meta(ge=1000, le=10_000_000)] = 50_000
    """For each agent and tenant; the oldest go."""
    max_mb: Annotated[int, Meta(ge=1, le=100_000)] = 50
    """The same."""
    lines_per_second: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Of each replica; how many more there were is said in their place."""


Severity = Literal["warning", "critical"]
Bound = Annotated[float, Meta(ge=0, le=10**12, title="a number")]
AgentPattern = Annotated[
    str,
    Meta(
        pattern=_whole(r"[a-z0-9_*-]+"),
        max_length=200,
        title="the name of an agent, in which * stands for any text",
    ),
]
AgentPatterns = Annotated[tuple[AgentPattern, ...], Meta(max_length=100)]


class AlertRule(msgspec.Struct, frozen=True, kw_only=True):
    """When a signal of an agent, or of the node, is an alert. `alert_rules.BUILT_IN` are there without being given."""

    signal: Signal
    agents: AgentPatterns = ("*",)
    except_agents: AgentPatterns = ()
    above: Bound | None = None
    below: Annotated[float, Meta(gt=0, le=10**12, title="a number")] | None = None
    """One of the two."""
    window_s: Annotated[float, Meta(ge=60, le=HOUR_S, title="a number of seconds")] = 300.0
    """Of signals that are over a while; to the minute."""
    min_volume: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Of shares and durations: fewer than so many say nothing."""
    for_s: Annotated[float, Meta(ge=0, le=DAY_S, title="a number of seconds")] = 60.0
    """It is pending for so long."""
    keep_s: Annotated[float, Meta(ge=0, le=DAY_S, title="a number of seconds")] = 300.0
    """It fires on until it has been well for so long."""
    severity: Severity = "warning"
    enabled: bool = True


Word = Annotated[str, Meta(pattern=_whole(r"[a-z0-9_-]{1,63}"), title="a word of a-z, 0-9, _ and -")]


class Receiver(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of alerts. URLs and secrets that nobody may see are named by the variables that hold them."""

    type: Literal["alertmanager", "webhook", "slack", "email", "apprise"]
    url: Address | None = None
    """In plain sight; of alertmanager and webhook."""
    url_env: VariableName | None = None
    """The variable that holds the URL, where it is a secret."""
    secret_env: VariableName | None = None
    """The variable that holds what webhooks are signed with (``whsec_…``)."""
    severities: Annotated[tuple[Severity, ...], Meta(max_length=2)] = ()
    """Only these."""
    kinds: Annotated[tuple[Word, ...], Meta(max_length=100)] = ()
    """Only these."""
    agents: AgentPatterns = ()
    """Only alerts of these."""
    acknowledged: bool = False
    """Tell, too, that somebody looks after an alert."""
    repeat_s: Annotated[float, Meta(ge=60, le=30 * DAY_S, title="a number of seconds")] = 4 * 3600.0
    """Until it is told again of what still fires and nobody has acknowledged."""


class Alerts(msgspec.Struct, frozen=True, kw_only=True):
    """When people are told beside what Greenroom finds by itself, and who is, with ``cluster.alert_delivery``."""

    rules: Mapping[str, AlertRule] = {}
    group_wait_s: Annotated[float, Meta(ge=0, le=HOUR_S, title="a number of seconds")] = 10.0
    """Until the first message, so that what fires together is told together."""
    link: Address | None = None
    """Where people open this Greenroom, to stand in the messages."""
    receivers: Mapping[str, Receiver] = {}


class Tracing(msgspec.Struct, frozen=True, kw_only=True):
    """Where traces go and what is in them. ``cluster.tracing`` is the switch; it needs the extra ``tracing``."""

    endpoint: Address | None = None
    """Of a collector that takes OTLP over HTTP; None: what OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or
    OTEL_EXPORTER_OTLP_ENDPOINT says. The other OTEL_EXPORTER_OTLP_* variables hold beside it.
    """
    headers_env: VariableName | None = None
    """The variable that holds headers for it, ``name=value,name=value``."""
    sample_ratio: Annotated[float, Meta(ge=0, le=1, title="a number")] | None = None
    """Of the traces that begin here; None: 0.01 in production, else all. Callers' own decisions are kept."""
    content: bool = False
    """Export what was said, too: prompts, answers, arguments and results of tools, texts of errors."""
    timeout_s: Annotated[float, Meta(gt=0, le=MINUTE_S, title="a number of seconds")] | None = None
    """Of a batch of spans, retries in it; None: what OTEL_EXPORTER_OTLP_TRACES_TIMEOUT says, or 10."""
    ui_url: TraceUrl | None = None
    """Where people see a trace: ``{trace_id}`` in it stands for its id."""


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas. Without autoscaling the count is ``min_replicas``."""

    min_replicas: Annotated[int, Meta(ge=0, le=10_000)] = 1
    """0: none while there is nothing to do (scale to zero)."""
    max_replicas: Replicas | None = None
    """None: the environment's."""
    target_queue_per_replica: Annotated[float, Meta(gt=0, le=10_000)] = 5.0
    """Tasks that may wait for each ready replica before another is started."""
    target_busy_pct: Annotated[int, Meta(ge=1, le=100, title="a percentage as a whole number")] = 80
    """Of the slots of the ready replicas: where more are busy, another replica is started."""
    stable_window_s: WindowSeconds = 60.0
    """What the number of replicas is decided by, but for bursts."""
    burst_window_s: WindowSeconds = 6.0
    """What asks for more than this window bears is a burst: it is answered at once, and only with more replicas."""
    stabilisation_s: HoldSeconds = 60.0
    """How long less must have been enough before replicas go."""
    cooldown_s: HoldSeconds = 5.0
    """Between two steps down."""
    idle_s: HoldSeconds = 60.0
    """How long there must have been nothing to do before the last replica goes, where ``min_replicas`` is 0."""


class Breaker(msgspec.Struct, frozen=True, kw_only=True):
    """When an agent's tasks wait instead of failing: what it calls is down, and each attempt would be wasted."""

    failure_pct: Annotated[int, Meta(ge=1, le=100, title="a percentage as a whole number")] | Off = 50
    """Of the attempts of ``window_s`` that ended in an error worth a retry, or out of time: from here on it is open."""
    min_attempts: Annotated[int, Meta(ge=1, le=100_000)] = 20
    """Fewer say nothing."""
    window_s: WindowSeconds = 30.0
    open_s: Annotated[float, Meta(gt=0, le=HOUR_S, title="a number of seconds")] = 10.0
    """Until one task is tried; where that fails, twice as long as before, at most ten minutes."""


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """Answers the same input with the same result, without running the agent. ``cluster.result_cache`` is the switch
    for all agents; tasks of a session are never answered from it.
    """

    ttl_s: Annotated[float, Meta(gt=0, le=30 * DAY_S, title="a number of seconds")] | Off = "off"
    max_entries: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Of one tenant; the oldest go first."""


class Recycling(msgspec.Struct, frozen=True, kw_only=True):
    """When a replica is drained and another takes its place, though nothing has failed."""

    memory_mb: MemoryMb | None = None
    """None: nine tenths of the agent's ``memory_mb``; without that, where its memory only grows."""
    tasks: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    """After so many."""


ResponseSeconds = Annotated[float, Meta(gt=0, le=7 * DAY_S, title="a number of seconds")]
ErrorPct = Annotated[float, Meta(gt=0, le=100, title="a percentage")]
GoalPct = Annotated[
    float, Meta(ge=0, le=100, title="a percentage")
]  # 0 and 100 have an answer of their own, by `rules`


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """When an agent is graded degraded, and when unhealthy, by what became of its tasks. ``cluster.health_checks`` is
    the switch. No replica is stopped for it.
    """

    window_s: Annotated[float, Meta(ge=MINUTE_S, le=HOUR_S, title="a number of seconds")] = 300.0
    """What counts ended in it, in whole minutes."""
    min_samples: Annotated[int, Meta(ge=1, le=100_000)] = 10
    """Fewer say nothing."""
    response_s: ResponseSeconds | Off = 10.0
    """From acceptance to the end of a task, on average: from here on the agent is degraded."""
    unhealthy_response_s: ResponseSeconds | None = None
    """None: three times that."""
    error_pct: ErrorPct | Off = 10.0
    """Of the attempts that say something about the agent: from here on it is degraded."""
    unhealthy_error_pct: ErrorPct | None = None
    """None: three times that."""


class Slo(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's users may count on. What may be missed of it in ``window_days`` is the error budget; alerts say
    when that is spent too fast. Without ``success_pct`` and ``latency_s`` there is none.
    """

    success_pct: GoalPct | None = None
    """Of the tasks that end, but for those that were cancelled: so many succeed."""
    latency_s: ResponseSeconds | None = None
    latency_pct: GoalPct | None = None
    """So many of them succeed within ``latency_s`` of their acceptance."""
    window_days: Annotated[float, Meta(gt=0, le=90, title="a number of days")] = 30.0
    """It slides. At least an hour, and at most as long as ``history.keep_hours_days``."""
    min_tasks: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    """No alert is made of fewer."""


Dollars = Annotated[float, Meta(ge=0, le=1_000_000, title="a number of dollars")]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's tasks cost, for who pays for the models. Without a price it is unknown, which is not 0."""

    input_usd_per_million_tokens: Dollars | None = None
    output_usd_per_million_tokens: Dollars | None = None
    usd_per_task: Dollars | None = None
    """Of each task that an attempt has ended, whatever its tokens cost."""
    budget_usd_per_day: Annotated[float, Meta(gt=0, le=1_000_000, title="a number of dollars")] | None = None
    budget_tokens_per_day: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    """Days are those of UTC. Of two budgets, the one that is spent first counts."""
    on_budget: Literal["alert", "refuse"] = "alert"
    """What follows when it is spent: a critical alert alone, or new tasks are refused until the day ends, too."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded task that a new revision has to succeed with before it gets traffic, and what is expected of its
    output (`core.examples`). What is absent is not looked at; without any of them it has to succeed, no more.
    """

    input: Any  # a JSON value, checked by `checking`
    equals: Any = msgspec.UNSET  # a JSON value, of which null is one
    contains: Phrases = ()
    not_contains: Phrases = ()
    matches: Expression | None = None
    within_s: Annotated[float, Meta(gt=0, le=DAY_S, title="a number of seconds")] | None = None


class Rollout(msgspec.Struct, frozen=True, kw_only=True):
    """How a new revision takes over."""

    strategy: Strategy = "rolling"
    checks: Annotated[tuple[Factory, ...], Meta(max_length=20)] = ()
    """Functions of the agent's code, run against the new revision before it gets traffic."""
    examples: Annotated[tuple[Example, ...], Meta(max_length=50)] = ()
    weights: Annotated[tuple[WeightPct, ...], Meta(min_length=1, max_length=20)] = (10, 25, 50, 100)
    """Of canary: the new revision's part of the traffic, in percent, stage by stage."""
    max_surge: Share = "25%"
    """Of rolling: replicas beside the wanted ones, a number or a percentage of them."""
    max_unavailable: Share = 0
    """Of rolling: replicas that may be missing from the wanted ones."""
    promotion: Literal["automatic", "manual"] = "automatic"
    """Manual: each stage waits for a person."""
    hold_s: HoldSeconds = 0.0
    scale_down_delay_s: HoldSeconds = 5.0
    progress_deadline_s: Annotated[float, Meta(gt=0, le=DAY_S, title="a number of seconds")] = 120.0


STRATEGY_KEYS: Mapping[Strategy, tuple[str, ...]] = {
    "rolling": ("max_surge", "max_unavailable"),
    "blue-green": (),
    "canary": ("weights",),
}
"""The keys of `Rollout` that mean nothing to the other strategies."""


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as the manifest or ``PUT /v1/agents/{name}`` declares it; its name is the key it stands
    under.
    """

    factory: Factory
    description: Text = ""
    skills: Annotated[tuple[Skill, ...], Meta(max_length=64)] = ()
    examples: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    arguments: dict[str, Any] = {}  # JSON values, checked by `checking`; passed to the factory by keyword
    env: Annotated[tuple[VariableName, ...], Meta(max_length=200)] = ()
    secrets: dict[str, Any] = {}  # variable -> "file:PATH" or "env:NAME", resolved in the replica; checked by `rules`
    include: Annotated[tuple[Pattern, ...], Meta(max_length=100)] = ()
    python: Interpreter | None = None
    concurrency: Concurrency = 1
    sessions: bool = False
    timeout_s: TaskSeconds = 300.0
    max_attempts: Attempts = 3
    retry_backoff_s: DelaySeconds = 1.0
    retry_on: Annotated[tuple[ExceptionName, ...], Meta(max_length=100)] = ()
    on_replica_loss: Literal["retry", "fail"] = "retry"
    hang_after_s: HangSeconds = 8.0
    """A replica whose event loop does not turn for so long is killed, and what ran on it runs again. Plain functions
    run in threads and may block for longer, unless they hold the interpreter's lock.
    """
    memory_mb: MemoryMb | None = None
    """Of one replica; None: not limited."""
    read_paths: Annotated[tuple[Folder, ...], Meta(max_length=100)] = ()
    write_paths: Annotated[tuple[Folder, ...], Meta(max_length=100)] = ()
    egress: Annotated[tuple[Destination, ...], Meta(max_length=1000)] = ("any",)
    max_running: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    """Tasks at once on all its replicas together, for the sake of what it calls; None: as many as there are slots."""
    scaling: Scaling = Scaling()
    breaker: Breaker = Breaker()
    cache: Cache = Cache()
    recycling: Recycling = Recycling()
    health: Health = Health()
    slo: Slo = Slo()
    cost: Cost = Cost()
    rollout: Rollout = Rollout()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a node is told. ``origins``: for each dotted key path, where its value came from."""

    environment: Environment
    cluster: Cluster
    server: Server
    security: Security
    backups: Backups
    optimizer: Optimizer
    history: History
    logs: Logs
    alerts: Alerts
    tracing: Tracing
    agents: Mapping[str, AgentSettings]
    origins: Mapping[str, str]
