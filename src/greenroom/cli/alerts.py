"""`greenroom alerts` and `failures`: what people have to look after, and how replicas failed."""

from __future__ import annotations

import cyclopts

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

app = cyclopts.App(name="alerts")

MOST_REASON = 200  # characters; --json has the whole

ALERT_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("SEVERITY", whole=False),
    Column("SINCE", right=True),
    Column("TIMES", right=True),
    Column("TAKEN BY", whole=False),
    Column("REASON", whole=False, wraps=True),
)
FAILURE_COLUMNS = (
    Column("AGE", right=True),
    Column("REPLICA"),
    Column("KIND", whole=False),
    Column("ACTION", whole=False),
    Column("RECOVERED BY", whole=False),
    Column("REASON", whole=False),
)


@app.command(name="ls")
def list_alerts(*, given: options.Options = options.DEFAULT) -> None:
    """List the alerts, firing ones first."""
    with given.connect() as node:
        found = node.alerts()
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            alert.id,
            alert.state,
            alert.severity,
            render.since(alert.first_at, now),
            alert.count,
            alert.acknowledged_by,
            render.shortened(alert.reason, MOST_REASON),
        )
        for alert in found
    )
    render.table(ALERT_COLUMNS, rows, empty="no alerts")
    firing = [alert for alert in found if alert.state == "firing" and alert.acknowledged_at is None]
    if firing:
        render.say(f"next: greenroom alerts ack {firing[0].id}")


@app.command(name="ack")
def acknowledge(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Tell the others that you look after an alert; it fires on until what it tells of is over.

    Parameters
    ----------
    id
        The alert's id, as the list shows it.
    """
    with given.connect() as node:
        alert = node.acknowledge_alert(id)
    if given.json:
        render.json(alert)
        return
    render.line(f"alert {alert.id}: {alert.state}, taken by {alert.acknowledged_by}")


def failures(
    agent: str | None = None,
    /,
    *,
    limit: int = 20,
    given: options.Options = options.DEFAULT,
) -> None:
    """Show how replicas failed, what was done about it, and which replica took their place.

    Parameters
    ----------
    agent
        Of this agent only.
    limit
        How many, the latest first.
    """
    with given.connect() as node:
        page = node.failures(agent, limit=limit)
    if given.json:
        render.json(page)
        return
    now = clock.SystemClock().now()
    rows = (
        (
            render.since(failure.at, now),
            failure.replica,
            failure.kind,
            failure.action,
            failure.recovered_by,
            failure.reason,
        )
        for failure in page.items
    )
    render.table(FAILURE_COLUMNS, rows, empty="no failures")
