"""`greenroom submit`: one task from the command line, and what became of it."""

from __future__ import annotations

import math
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from greenroom import clock, errors, strict_json
from greenroom.cli import options, render, tasks

if TYPE_CHECKING:
    from greenroom.sdk import client, models

LOOK_EVERY_S = 5.0  # whether the agent has failed meanwhile
LONGEST_WAIT_S = 300.0  # of one request
LONGEST_TEXT = 64 * 1024 * 1024  # what no node takes is not read to its end

Word = Annotated[str, Parameter(allow_leading_hyphen=True)]


app = cyclopts.App(
    name="submit",
    usage="Usage: greenroom submit [AGENT] TEXT [OPTIONS]",
    default_parameter=Parameter(negative=()),
)


@app.default
def submit(
    agent: Word,
    text: Word | None = None,
    /,
    *more: Annotated[str, Parameter(show=False)],
    wait: Annotated[bool, Parameter(show_default=False)] = False,
    wait_s: float | None = None,
    or_cancel: Annotated[bool, Parameter(show_default=False)] = False,
    session: str | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    json_input: Annotated[bool, Parameter(show_default=False)] = False,
    no_cache: Annotated[bool, Parameter(show_default=False)] = False,
    webhook: str | None = None,
    given: options.Options = options.DEFAULT,
) -> int:
    """Give an agent a task: greenroom submit AGENT TEXT. Without AGENT, the router chooses the one that fits.

    Parameters
    ----------
    agent
        Its name; or the text, where there is only one word or phrase.
    text
        What to do; - reads it from the standard input.
    more
        Words that the shell parted: the text was not quoted.
    wait
        Wait for the task to end, print its output; the exit code is 1 unless it succeeded.
    wait_s
        Wait, but at most this many seconds.
    or_cancel
        With --wait or --wait-s, at most 300: cancel the task when that time is over, or when you leave.
    session
        Tasks of one session share state and run one after the other.
    priority
        Higher runs first.
    timeout_s
        How long it may run, in seconds.
    json_input
        TEXT is JSON, and the agent gets its value.
    no_cache
        Run the agent, even if it keeps results and has one of the same input.
    webhook
        The id of a webhook that is to be told of its end.
    """
    name, words = (agent, text) if text is not None else (None, agent)
    _check(name or "", words, more)
    task_input = _input(words, is_json=json_input)
    with given.connect() as node:
        if or_cancel:
            longest_s = _longest_s(wait_s, is_waiting=wait)
            with render.spinner("waiting for its end"):
                task = node.submit(
                    task_input, name, session=session, priority=priority, timeout_s=timeout_s, wait_s=longest_s,
                    or_cancel=True, cache=not no_cache, webhook=webhook,
                )  # fmt: skip
            return _end(task, as_json=given.json)
        task = node.submit(
            task_input, name, session=session, priority=priority, timeout_s=timeout_s, cache=not no_cache,
            webhook=webhook,
        )  # fmt: skip
        if not given.json:
            _announce(task)
        if not wait and wait_s is None:
            _leave(task, as_json=given.json)
            return 0
        with render.spinner(f"waiting for {task.agent}"), tasks.going_on(task.id):
            task = _wait(node, task, wait_s)
    return _end(task, as_json=given.json)


def _longest_s(wait_s: float | None, *, is_waiting: bool) -> float:
    if wait_s is None and not is_waiting:
        raise options.Usage("cannot submit: --or-cancel needs --wait or --wait-s: it says what happens after that")
    if wait_s is not None and not 0 < wait_s <= LONGEST_WAIT_S:
        raise options.Usage(f"cannot submit: with --or-cancel, --wait-s is over 0 and at most {LONGEST_WAIT_S:g}")
    return LONGEST_WAIT_S if wait_s is None else wait_s


def _end(task: models.Task, *, as_json: bool) -> int:
    if as_json:
        render.json(task)
    else:
        tasks.print_end(task)
    return 0 if task.succeeded else 1


def _check(name: str, words: str, more: tuple[str, ...]) -> None:
    for word in (name, words):
        if word.startswith("-") and word != "-":
            raise options.Usage(
                f"cannot submit: there is no option {word}; give a text that begins with - on stdin, as -"
            )
    if more:
        quoted = shlex.quote(" ".join((words, *more)))
        raise options.Usage(
            f"cannot submit: the text is of several words; quote it: greenroom submit {shlex.quote(name)} {quoted}, "
            "or quote all of it, and the router chooses the agent"
        )


def _input(words: str, *, is_json: bool) -> Any:
    if words == "-":
        content = sys.stdin.buffer.read(LONGEST_TEXT + 1)
        if len(content) > LONGEST_TEXT:
            raise errors.BodyTooLarge("cannot submit: more than 64 MB came on stdin")
    else:
        content = words.encode("utf-8", "surrogateescape")  # what the shell gave us, byte by byte
    if is_json:
        return strict_json.loads(content)
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise options.Usage(f"cannot submit: the text is not UTF-8 at byte {error.start}") from None


def _announce(task: models.Task) -> None:
    if task.routing is not None:
        scores = ", ".join(f"{score.agent} {score.score:.2f}" for score in task.routing.scores)
        render.say(f"chose {task.routing.agent}" + (f" ({scores})" if scores else ""))
    render.say(f"task {task.id} for {task.agent}: {task.state}")


def _wait(node: client.Client, task: models.Task, wait_s: float | None) -> models.Task:
    """Wait for the end; say once if its agent is in trouble, before or meanwhile: it may be long then."""
    monotonic_s = clock.SystemClock().monotonic_s
    end_at_s = math.inf if wait_s is None else monotonic_s() + wait_s
    has_failed = False
    while True:
        has_failed = has_failed or _tell_why(node, task.agent)
        left_s = end_at_s - monotonic_s()
        timeout_s = left_s if has_failed else min(left_s, LOOK_EVERY_S)
        task = node.wait(task.id, None if math.isinf(timeout_s) else timeout_s)
        if task.ended or left_s <= timeout_s:
            return task


def _tell_why(node: client.Client, name: str) -> bool:
    why = tasks.why_it_waits(node, name)
    if why is not None:
        render.say(why)
    return why is not None


def _leave(task: models.Task, *, as_json: bool) -> None:
    if as_json:
        render.json(task)
    else:
        render.line(task.id)
        render.say(f"next: greenroom tasks watch {task.id}")
