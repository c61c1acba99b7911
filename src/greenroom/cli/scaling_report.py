"""How scaling is shown: as a sentence, and as what other settings would have made of a load. Called by `scaling`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from greenroom.cli import render
from greenroom.core import replays

if TYPE_CHECKING:
    from datetime import datetime

    from greenroom.sdk import models
    from greenroom.settings import AgentSettings

COLUMNS = (
    render.Column("AGE", right=True),
    render.Column("REPLICAS"),
    render.Column("RULE"),
    render.Column("BY", whole=False),
    render.Column("BECAUSE", whole=False, wraps=True),
)
ROOMY = 72  # characters of a screen: there the table leaves a column for the reasons
BUCKET_S = 10.0
BLOCKS = " ▁▂▃▄▅▆▇█"
WIDEST, NARROWEST = 100, 10  # characters of a row of blocks
WIDEST_VALUE = 4  # characters of one, where there are few
LABEL, TAIL = 20, 14  # characters beside it


def move(decision: models.ScalingDecision) -> str:
    """Return the numbers: ``1 -> 10``, or ``10`` where it was held."""
    before, after = decision.from_replicas, decision.to_replicas
    return str(after) if before == after else f"{before} -> {after}"


def decisions(found: Sequence[models.ScalingDecision], now: datetime) -> None:
    """Print what was decided and why: as a table, or below each other where the screen is narrow."""
    rows = [(render.since(each.at, now), move(each), each.rule, each.by, each.reason) for each in found]
    if render.out().width >= ROOMY:
        render.table(COLUMNS, rows, empty="nothing was decided yet")
        return
    for *facts, because in rows:
        render.line("  ".join(map(render.printable, facts)))
        render.paragraph(because, indent=4)


def standing(found: models.AgentScaling, now: datetime) -> str:
    """Say how many replicas there are and why."""
    has, load = _has(found), _load(found)
    if not found.is_automatic:
        return f"{found.agent} {has}; {load}. Its number is set by hand: cluster.autoscaling is off."
    within = f"It is scaled automatically between {found.min_replicas} and {found.max_replicas}"
    why = "nothing was decided yet"
    if found.latest is not None:
        why = f"{render.since(found.latest.at, now)} ago it was decided: {found.latest.reason}"
    return f"{found.agent} {has}; {load}. {within}; {why}."


def _has(found: models.AgentScaling) -> str:
    wanted = found.replicas + found.beside
    if not wanted:
        left = found.ready + found.draining
        return f"goes to sleep when {_counted(left, 'replica')} are gone" if left else "is asleep"
    beside = f", {found.beside} of them for its rollout" if found.beside > 0 else ""
    return f"has {found.ready} of {_counted(wanted, 'replica')} ready{beside}"


def _load(found: models.AgentScaling) -> str:
    waiting = "1 task waits" if found.waiting == 1 else f"{found.waiting or 'no'} tasks wait"
    return f"{waiting}, {found.busy} of {_counted(found.slots, 'slot')} busy"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Compared:
    """A load as it was, and as two settings would have it."""

    agent: str
    buckets: tuple[replays.Bucket, ...]
    present: replays.Replay
    other: replays.Replay


def compare(
    agent: str, loads: Sequence[models.Load], present: AgentSettings, other: AgentSettings, *, most: int
) -> Compared:
    """Replay *loads* with both settings; *most* replicas where they do not say."""
    from greenroom import settings

    buckets = tuple(
        replays.Bucket(
            at_s=load.at.timestamp() if load.at is not None else 0.0,
            arrivals=load.arrivals,
            ends=load.ends,
            run_s=load.run_s,
            start_s=load.start_s,
            waiting=load.waiting,
            busy=load.busy,
            replicas=load.replicas,
        )
        for load in loads
    )
    first, second = (
        replays.replay(settings.scaling_policy(spec, most=most), buckets, bucket_s=BUCKET_S)
        for spec in (present, other)
    )
    return Compared(agent, buckets, first, second)


def document(compared: Compared, changes: Sequence[str]) -> dict[str, Any]:
    """Return all of it, for programs."""
    return {
        "agent": compared.agent,
        "changes": list(changes),
        "recorded": compared.buckets,
        "present": compared.present,
        "other": compared.other,
    }


def draw(compared: Compared, changes: Sequence[str]) -> None:
    """Draw the load and what both settings make of it, on however narrow a screen, and sum it up."""
    if not compared.buckets:
        render.say(f"{compared.agent}: no load was recorded in that time; let it work, or give more --hours")
        return
    present, other = compared.present.points, compared.other.points
    most_waiting = max(point.waiting for point in (*present, *other))
    most_replicas = max(point.replicas for point in (*present, *other))
    what = ", ".join(changes) or "the same"
    _row("load", [point.arrivals / BUCKET_S for point in present], unit="a second")
    for name, points in (("present", present), ("other", other)):
        _row(f"{name} replicas", [point.replicas for point in points], most=most_replicas)
        _row(f"{name} waiting", [point.waiting for point in points], most=most_waiting)
    render.line("")
    columns = tuple(render.Column(title, right=bool(title)) for title in ("", "RECORDED", "PRESENT", "OTHER"))
    render.table(columns, _summary(compared), empty="")
    render.say(
        f"other: {what}. Recorded replicas are those at the end of each ten seconds. Arrivals are replayed evenly over "
        "these, but for those that came at once, and a task takes their mean time. It knows no other agents or rollouts"
    )


def _summary(compared: Compared) -> list[tuple[str, str, str, str]]:
    buckets, both = compared.buckets, (compared.present, compared.other)
    real_mean = sum(bucket.replicas for bucket in buckets) / len(buckets)

    def line(name: str, real: str, *values: str) -> tuple[str, str, str, str]:
        first, second = values
        return name, real, first, second

    return [
        line("tasks", str(sum(bucket.arrivals for bucket in buckets)), *(str(each.tasks) for each in both)),
        line("replicas, mean", f"{real_mean:.1f}", *(f"{each.mean_replicas:.1f}" for each in both)),
        line("replicas, most", str(max(b.replicas for b in buckets)), *(str(each.most_replicas) for each in both)),
        line(
            "replica hours",
            f"{sum(bucket.replicas for bucket in buckets) * BUCKET_S / 3600:.2f}",
            *(f"{each.replica_hours:.2f}" for each in both),
        ),
        line("wait, p50", "", *(render.span(each.wait_p50_s) for each in both)),
        line("wait, p95", "", *(render.span(each.wait_p95_s) for each in both)),
        line(
            "waiting, most",
            str(max(bucket.waiting for bucket in buckets)),
            *(str(max(point.waiting for point in each.points)) for each in both),
        ),
        line("changes", "", *(str(each.changes) for each in both)),
    ]


def _row(label: str, values: Sequence[float], *, most: float | None = None, unit: str = "") -> None:
    """Draw *values* as blocks, the highest of each column's; *most* is the full height."""
    width = max(NARROWEST, min(WIDEST, render.out().width - LABEL - TAIL))
    highest = max(values, default=0.0) if most is None else most
    bars = "".join(_block(value, highest) for value in _columns(values, width))
    render.line(f"{label:<{LABEL}}{bars}  {f'{highest:.1f}'.removesuffix('.0')} {unit}".rstrip())


def _columns(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        wide = min(WIDEST_VALUE, width // max(1, len(values)))
        return [value for value in values for _ in range(wide)]
    edges = [round(place * len(values) / width) for place in range(width + 1)]
    return [max(values[low:high]) for low, high in itertools.pairwise(edges)]


def _block(value: float, most: float) -> str:
    if value <= 0 or most <= 0:
        return BLOCKS[0]
    return BLOCKS[max(1, round(value / most * (len(BLOCKS) - 1)))]
