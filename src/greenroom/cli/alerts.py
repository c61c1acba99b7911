"""`greenroom alerts` and `failures`: what people have to look after, what is silenced, and how replicas failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk import models

app = cyclopts.App(name="alerts")

MOST_REASON = 200  # characters; --json has the whole

ALERT_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("SEVERITY", whole=False),
    Column("SINCE", right=True),
    Column("TIMES", right=True),
    Column("TAKEN BY", whole=False),
    Column("SILENCED", whole=False),
    Column("REASON", whole=False, wraps=True),
)
SILENCE_COLUMNS = (
    Column("ID"),
    Column("OF"),
    Column("ENDS IN", right=True),
    Column("BY", whole=False),
    Column("COMMENT", whole=False, wraps=True),
)
RULE_COLUMNS = (
    Column("RULE"),
    Column("SIGNAL"),
    Column("BOUND", right=True),
    Column("OVER", right=True),
    Column("FOR", right=True),
    Column("SEVERITY", whole=False),
    Column("AGENTS", whole=False, wraps=True),
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
def list_alerts(
    *, state: str | None = None, agent: str | None = None, given: options.Options = options.DEFAULT
) -> None:
    """List the alerts, firing ones first.

    Parameters
    ----------
    state
        pending, firing, acknowledged or resolved.
    agent
        Of this agent only.
    """
    with given.connect() as node:
        found = node.alerts(state=state, agent=agent)
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
            ", ".join(alert.silenced_by),
            render.shortened(alert.reason, MOST_REASON),
        )
        for alert in found
    )
    render.table(ALERT_COLUMNS, rows, empty="no alerts")
    firing = [alert for alert in found if alert.state == "firing" and not alert.silenced_by]
    if firing:
        render.say(f"next: greenroom alerts ack {firing[0].id}")


@app.command(name="ack")
def acknowledge(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Tell the others that you look after an alert; it stands until what it tells of is over.

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


@app.command
def silence(
    id: str | None = None,
    /,
    *,
    kind: str | None = None,
    agent: str | None = None,
    severity: str | None = None,
    lasts: Annotated[str, Parameter(name="--for")] = "1h",
    comment: str = "",
    given: options.Options = options.DEFAULT,
) -> None:
    """Have nobody told of alerts that match all that is given, for a while; they are listed all the same.

    Parameters
    ----------
    id
        An alert's id; in this, kind and agent * stands for any text.
    kind
        As of a rule: slow_tasks.
    agent
        Alerts of this agent.
    severity
        warning or critical.
    lasts
        For how long: 90m, 12h, 7d; 90 days at most.
    comment
        Why, for the others.
    """
    if (id, kind, agent, severity) == (None, None, None, None):
        raise options.Usage("cannot silence everything: give an alert's id, --kind, --agent or --severity")
    for_s = options.seconds(lasts, of="--for")
    with given.connect() as node:
        made = node.silence(for_s, alert=id, kind=kind, agent=agent, severity=severity, comment=comment)
    if given.json:
        render.json(made)
        return
    render.line(f"silence {made.id}: {_matchers(made)} until {made.until:%Y-%m-%d %H:%M:%S} UTC")
    render.say(f"next: greenroom alerts unsilence {made.id}")


@app.command
def unsilence(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """End a silence before its time.

    Parameters
    ----------
    id
        The silence's id, as the list shows it.
    """
    with given.connect() as node:
        node.unsilence(id)
    if given.json:
        render.json({"id": id, "ended": True})
        return
    render.line(f"silence {id}: ended")


@app.command(name="silences")
def list_silences(*, given: options.Options = options.DEFAULT) -> None:
    """List the silences, the first to end first."""
    with given.connect() as node:
        found = node.silences()
    if given.json:
        render.json({"items": found})
        return
    now = clock.SystemClock().now()
    rows = ((each.id, _matchers(each), render.since(now, each.until), each.created_by, each.comment) for each in found)
    render.table(SILENCE_COLUMNS, rows, empty="no silences")


@app.command(name="rules")
def list_rules(*, given: options.Options = options.DEFAULT) -> None:
    """List the rules that raise alerts, as alerts.rules in the node's manifest has them."""
    with given.connect() as node:
        found = node.alert_rules()
    if given.json:
        render.json({"items": found})
        return
    render.table(RULE_COLUMNS, map(_rule, found), empty="no rules")


def _matchers(silence: models.Silence) -> str:
    told = {"alert": silence.alert, "kind": silence.kind, "agent": silence.agent, "severity": silence.severity}
    return " ".join(f"{name}={pattern}" for name, pattern in told.items() if pattern is not None)


def _rule(rule: models.AlertRule) -> tuple[str, ...]:
    bound = f"> {rule.above:g}" if rule.above is not None else f"< {rule.below:g}"
    agents = " ".join([*rule.agents, *(f"not {each}" for each in rule.except_agents)])
    over = "" if rule.window_s is None else f"{rule.window_s:g} s"
    severity = rule.severity if rule.enabled else "off"
    return rule.name, rule.signal, bound, over, f"{rule.for_s:g} s", severity, agents


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
