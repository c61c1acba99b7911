"""Follows rollouts to where they end or wait for a person: a table that changes on a terminal, else a line a change.

Called by `deploy` and `rollout`. Whoever stops following stops nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from greenroom import clock, errors
from greenroom.cli import pace, render, rollout_report

if TYPE_CHECKING:
    from datetime import datetime

    from rich import console, table

    from greenroom.sdk import client, models

LOOK_EVERY_S = 0.25
FRAMES_PER_S = 8.0
TITLES = ("AGENT", "REVISION", "STATE", "STAGE", "TRAFFIC", "READY", "SEEN")

Followed = dict[int, "models.Rollout"]  # by id, in the order of the deployment


def to_rest(node: client.Client, begun: Sequence[models.Rollout], *, is_shown: bool) -> list[models.Rollout]:
    """Return them as they are when each is at rest, or as soon as one of them has failed."""
    followed = {rollout.id: rollout for rollout in begun}
    told: dict[int, object] = {}
    paced = pace.Pace()
    out = render.out()
    with _going_on(followed), _live(followed, out if is_shown and out.is_terminal else None):
        while True:
            if is_shown and not out.is_terminal:
                _tell(followed, told)
            now = followed.values()
            if any(each.has_failed for each in now) or all(each.is_at_rest for each in now):
                return list(now)
            open_ones = sum(not rollout.is_at_rest for rollout in now)
            time.sleep(paced.delay_s(open_ones, least_s=LOOK_EVERY_S))
            for id, rollout in list(followed.items()):
                if not rollout.is_at_rest:
                    followed[id] = node.rollout(id)


def _tell(followed: Followed, told: dict[int, object]) -> None:
    """Print a line for each that has changed; what is only counted is no change."""
    for id, rollout in followed.items():
        change = (rollout.state, rollout.stage, rollout.weight_pct, rollout.ready, rollout.is_proven)
        if told.get(id) != change and rollout.is_open:
            render.line(rollout_report.progress(rollout))
        told[id] = change


@contextmanager
def _live(followed: Followed, console: console.Console | None) -> Iterator[None]:
    """Show them as they change, below what was said before; without a *console* nothing."""
    if console is None:
        yield
        return
    from rich.live import Live

    with Live(
        console=console, get_renderable=lambda: _table(followed), refresh_per_second=FRAMES_PER_S, transient=True
    ):
        yield


def _table(followed: Mapping[int, models.Rollout]) -> table.Table:
    from rich import box, table
    from rich.text import Text

    now = clock.SystemClock().now()
    rows = [_row(rollout, now) for rollout in followed.values()]
    made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(TITLES):
        widest = max(len(row[place]) for row in rows)
        is_last = place == len(TITLES) - 1  # it gives way where the screen is narrow
        made.add_column(title, no_wrap=True, overflow="ellipsis", min_width=None if is_last else widest)
    for row in rows:
        made.add_row(*(Text(cell, style=render.STYLES.get(cell, "")) for cell in row))
    return made


def _row(rollout: models.Rollout, now: datetime) -> tuple[str, ...]:
    return (
        render.printable(rollout.agent),
        rollout_report.move(rollout),
        rollout_report.state(rollout),
        rollout_report.stage(rollout),
        rollout_report.bar(rollout),
        rollout_report.ready(rollout),
        render.printable(rollout_report.seen(rollout, now)),
    )


@contextmanager
def _going_on(followed: Followed) -> Iterator[None]:
    """Say on Ctrl-C, and where the node is lost, that the rollouts do not end with the following."""
    try:
        yield
    except KeyboardInterrupt:
        render.say("")
        for rollout in _open(followed):
            render.say(
                f"rollout {rollout.id} of {rollout.agent} goes on; next: greenroom rollout status {rollout.agent}, "
                f"or greenroom rollout abort {rollout.agent}"
            )
        raise
    except errors.NodeUnreachable as error:
        for rollout in _open(followed):
            error.add_note(
                f"rollout {rollout.id} of {rollout.agent} goes on when a node runs; "
                f"next: greenroom rollout status {rollout.agent}"
            )
        raise


def _open(followed: Followed) -> list[models.Rollout]:
    return [rollout for rollout in followed.values() if rollout.is_open]
