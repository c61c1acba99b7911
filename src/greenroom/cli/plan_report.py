"""What a deployment would do, for people: what changes, by which strategy and stages, and what was tried.

Called by `deploy` before it acts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from greenroom.cli import render, rollout_report
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenroom.sdk import models

CHANGE_COLUMNS = (Column("SETTING"), Column("BEFORE", whole=False), Column("AFTER", whole=False))
FILES = 5  # of each kind that are named
FAILURES = 10  # of sessions that are named
WIDEST_VALUE = 200  # characters, also where no screen cuts


def show(plan: models.Plan) -> None:
    """Print *plan*."""
    render.line(f"{plan.agent}: {_headline(plan)}", style="bold")
    if plan.ends_rollout is not None:
        render.line(f"rollout {plan.ends_rollout}, which is on its way, is undone")
    if plan.changes:
        render.line("")
        rows = ((change.key, _value(change.before), _value(change.after)) for change in plan.changes)
        render.table(CHANGE_COLUMNS, rows, empty="")
    render.facts([("code", _files(plan)), ("sessions", _sessions(plan))])
    if plan.action == "begin" and plan.stages:
        render.line("")
        rollout_report.stages(plan.stages)
        if plan.surge:
            render.line(f"at most {_counted(plan.surge, 'replica')} beside its {plan.replicas} meanwhile")
    render.line("")


def faults(plan: models.Plan) -> Iterator[str]:
    """Yield why *plan* is not to be carried out, a sentence each."""
    if plan.refusal is not None:
        yield render.printable(plan.refusal)
    if plan.error is not None:
        yield f"cannot deploy {plan.agent}: {render.printable(plan.error)}"
    tried = plan.sessions
    if tried is None or not tried.failed:
        return
    named = list(tried.failures.items())[:FAILURES]
    told = "; ".join(f"{render.printable(session)}: {render.printable(reason)}" for session, reason in named)
    left = tried.failed - len(named)
    more = f"; and {left} more" if left else ""
    yield f"cannot take over {_counted(tried.failed, 'session')} of {plan.agent}: {told}{more}"


def _headline(plan: models.Plan) -> str:
    match plan.action:
        case "stay" if plan.ends_rollout is not None:
            return f"revision {plan.to_revision} serves and stays"
        case "stay" if plan.changes:
            return f"revision {plan.to_revision} serves already and stays; these settings change at once"
        case "stay":
            return f"nothing changes: revision {plan.to_revision} serves already"
        case "join":
            return f"revision {plan.to_revision} is on its way already"
    kind = "new revision" if plan.is_new_revision else "revision"
    if plan.from_revision is None:
        return f"{kind} {plan.to_revision}; nothing serves before it"
    return f"{kind} {plan.to_revision} in the place of {plan.from_revision}, {plan.strategy}"


def _files(plan: models.Plan) -> str | None:
    """Return ``changed agents.py; added a.py, b.py and 7 more``."""
    parts = [f"{kind} {_named(names)}" for kind in ("changed", "added", "removed") if (names := plan.files.get(kind))]
    return "; ".join(parts) or None


def _named(names: Sequence[str]) -> str:
    left = len(names) - FILES
    return ", ".join(names[:FILES]) + (f" and {left} more" if left > 0 else "")


def _sessions(plan: models.Plan) -> str | None:
    tried = plan.sessions
    if tried is None:
        return None
    return f"{tried.tried} of {tried.stored} stored ones were tried, {tried.failed} failed"


def _value(value: object) -> str:
    if value is None:
        return "-"
    text = render.printable(render.text_of(value))
    return text if len(text) <= WIDEST_VALUE else f"{text[:WIDEST_VALUE]}…"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
