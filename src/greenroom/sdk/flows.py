"""What takes more than one request: retries, waiting, long lists, following events. No I/O.

A flow is a generator: it yields a `Call` to be sent or a `Pause` to be slept, and is given what came of it.
Both clients drive the same flows.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from greenroom import clock, errors
from greenroom.sdk import calls, models

T = TypeVar("T")

TRIES = 3
BACKOFF_S = 0.2  # the most before the second try; doubles
LONGEST_WAIT_S = 30.0  # of one request: below the idle limit of the usual proxies, 60 s


@dataclass(frozen=True, slots=True)
class Pause:
    delay_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer came. Unless *sent* the node cannot have seen the request."""

    error: errors.NodeUnreachable
    sent: bool


Flow = Generator["calls.Call[Any] | Pause", "calls.Reply | Lost | None", T]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying. *timeout_s* is for all tries of a call, beside what the node may hold it."""

    timeout_s: float
    tries: int = TRIES
    monotonic_s: Callable[[], float] = clock.SystemClock().monotonic_s
    jitter: Callable[[], float] = random.random

    def delay_s(self, tried: int, *, at_least_s: float | None) -> float:
        """Full jitter over a doubling, after *at_least_s* where the node asked for it."""
        return (at_least_s or 0.0) + BACKOFF_S * 2.0 ** (tried - 1) * self.jitter()


def answer(call: calls.Call[T], patience: Patience) -> Flow[T]:
    """Send *call* until it is answered for good, or patience ends."""
    give_up_at_s = patience.monotonic_s() + patience.timeout_s + call.wait_s
    tried = 0
    while True:
        came = yield call
        assert came is not None
        tried += 1
        if _may_change(call, came) and tried < patience.tries:
            asked_s = came.retry_after_s if isinstance(came, calls.Reply) else None
            delay_s = patience.delay_s(tried, at_least_s=asked_s)
            if patience.monotonic_s() + delay_s < give_up_at_s:
                yield Pause(delay_s)
                continue
        if isinstance(came, Lost):
            raise came.error
        return call.parse(came)


def _may_change(call: calls.Call[Any], came: calls.Reply | Lost) -> bool:
    if isinstance(came, Lost):
        return call.repeatable or not came.sent
    if came.status == 429:  # nothing was done, and the node says when it may be
        return came.retry_after_s is not None
    return call.repeatable and came.status == 503


def until_ended(id: str, timeout_s: float | None, patience: Patience) -> Flow[models.Task]:
    """Ask for the task until it has ended, or *timeout_s* is over: then it is returned as it is."""
    end_at_s = None if timeout_s is None else patience.monotonic_s() + timeout_s
    while True:
        left_s = LONGEST_WAIT_S if end_at_s is None else end_at_s - patience.monotonic_s()
        wait_s = round(min(max(left_s, 0.0), LONGEST_WAIT_S), 3)
        task = yield from answer(calls.task(id, wait_s=wait_s or None), patience)
        if task.ended or (end_at_s is not None and left_s <= LONGEST_WAIT_S):
            return task


def result(id: str, timeout_s: float | None, patience: Patience) -> Flow[Any]:
    """The output of the task. Raises `errors.TaskPending` or `errors.TaskFailed`."""
    task = yield from until_ended(id, timeout_s, patience)
    return output(task)


def output(task: models.Task) -> Any:
    if task.succeeded:
        return task.output
    if not task.ended:
        raise errors.TaskPending(
            f"cannot return the result of task {task.id} yet: it is {task.state} and goes on; wait again"
        )
    why = f": {task.error.type}: {task.error.message}" if task.error else ""
    raise errors.TaskFailed(f"cannot return the result of task {task.id}: it {_ENDED.get(task.state, task.state)}{why}")


_ENDED = {"failed": "failed", "cancelled": "was cancelled", "expired": "expired"}


def everything(page: Callable[[str | None], calls.Call[models.Page[T]]], patience: Patience) -> Flow[list[T]]:
    """All items of a list that fits memory; *page* makes the call for a cursor."""
    items: list[T] = []
    cursor = None
    while True:
        found = yield from answer(page(cursor), patience)
        items += found.items
        cursor = found.next_cursor
        if cursor is None:
            return items
