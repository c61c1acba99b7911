"""How the demonstration looks: lines that stay, each with the seconds since the start, and on a terminal, below them,
what the agents are writing just now. Called by `story`.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from greenroom.cli import render
from greenroom.cli.demo.following import Followed

if TYPE_CHECKING:
    from rich import table
    from rich.live import Live

WIDEST = 100  # columns; longer lines of text are hard to read
MARGIN = 11  # "  12.3 s   "
FRAMES_PER_S = 12.0


class Screen:
    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._console = render.out()
        self._live: Live | None = None

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def say(self, text: str, *, style: str | None = None) -> None:
        """Print *text*, with the time before it and wrapped."""
        lines = textwrap.wrap(render.printable(text), self._width - MARGIN) or [""]
        for index, line in enumerate(lines):
            stamp = f"{self.elapsed_s:6.1f} s" if index == 0 else ""
            self._console.print(f"{stamp:<{MARGIN}}{line}", style=style, soft_wrap=True)

    def gap(self) -> None:
        self._console.print()

    @contextmanager
    def following(self, tasks: Sequence[Followed]) -> Iterator[None]:
        """Show *tasks* as they change, below what is said meanwhile; where no terminal looks on, nothing."""
        if not self._console.is_terminal:
            yield
            return
        from rich.live import Live

        with Live(
            console=self._console,
            get_renderable=lambda: self._table(tasks),
            refresh_per_second=FRAMES_PER_S,
            transient=True,
        ) as self._live:
            yield

    def _table(self, tasks: Sequence[Followed]) -> table.Table:
        from rich import box, table
        from rich.text import Text

        made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, width=self._width)
        for title in ("AGENT", "STATE", "TRY"):
            made.add_column(title, no_wrap=True)
        made.add_column("WRITES", no_wrap=True, ratio=1)
        room = self._width - 34
        for task in tasks:
            state = Text(task.state, style=render.STYLES.get(task.state, ""))
            made.add_row(task.agent, state, str(task.attempt), Text(render.printable(task.text)[-room:]))
        return made

    @property
    def _width(self) -> int:
        return min(self._console.width, WIDEST)
