"""`greenroom audit`: who did what, and whether the record of that is what was written.

`ls` and `erase` ask the node; `verify` and `export` read the database themselves, also without a node.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom import clock, errors
from greenroom.cli import options, render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from greenroom.sdk import security
    from greenroom.security import audit_checks

app = cyclopts.App(name="audit")

COLUMNS = (
    Column("SEQ", right=True),
    Column("AGE", right=True),
    Column("ACTION"),
    Column("OUTCOME"),
    Column("OBJECT", whole=False),
    Column("ACTOR", whole=False),
    Column("SOURCE", whole=False),
)
FINDINGS = (Column("ENTRY", right=True), Column("KIND"), Column("WHAT", whole=False, wraps=True))
FOLLOW_EVERY_S = 1.0

Store = Annotated[
    str | None, Parameter(help="sqlite:///PATH or postgresql://…, else the SQLite file in the data directory.")
]


@app.command(name="ls")
def list_entries(
    *,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
    since: str | None = None,
    limit: int = 50,
    follow: bool = False,
    given: options.Options = options.DEFAULT,
) -> None:
    """Show who did what, the latest first.

    Parameters
    ----------
    actor
        Only what this one has done: the id of a key, or a token's issuer and subject.
    action
        Only this act, for example key.revoke; key.* stands for all that begin so.
    object
        Only what was done to this, for example agent:research.
    since
        Only what is not older than this instant, for example 2030-01-01T00:00:00Z.
    limit
        How many.
    follow
        Go on showing what is done, the latest last, until Ctrl-C.
    """
    which = {"actor": actor, "action": action, "object": object, "since": since}
    with given.connect() as node:
        page = node.audit(**which, limit=limit)  # type: ignore[arg-type]
        if not follow:
            _show(page.items, as_json=given.json)
            return
        last = page.items[0].seq if page.items else 0
        _show(page.items[::-1], as_json=given.json, each=True)
        while True:
            time.sleep(FOLLOW_EVERY_S)
            new = node.audit(**which, after=last).items  # type: ignore[arg-type]
            if new:
                last = new[-1].seq
                _show(new, as_json=given.json, each=True)


def _show(entries: Sequence[security.AuditEntry], *, as_json: bool, each: bool = False) -> None:
    if as_json and each:
        for entry in entries:
            render.json(entry)
        return
    if as_json:
        render.json({"items": entries})
        return
    now = clock.SystemClock().now()
    rows = (
        (
            entry.seq,
            render.since(entry.at, now),
            entry.action,
            entry.outcome,
            "(erased)" if entry.is_erased else entry.object,
            "(erased)" if entry.is_erased else entry.actor,
            entry.source,
        )
        for entry in entries
    )
    render.table(COLUMNS, rows, empty="nothing was done" if not each else "")


@app.command
def export(*, to: Path | None = None, store: Store = None, given: options.Options = options.DEFAULT) -> None:
    """Write the whole log, entries and signatures, as JSON lines: an anchor for verify, to be kept elsewhere.

    Parameters
    ----------
    to
        A file that is not there yet, else standard output.
    """
    count = asyncio.run(_export(_url(store, given), to))
    if to is not None:
        render.say(f"{count} lines written to {to}; keep it where the database's owner cannot write")
        render.say(f"next: greenroom audit verify --anchor {to}")


async def _export(url: str, to: Path | None) -> int:
    from greenroom.store import audit_copies

    count = 0
    output = sys.stdout.buffer if to is None else to.open("xb")
    try:
        async for line in audit_copies.lines(url):
            output.write(line + b"\n")
            count += 1
        output.flush()
    finally:
        if to is not None:
            output.close()
    return count


@app.command
def verify(
    *,
    anchor: Path | None = None,
    key: tuple[str, ...] = (),
    store: Store = None,
    given: options.Options = options.DEFAULT,
) -> int:
    """Check that the log is what was written; if not, name the first entry that is wrong, and exit with 1.

    Works on the database itself, with or without a node. Without an anchor a log whose end was cut off, or that was
    restored to an older state, looks whole.

    Parameters
    ----------
    anchor
        What was exported, JSON lines of entries or checkpoints: by security.audit_export, or by audit export.
    key
        The public key, as audit key prints it, else that of the data directory. May be given several times: for a log
        that was signed by one after the other.
    """
    from greenroom.security import audit_checks
    from greenroom.store import audit_copies

    keys, exported = _keys(key, given), None
    if anchor is not None:
        with anchor.open("rb") as lines:
            exported = audit_checks.anchor_of(lines)
        if not exported.hashes and not exported.checkpoints:
            raise errors.AuditBroken(
                f"cannot check against {anchor}: it has no entry and no checkpoint; give what was exported"
            )
    check = asyncio.run(audit_copies.check(_url(store, given), keys, exported))
    _tell(check, exported, as_json=given.json)
    return 1 if check.findings or not check.entries else 0


def _tell(check: audit_checks.Check, anchor: audit_checks.Anchor | None, *, as_json: bool) -> None:
    if as_json:
        render.json(
            {
                "is_sound": bool(check.entries) and not check.findings,
                "entries": check.entries,
                "signed": check.sealed,
                "exported": 0 if anchor is None else anchor.last,
                "findings": check.findings,
            }
        )
        return
    if check.findings:
        render.table(FINDINGS, ((each.index, each.kind, each.what) for each in check.findings), empty="")
        render.failure(
            f"the audit log is not what was written, from entry {check.findings[0].index} on",
            ["find out who can write to the database; what was exported before says what was there"],
        )
        return
    if not check.entries:
        render.failure("there is nothing to check: the audit log is empty", ["a node writes to it when it starts"])
        return
    unsigned = check.entries - check.sealed
    newest = f", the newest {unsigned} by none yet" if unsigned else ""
    render.line(f"ok: {check.entries:,} entries, each as it was written; signed up to {check.sealed:,}{newest}")
    if anchor is None:
        render.say("whether the end was cut off tells only an anchor; next: greenroom audit export --to FILE")
    elif anchor.unread:
        render.say(f"{anchor.unread} lines of the anchor could not be read: torn by a power cut, or something else")


@app.command(name="key")
def show_key(*, given: options.Options = options.DEFAULT) -> None:
    """Print the public key that the log's signatures are checked with, to be kept with what was exported."""
    (key,) = _keys((), given)
    if given.json:
        from greenroom.security import audit

        render.json({"key": key.hex(), "id": audit.key_id(key)})
        return
    render.line(key.hex())


