"""`greenroom rollout`: how new revisions take over, and what people decide about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cyclopts
from cyclopts import Parameter

from greenroom import clock, errors
from greenroom.cli import deploy, following, options, render, rollout_report
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from datetime import datetime

    from greenroom.sdk import client, models

app = cyclopts.App(name="rollout", default_parameter=Parameter(negative=()))

COLUMNS = (
    Column("AGENT", whole=False),
    Column("ID", right=True),
    Column("STRATEGY"),
    Column("REVISION"),
    Column("STATE"),
    Column("STAGE", right=True),
    Column("TRAFFIC", right=True),
    Column("READY", right=True),
    Column("REASON", whole=False),
)
HISTORY_COLUMNS = (
    Column("ID", right=True),
    Column("STRATEGY"),
    Column("REVISION"),
    Column("STATE"),
    Column("AGE", right=True),
    Column("TOOK", right=True),
    Column("BY", whole=False),
    Column("REASON", whole=False),
)
REVISION_COLUMNS = (
    Column("REVISION", right=True),
    Column("STATE"),
    Column("CODE"),
    Column("AGE", right=True),
    Column("PROVEN"),
)
DIGEST = 12  # characters that tell two apart


@app.command
def status(agent: str | None = None, /, *, id: int | None = None, given: options.Options = options.DEFAULT) -> None:
    """Show the last rollout of each agent, or one of them in full.

    Parameters
    ----------
    agent
        The agent's name.
    id
        Another one than its last, as the history lists them.
    """
    if agent is not None:
        _show(agent, id, given)
        return
    if id is not None:
        raise options.Usage("cannot show it: --id is of an agent's rollout; name the agent")
    with given.connect() as node:
        found = [each.rollout for each in node.agents() if each.rollout is not None]
    if given.json:
        render.json({"items": found})
        return
    render.table(COLUMNS, map(_row, found), empty="no rollouts; next: greenroom deploy")
    for each in found:
        if each.is_open:
            render.say(f"next: greenroom rollout status {each.agent}")


def _show(agent: str, id: int | None, given: options.Options) -> None:
    with given.connect() as node:
        if id is None:
            found = _last(node, agent, doing="show")
        else:
            found = node.rollout(id)
            if found.agent != agent:
                raise errors.NotFound(f"cannot show rollout {id}: it is of {found.agent}, not of {agent}")
    if given.json:
        render.json(found)
        return
    rollout_report.show(found, clock.SystemClock().now())


@app.command
def promote(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Let a rollout leave its stage now: one that waits for it, or that is watched for longer.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        seen = _last(node, agent, doing="promote")
        found = node.promote_rollout(seen.id, seen.stage or None)
    _report(found, given)


@app.command
def pause(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Stop a rollout where it is; what fails is rolled back all the same.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        found = node.pause_rollout(_last(node, agent, doing="pause").id)
    _report(found, given)


@app.command
def resume(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Let a paused rollout go on.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        found = node.resume_rollout(_last(node, agent, doing="resume").id)
    _report(found, given)


@app.command
def abort(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Undo a rollout that is on its way: the revision before serves everything, at once.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        found = node.agent(agent).rollout
        is_open = found is not None and found.is_open
        if found is not None and is_open:
            found = node.abort_rollout(found.id)
    if found is None or not is_open:
        if given.json:
            render.json(found)
            return
        render.line(f"nothing to abort: {agent} has no open rollout")
        return
    _report(found, given)


@app.command
def undo(
    agent: str,
    /,
    *,
    to: int | None = None,
    watch: deploy.Watch = None,
    given: options.Options = options.DEFAULT,
) -> int:
    """Let a revision of before serve again: at once while it stands, else by a rollout.

    Parameters
    ----------
    agent
        The agent's name.
    to
        Which revision, else the one before.
    watch
        Follow the rollout to its end, which is the default; --no-watch returns as soon as it has begun.
    """
    with given.connect() as node:
        found = node.roll_back(agent, to)
        was_open = found.is_open
        if was_open and watch is not False:
            (found,) = following.to_rest(node, [found], is_shown=not given.json)
    if given.json:
        render.json(found)
    if was_open:
        return deploy.reported([found], given)
    if given.json:
        return 0
    if found.has_failed:
        rollout_report.print_undone(found)
    else:  # it was one write, or nothing had to be done
        render.line(f"{agent}: revision {found.to_revision} serves everything")
    return 0


@app.command
def history(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """List an agent's rollouts, the latest first.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        found = node.rollouts(agent)
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = (_history_row(each, now) for each in found)
    render.table(HISTORY_COLUMNS, rows, empty=f"{agent} has had no rollouts")
    if found:
        render.say(f"next: greenroom rollout status {agent} --id {found[0].id}")


@app.command
def revisions(agent: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """List the revisions of an agent that are kept; `undo --to` goes back to one.

    Parameters
    ----------
    agent
        The agent's name.
    """
    with given.connect() as node:
        found = node.revisions(agent)
        serving = node.agent(agent).revision
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            each.number,
            _standing(each, serving),
            each.digest[:DIGEST],
            render.since(each.created_at, now),
            "no" if each.proven_at is None else "yes",
        )
        for each in found
    )
    render.table(REVISION_COLUMNS, rows, empty=f"{agent} has no revisions")


def _last(node: client.Client, agent: str, *, doing: str) -> models.Rollout:
    found = node.agent(agent).rollout
    if found is None:
        raise errors.NotFound(f"cannot {doing} a rollout of {agent}: it has had none; next: greenroom deploy {agent}")
    return found


def _report(found: models.Rollout, given: options.Options) -> None:
    if given.json:
        render.json(found)
    elif found.has_failed:
        rollout_report.print_undone(found)
    else:
        rollout_report.print_end(found)


def _row(found: models.Rollout) -> Sequence[object]:
    return (
        found.agent,
        found.id,
        found.strategy,
        rollout_report.move(found),
        rollout_report.state(found),
        rollout_report.stage(found),
        f"{found.weight_pct} %",
        rollout_report.ready(found) if found.is_open else "",
        found.reason,
    )


def _history_row(found: models.Rollout, now: datetime) -> Sequence[object]:
    return (
        found.id,
        found.strategy,
        rollout_report.move(found),
        rollout_report.state(found),
        render.since(found.created_at, now),
        render.took(found.created_at, found.ended_at),
        found.begun_by,
        found.reason,
    )


def _standing(revision: models.Revision, serving: int | None) -> str:
    if revision.number == serving:
        return "serves"
    return "stands" if revision.retired_at is None else "retired"
