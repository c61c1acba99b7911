"""`greenroom webhooks`: where the ends of tasks are told, and how that went."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from datetime import datetime

    from greenroom.sdk import client, models

app = cyclopts.App(name="webhooks")

TEST_WITHIN_S = 20.0  # a try takes 15 at most
LOOK_EVERY_S = 0.2

COLUMNS = (Column("ID"), Column("STATE"), Column("EVENTS", whole=False), Column("URL", whole=False))
DELIVERY_COLUMNS = (
    Column("AGE", right=True),
    Column("TYPE"),
    Column("TASK", whole=False),
    Column("STATE"),
    Column("TRIES", right=True),
    Column("ANSWER", right=True),
    Column("WHY", whole=False),
)
_FIRST = 10  # deliveries that are shown with a webhook

Events = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]


@app.command
def add(
    url: str,
    /,
    *,
    events: Events | None = None,
    none: Annotated[bool, Parameter(show_default=False)] = False,
    description: str = "",
    include_output: Annotated[bool, Parameter(show_default=False)] = False,
    given: options.Options = options.DEFAULT,
) -> None:
    """Have the ends of tasks told to a receiver; the secret that signs is shown this once.

    Parameters
    ----------
    url
        Where to; https, and a public address.
    events
        Which: task.succeeded task.failed task.cancelled task.expired; all without it.
    none
        No events: only tasks that name it are told.
    description
        For the list.
    include_output
        Tell also what came out, the error and the metadata; without it the receiver fetches the task.
    """
    if none and events:
        raise options.Usage("cannot add a webhook: --none and --events exclude each other")
    with given.connect() as node:
        made = node.create_webhook(url, () if none else events, description=description, include_output=include_output)
    if given.json:
        render.json(made)
        return
    render.say(f"webhook {made.id} for {made.url}; keep its secret now, it is not shown again:")
    render.line(made.secret or "")
    render.say(f"next: greenroom webhooks test {made.id}")


@app.command(name="ls")
def list_webhooks(*, given: options.Options = options.DEFAULT) -> None:
    """List the webhooks, without their secrets."""
    with given.connect() as node:
        found = node.webhooks()
    if given.json:
        render.json({"items": found})
        return
    rows = ((each.id, each.state, _events(each), each.url) for each in found)
    render.table(COLUMNS, rows, empty="no webhooks; next: greenroom webhooks add https://…")


@app.command
def show(id: str, /, *, limit: int = _FIRST, given: options.Options = options.DEFAULT) -> None:
    """Show a webhook, and what it was sent last.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    limit
        How many deliveries.
    """
    with given.connect() as node:
        found, page = node.webhook(id), node.deliveries(id, limit=limit)
    if given.json:
        render.json({"webhook": found, "deliveries": page.items})
        return
    render.facts(
        [
            ("id", found.id),
            ("url", found.url),
            ("state", found.state),
            ("reason", found.reason or None),
            ("events", _events(found)),
            ("description", found.description or None),
            ("tells", "also output, error and metadata" if found.include_output else "ids, states and times"),
            ("failing since", None if found.failing_since is None else render.moment(found.failing_since)),
            ("old secret until", None if found.old_secret_until is None else render.moment(found.old_secret_until)),
        ]
    )
    now = clock.SystemClock().now()
    render.table(DELIVERY_COLUMNS, (_row(each, now) for each in page.items), empty="nothing was sent to it yet")
    if found.state == "disabled":
        render.say(f"next: greenroom webhooks enable {found.id}")


def _events(found: models.Webhook) -> str:
    return ", ".join(found.events) or "of tasks that name it"


def _row(each: models.Delivery, now: datetime) -> tuple[object, ...]:
    age = "" if each.created_at is None else render.since(each.created_at, now)
    return age, each.type, each.task, each.state, each.attempts, each.status, each.error


@app.command
def rotate(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Give a webhook another secret, shown this once; for a day the old one signs, too.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    """
    with given.connect() as node:
        made = node.rotate_webhook(id)
    if given.json:
        render.json(made)
        return
    render.say(f"webhook {made.id}: the new secret; the old one signs until {render.moment(made.old_secret_until)}:")
    render.line(made.secret or "")


@app.command
def enable(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Have a webhook told again; what has waited for less than a day is sent.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    """
    _change(id, enabled=True, given=given)


@app.command
def disable(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Tell a webhook nothing more, until it is enabled again.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    """
    _change(id, enabled=False, given=given)


def _change(id: str, *, enabled: bool, given: options.Options) -> None:
    with given.connect() as node:
        changed = node.change_webhook(id, enabled=enabled)
    if given.json:
        render.json(changed)
        return
    render.line(f"webhook {changed.id}: {changed.state}")


@app.command(name="rm")
def remove(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Remove a webhook, and with it what it was not told yet.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    """
    with given.connect() as node:
        node.delete_webhook(id)
    if not given.json:
        render.line(f"webhook {id}: removed")


@app.command(name="test")
def send_test(id: str, /, *, given: options.Options = options.DEFAULT) -> int:
    """Send a webhook something, and say what it was answered; exit with 1 unless it was taken.

    Parameters
    ----------
    id
        The webhook's id, as the list shows it.
    """
    with given.connect() as node:
        sent = _ended(node, id, node.test_webhook(id))
    if given.json:
        render.json(sent)
    elif sent.state == "delivered":
        render.line(f"webhook {id}: taken, answered {sent.status}")
    else:
        why = sent.error or (f"answered {sent.status}, and 2xx is expected" if sent.status else "no answer yet")
        render.failure(f"cannot deliver to the webhook {id}: {why}")
    return 0 if sent.state == "delivered" else 1


def _ended(node: client.Client, id: str, sent: models.Delivery) -> models.Delivery:
    monotonic_s = clock.SystemClock().monotonic_s
    end_at_s = monotonic_s() + TEST_WITHIN_S
    while sent.state == "pending" and monotonic_s() < end_at_s:
        time.sleep(LOOK_EVERY_S)
        sent = next((each for each in node.deliveries(id).items if each.id == sent.id), sent)
    return sent