@app.command
def erase(actor: str, /, *, tenant: str | None = None, given: options.Options = options.DEFAULT) -> None:
    """Erase what may be personal in the entries that somebody has made: who, from where, to what, and the details.

    The log stays whole, and says who has erased which entries. What was exported is not reached.

    Parameters
    ----------
    actor
        As the list shows it.
    tenant
        Only in entries of this tenant.
    """
    with given.connect() as node:
        count, is_more = 0, True
        while is_more:
            erased = node.erase_audit(actor, tenant=tenant)
            count, is_more = count + erased.entries, erased.is_more
    if given.json:
        render.json({"entries": count})
        return
    render.line(f"{count} entries of {actor}: erased")


def _url(store: str | None, given: options.Options) -> str:
    from greenroom.sdk import discovery

    return store or f"sqlite:///{discovery.data_dir(given.data_dir).resolve() / 'greenroom.db'}"


def _keys(texts: Sequence[str], given: options.Options) -> list[bytes]:
    from greenroom.sdk import discovery
    from greenroom.security import audit, secret_file

    if texts:
        return [audit.public_key(text) for text in texts]
    path = discovery.data_dir(given.data_dir) / "secrets"
    seed = secret_file.audit_key(path)
    if seed is None:
        raise options.Usage(
            f"cannot find the key: {path} is not there, or cannot be read; name the data directory with --data-dir, or "
            "give the public key with --key"
        )
    return [audit.Signer(seed).public]
