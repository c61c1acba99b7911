"""`greenroom tasks`: what was asked of the agents, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import cyclopts

from greenroom import clock, errors
from greenroom.cli import options, render
from greenroom.cli.render import Column
from greenroom.core import costs

if TYPE_CHECKING:
    from greenroom.sdk import client, models

app = cyclopts.App(name="tasks")

COLUMNS = (
    Column("ID"),
    Column("AGENT", whole=False),
    Column("STATE"),
    Column("TRY", right=True),
    Column("AGE", right=True),
    Column("TOOK", right=True),
    Column("INPUT", whole=False),
)
ATTEMPT_COLUMNS = (
    Column("TRY", right=True),
    Column("REPLICA"),
    Column("REVISION", right=True),
    Column("TOOK", right=True),
    Column("ENDED"),
)


@app.command(name="ls")
def list_tasks(
    *,
    agent: str | None = None,
    state: str | None = None,
    session: str | None = None,
    limit: int = 20,
    cursor: str | None = None,
    given: options.Options = options.DEFAULT,
) -> None:
    """List the newest tasks.

    Parameters
    ----------
    agent
        Only of this agent.
    state
        Only in this state: queued, running, waiting, succeeded, failed, cancelled or expired.
    session
        Only of this session.
    limit
        How many.
    cursor
        Where an earlier list ended.
    """
    with given.connect() as node:
        page = node.tasks(agent, state, session=session, cursor=cursor, limit=limit)
    if given.json:
        render.json(page)
        return
    now = clock.SystemClock().now()
    render.table(COLUMNS, (_row(task, now) for task in page.items), empty="no tasks")
    if page.next_cursor is not None:
        render.say(f"there are more: greenroom tasks ls --limit {limit} --cursor {page.next_cursor}")


def _row(task: models.Task, now: datetime) -> tuple[object, ...]:
    return (
        task.id,
        task.agent,
        task.state,
        task.attempt,
        render.since(task.created_at, now),
        render.took(task.started_at, task.finished_at),
        render.text_of(task.input),
    )


@app.command
def show(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Show one task with its attempts and its output.

    Parameters
    ----------
    id
        The task's id.
    """
    with given.connect() as node:
        task = node.task(id)
        why = why_it_waits(node, task.agent) if task.state == "queued" and not given.json else None
    if given.json:
        render.json(task)
        return
    render.facts(_facts(task))
    if task.attempts:
        render.line("")
        rows = (
            (attempt.attempt, attempt.replica, attempt.revision, _took(attempt), attempt.reason or "running")
            for attempt in task.attempts
        )
        render.table(ATTEMPT_COLUMNS, rows, empty="")
    if why is not None:
        render.say(why)
    if not task.ended:
        render.say(f"next: greenroom tasks watch {task.id}")
    elif not task.succeeded:
        render.say(f"next: greenroom tasks retry {task.id}")


def why_it_waits(node: client.Client, name: str) -> str | None:
    """Return what keeps tasks of the agent *name* from beginning; None where nothing but other tasks does."""
    try:
        agent = node.agent(name)
    except errors.GreenroomError:
        return None  # what becomes of the task is what was asked
    if agent.state in ("failed", "quarantined", "dropped"):
        return f"agent {name} is {agent.state}: {agent.reason}; the task waits until it works again"
    reason = render.waiting(agent.breaker)
    return None if reason is None else f"agent {name}: {reason}"


def _facts(task: models.Task) -> Iterator[tuple[str, object]]:
    yield "task", task.id
    yield "agent", task.agent
    yield "state", task.state
    if task.cached_from is not None:
        yield "from the cache", f"result of task {task.cached_from}"
    if task.trace_id is not None:
        yield "trace", task.trace_url or task.trace_id
    yield "revision", task.revision
    yield "session", task.session
    yield "parent", task.parent
    yield "created", render.moment(task.created_at)
    yield "started", render.moment(task.started_at)
    yield "finished", render.moment(task.finished_at)
    if task.usage.input_tokens or task.usage.output_tokens:
        yield "tokens", f"{task.usage.input_tokens} in, {task.usage.output_tokens} out"
    if task.usage.cost_usd is not None:
        yield "cost", costs.told(task.usage.cost_usd)
    if task.metadata:
        yield "metadata", render.text_of(task.metadata)
    yield "input", render.text_of(task.input)
    if task.succeeded:
        yield "output", render.text_of(task.output)
    if task.error is not None:
        yield "error", f"{task.error.type}: {task.error.message}"


def _took(attempt: models.Attempt) -> str:
    return render.took(attempt.started_at, attempt.ended_at)


@app.command
def watch(id: str, /, *, after: int | None = None, given: options.Options = options.DEFAULT) -> int:
    """Follow a task to its end; the exit code is 1 unless it succeeded.

    Parameters
    ----------
    id
        The task's id.
    after
        Begin after the event of this number.
    """
    with given.connect() as node, going_on(id):
        for event in node.events(id, after=after):
            if given.json:
                render.json(event)
            else:
                _print_event(event)
        task = node.task(id)
    if not given.json:
        print_end(task)
    return 0 if task.succeeded else 1


def _print_event(event: models.Event) -> None:
    at = "" if event.at is None else f"{event.at.astimezone():%H:%M:%S}"
    text = _event_text(event)
    # One event is one line of the list, whatever the agent wrote.
    render.line(f"{at}  {event.type:<8}  {render.printable(text)}", style=render.STYLES.get(text, ""))


def _event_text(event: models.Event) -> str:
    data = event.data
    if isinstance(data, dict):
        if event.type == "state" and isinstance(data.get("state"), str):
            return str(data["state"])
        source = data.get("source")
        for name in ("content", "text", "message", "line"):
            if isinstance(text := data.get(name), str):
                return f"{source}: {text}" if isinstance(source, str) else text
    return render.text_of(data)


@app.command
def cancel(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Cancel a task, and the tasks that it waits for.

    Parameters
    ----------
    id
        The task's id.
    """
    with given.connect() as node:
        task = node.cancel(id)
    if given.json:
        render.json(task)
    else:
        render.line(f"task {task.id}: {task.state}")


@app.command
def retry(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Submit an ended task again, as a new one.

    Parameters
    ----------
    id
        The task's id.
    """
    with given.connect() as node:
        task = node.retry(id)
    if given.json:
        render.json(task)
        return
    render.line(f"task {task.id}: {task.state}")
    render.say(f"next: greenroom tasks watch {task.id}")


def print_end(task: models.Task) -> None:
    """Print the output on stdout, or on stderr why there is none."""
    if task.succeeded:
        render.line(render.text_of(task.output))
    elif task.ended:
        why = f": {task.error.type}: {task.error.message}" if task.error else ""
        render.failure(f"task {task.id} {task.state}{why}")
        render.say(f"next: greenroom tasks show {task.id}")
    else:
        render.failure(f"task {task.id} has not ended yet: it is {task.state} and goes on")
        render.say(f"next: greenroom tasks watch {task.id}")


@contextmanager
def going_on(id: str) -> Iterator[None]:
    """Say on Ctrl-C that the task does not end with the watching."""
    try:
        yield
    except KeyboardInterrupt:
        render.say(f"\ntask {id} goes on; next: greenroom tasks watch {id}, or greenroom tasks cancel {id}")
        raise
