"""How rollouts are shown: as a sentence, as a row that changes, in full, and how they ended.

Called by `deploy`, `rollout`, `following`, and by the verbs that show agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from greenroom.cli import render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from datetime import datetime

    from greenroom.sdk import models

STAGE_COLUMNS = (
    Column("STAGE", right=True),
    Column("TRAFFIC", right=True),
    Column("NEW", right=True),
    Column("OLD", right=True),
    Column("WATCHED", right=True),
)
EVIDENCE_COLUMNS = (
    Column("TRAFFIC", right=True),
    Column("REVISION", right=True),
    Column("TASKS", right=True),
    Column("ERRORS", right=True),
    Column("REFUSALS", right=True),
    Column("SLOW", right=True),
    Column("COSTLY", right=True),
)
BAR = 10  # characters


def state(rollout: models.Rollout) -> str:
    return rollout.state.replace("_", " ")


def move(rollout: models.Rollout) -> str:
    """Return the revisions: ``3 -> 4``."""
    return f"{'none' if rollout.from_revision is None else rollout.from_revision} -> {rollout.to_revision}"


def stage(rollout: models.Rollout) -> str:
    return f"{rollout.stage}/{len(rollout.stages)}" if rollout.stages else ""


def ready(rollout: models.Rollout) -> str:
    """Return how many of the stage's new replicas are ready: ``1/2``."""
    wanted = _stage(rollout)
    return "" if wanted is None else f"{rollout.ready}/{wanted.replicas}"


def bar(rollout: models.Rollout) -> str:
    """Return the traffic of the new revision: ``━━━─────── 25 %``."""
    full = round(rollout.weight_pct * BAR / 100)
    return f"{'━' * full}{'─' * (BAR - full)} {rollout.weight_pct:>3} %"


def seen(rollout: models.Rollout, now: datetime) -> str:
    """Return what was counted of the new revision at this traffic, for how long it was watched, and why it waits."""
    current = _stage(rollout)
    parts = [_counted(rollout), rollout.reason]
    if current is not None and current.hold_s and (held_s := _held_s(rollout, now)) is not None:
        parts.insert(1, f"watched {min(held_s, current.hold_s):.0f} of {current.hold_s:g} s")
    return "; ".join(part for part in parts if part)


def sentence(rollout: models.Rollout) -> str:
    """Return where it is: ``rollout 7 to revision 4, canary 25 %, stage 2/4``."""
    how = f"{rollout.strategy} {rollout.weight_pct} %".strip()
    where = f"rollout {rollout.id} to revision {rollout.to_revision}, {how}"
    staged = f", stage {stage(rollout)}" if rollout.stages else ""
    return f"{where}{staged}{', paused' if rollout.state == 'paused' else ''}"


def tell_if_open(agent: str, rollout: models.Rollout | None) -> None:
    """Say that an agent's rollout is on its way, beside what is shown of the agent."""
    if rollout is not None and rollout.is_open:
        render.say(f"{agent}: {sentence(rollout)}; next: greenroom rollout status {agent}")


def progress(rollout: models.Rollout) -> str:
    """Return a line of the log of a rollout."""
    parts = [f"{rollout.agent}: {sentence(rollout)}"]
    if counted := ready(rollout):
        parts.append(f"{counted} ready")
    if told := _counted(rollout):
        parts.append(told)
    current = _stage(rollout)
    if current is not None and current.hold_s and rollout.is_proven:
        parts.append(f"watched for {current.hold_s:g} s")
    if rollout.is_open and rollout.reason:
        parts.append(render.printable(rollout.reason))
    if _may_be_promoted(rollout):
        parts.append(f"not to wait: greenroom rollout promote {rollout.agent}")
    return "; ".join(parts)


def stages(found: Sequence[models.Stage], marks: Sequence[str] = ()) -> None:
    """Print a table of stages, with what became of each where that is known."""
    columns = (*STAGE_COLUMNS, Column("")) if marks else STAGE_COLUMNS
    rows = [
        (
            number,
            f"{each.weight_pct} %",
            each.replicas,
            each.old_replicas,
            render.span(each.hold_s) if each.hold_s else "",
            *marks[number - 1 : number],
        )
        for number, each in enumerate(found, 1)
    ]
    render.table(columns, rows, empty="no stages")


def show(rollout: models.Rollout, now: datetime) -> None:
    """Print all that is known of it."""
    render.facts(_facts(rollout, now))
    if rollout.stages:
        render.line("")
        stages(rollout.stages, _marks(rollout))
    if rollout.evidence:
        render.line("")
        render.table(EVIDENCE_COLUMNS, map(_evidence, rollout.evidence), empty="")
    for verb in _next(rollout):
        render.say(f"next: greenroom rollout {verb} {rollout.agent}")


