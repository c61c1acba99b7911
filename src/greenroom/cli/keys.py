"""`greenroom keys`: the keys of those who may call."""

from __future__ import annotations

import cyclopts

from greenroom.cli import options, render
from greenroom.cli.render import Column

app = cyclopts.App(name="keys")

COLUMNS = (
    Column("ID"),
    Column("NAME", whole=False),
    Column("ROLE"),
    Column("CREATED"),
    Column("EXPIRES"),
    Column("REVOKED"),
)


@app.command
def create(name: str, /, *, role: str = "user", given: options.Options = options.DEFAULT) -> None:
    """Create a key; it is shown this once.

    Parameters
    ----------
    name
        Whose it is, for the list.
    role
        What it allows; a wrong one is answered with those there are.
    """
    with given.connect() as node:
        key = node.create_key(name, role)
    if given.json:
        render.json(key)
        return
    render.say(f"key {key.id} for {key.name}, {key.role}; keep it now, it is not shown again:")
    render.line(key.key or "")
    render.say("next: GREENROOM_KEY=… greenroom status")


@app.command(name="ls")
def list_keys(*, given: options.Options = options.DEFAULT) -> None:
    """List the keys, without their secrets."""
    with given.connect() as node:
        keys = node.keys()
    if given.json:
        render.json({"items": keys})
        return
    rows = (
        (
            key.id,
            key.name,
            key.role,
            render.moment(key.created_at),
            render.moment(key.expires_at),
            render.moment(key.revoked_at),
        )
        for key in keys
    )
    render.table(COLUMNS, rows, empty="no keys; next: greenroom keys create NAME --role ROLE")


@app.command
def revoke(id: str, /, *, given: options.Options = options.DEFAULT) -> None:
    """Make a key worthless at once.

    Parameters
    ----------
    id
        The key's id, as the list shows it.
    """
    with given.connect() as node:
        node.revoke_key(id)
    if not given.json:
        render.line(f"key {id}: revoked")
