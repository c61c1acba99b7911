"""`greenroom demo`: three AutoGen agents work together, and survive a killed replica.

`run` is the verb. `story` plays it on a node of its own, `models` says which model the agents use, `following` listens
to the tasks, `narration` and `screen` tell of them. `agents` is a folder as a user has it, run as any user's is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """*keep*: leave the node running at the end, until Ctrl-C. *data_dir* None: a folder that is removed at the end."""

    keep: bool = False
    data_dir: Path | None = None


def run(options: Options) -> int:
    """Play the demonstration; the exit code is 0 if everything in it went as it should."""
    from greenroom.cli.demo import story  # late: it loads the node

    return story.play(keep=options.keep, data_dir=options.data_dir)
