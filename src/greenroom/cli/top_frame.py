"""The picture that `greenroom top` shows of a node, of any width and height. Pure: it asks nobody, and reads no clock.

All words of the node go through `render.printable`, and none is read as markup.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from greenroom.cli import render, summary
from greenroom.core import costs

if TYPE_CHECKING:
    from rich import console, table, text

    from greenroom.sdk import models

CHECKED_WIDTH = 200  # columns: every column is drawn
MINUTES = 60  # of the charts
NOW_MINUTES = 5  # of the figures
MOST_LINES = 5  # of alerts, and of rollouts; `greenroom alerts ls` has all
KEYS = "q quit   s sort   p pause"
_BARS = "▁▂▃▄▅▆▇█"
_ONE_LINE = str.maketrans("\n\t", "  ")
_LABEL = 15  # columns before a chart
_LEAST_NAME = 12


@dataclass(frozen=True, slots=True)
class Look:
    """What the node said *at* some instant; *alerts* are those that fire, *histories* the last hour by the minute."""

    at: datetime
    status: Mapping[str, Any]
    alerts: Sequence[models.Alert]
    histories: Mapping[str, Sequence[models.HistoryBucket]]


@dataclass(frozen=True, slots=True)
class Agent:
    """A row of the table. *p95_s* is of the latest minute in which tasks ended, the rest of its history of five."""

    name: str
    grade: str
    ready: int
    desired: int
    running: int
    queued: int
    p95_s: float | None
    error_pct: float | None
    tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class _Column:
    title: str
    width: int
    cell: Callable[[Agent], str]


_COLUMNS = (  # the most wanted first: those that do not fit are left out
    _Column("GRADE", 9, lambda agent: agent.grade),
    _Column("READY", 7, lambda agent: f"{agent.ready}/{agent.desired}"),
    _Column("RUNNING", 7, lambda agent: str(agent.running)),
    _Column("QUEUED", 7, lambda agent: str(agent.queued)),
    _Column("P95", 7, lambda agent: render.quantile(agent.p95_s)),
    _Column("ERRORS", 6, lambda agent: "" if agent.error_pct is None else f"{agent.error_pct:.0f} %"),
    _Column("TOKENS", 9, lambda agent: str(agent.tokens)),
    _Column("COST", 9, lambda agent: costs.told(agent.cost_usd)),
)
ORDERS: dict[str, Callable[[Agent], Any]] = {
    "name": lambda agent: agent.name,
    "queued": lambda agent: (-agent.queued, agent.name),
    "running": lambda agent: (-agent.running, agent.name),
    "p95": lambda agent: (-(agent.p95_s or 0), agent.name),
    "errors": lambda agent: (-(agent.error_pct or 0), agent.name),
}


def agents(look: Look, *, order: str = "name") -> list[Agent]:
    return sorted((_agent(said, look) for said in look.status.get("agents") or []), key=ORDERS[order])


def _agent(said: Mapping[str, Any], look: Look) -> Agent:
    buckets = look.histories.get(said["name"], ())
    since = look.at - timedelta(minutes=NOW_MINUTES)
    now = [bucket for bucket in buckets if bucket.at is not None and bucket.at > since]
    judged = sum(bucket.judged for bucket in now)
    replicas, tasks = said.get("replicas") or {}, said.get("tasks") or {}
    return Agent(
        name=said["name"],
        grade=said.get("grade") or "unknown",
        ready=replicas.get("ready", 0),
        desired=replicas.get("desired", 0),
        running=tasks.get("running", 0),
        queued=tasks.get("queued", 0),
        p95_s=next((bucket.response.p95_s for bucket in reversed(buckets) if bucket.response is not None), None),
        error_pct=100 * sum(bucket.errors for bucket in now) / judged if judged else None,
        tokens=sum(bucket.tokens for bucket in now),
        cost_usd=functools.reduce(costs.added, (bucket.cost_usd for bucket in now), None),
    )


def frame(
    look: Look, *, width: int, height: int | None = None, order: str = "name", notes: Sequence[str] = (), keys: str = ""
) -> console.Group:
    """Return the picture, no wider than *width* and no higher than *height*. *notes* come first: what is wrong with
    what is shown.
    """
    from rich import console

    above = [*(_line(note, width, "bold red") for note in notes), *_said(look, width)]
    below = [*_alerts(look, width), *_rollouts(look, width), *([_line(keys, width, "dim")] if keys else [])]
    rows = agents(look, order=order)
    room = len(rows) if height is None else max(1, height - len(above) - len(below) - 1)
    left = len(rows) - room + 1 if len(rows) > room else 0
    more = [_line(f"… and {left} more agents", width, "dim")] if left else []
    return console.Group(*above, _table(rows[: len(rows) - left], width), *more, *below)


def check(look: Look) -> None:
    """Raise what drawing it would raise: an answer may have any shape."""
    frame(look, width=CHECKED_WIDTH)
    for order in ORDERS:
        agents(look, order=order)


def _said(look: Look, width: int) -> list[text.Text]:
    import textwrap

    said = [
        _line(part, width, "bold")
        for sentence in summary.sentences(look.status, look.alerts)
        for part in textwrap.wrap(render.printable(sentence), width)
    ]
    ends, slowest_s = series(look)
    now = sum(ends[-NOW_MINUTES:]) / NOW_MINUTES
    latest_s = next((value for value in reversed(slowest_s) if value), None)
    by_state = (look.status.get("replicas") or {}).get("by_state") or {}
    return [
        *said,
        _line("", width),
        _chart("ended/minute", ends, f"{now:.1f}", width),
        _chart("p95, slowest", slowest_s, render.quantile(latest_s) or "-", width),
        _line(f"{'replicas':<{_LABEL}}{_counts(by_state) or 'none'}", width),
        _line("", width),
    ]


def series(look: Look) -> tuple[list[float], list[float]]:
    """Return, minute by minute and the oldest first, how many attempts of all agents ended, and the 95th percentile of
    response of the agent that was the slowest then, 0 where none ended.
    """
    ends, slowest_s = [0.0] * MINUTES, [0.0] * MINUTES
    for buckets in look.histories.values():
        for bucket in buckets:
            age = MINUTES if bucket.at is None else int((look.at - bucket.at).total_seconds() // 60)
            if 0 <= age < MINUTES:
                ends[-1 - age] += bucket.attempts
                if bucket.response is not None:
                    slowest_s[-1 - age] = max(slowest_s[-1 - age], bucket.response.p95_s)
    return ends, slowest_s


def sparkline(values: Sequence[float]) -> str:
    """Draw *values* as bars from 0 to their greatest; a dot is none.

    >>> sparkline([0, 1, 2, 8])
    '·▁▂█'
    """
    most = max(values, default=0.0)
    last = len(_BARS) - 1
    return "".join(_BARS[min(last, int(value / most * len(_BARS) - 1e-9))] if value > 0 else "·" for value in values)


def _chart(title: str, values: Sequence[float], now: str, width: int) -> text.Text:
    room = max(0, width - _LABEL - len(now) - 2)
    drawn = sparkline(values[max(0, len(values) - room) :]) if room else ""
    return _line(f"{title:<{_LABEL}}{drawn}  {now}", width, "cyan")


def _table(rows: Sequence[Agent], width: int) -> table.Table | text.Text:
    from rich import table
    from rich.text import Text

    if not rows:
        return _line("no agents; next: add one to greenroom.toml", width, "dim")
    names = [render.printable(agent.name) for agent in rows]
    shown = list(_COLUMNS)
    while shown and _LEAST_NAME + sum(column.width + render.GAP for column in shown) > width:
        shown.pop()
    room = max(1, width - sum(column.width + render.GAP for column in shown))
    made = table.Table(box=None, pad_edge=False, padding=(0, render.GAP, 0, 0), header_style="bold", width=width)
    made.add_column("AGENT", no_wrap=True, overflow="ellipsis", width=min(room, max(map(len, [*names, "AGENT"]))))
    for column in shown:
        is_word = column.title == "GRADE"
        made.add_column(column.title, justify="left" if is_word else "right", no_wrap=True, width=column.width)
    for name, agent in zip(names, rows, strict=True):
        cells = [render.printable(column.cell(agent)) for column in shown]
        made.add_row(Text(name), *(Text(cell, style=render.STYLES.get(cell, "")) for cell in cells))
    return made


def _alerts(look: Look, width: int) -> list[text.Text]:
    styles = {"critical": "red", "warning": "yellow"}
    return [
        _line(f"{alert.severity or 'alert'} {alert.id}: {alert.reason}", width, styles.get(alert.severity, ""))
        for alert in look.alerts[:MOST_LINES]
    ]


def _rollouts(look: Look, width: int) -> list[text.Text]:
    on_the_way = [(agent, said) for agent in look.status.get("agents") or [] if (said := agent.get("rollout"))]
    return [
        _line(
            f"rollout of {agent['name']} to revision {said.get('to_revision')}: {said.get('state')}, "
            f"{said.get('weight_pct', 0)} %",
            width,
            "cyan",
        )
        for agent, said in on_the_way[:MOST_LINES]
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _line(words: str, width: int, style: str = "") -> text.Text:
    from rich.text import Text

    kept = render.printable(words, lines=True).translate(_ONE_LINE)  # spaces are kept: they align
    made = Text(kept, style=style, no_wrap=True)
    made.truncate(width, overflow="ellipsis")
    return made
