"""How far the agents of a node are isolated: decided once at start, said wherever people look, and what is told when an
agent runs into a wall.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from greenroom import errors, settings, telemetry
from greenroom.core import isolation, tasks
from greenroom.engine import advice, rooms

Tier = isolation.Tier

_HOW: dict[isolation.Tier | isolation.Means, str] = {
    Tier.T0: "agents run as the node's user and may do what it may: nothing keeps them from its keys",
    Tier.T1: "agents run as the node's user, each revision in a room that Landlock and seccomp close",
    isolation.Means.USERS: "each agent runs as a user of its own, in a room that Landlock and seccomp close",
    isolation.Means.NAMESPACES: "each revision runs in namespaces of its own (users, mounts, processes), in a "
    "room that Landlock and seccomp close",
}


def decide(found: settings.Settings) -> isolation.Decision:
    """Return the tier of this node; raises `errors.StartRefused` where it cannot be what the settings say."""
    security = found.security
    powers = rooms.powers(security.first_agent_uid, tries_namespaces=security.isolation == Tier.T2)
    decision = isolation.decide(security.isolation, powers)
    if decision.refusal is not None:
        raise errors.StartRefused(decision.refusal)
    return decision


def describe(decision: isolation.Decision) -> str:
    """Return the tier in words, with what keeps this machine from a better one."""
    why = f" ({'; '.join(decision.lacks)})" if decision.lacks else ""
    return f"{decision.tier}: {_HOW[decision.means or decision.tier]}{why}"


def announce(decision: isolation.Decision, facts: telemetry.Telemetry) -> None:
    """Say how far agents are isolated; aloud where they are not."""
    kind = telemetry.AgentsNotIsolated if decision.tier is Tier.T0 else telemetry.AgentsIsolated
    facts.emit(kind(decision.tier, describe(decision)))


def closed(found: settings.Settings, *, folder: Path, data_dir: Path, store_url: str | None) -> tuple[Path, ...]:
    """Return the files and folders that no agent may read, whatever its ``read_paths`` say."""
    return tuple(folder / path for path in _closed(found, data_dir, store_url))


def _closed(found: settings.Settings, data_dir: Path, store_url: str | None) -> Iterator[Path]:
    yield data_dir
    security = found.security
    named = (security.encryption_key_file, security.tls_key, found.backups.key_file, found.backups.to)
    yield from (Path(path) for path in named if path is not None and not path.startswith("s3://"))
    yield from (Path(issuer.key_file) for issuer in security.issuers if issuer.key_file is not None)
    yield from (
        Path(place) for place in security.audit_export if not place.startswith(("https://", "stdout", "syslog"))
    )
    if store_url is not None and store_url.startswith("sqlite:///"):
        file = store_url.removeprefix("sqlite:///")
        yield from (Path(file + suffix) for suffix in ("", "-wal", "-shm"))


class Walls:
    """Tells of agents that have run into one, as far as that can be seen: the kernel tells nobody whom it refuses.

    Seen are attempts that failed for it, and replicas that died of it.
    """

    def __init__(self, facts: telemetry.Telemetry) -> None:
        self._facts = facts
        facts.subscribe(self._note_end, telemetry.AttemptEnded)
        facts.subscribe(self._note_exit, telemetry.ReplicaExited)

    def _note_end(self, ended: telemetry.AttemptEnded) -> None:
        end = ended.end
        if isinstance(end, tasks.AgentFailed) and advice.CLOSED in end.message:
            self._facts.emit(telemetry.AgentBlocked(ended.agent, ended.replica, "an attempt failed at what is closed"))

    def _note_exit(self, exited: telemetry.ReplicaExited) -> None:
        if exited.detail.startswith("by SIGSYS"):
            what = "the kernel ended it for a system call of another architecture"
            self._facts.emit(telemetry.AgentBlocked(exited.agent, exited.replica, what))
