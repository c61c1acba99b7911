"""`greenroom security`: how the node is protected, what was found, and who is locked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cyclopts

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk.security import Rate, SecurityReport

app = cyclopts.App(name="security")

CONTROLS = (Column("CONTROL"), Column("STATE"), Column("WHY", whole=False, wraps=True))
RATES = (
    Column("WHO"),
    Column("LAST HOUR", right=True),
    Column("A MINUTE", right=True),
    Column("OF ITS OWN", right=True),
)
MEASURES = (Column("WHO"), Column("IS"), Column("UNTIL"), Column("WHY", whole=False, wraps=True))
STYLED = {"good": "green", "warning": "yellow", "critical": "red", "not watched": "yellow"}
MOST_RATES = 5


@app.command
def report(*, given: options.Options = options.DEFAULT) -> None:
    """Show each control and its state, what was found, who was refused how often, who is locked, and a grade."""
    with given.connect() as node:
        found = node.security()
    if given.json:
        render.json(found)
        return
    render.line(f"security: {found.grade}: {found.reason}", style=STYLED.get(found.grade))
    render.table(CONTROLS, ((each.name, each.state, each.why) for each in found.controls), empty="")
    now = clock.SystemClock().now()
    for each in found.found_last_day:  # no table: who it was and what was done are long, and to be copied whole
        render.line(f"{render.since(each.at, now)} ago  {each.rule}  {each.subject}")
        render.paragraph(f"{each.reason}; {each.done}", indent=4)
    if not found.found_last_day:
        render.say("the rules have found nothing since the node was started")
    for title, rates in (("rejected credentials", found.rejected), ("refused requests", found.refused)):
        if rates:
            render.line(f"{title}:")
            render.table(RATES, map(_row, rates[:MOST_RATES]), empty="")
    if found.measures:
        measures = ((each.subject, each.kind, render.moment(each.until), each.reason) for each in found.measures)
        render.table(MEASURES, measures, empty="")
    _next(found)


def _row(rate: Rate) -> tuple[object, ...]:
    share = None if rate.share_pct is None else f"{rate.share_pct:g} %"
    return rate.subject, rate.count, rate.per_minute, share


def _next(found: SecurityReport) -> None:
    if found.measures:
        render.say(f"next: greenroom security unlock {found.measures[0].subject}")
    elif found.grade != "good":
        render.say("next: greenroom audit ls")


@app.command
def unlock(subject: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Let somebody in again who is locked or slowed down.

    Parameters
    ----------
    subject
        principal:ID or source:ADDRESS, as the report shows it.
    """
    with given.connect() as node:
        node.unlock(subject)
    if not given.json:
        render.line(f"{subject}: let in again")
