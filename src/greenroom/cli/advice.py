"""`greenroom advice`: what the optimizer advises, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk import models

COLUMNS = (
    Column("AGE", right=True),
    Column("STATE", whole=False),
    Column("AGENT", whole=False),
    Column("RULE"),
    Column("WHAT", whole=False),
    Column("WHY", whole=False),
    Column("EXPECTED", whole=False),
    Column("MEASURED", whole=False),
)


def advice(
    *,
    limit: int = 20,
    cursor: str | None = None,
    given: options.Options = options.DEFAULT,
) -> None:
    """Show what the optimizer advises, what is open first, and what was measured of what was done.

    Parameters
    ----------
    limit
        How many.
    cursor
        Go on with a list, as its end says.
    """
    with given.connect() as node:
        page = node.advice(cursor=cursor, limit=limit)
    if given.json:
        render.json(page)
        return
    now = clock.SystemClock().now()
    rows = (
        (
            render.since(each.opened_at, now),
            each.state,
            each.agent or "(node)",
            each.rule,
            each.what,
            each.why,
            each.expected,
            measured(each),
        )
        for each in page.items
    )
    render.table(COLUMNS, rows, empty="no advice: nothing that the optimizer's rules look for has lasted")
    if page.next_cursor:
        render.say(f"more: greenroom advice --cursor {page.next_cursor}")
    if still_open := next((each for each in page.items if each.state == "open"), None):
        render.say(f"next: {still_open.what}")


def measured(advice: models.Advice) -> str:
    """What the metric was and is, and what that amounts to."""
    if advice.after is None:
        return advice.outcome
    change = f"{advice.metric} {advice.before:.1f} -> {advice.after:.1f}"
    return f"{change}: {advice.outcome}" if advice.outcome else change
