"""`greenroom sessions`: tasks that share state."""

from __future__ import annotations

import cyclopts

from greenroom import clock
from greenroom.cli import options, render
from greenroom.cli.render import Column

app = cyclopts.App(name="sessions")

COLUMNS = (
    Column("ID"),
    Column("AGENT", whole=False),
    Column("REVISION", right=True),
    Column("TASKS", right=True),
    Column("STATE", right=True),
    Column("UPDATED", right=True),
)


@app.command(name="ls")
def list_sessions(
    *,
    limit: int = 20,
    cursor: str | None = None,
    given: options.Options = options.DEFAULT,
) -> None:
    """List the sessions that were last used.

    Parameters
    ----------
    limit
        How many.
    cursor
        Where an earlier list ended.
    """
    with given.connect() as node:
        page = node.sessions(cursor=cursor, limit=limit)
    if given.json:
        render.json(page)
        return
    now = clock.SystemClock().now()
    rows = (
        (
            session.id,
            session.agent,
            session.revision,
            session.tasks,
            f"{session.state_bytes} B",
            render.since(session.updated_at, now),
        )
        for session in page.items
    )
    render.table(COLUMNS, rows, empty="no sessions; next: greenroom submit AGENT TEXT --session NAME")
    if page.next_cursor is not None:
        render.say(f"there are more: greenroom sessions ls --limit {limit} --cursor {page.next_cursor}")


@app.command
def show(id: str, /, *, agent: str | None = None, given: options.Options = options.DEFAULT) -> None:
    """Show one session with its state.

    Parameters
    ----------
    id
        The session's id.
    agent
        Whose, where several agents have a session of this id.
    """
    with given.connect() as node:
        session = node.session(id, agent)
    if given.json:
        render.json(session)
        return
    render.facts(
        [
            ("session", session.id),
            ("agent", session.agent),
            ("revision", session.revision),
            ("tasks", session.tasks),
            ("updated", render.moment(session.updated_at)),
            ("state", None if session.state is None else render.text_of(session.state)),
        ]
    )


@app.command(name="rm")
def remove(id: str, /, *, agent: str | None = None, given: options.Options = options.DEFAULT) -> None:
    """Forget a session's state; its tasks stay.

    Parameters
    ----------
    id
        The session's id.
    agent
        Whose, where several agents have a session of this id.
    """
    with given.connect() as node:
        node.delete_session(id, agent)
    if not given.json:
        render.line(f"session {id}: removed")
