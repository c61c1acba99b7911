"""The manifest that `greenroom init` writes."""

from __future__ import annotations

_STARTER = """\
# What Greenroom runs here. `greenroom config validate` checks it, `greenroom config show` prints every value.
# Variables override it, with two underscores between levels: GREENROOM_CLUSTER__MAX_REPLICAS=20,
# GREENROOM_AGENTS__HELLO__TIMEOUT_S=60.

environment = "development"              # or "staging", "production"

# [cluster]                              # all agents together; the defaults are the environment's
# max_replicas = 10
# max_surge = 5                          # replicas that rollouts may have beside those
# max_connections = 128
# autoscaling = true                     # as in staging and production
# cpu = 2                                # CPUs of all replicas together
# memory_mb = 4096                       # ... and their memory
# result_cache = true                    # for the agents that have a cache.ttl_s
# log_level = "INFO"

# [server]
# port = 7080
# max_queued_tasks = 100_000             # more are answered 429
# max_queued_tasks_per_tenant = 50_000
# accept_code = true                     # archives of code by API, from callers with the deploy permission
# max_code_bytes = 16_777_216

# [security]                             # what production has on, see greenroom config show and doctor --security
# isolation = "T1"                       # of agents; without it, T0 where the kernel has no walls
# rate_limit_per_minute = 100            # of each caller
# encryption_at_rest = true
# intrusion_rules = true
# audit_export = ["/mnt/elsewhere/audit.jsonl"]   # or "syslog", "https://..."

# [backups]
# to = "/mnt/backups"                    # or "s3://bucket/prefix"; else in the data directory, on the same disk
# every_s = 3600                         # with cluster.scheduled_backups = true, as in production
# keep_last = 24
# keep_days = 7                          # beside those, the last one of each day

# [optimizer]                            # advice by rules over what is measured: greenroom advice
# apply = true                           # acts on it
# target_response_s = 5

# [history]                              # how each agent did: greenroom history hello
# keep_minutes_days = 1
# keep_hours_days = 30

# [logs]                                 # what replicas and tasks said, and what befell them: greenroom logs
# keep_days = 7                          # 0: nothing is kept

# [alerts.rules.slow_tasks]              # built-in rules: greenroom alerts rules
# above = 120                            # seconds
# except_agents = ["hello"]

# [alerts.rules.hello_waits]             # one of your own
# signal = "oldest_wait_s"
# agents = ["hello"]
# above = 30
# for_s = 60
# severity = "critical"

# [tracing]                              # with cluster.tracing = true, and pip install 'greenroom[tracing]'
# endpoint = "http://127.0.0.1:4318"     # of an OpenTelemetry collector
# sample_ratio = 0.1                     # of the traces that begin here
# ui_url = "http://127.0.0.1:16686/trace/{trace_id}"

# [alerts.receivers.people]              # who is told, with cluster.alert_delivery = true, as in production
# type = "alertmanager"                  # or "webhook", "slack", "email", "apprise", whose URLs url_env names
# url = "http://alertmanager:9093"
# severities = ["critical"]

[agents.hello]
factory = "agents:hello"                 # module:attribute: an AutoGen agent or team, a class, or a function
description = "Answers a greeting"       # requests that name no agent are routed by this
# skills = ["greeting", "small talk"]
examples = ["Say hello to Ada"]
# arguments = { model = "gpt-4o-mini" }  # passed to the factory by keyword
# env = ["OPENAI_API_KEY"]               # the only variables of yours that the agent sees
# include = ["prompts/*.txt"]            # files that it needs beside *.py
# secrets = { SEARCH_KEY = "file:/run/secrets/search" }   # or "env:NAME"; read where it runs, and stored nowhere
# read_paths = ["/srv/corpus"]           # what it may read beside its code
# write_paths = ["/var/lib/reports"]     # ... and write beside its private TMPDIR
# egress = ["api.openai.com", "localhost:11434"]   # ports it may connect to; [] none, else any
# python = ".venv-hello/bin/python"      # an interpreter and environment of its own
# concurrency = 4                        # tasks at once in one replica
# sessions = true                        # keep state between the tasks of a session
# timeout_s = 300                        # of one attempt
# max_attempts = 3
# retry_on = ["openai.RateLimitError"]   # the agent's errors that are worth another attempt
# hang_after_s = 8                       # a replica whose event loop is blocked for longer is replaced
# on_replica_loss = "retry"              # or "fail", which requires concurrency = 1
# memory_mb = 512                        # of one replica

# max_running = 20                       # tasks at once on all its replicas together

# [agents.hello.scaling]
# min_replicas = 2                       # 0: none while there is nothing to do, with cluster.autoscaling
# max_replicas = 8                       # these and the next two with cluster.autoscaling
# target_queue_per_replica = 5
# target_busy_pct = 80

# [agents.hello.breaker]                 # tasks wait while what it calls is down
# failure_pct = 50                       # or "off"

# [agents.hello.cache]                   # the same input gets the same result, with cluster.result_cache
# ttl_s = 300

# [agents.hello.recycling]               # another replica takes its place
# tasks = 10_000                         # after so many; or memory_mb

# [agents.hello.health]                  # when its grade falls: greenroom health hello
# response_s = 10                        # on average, or "off"; at three times that it is unhealthy
# error_pct = 10

# [agents.hello.slo]                     # what its users may count on; alerts say when the rest is spent too fast
# success_pct = 99.5                     # of the tasks that are not cancelled
# latency_s = 30
# latency_pct = 95                       # so many succeed within latency_s
# window_days = 30

# [agents.hello.cost]                    # what its models cost: greenroom history hello
# input_usd_per_million_tokens = 0.15
# output_usd_per_million_tokens = 0.60
# budget_usd_per_day = 20                # an alert at 80 %, and when it is spent
# on_budget = "refuse"                   # and new tasks are, until midnight UTC

# [agents.hello.rollout]                 # how a new revision takes over
# strategy = "canary"                    # or "blue-green"; else "rolling", with max_surge and max_unavailable
# weights = [10, 25, 50, 100]            # percent of the traffic, stage by stage
# hold_s = 30                            # how long each is watched
# promotion = "manual"                   # each waits for a person
# checks = ["agents:smoke"]              # functions that are run against it before it gets traffic

# [[agents.hello.rollout.examples]]      # tasks that it has to do well before it gets traffic
# input = "Say hello to Ada"
# contains = "Ada"                       # or not_contains, matches, equals
# within_s = 30
"""


def starter_manifest() -> str:
    """A manifest with one agent, ``agents:hello``; valid as it is and with any of its comments made real."""
    return _STARTER
