"""`greenroom up` and `greenroom demo`: what starts a node."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from greenroom import redaction
from greenroom.cli import config, render

if TYPE_CHECKING:
    from greenroom import node


def up(
    *,
    manifest: config.Manifest = config.MANIFEST,
    host: str | None = None,
    port: int | None = None,
    data_dir: Path | None = None,
    store: str | None = None,
    engine: Literal["local"] = "local",
) -> int:
    """Start a node on the manifest, in the foreground; Ctrl-C lets the running tasks finish.

    Parameters
    ----------
    host
        Where to listen, else the manifest's server.host, else 127.0.0.1.
    port
        Where to listen, else the manifest's server.port, else 7080; 0 takes a free one.
    data_dir
        Where to keep the store, the keys and the agents' code, else GREENROOM_DATA_DIR, else .greenroom.
    store
        sqlite:///PATH or postgresql://…, else a SQLite file in the data directory.
    engine
        What runs the replicas: local processes.
    """
    del engine  # there is one so far, and cyclopts lets no other name pass
    import uvloop

    from greenroom import node, settings
    from greenroom.sdk import discovery

    if store is not None:
        _hide_password(store)
    found = settings.load(manifest, os.environ, overrides={"server": {"host": host, "port": port}})
    if store is not None and redaction.text(store) != store:
        render.say(
            "warning: everybody on this machine sees the password in --store, among the processes; leave it out, and "
            "give it in PGPASSFILE (or ~/.pgpass, mode 600)"
        )
    asked = node.Options(
        settings=found,
        folder=manifest.resolve().parent,
        data_dir=discovery.data_dir(data_dir).resolve(),
        store_url=store,
        host=found.server.host,
        port=found.server.port,
    )
    uvloop.run(node.serve(asked, on_ready=_announce))
    return 0


def _hide_password(store: str) -> None:
    """Keep the password of a store's address out of what everybody on this machine sees of the command line."""
    from greenroom.engine import kernel

    credentials = store.partition("://")[2].rpartition("@")[0]
    with contextlib.suppress(OSError, ValueError, IndexError):
        kernel.hide_in_command_line(credentials.partition(":")[2])


def _announce(started: node.Node) -> None:
    # What is there now stays: the collector need not look at it again, nor so often at the short lives of tasks.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    _tell(started)


def _tell(started: node.Node) -> None:
    """Print where it is and which agents work, and of each that is failed, on a line of its own, why."""
    from greenroom.node import isolation as node_isolation

    declared, entries = started.options.settings.agents, started.store.directory.entries
    agents = [entries[name].agent for name in declared if name in entries]
    failed = [agent for agent in agents if agent.state in ("failed", "quarantined")]
    working = ", ".join(agent.name for agent in agents if agent not in failed)
    render.say(f"ready at {started.url}; agents: {working or ('none' if failed else 'none yet')}")
    if started.settings.security.tls and not started.url.startswith("https:"):
        render.say("warning: it speaks plain HTTP, with this machine alone: security.tls_certificate is not set")
    is_open = started.isolation.tier == "T0"
    render.say(("warning: " if is_open else "isolation ") + node_isolation.describe(started.isolation))
    for line in _limits(started):
        render.say(line)
    for agent in failed:
        render.say(f"agent {agent.name} is {agent.state}: {render.printable(agent.reason)}")
    render.say("next, in another terminal: greenroom status, greenroom submit TEXT --wait")


def _limits(started: node.Node) -> list[str]:
    """What all replicas together may use and what holds that, on a line; and where it does not hold."""
    held = started.resources.state()
    told = [
        f"{resource.limit:g} {unit} ({resource.enforced})"
        for resource, unit in ((held.cpu, "CPUs"), (held.memory_mb, "MB"))
        if resource.limit is not None
    ]
    line = [f"all replicas together may use {' and '.join(told)}"] if told else []
    return line + [f"warning: {warning}" for warning in held.warnings]


def demo(
    *,
    keep: Annotated[bool, Parameter(show_default=False)] = False,
    data_dir: Path | None = None,
) -> int:
    """See three agents work together, and survive a killed replica.

    Parameters
    ----------
    keep
        Leave the node running at the end, to look around.
    data_dir
        Where to keep its data, else a folder that is removed at the end.
    """
    from greenroom.cli import demo as demonstration

    return demonstration.run(demonstration.Options(keep=keep, data_dir=data_dir))
