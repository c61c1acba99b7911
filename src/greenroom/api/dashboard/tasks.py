"""The pages of tasks: all of them with filters, and each with what one wants to know of it when it went wrong."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from greenroom import errors, strict_json
from greenroom.api import agents, logs, tasks
from greenroom.api.dashboard.forms import Act, Done, Fields, with_body
from greenroom.api.dashboard.frame import Page, address, asking
from greenroom.api.dashboard.payloads import preview, shown
from greenroom.api.dashboard.timeline import timeline
from greenroom.api.request import Call
from greenroom.core.permissions import Action
from greenroom.core.tasks import State

PER_PAGE = 50
MAX_EVENTS = 200  # that are there when the page is loaded; the script keeps a few more of those that come
MAX_CHILDREN = 50
MAX_LINES = 50

_FILTERS = ("agent", "state", "session", "id")

_ADVICE = {  # by the type of the error
    "timeout": "Its events say how far it came. Give it longer (timeout_s of the task or of its agent), or less to do.",
    "replica_lost": "Look at the failures of its agent: they say how the replica ended. Then retry it.",
    "poison": "It kills the replicas that run it: look at what is special in its input, and at its agent's failures.",
    "result_not_storable": "The agent has returned what is no JSON or too large: mend the agent, then retry it.",
    "store_damaged": "What is stored of it was changed from outside: restore a backup, and see the audit log.",
    "cancelled": "",
}
_OTHER_ADVICE = "Its agent has raised this. Mend the agent or the input, then retry it as a new task."
_MAY_HAVE_RUN = "It may have had effects already: look before you retry it."


async def show_all(call: Call) -> Page:
    """Show tasks, newest first: a page of those that the filters let through."""
    given = {name: text.strip() for name in _FILTERS if (text := call.query(name))}
    cursor = call.query("cursor")
    page: dict[str, Any] = {"items": [], "next_cursor": None}
    missing = ""
    if "id" in given:
        try:
            page["items"] = [await _document(call, given["id"])]
        except errors.NotFound as error:
            missing = str(error)
    else:
        page = (await tasks.list_tasks(asking(call, **given, cursor=cursor, limit=PER_PAGE))).document
    rights, names = call.principal.rights, sorted(call.store.directory.entries)
    further = page["next_cursor"]
    context = {
        "tasks": page["items"],
        "missing": missing,
        "given": given,
        "is_first": cursor is None,
        "first": address("/tasks", **given),
        "next": None if further is None else address("/tasks", **given, cursor=further),
        "states": list(State),
        "agents": [name for name in names if rights.on_agent(Action.TASK_READ, name)],
        "runnable": [name for name in names if rights.on_agent(Action.TASK_SUBMIT, name)],
        "preview": preview,
    }
    return Page("tasks.html", context)


async def _document(call: Call, id: str) -> dict[str, Any]:
    of_task = msgspec.structs.replace(asking(call), path_params={"id": id})
    found: dict[str, Any] = (await tasks.show(of_task)).document
    return found


async def show(call: Call) -> Page:
    """Show a task."""
    id = call.path("id")
    task = await _document(call, id)
    found = (await tasks.list_tasks(asking(call, parent=id, limit=MAX_CHILDREN))).document
    children = found["items"][::-1]  # in the order in which they were asked for
    events = await tasks.latest_events(call, limit=MAX_EVENTS)
    error = msgspec.json.decode(task["error"])
    context = {
        "task": task,
        "has_ended": task["finished_at"] is not None,
        "agent": await _agent(call, task["agent"]) if task["state"] == State.QUEUED else None,
        "input": shown(task["input"]),
        "output": shown(task["output"]),
        "metadata": shown(task["metadata"]),
        "retry_of": _retry_of(bytes(task["metadata"])),
        "routing": shown(task["routing"]) if "routing" in task else None,
        "error": error,
        "advice": advice(error),
        "children": children,
        "has_more_children": found["next_cursor"] is not None,
        "events": events,
        "first_event": events[0]["seq"] if events else 1,
        "last_event": events[-1]["seq"] if events else 0,
        "lines": (await logs.list_lines(asking(call, task=id, limit=MAX_LINES))).document["items"][::-1],
        "timeline": timeline(task, children, call.services.clock.now()),
        "preview": preview,
    }
    return Page("task.html", context, title=f"Task {id}")


async def _agent(call: Call, name: str) -> dict[str, Any] | None:
    """Return the agent that a task waits for, where there is one that may be seen."""
    try:
        of_agent = msgspec.structs.replace(asking(call), path_params={"name": name})
        found: dict[str, Any] = (await agents.show_agent(of_agent)).document
    except (errors.NotFound, errors.Forbidden):
        return None
    return found if call.principal.rights.on_agent(Action.AGENT_READ, name) else None


def _retry_of(metadata: bytes) -> str:
    found = msgspec.json.decode(metadata)
    id = found.get("retry_of") if isinstance(found, dict) else None
    return id if isinstance(id, str) else ""


def advice(error: dict[str, Any] | None) -> str:
    """Return what to do about an error, as the API shows it.

    >>> advice({"type": "replica_lost", "may_have_run": True})[-53:]
    'y have had effects already: look before you retry it.'
    """
    if error is None:
        return ""
    words = _ADVICE.get(error["type"], _OTHER_ADVICE)
    return f"{words} {_MAY_HAVE_RUN}" if error.get("may_have_run") else words


async def _submit(call: Call, fields: Fields) -> Done:
    submission: dict[str, Any] = {"input": _input(fields)}
    for name in ("agent", "session"):
        if text := fields.get(name, "").strip():
            submission[name] = text
    if text := fields.get("priority", "").strip():
        try:
            submission["priority"] = int(text)
        except ValueError:
            raise errors.BodyInvalid("cannot submit: give a whole number as the priority") from None
    answer = await tasks.submit(with_body(asking(call), submission))
    return Done("It is accepted.", f"/tasks/{answer.document['id']}")


def _input(fields: Fields) -> Any:
    text = fields.get("input", "").replace("\r\n", "\n")
    return strict_json.loads(text.encode()) if "is_json" in fields else text


async def _cancel(call: Call, fields: Fields) -> str:
    await tasks.cancel(call)
    return "It is cancelled, and its sub-tasks with it."


async def _retry(call: Call, fields: Fields) -> Done:
    answer = await tasks.retry(call)
    return Done(f"This is task {call.path('id')} again, as a new one.", f"/tasks/{quote(answer.document['id'])}")


ACTS = (
    Act("/ui/tasks", _submit, Action.TASK_SUBMIT),
    Act("/ui/tasks/{id}/cancel", _cancel, Action.TASK_CANCEL),
    Act("/ui/tasks/{id}/retry", _retry, Action.TASK_SUBMIT),
)
