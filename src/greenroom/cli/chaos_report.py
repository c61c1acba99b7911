"""What `greenroom chaos` has found, for people: the counts, a line for each kind of fault, and what was broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from greenroom.cli import render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.testing.chaos import judging, recovery

FAULT_COLUMNS = (
    Column("FAULT"),
    Column("PLANNED", right=True),
    Column("INJECTED", right=True),
    Column("RUNNING AGAIN, p50", right=True),
    Column("WORST", right=True),
    Column("READY AGAIN, p50", right=True),
    Column("WORST", right=True),
)


def show(report: judging.Report) -> None:
    """Print *report* for people."""
    render.facts(_facts(report))
    render.line("")
    render.table(FAULT_COLUMNS, _rows(report), empty="no faults were planned")
    for name, sentences in report.violations.items():
        render.line("")
        render.line(f"{name}:", style="red")
        for sentence in sentences:
            render.line(f"  {sentence}", style="red")
    for shortfall in report.shortfalls:
        render.line(f"not as planned: {shortfall}", style="yellow")
    for kind, why in report.unavailable.items():
        render.say(f"not injected: {kind}: {why}")
    render.line("")
    if report.passed:
        render.line("nothing was lost", style="green")
    elif report.violations:
        render.line("a promise was broken; please report it, with the seed and what stands above", style="red")
    else:
        render.line("nothing was lost, but the run was not what was planned", style="yellow")


def _facts(report: judging.Report) -> Iterator[tuple[str, object]]:
    failed = ", ".join(f"{count} {reason}" for reason, count in report.failed.items())
    yield "submitted", f"{report.submitted} ({report.planned_tasks} planned)"
    yield "acknowledged", f"{report.acknowledged}, {report.resolved} of them after the same key had asked again"
    yield "refused", report.refused
    yield "unknown", report.unknown
    yield "succeeded", report.succeeded
    yield "failed", failed or 0
    yield "sub-tasks", report.sub_tasks
    yield "run twice", report.run_twice
    yield "recorded twice", report.recorded_twice
    yield "lost", report.lost
    yield "refused, but run", report.refused_but_run
    yield (
        "sessions",
        (
            f"{report.session_disorders} out of order, {report.session_overlaps} overlaps, "
            f"{report.session_states_broken} broken states, {report.session_states_restored} restored"
        ),
    )
    yield "running again", _times(report.resumed)
    yield "ready again", _times(report.ready)
    yield "seed", report.seed


def _times(times: recovery.Times | None) -> str:
    if times is None:
        return "no fault interrupted a task or ended a replica"
    return f"p50 {_span(times.p50_s)}, p99 {_span(times.p99_s)}, worst {_span(times.worst_s)} of {times.count} faults"


def _rows(report: judging.Report) -> Iterator[Sequence[object]]:
    for kind, count in report.faults.items():
        cells = [_span(getattr(each, name)) if each else "" for each in (count.resumed, count.ready) for name in _SHOWN]
        yield kind, count.planned, count.injected, *cells


_SHOWN = ("p50_s", "worst_s")


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
