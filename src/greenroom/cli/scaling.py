"""`greenroom scale`: how many replicas, why, and what other settings would have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from greenroom import clock
from greenroom.cli import options, render, scaling_report

if TYPE_CHECKING:
    from greenroom.sdk import models
    from greenroom.settings import AgentSettings

app = cyclopts.App(name="scale", default_parameter=cyclopts.Parameter(negative=()))


@app.default
def scale(
    agent: str,
    count: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=0))],
    /,
    *,
    given: options.Options = options.DEFAULT,
) -> None:
    """Set the number of an agent's replicas; where it is scaled automatically, for now and within its bounds.

    Parameters
    ----------
    agent
        The agent's name.
    count
        How many replicas it shall have.
    """
    with given.connect() as node:
        scaled = node.scale(agent, count)
    if given.json:
        render.json(scaled)
        return
    render.line(f"{scaled.name}: {scaled.replicas.desired} replicas wanted, {scaled.replicas.ready} ready")
    if not count and scaled.queued:
        render.say(f"tasks wait for it ({scaled.queued}): what may run now wakes it again at once")
    elif not count:
        render.say(f"{scaled.running or 'no'} of its tasks run, and are ended first; the next task wakes it again")
    render.say(f"next: greenroom scale explain {scaled.name}")


@app.command
def explain(agent: str, /, *, limit: int = 20, given: options.Options = options.DEFAULT) -> None:
    """Say how many replicas an agent has and why, and what was decided before.

    Parameters
    ----------
    agent
        The agent's name.
    limit
        How many decisions, the latest first.
    """
    with given.connect() as node:
        found = node.scaling(agent, limit=limit)
    if given.json:
        render.json(found)
        return
    now = clock.SystemClock().now()
    render.paragraph(scaling_report.standing(found, now), indent=0)
    render.line("")
    scaling_report.decisions(found.items, now)
    render.say(f"next: greenroom scale simulate {agent} --from-history --set scaling.max_replicas=…")


@app.command
def simulate(
    agent: str | None = None,
    /,
    *,
    from_history: bool = False,
    hours: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=168))] = 24,
    set: Annotated[list[str], cyclopts.Parameter(name="--set", allow_repeating=True)] = [],  # noqa: B006
    given: options.Options = options.DEFAULT,
) -> None:
    """Replay the load that an agent had, with its present settings and with others; nothing is changed.

    Parameters
    ----------
    agent
        The agent's name; not needed where there is only one.
    from_history
        With the load that the node has recorded: the only one there is, so far.
    hours
        How far back, at most a week.
    set
        A setting of the agent's, for example scaling.max_replicas=20; as often as you like.
    """
    if not from_history:
        raise options.Usage("cannot simulate: say with which load; add --from-history")
    with given.connect() as node:
        name = agent if agent is not None else _only(node.agents())
        shown, found, loads = node.agent(name), node.scaling(name, limit=1), node.load(name, hours=hours)
    present, other = _spec(shown, ()), _spec(shown, set)
    most = max(found.max_replicas, found.min_replicas, 1)
    compared = scaling_report.compare(name, loads, present, other, most=most)
    if given.json:
        render.json(scaling_report.document(compared, set))
        return
    scaling_report.draw(compared, set)


def _only(agents: Sequence[models.Agent]) -> str:
    if len(agents) == 1:
        return agents[0].name
    names = ", ".join(agent.name for agent in agents) or "none is deployed"
    raise options.Usage(f"cannot simulate: name the agent; there are: {names}")


def _spec(agent: models.Agent, changes: Sequence[str]) -> AgentSettings:
    """Return the agent's settings that scaling goes by, with *changes*; raises `errors.SettingsInvalid`."""
    from greenroom import settings

    spec = agent.spec or {}
    given: dict[str, Any] = {"factory": spec.get("factory", "agents:agent"), "concurrency": agent.concurrency}
    given |= {"scaling": dict(spec.get("scaling") or {}), "max_running": spec.get("max_running")}
    for change in changes:
        key, _, text = change.partition("=")
        place = given
        *tables, last = key.strip().split(".")
        if tables not in ([], ["scaling"]) or not text or (not tables and last not in ("concurrency", "max_running")):
            raise options.Usage(
                f"cannot take --set {change}: give scaling.KEY=NUMBER, concurrency=NUMBER or max_running=NUMBER"
            )
        for table in tables:
            place = place[table]
        place[last] = _number(change, text)
    return settings.parse_agent(agent.name, given)


def _number(change: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise options.Usage(f"cannot take --set {change}: {text!r} is no number") from None
    return int(value) if value.is_integer() else value
