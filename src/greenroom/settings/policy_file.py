"""The policy file: roles beside the built-in ones. Read at start, and again whenever it has changed."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path

from greenroom.core import policies
from greenroom.core.permissions import Roles
from greenroom.settings import sources
from greenroom.settings.problems import Problem, SettingsInvalid, dotted


def read_roles(path: Path) -> Roles:
    """All roles, the built-in ones and those of the file. Raises `SettingsInvalid` with every mistake in it."""
    with contextlib.suppress(OSError):  # told below
        if path.stat().st_mode & stat.S_IWOTH:
            why = f"everybody on this machine may write it, and so give themselves any right; run: chmod o-w {path}"
            raise SettingsInvalid([Problem(path.name, why)])
    missing = "write it, or take security.policy_file out of the manifest"
    roles, problems = policies.read(sources.read_toml(path, kind="a policy", missing=missing).table)
    if problems:
        raise SettingsInvalid(Problem(f"{path.name}: {dotted(where)}", why) for where, why in problems)
    return roles
