"""What can be injected into the node that a client speaks to, and what cannot, with the reason."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenroom.testing.chaos import processes
from greenroom.testing.chaos.processes import NotInjectable

KINDS = ("kill", "stop", "slow", "poison", "disk-full", "lock")
HOLDS_S: Mapping[str, tuple[float, float]] = {"slow": (2.0, 5.0), "disk-full": (0.5, 3.0), "lock": (0.5, 10.0)}
HANG_AFTER_S = 8.0  # an agent's default
FOUND_WITHIN_S = 4.0  # after that, a replica that is stopped is replaced


@dataclass(frozen=True, slots=True)
class Target:
    """*store* is a file's path or a URL, None if unknown; *unavailable* has a reason for each kind that it names."""

    data_dir: Path
    url: str
    store: str | None
    unavailable: Mapping[str, str]

    def node_pid(self) -> int:
        return processes.node_pid(self.data_dir, self.url)


def look(status: Mapping[str, Any], *, data_dir: Path, url: str, store: str | None, has_poison: bool) -> Target:
    """Judge by the node's *status* and this machine's processes; *store* is what the user says that it is."""
    dialect = status.get("node", {}).get("store")
    known = _store(str(dialect), data_dir, store)
    unavailable = {}
    if isinstance(known, NotInjectable):
        unavailable["lock"] = str(known)
    if dialect != "sqlite":
        unavailable["disk-full"] = f"the node's store is {dialect}: its files are not the node's"
    if not has_poison:
        unavailable["poison"] = "no input of the agent is known that kills its replica; give one with --poison JSON"
    try:
        processes.node_pid(data_dir, url)
    except NotInjectable as error:
        unavailable |= dict.fromkeys(("kill", "stop", "slow", "disk-full"), str(error))
    return Target(data_dir, url, None if isinstance(known, NotInjectable) else known, unavailable)


def _store(dialect: str, data_dir: Path, named: str | None) -> str | NotInjectable:
    if dialect == "postgresql":
        if named is None or not named.startswith(("postgres://", "postgresql://")):
            return NotInjectable("the node's store is PostgreSQL; name it with --store, as the node was started with")
        return named
    path = Path(named.removeprefix("sqlite:///")) if named is not None else data_dir / "greenroom.db"
    if not path.is_file() or not os.access(path, os.W_OK):
        return NotInjectable(f"{path} cannot be written here; name the node's store with --store")
    return str(path)


def holds_s(hang_after_s: float) -> dict[str, tuple[float, float]]:
    """Return for how long each kind is held: a replica is stopped for longer than it takes to be found hung."""
    longest_s = hang_after_s + FOUND_WITHIN_S
    return {**HOLDS_S, "stop": (longest_s, longest_s)}


def available(asked: Collection[str] | None, target: Target) -> tuple[str, ...]:
    """Return the kinds to plan: what was asked for, else all that can be injected."""
    if asked is not None:
        return tuple(asked)
    return tuple(kind for kind in KINDS if kind not in target.unavailable)
