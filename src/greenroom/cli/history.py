"""`greenroom history`: how an agent did, also before the node's start."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import cyclopts

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column
from greenroom.core import costs

if TYPE_CHECKING:
    from greenroom.sdk import models

COLUMNS = (
    Column("SINCE"),
    *(Column(title, right=True) for title in ("ENDED", "ERRORS", "AGAIN")),
    *(Column(title, right=True) for title in ("RUN p50", "p95", "WAIT", "RESPONSE", "TOKENS")),
)
COST = Column("COST", right=True)  # where its manifest gives prices
MOST_HOURS = 10 * 365 * 24


def history(
    agent: str,
    /,
    *,
    hours: Annotated[int, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=MOST_HOURS))] = 1,
    step_s: Literal["60", "300", "900", "3600", "86400"] | None = None,
    given: options.Options = options.DEFAULT,
) -> None:
    """Show what became of an agent's attempts, and how long they took.

    Parameters
    ----------
    agent
        The agent's name.
    hours
        How far back.
    step_s
        How many seconds a row is; without it, what gives some dozens of rows.
    """
    wanted_s = int(step_s) if step_s is not None else _step_s(hours)
    since = clock.SystemClock().now() - timedelta(hours=hours)
    with given.connect() as node:
        found = node.history(agent, since=since, step_s=wanted_s)
    if given.json:
        render.json({"items": found})
        return
    columns = COLUMNS if all(bucket.cost_usd is None for bucket in found) else (*COLUMNS, COST)
    render.table(
        columns,
        (_row(bucket)[: len(columns)] for bucket in found),
        empty=f"{agent}: no attempt has ended in that time; give more --hours",
    )
    if found:
        render.say(
            f"each row is {render.span(wanted_s)}; WAIT and RESPONSE are the 95th percentile of its latest tasks; "
            "quantiles are within 10 %"
        )


def _step_s(hours: int) -> int:
    for most, step_s in ((1, 60), (6, 300), (24, 900), (96, 3600)):
        if hours <= most:
            return step_s
    return 86_400


def _row(bucket: models.HistoryBucket) -> tuple[object, ...]:
    share = f" ({100 * bucket.errors / bucket.judged:.0f} %)" if bucket.errors and bucket.judged else ""
    at = "" if bucket.at is None else bucket.at.astimezone().strftime("%m-%d %H:%M")
    return (
        at,
        bucket.attempts,
        f"{bucket.errors}{share}",
        bucket.retries,
        _quantile(bucket.run, "p50_s"),
        _quantile(bucket.run, "p95_s"),
        _quantile(bucket.wait, "p95_s"),
        _quantile(bucket.response, "p95_s"),
        bucket.tokens,
        costs.told(bucket.cost_usd),
    )


def _quantile(seen: models.Durations | None, which: Literal["p50_s", "p95_s"]) -> str:
    return render.quantile(None if seen is None else getattr(seen, which))
