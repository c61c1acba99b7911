"""`greenroom config`: the settings, where each comes from, and every mistake in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cyclopts
from cyclopts import Parameter

from greenroom.cli import render
from greenroom.cli.render import Column

if TYPE_CHECKING:
    from greenroom import settings

app = cyclopts.App(name="config")

MANIFEST = Path("greenroom.toml")
COLUMNS = (Column("SETTING"), Column("VALUE", whole=False), Column("FROM"))

Manifest = Annotated[Path, Parameter(help="The manifest.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON, for programs.", show_default=False)]


@app.command
def show(*, manifest: Manifest = MANIFEST, as_json: AsJson = False) -> None:
    """Print every setting with where it comes from."""
    from greenroom import settings

    rows = settings.rows(settings.load(manifest, os.environ, is_for_node=False))
    if as_json:
        render.json({"items": [row._asdict() for row in rows]})
        return
    render.table(COLUMNS, ((row.path, render.text_of(row.value), row.origin) for row in rows), empty="")


def _notes(found: settings.Settings, manifest: Path) -> Iterator[str]:
    """Yield what is no mistake, but perhaps not meant."""
    from greenroom import settings
    from greenroom.core import policies, spelling

    for key, path in _files(found):
        if not (manifest.parent / path).exists():
            yield f"note: {key} names {path}, which is not there; greenroom up needs it"
    if found.security.policy_file is None:
        return
    roles = settings.read_roles(manifest.parent / found.security.policy_file)
    yield f"{found.security.policy_file} is valid: roles {', '.join(roles)}"
    for role, grant in policies.unmatched(roles, found.agents):
        near = spelling.nearest(grant.resource, [f"agent:{name}" for name in found.agents])
        meant = f'; did you mean "{near}"?' if near else ""
        yield f'note: the role {role} has "{grant}", and the manifest has no such agent{meant}'


def _files(found: settings.Settings) -> Iterator[tuple[str, str]]:
    """Yield the files that the node does not start without, by the keys that name them."""
    security = found.security
    for name in ("tls_certificate", "tls_key", "tls_client_ca", "encryption_key_file"):
        path = getattr(security, name)
        if path is not None:
            yield f"security.{name}", path
    for index, issuer in enumerate(security.issuers):
        if issuer.key_file is not None:
            yield f"security.issuers[{index}].key_file", issuer.key_file


@app.command
def validate(*, manifest: Manifest = MANIFEST, as_json: AsJson = False) -> int:
    """List all mistakes in the manifest and in the variables that override it; with one, exit with 2."""
    from greenroom import settings

    try:
        found = settings.load(manifest, os.environ)
    except settings.SettingsInvalid as error:
        if not as_json:
            raise
        render.json({"valid": False, "problems": [problem._asdict() for problem in error.problems]})
        return 2
    if as_json:
        render.json({"valid": True, "problems": []})
        return 0
    count = len(found.agents)
    render.line(f"{manifest} is valid: {found.environment}, {count} agent{'' if count == 1 else 's'}")
    for note in _notes(found, manifest):
        render.say(note)
    render.say("next: greenroom up")
    return 0
