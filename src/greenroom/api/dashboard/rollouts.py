"""The pages of rollouts: those on their way with what they wait for, and how each one went, with what can be done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from greenroom import errors
from greenroom.api import agents, rollouts
from greenroom.api.dashboard.forms import Act, Fields, with_body
from greenroom.api.dashboard.frame import Page
from greenroom.api.request import Answer, Call
from greenroom.core.permissions import Action
from greenroom.sdk import models

ENDED = 20  # that are shown


class Step(msgspec.Struct, frozen=True):
    """A stage and what became of it; *state* is done, next, skipped, or, where the rollout is, the rollout's own."""

    number: int
    stage: models.Stage
    state: str
    began_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def took_s(self) -> float | None:
        if self.began_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.began_at).total_seconds()


class Waiting(msgspec.Struct, frozen=True):
    """What a rollout waits for, until when, and what time alone does *then*."""

    text: str
    until: datetime | None = None
    then: str = ""


class Told(msgspec.Struct, frozen=True):
    """What happened at an instant, in words."""

    at: datetime | None
    state: str
    what: str


class Side(msgspec.Struct, frozen=True):
    """A revision beside the other: its traffic, its replicas, and the tasks that ended on it at its latest traffic."""

    revision: int
    role: str
    weight_pct: int
    ready: int
    wanted: int
    tally: models.Tally | None


async def show_all(call: Call) -> Page:
    """Show the rollouts that may be observed: the open ones in full, of the others the latest."""
    found = (await agents.list_agents(call)).document["items"]
    ended: list[models.Rollout] = (await rollouts.latest_ended(call, limit=ENDED)).document["items"]
    now = call.services.clock.now()
    context = {
        "open": [told(agent["rollout"], now) for agent in found if agent["rollout"] and agent["rollout"].is_open],
        "ended": ended,
        "back_to": _ways_back(ended, {agent["name"]: agent for agent in found}),
    }
    return Page("rollouts.html", context)


async def show(call: Call) -> Page:
    """Show a rollout."""
    rollout: models.Rollout = (await rollouts.show(call)).document
    of_agent = msgspec.structs.replace(call, path_params={"name": rollout.agent})
    try:
        agent = (await agents.show_agent(of_agent)).document
    except (errors.NotFound, errors.Forbidden):  # it was removed since, or may be observed but not read
        agent = None
    replicas = (await agents.list_replicas(call)).document["items"] if rollout.is_open else []
    context = told(rollout, call.services.clock.now()) | {
        "back_to": back_to(rollout, agent),
        "replicas": [each for each in replicas if each["agent"] == rollout.agent],
    }
    return Page("rollout.html", context, title=f"Rollout {rollout.id} of {rollout.agent}")


def told(rollout: models.Rollout, now: datetime) -> dict[str, Any]:
    """Return a rollout with all that its card says. Pure."""
    return {
        "rollout": rollout,
        "steps": steps(rollout),
        "waiting": waiting(rollout, now),
        "sides": sides(rollout),
        "missing": missing(rollout),
        "story": story(rollout),
    }


def steps(rollout: models.Rollout) -> list[Step]:
    """Return its stages; when each began is known of the moments that are kept. Pure."""
    began: dict[int, datetime | None] = {1: rollout.created_at}
    for moment in rollout.moments:
        began.setdefault(moment.stage, moment.at)
    return [
        Step(
            number,
            stage,
            _state(number, rollout),
            began.get(number),
            began.get(number + 1) if number < rollout.stage else rollout.ended_at if number == rollout.stage else None,
        )
        for number, stage in enumerate(rollout.stages, 1)
    ]


def _state(number: int, rollout: models.Rollout) -> str:
    if number < rollout.stage or rollout.state == "complete":
        return "done"
    if number == rollout.stage:
        return rollout.state
    return "next" if rollout.is_open else "skipped"


def waiting(rollout: models.Rollout, now: datetime) -> Waiting | None:
    """Say what keeps an open rollout where it is; None of one that has ended. Pure."""
    if not rollout.is_open:
        return None
    if rollout.awaits_promotion:
        return Waiting("It has done all that this stage asks, and waits for promotion.")
    if rollout.state == "paused":
        return Waiting("A person has paused it; it goes on when it is resumed. What fails is rolled back all the same.")
    stage, due_at = rollout.stages[rollout.stage - 1], rollout.due_at
    if rollout.ready < stage.replicas:
        text = f"It waits for its replicas: {rollout.ready} of {stage.replicas} are ready"
        return Waiting(text, None if rollout.is_proven else due_at, "it is rolled back")
    if not rollout.is_proven:
        return Waiting("Its replicas are ready; it waits for their checks", due_at, "it is rolled back")
    held_s = rollout.held_s or 0.0
    since = timedelta() if rollout.updated_at is None else now - rollout.updated_at
    if held_s + since.total_seconds() < stage.hold_s:
        return Waiting("It is watched", due_at, "it goes on, where what was seen is good enough")
    why = f": {rollout.reason}" if rollout.reason else ""
    return Waiting(f"It waits for tasks to judge it by{why}", due_at, "it is rolled back, unless a task has run on it")


