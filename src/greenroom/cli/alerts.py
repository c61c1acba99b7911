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
RECEIVER_COLUMNS = (
    Column("RECEIVER"),
    Column("TYPE"),
    Column("STATE"),
    Column("WAITING", right=True),
    Column("FAILURES", right=True),
    Column("TOLD", right=True),
    Column("LAST ANSWER", whole=False),
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


@app.command(name="receivers")
def list_receivers(*, given: options.Options = options.DEFAULT) -> None:
    """List who is told of alerts, and how they do."""
    with given.connect() as node:
        found = node.receivers()
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            receiver.name,
            receiver.type,
            receiver.state,
            receiver.waiting,
            receiver.failures,
            render.since(receiver.told_at, now),
            _result(receiver.status, receiver.error),
        )
        for receiver in found
    )
    render.table(RECEIVER_COLUMNS, rows, empty="no receivers: nobody is told of alerts; see alerts.receivers")
    if found:
        render.say(f"next: greenroom alerts test {found[0].name}")


@app.command(name="test")
def try_receivers(receiver: str | None = None, /, *, given: options.Options = options.DEFAULT) -> int:
    """Send a test alert, and tell what the receiver answered; exit 1 where it was not taken.

    Parameters
    ----------
    receiver
        As the list of receivers shows it; all of them, without one.
    """
    with given.connect() as node:
        names = [each.name for each in node.receivers()] if receiver is None else [receiver]
        found = [node.test_receiver(name) for name in names]
    if given.json:
        render.json({"items": found})
    else:
        for each in found:
            how = "took it" if each.is_taken else "did not take it"
            render.line(f"{each.receiver} {how}: {_result(each.status, each.error)}")
        if not found:
            render.line("no receivers: nobody is told of alerts; see alerts.receivers")
    return 0 if found and all(each.is_taken for each in found) else 1


def _result(status: int | None, error: str | None) -> str:
    return error or ("" if status is None else f"answered {status}")


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