def print_end(rollout: models.Rollout) -> None:
    """Print how it ended on stdout, or on stderr why it did not come through."""
    name = rollout.agent
    if rollout.state == "complete":
        took = render.took(rollout.created_at, rollout.ended_at)
        render.line(f"{name}: revision {rollout.to_revision} serves everything{f', after {took}' if took else ''}")
        return
    if rollout.has_failed:
        render.failure(f"cannot deploy {name}: {_end(rollout)}{_because(rollout)}")
        render.say(f"next: greenroom rollout status {name}")
        return
    if rollout.state == "paused":
        render.line(f"{name}: {sentence(rollout)}{_because(rollout)}")
        render.say(f"next: greenroom rollout {_onward(rollout)} {name}")
        return
    render.line(f"{name}: {sentence(rollout)}; it goes on")
    render.say(f"next: greenroom rollout status {name}")


def _stage(rollout: models.Rollout) -> models.Stage | None:
    return rollout.stages[rollout.stage - 1] if 0 < rollout.stage <= len(rollout.stages) else None


def _counted(rollout: models.Rollout) -> str:
    tallies = [each for each in rollout.evidence if each.revision == rollout.to_revision]
    if not tallies or tallies[-1].weight_pct != rollout.weight_pct:
        return ""
    tally = tallies[-1]
    if not tally.tasks:
        return ""
    rare = ((tally.refused, "refusals"), (tally.slow, "slow"), (tally.costly, "costly"))
    return ", ".join(
        [f"{tally.tasks} tasks", f"{tally.errors} errors", *(f"{count} {what}" for count, what in rare if count)]
    )


def _held_s(rollout: models.Rollout, now: datetime) -> float | None:
    """Return for how long the stage has been watched: the node writes that down only when something else changes."""
    if rollout.held_s is None or not rollout.is_open:
        return None
    if rollout.is_at_rest or rollout.updated_at is None:
        return rollout.held_s
    return rollout.held_s + max(0.0, (now - rollout.updated_at).total_seconds())


def _facts(rollout: models.Rollout, now: datetime) -> Iterator[tuple[str, object]]:
    yield "rollout", rollout.id
    yield "agent", rollout.agent
    yield "state", state(rollout)
    yield "reason", rollout.reason or None
    yield "revisions", move(rollout)
    yield "strategy", rollout.strategy
    yield "traffic", f"{rollout.weight_pct} % to revision {rollout.to_revision}"
    if rollout.is_open:
        yield "ready", f"{ready(rollout)} replicas of this stage" if rollout.stages else None
        yield "proven", "yes" if rollout.is_proven else f"not yet, for {render.span(rollout.waited_s)}"
        held_s = _held_s(rollout, now)
        yield "watched", None if held_s is None else render.span(held_s)
    yield "begun", render.moment(rollout.created_at)
    yield "by", rollout.begun_by or None
    yield "ended", render.moment(rollout.ended_at)
    yield "took", render.took(rollout.created_at, rollout.ended_at) or None


def _marks(rollout: models.Rollout) -> list[str]:
    """Return what became of each stage."""
    now = {"progressing": "now", "complete": "done"}.get(rollout.state, state(rollout))
    return [
        "done" if number < rollout.stage else now if number == rollout.stage else ""
        for number in range(1, len(rollout.stages) + 1)
    ]


def _evidence(tally: models.Tally) -> tuple[object, ...]:
    return (
        f"{tally.weight_pct} %",
        tally.revision,
        tally.tasks,
        tally.errors,
        tally.refused,
        tally.slow,
        tally.costly,
    )


def _next(rollout: models.Rollout) -> tuple[str, ...]:
    if rollout.state == "paused":
        return (_onward(rollout), "abort")
    if rollout.state == "progressing":
        return ("promote", "abort") if _may_be_promoted(rollout) else ("abort",)
    return ("history",)


def _may_be_promoted(rollout: models.Rollout) -> bool:
    """Whether it waits for tasks to judge it by, which may take for ever where there are few: a person need not."""
    return rollout.state == "progressing" and rollout.is_proven and bool(rollout.reason)


def _onward(rollout: models.Rollout) -> str:
    """Return the verb that lets a paused one go on."""
    return "promote" if rollout.awaits_promotion else "resume"


def print_undone(rollout: models.Rollout) -> None:
    """Print what serves after somebody has undone it."""
    render.line(f"{rollout.agent}: {_left(rollout)}; rollout {rollout.id} was {state(rollout)}")
    render.say(f"next: greenroom rollout status {rollout.agent}")


def _left(rollout: models.Rollout) -> str:
    if rollout.from_revision is not None:
        return f"revision {rollout.from_revision} serves everything"
    if rollout.weight_pct:
        return f"revision {rollout.to_revision} goes on serving, for there was none before"
    return "nothing serves, for there was no revision before"


def _end(rollout: models.Rollout) -> str:
    match rollout.state:
        case "rolled_back":
            return f"revision {rollout.to_revision} was rolled back, and {rollout.from_revision} serves everything"
        case "failed":
            return f"revision {rollout.to_revision} failed, and there was none before"
        case _:
            return f"rollout {rollout.id} to revision {rollout.to_revision} was {state(rollout)}"


def _because(rollout: models.Rollout) -> str:
    """Return the reason on one line, after a colon."""
    return f": {render.printable(rollout.reason)}" if rollout.reason else ""
