"""A task's life as bars on one scale, drawn as SVG by `templates/macros.html`: what it waited for, each attempt. Pure.

Of what goes on still, the end is the present in steps of `STEP_S`: a page whose bars grow all the time is sent all the
time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

WIDTH = 1000
LEAST = 4  # a bar that nobody can see is no bar
STEP_S = 5
MAX_LANES = 24

_TONES = {"succeeded": "good", "failed": "bad", "expired": "bad", "cancelled": "warn"}
_FAULTLESS = ("drained", "neighbour", "fenced")  # reasons for which an attempt says nothing about its task


class Lane(msgspec.Struct, frozen=True):
    """One bar: from *x* on, *width* units of `WIDTH`; *task* is the one that it is of, where it is another."""

    label: str
    note: str
    tone: str
    took_s: float
    x: float
    width: float
    task: str = ""


class Timeline(msgspec.Struct, frozen=True):
    lanes: Sequence[Lane]
    took_s: float
    left_out: int = 0  # lanes between the first half and the second


class _Span(msgspec.Struct, frozen=True):
    label: str
    note: str
    tone: str
    begin: datetime
    end: datetime | None  # None: it goes on
    task: str = ""


def timeline(task: Mapping[str, Any], children: Sequence[Mapping[str, Any]], now: datetime) -> Timeline:
    """Draw a task and its sub-tasks, as the API shows them.

    >>> from datetime import UTC
    >>> at = [datetime(2030, 1, 1, 0, 0, second, tzinfo=UTC) for second in range(11)]
    >>> lost = {"attempt": 1, "started_at": at[2], "ended_at": at[4], "reason": "replica_lost", "replica": "a-1"}
    >>> ran = {"attempt": 2, "started_at": at[6], "ended_at": at[10], "reason": "ok", "replica": "a-2"}
    >>> times = {"created_at": at[0], "not_before": None, "finished_at": at[10]}
    >>> drawn = timeline({"state": "succeeded", "attempts": [lost, ran], **times}, [], at[10])
    >>> [(lane.label, lane.note, lane.tone, lane.x, lane.width) for lane in drawn.lanes][:2]
    [('Waited', '', 'plain', 0.0, 200.0), ('Attempt 1', 'replica lost', 'bad', 200.0, 200.0)]
    >>> [(lane.label, lane.note, lane.tone, lane.x, lane.width) for lane in drawn.lanes][2:]
    [('Waited again', '', 'plain', 400.0, 200.0), ('Attempt 2', 'ok', 'good', 600.0, 400.0)]
    """
    spans = [*_own(task, now), *_of_children(children)]
    latest = max(each for span in spans for each in (span.begin, span.end) if each is not None)
    if any(span.end is None for span in spans):
        latest = max(latest, now - timedelta(seconds=now.timestamp() % STEP_S))
    begin = min(span.begin for span in spans)
    whole_s = max((latest - begin).total_seconds(), 1e-6)
    lanes = [_lane(span, begin, whole_s, latest) for span in spans]
    left_out = max(0, len(lanes) - MAX_LANES)
    if left_out:
        lanes = lanes[: MAX_LANES // 2] + lanes[-MAX_LANES // 2 :]
    return Timeline(lanes, whole_s, left_out)


def _own(task: Mapping[str, Any], now: datetime) -> Iterator[_Span]:
    at, finished_at = task["created_at"], task["finished_at"]
    may_begin_at = task["not_before"]
    if may_begin_at is not None and may_begin_at > at:
        until = may_begin_at if finished_at is None else min(may_begin_at, finished_at)
        yield _Span("Put off", "", "plain", at, until if until <= now else None)
        if until > now:
            return
        at = until
    label, note = "Waited", ""
    for attempt in task["attempts"]:
        began_at, ended_at = attempt["started_at"], attempt["ended_at"]
        if began_at > at:
            yield _Span(label, note, "plain", at, began_at)
        reason = attempt["reason"] or ("running" if ended_at is None else "")
        yield _Span(f"Attempt {attempt['attempt']}", reason.replace("_", " "), _tone(task, attempt), began_at, ended_at)
        if ended_at is None:
            return
        at, label, note = ended_at, "Waited again", "backoff" if _backs_off(attempt) else ""
    if finished_at is None:
        yield _Span(label.replace("Waited", "Waits"), note, "plain", at, None)
    elif finished_at > at or not task["attempts"]:
        yield _Span(label, note, "plain", at, finished_at)


def _backs_off(attempt: Mapping[str, Any]) -> bool:
    """Whether the next one is not made at once: see `core.tasks.settle`."""
    return attempt["reason"] not in _FAULTLESS and (attempt["attempt"] > 1 or attempt["reason"] == "agent_error")


def _tone(task: Mapping[str, Any], attempt: Mapping[str, Any]) -> str:
    if attempt["ended_at"] is None:
        return "busy"
    if attempt["ended_at"] == task["finished_at"]:
        return _TONES.get(task["state"], "plain")
    return "warn" if attempt["reason"] in _FAULTLESS else "bad"


def _of_children(children: Sequence[Mapping[str, Any]]) -> Iterator[_Span]:
    for child in children:
        tone = _TONES.get(child["state"], "busy")
        yield _Span(child["agent"], child["state"], tone, child["created_at"], child["finished_at"], child["id"])


def _lane(span: _Span, begin: datetime, whole_s: float, latest: datetime) -> Lane:
    end = latest if span.end is None else span.end
    took_s = (end - span.begin).total_seconds()
    width = max(LEAST, WIDTH * took_s / whole_s)
    x = min(WIDTH - width, WIDTH * (span.begin - begin).total_seconds() / whole_s)
    return Lane(span.label, span.note, span.tone, took_s, round(x, 1), round(width, 1), span.task)
