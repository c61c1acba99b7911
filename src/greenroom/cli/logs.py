"""`greenroom logs`: what replicas and tasks said, and what befell them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter, validators

from greenroom import clock
from greenroom.cli import options, render

if TYPE_CHECKING:
    from greenroom.sdk import client, models

Level = Literal["debug", "info", "warning", "error", "critical"]
PAGE = 200
LEVEL_STYLES = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}
_AGO = re.compile(r"(\d{1,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def logs(
    *,
    agent: str | None = None,
    task: str | None = None,
    replica: str | None = None,
    level: Level | None = None,
    since: str | None = None,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"))] = False,
    lines: Annotated[int, Parameter(name=("--lines", "-n"), validator=validators.Number(gte=1, lte=10_000))] = 50,
    given: options.Options = options.DEFAULT,
) -> None:
    """Show what replicas and tasks said and what befell them, the last lines, in order; as JSON, a document a line.

    Parameters
    ----------
    agent
        Only of this agent.
    task
        Only of this task.
    replica
        Only of this replica.
    level
        Only what is as grave as this, or graver. What was printed is info.
    since
        Only what is not older: 90s, 15m, 2h, 3d, or an instant.
    follow
        Go on with what comes, also while the node is started again, until Ctrl-C.
    lines
        How many of the last lines; with --follow at most 200.
    """
    since_at = None if since is None else _instant(since)
    with given.connect() as node:
        if follow:
            found: Iterable[models.LogLine] = node.follow_logs(
                agent=agent, task=task, replica=replica, level=level, since=since_at, limit=min(lines, PAGE)
            )
        else:
            found = _last(node, lines, agent=agent, task=task, replica=replica, level=level, since=since_at)
        shown = _show(found, as_json=given.json, has_tasks=task is None)
    if not shown and not follow and not given.json:
        render.say("no line; what an agent prints or logs is here as soon as a task of it has run")


def _last(
    node: client.Client,
    lines: int,
    *,
    agent: str | None,
    task: str | None,
    replica: str | None,
    level: str | None,
    since: datetime | None,
) -> list[models.LogLine]:
    """Return the last *lines* that there are, the oldest first."""
    found: list[models.LogLine] = []
    cursor: str | None = None
    while len(found) < lines:
        page = node.logs(
            agent=agent,
            task=task,
            replica=replica,
            level=level,
            since=since,
            cursor=cursor,
            limit=min(lines - len(found), PAGE),
        )
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    return found[::-1]


def _show(found: Iterable[models.LogLine], *, as_json: bool, has_tasks: bool) -> int:
    """Print each as it comes; return how many those were."""
    from rich.text import Text

    console, count = render.out(), 0
    for count, line in enumerate(found, start=1):  # noqa: B007 - returned
        if as_json:
            render.json(line, is_line=True)
        else:
            console.print(Text.assemble(*_parts(line, has_tasks=has_tasks)), soft_wrap=True)
    return count


def _parts(line: models.LogLine, *, has_tasks: bool) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a line and their styles: whatever agents wrote, it is one line and no command."""
    at = "" if line.at is None else f"{line.at.astimezone():%m-%d %H:%M:%S}.{line.at.microsecond // 1000:03}"
    yield f"{at}  ", "dim"
    style = LEVEL_STYLES.get(line.level, "")
    yield f"{line.level:<8}  ", style
    yield f"{render.printable(line.replica or line.agent)}  ", "cyan"
    if line.task is not None and has_tasks:
        yield f"{render.printable(line.task)}  ", "dim"
    if line.logger and line.logger not in line.text:
        yield f"{render.printable(line.logger)}: ", "dim"
    text = render.printable(line.text.expandtabs(4), spaces=True)
    yield text, "italic" if line.source == "greenroom" and not style else style


def _instant(text: str) -> datetime:
    """Return the instant that *text* means: so long ago, or one that is written out."""
    if (ago := _AGO.fullmatch(text)) is not None:
        return clock.SystemClock().now() - timedelta(seconds=int(ago[1]) * _UNITS_S[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise options.Usage(
            f"cannot take --since {render.printable(text)[:40]}: give 90s, 15m, 2h, 3d, or an instant such as "
            "2030-01-01T00:00:00Z"
        ) from None
