"""`greenroom agents` and `replicas`: who works here, and in how many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cyclopts

from greenroom import clock
from greenroom.cli import options, render, rollout_report
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk import models

agents = cyclopts.App(name="agents")
replicas = cyclopts.App(name="replicas")

AGENT_COLUMNS = (
    Column("NAME"),
    Column("STATE"),
    Column("GRADE"),
    Column("REVISION", right=True),
    Column("READY", right=True),
    Column("QUEUED", right=True),
    Column("RUNNING", right=True),
    Column("DESCRIPTION", whole=False),
)
REPLICA_COLUMNS = (
    Column("ID"),
    Column("AGENT", whole=False),
    Column("STATE"),
    Column("GRADE", whole=False),
    Column("PID", right=True),
    Column("BUSY", right=True),
    Column("MB", right=True),
    Column("AGE", right=True),
    Column("RESTARTS", right=True),
)


@agents.default
def list_agents(name: str | None = None, /, *, given: options.Options = options.DEFAULT) -> int:
    """Show the agents, or one of them in full.

    Parameters
    ----------
    name
        The agent's name.
    """
    if name is not None:
        return _agent(name, given)
    with given.connect() as node:
        found = node.agents()
    if given.json:
        render.json({"items": found})
        return 0
    rows = [
        (
            agent.name,
            agent.state,
            agent.grade,
            agent.revision,
            f"{agent.replicas.ready}/{agent.replicas.desired}",
            agent.queued,
            agent.running,
            agent.description,
        )
        for agent in found
    ]
    render.table(AGENT_COLUMNS, rows, empty="no agents; next: add one to greenroom.toml, and restart the node")
    for agent in found:
        if reason := render.trouble(agent.reason, grade=agent.grade, grade_reason=agent.grade_reason):
            render.say(f"{agent.name}: {reason}")
        if reason := render.waiting(agent.breaker):
            render.say(f"{agent.name}: {reason}")
        rollout_report.tell_if_open(agent.name, agent.rollout)
    return 0


def _agent(name: str, given: options.Options) -> int:
    with given.connect() as node:
        agent = node.agent(name)
    if given.json:
        render.json(agent)
        return 0
    render.facts(
        [
            ("agent", agent.name),
            ("state", agent.state),
            ("reason", agent.reason or None),
            ("grade", agent.grade),
            ("because", agent.grade_reason),
            ("factory", agent.adapter),
            ("revision", agent.revision),
            ("replicas", f"{agent.replicas.ready} of {agent.replicas.desired} ready"),
            ("breaker", render.waiting(agent.breaker) or agent.breaker.state),
            ("tasks", f"{agent.running} running, {agent.queued} queued"),
            ("concurrency", agent.concurrency),
            ("sessions", "yes" if agent.sessions else "no"),
            ("description", agent.description or None),
            ("skills", ", ".join(agent.skills) or None),
            ("examples", "\n".join(agent.examples) or None),
        ]
    )
    rollout_report.tell_if_open(agent.name, agent.rollout)
    render.say(f"next: greenroom submit {agent.name} TEXT --wait")
    return 0


@agents.command
def release(name: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Start an agent again that is quarantined: its replicas have the whole ladder of recovery before them. Where its
    circuit breaker is open, close it.

    Parameters
    ----------
    name
        The agent's name.
    """
    with given.connect() as node:
        agent = node.release(name)
    if given.json:
        render.json(agent)
        return
    done = "its circuit breaker is closed" if agent.state == "ready" else "its replicas are started"
    render.line(f"agent {agent.name} is judged anew; {done}")
    render.say(f"next: greenroom agents {agent.name}")


@replicas.default
def list_replicas(*, given: options.Options = options.DEFAULT) -> None:
    """Show the processes that run the agents."""
    with given.connect() as node:
        found = node.replicas()
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            replica.id,
            replica.agent,
            replica.state,
            replica.grade,
            replica.pid,
            f"{replica.busy}/{replica.slots}",
            "" if replica.memory_mb is None else f"{replica.memory_mb:.0f}",
            render.since(replica.started_at, now),
            replica.restarts,
        )
        for replica in found
    )
    render.table(REPLICA_COLUMNS, rows, empty="no replicas")
    for replica in found:
        if replica.reason and replica.grade != "healthy":
            render.say(f"{replica.id}: {replica.reason}")


@replicas.command
def restart(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Put a new process in a replica's place; it finishes its tasks first.

    Parameters
    ----------
    id
        The replica's id.
    """
    with given.connect() as node:
        replica = node.restart_replica(id)
    _report(replica, given)


@replicas.command
def drain(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Let a replica finish its tasks, and give it no more; another takes its place.

    Parameters
    ----------
    id
        The replica's id.
    """
    with given.connect() as node:
        replica = node.drain_replica(id)
    _report(replica, given)


def _report(replica: models.Replica, given: options.Options) -> None:
    if given.json:
        render.json(replica)
        return
    tasks = f"finishes its tasks ({replica.busy} running)" if replica.busy else "goes"
    render.line(f"replica {replica.id} of {replica.agent}: {replica.state}; it {tasks}, and another takes its place")
    render.say("next: greenroom replicas")
