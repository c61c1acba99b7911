"""`greenroom doctor`: whether this machine, this manifest and the running node are as they should be."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from cyclopts import Parameter

from greenroom import errors
from greenroom.cli import config, options, render

if TYPE_CHECKING:
    from greenroom import settings

SQLITE_AT_LEAST = (3, 51, 3)  # before it, two WAL connections could corrupt the file


class Finding(NamedTuple):
    """One thing that was looked at; *result* is ok, warn or failed."""

    check: str
    result: str
    found: str


def doctor(
    *,
    manifest: config.Manifest = config.MANIFEST,
    security: Annotated[bool, Parameter(show_default=False)] = False,
    given: options.Options = options.DEFAULT,
) -> int:
    """Check this machine, the manifest and its agents, and the running node; if something will not work, exit with 1.

    What the agents are taken for says the node or, without one, a start of each here.

    Parameters
    ----------
    security
        Look at the running node's security instead: what is on, what is off and why; exit with 1 where a control is
        degraded.
    """
    findings = list(_security(given)) if security else [*_machine(), *_manifest_and_agents(manifest, given)]
    width = max(9, *(len(finding.check) for finding in findings)) if security else 9
    if given.json:
        render.json({"items": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            render.line(
                f"{finding.result:<7} {finding.check:<{width}} {finding.found}",
                style=render.STYLES.get(finding.result),
            )
    return 1 if any(finding.result == "failed" for finding in findings) else 0


def _security(given: options.Options) -> Iterator[Finding]:
    """What the node says of its controls; raises `errors.NodeUnreachable` where none runs."""
    with given.connect() as node:
        report = node.security()
    for control in report.controls:
        result = {"on": "ok", "degraded": "failed"}.get(control.state, "warn")
        yield Finding(control.name, result, control.state + (f": {control.why}" if control.why else ""))
    result = {"good": "ok", "critical": "failed"}.get(report.grade, "warn")
    yield Finding("grade", result, f"{report.grade}: {report.reason}")


def _machine() -> Iterator[Finding]:
    from greenroom.store import sqlite

    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    linux = sys.platform == "linux"
    note = "" if linux else "; Greenroom runs in production on Linux"
    yield Finding("kernel", "ok" if linux else "warn", f"{platform.system()} {platform.release()}{note}")
    version = sqlite.version()
    is_new = tuple(map(int, version.split("."))) >= SQLITE_AT_LEAST
    needed = "" if is_new else f"; needs {'.'.join(map(str, SQLITE_AT_LEAST))}: upgrade apsw"
    yield Finding("sqlite", "ok" if is_new else "failed", version + needed)
    yield _isolation()
    yield _pidfd()
    yield _start_code()


def _isolation() -> Finding:
    """How far agents can be kept from the node here."""
    if sys.platform != "linux":
        return Finding("isolation", "warn", "T0 only: this system closes no rooms; agents may do what this user may")
    from greenroom.core import isolation
    from greenroom.engine import rooms

    powers = rooms.powers(tries_namespaces=True)
    first, second = (isolation.decide(tier, powers) for tier in ("T1", "T2"))
    if first.lacks:
        return Finding("isolation", "warn", f"T0 only: {'; '.join(first.lacks)}; agents may do what this user may")
    beyond = f"; T2 cannot be had: {'; '.join(second.lacks)}" if second.lacks else f" and T2, by {second.means}"
    return Finding("isolation", "ok", f"T1{beyond} (Landlock {powers.landlock_abi}, seccomp)")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError):
        return Finding("pidfd", "failed", "not available; the death of a replica cannot be seen: needs Linux 5.3")
    return Finding("pidfd", "ok", "available")


def _start_code() -> Finding:
    """Code that packages hook into every start of Python, and so into the node."""
    from greenroom.security import start_code

    files = start_code.found(start_code.sites())
    if not files:
        return Finding("startup", "ok", "no package runs code when Python starts")
    if start_code.is_kept_out():
        return Finding("startup", "ok", f"kept out: {', '.join(files)}")
    why = "these run whenever Python starts, also in the node; see Supply chain in docs/security.md"
    return Finding("startup", "warn", f"{', '.join(files)}: {why}")


def _manifest_and_agents(manifest: Path, given: options.Options) -> Iterator[Finding]:
    from greenroom import settings

    try:
        found = settings.load(manifest, os.environ)
    except settings.SettingsInvalid as error:
        for problem in error.problems:
            yield Finding("manifest", "failed", f"{problem.path}: {problem.message}")
        yield from _node(given, [])
        return
    yield Finding("manifest", "ok", f"{manifest}: {found.environment}, agents: {', '.join(found.agents) or 'none'}")
    yield from _node(given, _tried(found, manifest.resolve().parent))


def _node(given: options.Options, otherwise: Iterable[Finding]) -> Iterator[Finding]:
    """What the node says of itself and its agents; where none runs, *otherwise*."""
    try:
        with given.connect() as node:
            agents = node.agents()
    except errors.NodeUnreachable:
        yield Finding("node", "warn", "not running; start it with greenroom up")
        yield from otherwise
        return
    except errors.GreenroomError as error:
        yield Finding("node", "failed", str(error))
        return
    yield Finding("node", "ok", node.url)
    for agent in agents:
        result = {"failed": "failed", "quarantined": "failed", "dropped": "warn"}.get(agent.state, "ok")
        taken_for = agent.adapter or agent.state
        yield Finding(f"agent {agent.name}", result, taken_for if result == "ok" else agent.reason or taken_for)


def _tried(found: settings.Settings, folder: Path) -> Iterator[Finding]:
    from greenroom.cli import trial

    if found.agents:
        render.say("no node runs: each agent is started once, to see what it is taken for")
    for verdict in trial.try_agents(found, folder):
        yield Finding(f"agent {verdict.agent}", "failed" if verdict.cannot else "ok", verdict.found)
