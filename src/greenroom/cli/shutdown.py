"""`greenroom shutdown`: the end of a node, from afar."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from greenroom import errors
from greenroom.cli import options, render


def shutdown(
    *,
    yes: Annotated[bool, Parameter(show_default=False)] = False,
    given: options.Options = options.DEFAULT,
) -> None:
    """Have the node drain and stop, as Ctrl-C in its terminal does: running tasks may end, the rest waits in the store.

    Parameters
    ----------
    yes
        Do not ask.
    """
    with given.connect() as node:
        if not yes:
            _confirm(node.url)
        stopping = node.shut_down()
    if given.json:
        render.json(stopping)
        return
    render.line(f"node {stopping.node}: {stopping.state}; it stops when its running tasks have ended")
    render.say("next: greenroom up starts it again")


def _confirm(url: str) -> None:
    if not sys.stdin.isatty():
        raise options.Usage("cannot shut down: nobody can be asked here; give --yes if that is meant")
    sys.stderr.write(f"shut down the node at {render.printable(url)}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.Conflict("cannot shut down: it was not confirmed; nothing was done")