def missing(rollout: models.Rollout) -> str:
    """Say why nobody can promote it now; nothing where they can. Pure."""
    if not rollout.is_proven:
        return "not proven yet"
    wanted = rollout.stages[rollout.stage - 1].replicas if rollout.stages else 0
    return f"{rollout.ready} of {wanted} replicas ready" if rollout.ready < wanted else ""


def story(rollout: models.Rollout) -> list[Told]:
    """Tell what happened to it, oldest first. Pure."""
    begun = f"{rollout.begun_by or 'the node'} has begun it"
    if not rollout.stages:
        return [Told(rollout.created_at, rollout.state, f"{begun}, and it was complete at once")]
    found = [Told(rollout.created_at, "progressing", begun)]
    before = models.Moment(state="progressing", stage=1)
    for moment in rollout.moments:
        found.append(Told(moment.at, moment.state, _happened(rollout, before, moment)))
        before = moment
    return found


def _happened(rollout: models.Rollout, before: models.Moment, now: models.Moment) -> str:
    if now.state != before.state:
        what = "it goes on" if now.state == "progressing" else f"it is {now.state.replace('_', ' ')}"
        return f"{what}: {now.reason}" if now.reason else what
    if now.stage != before.stage:
        return f"stage {now.stage} of {len(rollout.stages)} begins"
    return f"revision {rollout.to_revision} has proven itself, and gets {now.weight_pct} % of the tasks"


def sides(rollout: models.Rollout) -> list[Side]:
    """Return both revisions, or the only one, each with what was counted of it last. Pure."""
    tallies = {each.revision: each for each in rollout.evidence}
    stage = rollout.stages[rollout.stage - 1] if rollout.stages else None
    old, new = rollout.from_revision, rollout.to_revision
    found = []
    if old is not None:
        wanted = stage.old_replicas if stage else 0
        old_pct = 100 - rollout.weight_pct
        found.append(
            Side(old, "serving" if old_pct else "before", old_pct, rollout.old_ready, wanted, tallies.get(old))
        )
    wanted = stage.replicas if stage else 0
    found.append(Side(new, "new", rollout.weight_pct, rollout.ready, wanted, tallies.get(new)))
    return found


def back_to(rollout: models.Rollout, agent: Mapping[str, Any] | None) -> int | None:
    """Return the revision that undoing *rollout* lets serve; None where its own does not serve, or moves on. Pure."""
    if agent is None or rollout.state != "complete" or rollout.to_revision != agent["revision"]:
        return None
    last: models.Rollout | None = agent["rollout"]
    return None if last is not None and last.is_open else rollout.from_revision


def _ways_back(ended: Sequence[models.Rollout], found: Mapping[str, Mapping[str, Any]]) -> dict[int, int]:
    """Return the revision that serves after undoing a rollout: of each agent the latest that can be undone."""
    ways: dict[str, tuple[int, int]] = {}
    for rollout in ended:
        if (to := back_to(rollout, found.get(rollout.agent))) is not None:
            ways.setdefault(rollout.agent, (rollout.id, to))
    return dict(ways.values())


# --- what can be done

_Route = Callable[[Call], Awaitable[Answer]]


def _does(route: _Route, said: str) -> Callable[[Call, Fields], Awaitable[str]]:
    async def do(call: Call, fields: Fields) -> str:
        rollout: models.Rollout = (await route(with_body(call, _document(fields, "stage")))).document
        return said.format(id=rollout.id, agent=rollout.agent, revision=rollout.to_revision)

    return do


async def _undo(call: Call, fields: Fields) -> str:
    await rollouts.roll_back(with_body(call, _document(fields, "to")))
    to = f"revision {fields['to']}" if "to" in fields else "the revision before"
    return f"{call.path('name')} goes back to {to}."


def _document(fields: Fields, name: str) -> Mapping[str, int] | None:
    """Return the one number that a form may have, as the API expects it."""
    text = fields.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise errors.BodyInvalid(f"cannot take the {name} of the form: it is not a number")
    return {name: int(text)}


ACTS = (
    Act(
        "/ui/rollouts/{id}/promote",
        _does(rollouts.promote, "Rollout {id} of {agent} was promoted."),
        Action.AGENT_OPERATE,
    ),
    Act("/ui/rollouts/{id}/pause", _does(rollouts.pause, "Rollout {id} of {agent} is paused."), Action.AGENT_OPERATE),
    Act("/ui/rollouts/{id}/resume", _does(rollouts.resume, "Rollout {id} of {agent} goes on."), Action.AGENT_OPERATE),
    Act(
        "/ui/rollouts/{id}/abort",
        _does(rollouts.abort, "Rollout {id} of {agent} to revision {revision} is undone."),
        Action.AGENT_OPERATE,
    ),
    Act("/ui/agents/{name}/undo", _undo, Action.AGENT_OPERATE),
)
