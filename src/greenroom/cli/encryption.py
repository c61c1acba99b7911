"""`greenroom encryption`: how the store is encrypted, and new keys for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom.sdk import client, models

app = cyclopts.App(name="encryption")

COLUMNS = (Column("TENANT"), Column("SEALED AT MOST", right=True), Column("RETIRED KEYS", right=True))
LOOK_EVERY_S = 0.2
_MODES = {
    "off": "off: what is stored is not encrypted; next: set security.encryption_at_rest",
    "sealing": "on: what is written is encrypted, and what was there before is being encrypted",
    "sealed": "on: all payloads are encrypted, and what is not is refused",
    "left": "switched off: what was encrypted is still read, and what is written is not encrypted",
}


@app.command
def status(*, given: options.Options = options.DEFAULT) -> None:
    """Show whether the store is encrypted, by which key, and how far a rotation has come."""
    with given.connect() as node:
        found = node.encryption()
    if given.json:
        render.json(found)
        return
    _tell(found)
    if found.mode != "off":
        rows = ((keys.tenant, f"{keys.messages:,}", keys.retired) for keys in found.tenants)
        render.line("")
        render.table(COLUMNS, rows, empty="no data keys yet: the first task of each tenant makes one")


@app.command
def rotate(
    *,
    data_keys: Annotated[bool, Parameter(negative="--no-data-keys", show_default=False)] = True,
    wait: Annotated[bool, Parameter(negative="--no-wait", show_default=False)] = True,
    given: options.Options = options.DEFAULT,
) -> int:
    """Take new keys into use, while the node serves.

    Parameters
    ----------
    data_keys
        Replace each tenant's data key, too, and encrypt all that is stored anew; without it they are wrapped by the new
        key, which takes a moment.
    wait
        Wait until all is encrypted anew.
    """
    with given.connect() as node:
        found = node.rotate_encryption(data_keys=data_keys)
        if wait:
            found = _finished(node, found)
    if given.json:
        render.json(found)
    else:
        render.line(f"the key is {found.key} now")
        _tell(found)
        render.say("keep a copy of the key apart from the backups; backups made before this need the key from before")
    return 1 if found.progress.unreadable else 0


@app.command(name="make-key")
def make_key(path: Path, /) -> None:
    """Write a new key file, for security.encryption_key_file; a file that is there is left alone.

    Parameters
    ----------
    path
        The file, mode 0600: not beside the store, and not where backups go.
    """
    from greenroom.security import key_sources

    id = key_sources.make(path)
    render.line(f"key {id} in {path}")
    render.say("next: name it as security.encryption_key_file; keep a copy of it on another machine")


def _finished(node: client.Client, found: models.Encryption) -> models.Encryption:
    with render.spinner("encrypting what is stored anew"):
        while not found.progress.is_done:
            time.sleep(LOOK_EVERY_S)
            found = node.encryption()
    return found


def _tell(found: models.Encryption) -> None:
    progress = found.progress
    facts: list[tuple[str, object]] = [("encryption", _MODES.get(found.mode, found.mode))]
    if found.key:
        facts.append(("key", f"{found.key}, {'of a key management service' if found.managed else 'of a key file'}"))
    if not progress.is_done:
        facts.append(("progress", f"{progress.seen:,} of {progress.rows:,} rows looked at"))
    if progress.resealed:
        facts.append(("encrypted anew", f"{progress.resealed:,} values since the node started"))
    render.facts(iter(facts))
    if progress.unreadable:
        render.failure(f"{progress.unreadable:,} values do not open: they were changed or moved; see the node's log")
