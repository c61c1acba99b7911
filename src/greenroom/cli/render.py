"""How the command speaks: results on stdout, the rest on stderr; tables for people, JSON for programs.

Text of strangers (inputs, outputs, events) reaches the terminal through `printable` only: no escape
sequences, no markup. Where no terminal reads, nothing is coloured or cut. The verbs call this; it knows no
verb.
"""

from __future__ import annotations

import json as standard_json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from greenroom import redaction

if TYPE_CHECKING:
    from rich import console

    from greenroom.sdk import models

UNLIMITED = 100_000  # columns, where no screen sets them
GAP = 2  # columns between columns
NARROWEST = 8  # a column that is cut, so that one can still guess
DELETE = "\x7f"  # the one control character that JSON leaves as it is
STYLES = {
    **dict.fromkeys(
        ("succeeded", "ready", "healthy", "ok", "alive", "complete", "serves", "enabled", "delivered"), "green"
    ),
    **dict.fromkeys(("failed", "quarantined", "unhealthy", "expired", "critical", "rolled back"), "red"),
    **dict.fromkeys(
        (
            "cancelled",
            "aborted",
            "paused",
            "degraded",
            "draining",
            "dropped",
            "starting",
            "disabled",
            "warn",
            "warning",
        ),
        "yellow",
    ),
    **dict.fromkeys(("running", "waiting", "progressing"), "cyan"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """*whole*: never cut, as one copies it (ids, names); else it gives way where the screen is narrow. *wraps*: it is
    not cut then, and takes more lines.
    """

    title: str
    whole: bool = True
    right: bool = False
    wraps: bool = False


def out() -> console.Console:
    """Stdout, for results."""
    return _console(stderr=False)


def err() -> console.Console:
    """Stderr, for everything else."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> console.Console:
    from rich import console

    made = console.Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNLIMITED
    return made


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print *rows*, or *empty* on stderr where there are none."""
    from rich import table as tables
    from rich import text as texts

    cells = [[printable("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    console = out()
    widths = _widths(columns, cells, console.width)
    made = tables.Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        overflow: Literal["fold", "ellipsis"] = "fold" if column.wraps else "ellipsis"
        made.add_column(column.title, justify=justify, no_wrap=not column.wraps, overflow=overflow, width=width)
    for row in cells:
        made.add_row(*(texts.Text(cell, style=STYLES.get(cell, "")) for cell in row))
    console.width = max(console.width, sum(widths) + GAP * len(widths))  # what is whole may be wider than the screen
    console.print(made)


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[str]], room: int) -> list[int]:
    """The widths of the columns: the whole ones take all they need, the others share what is left."""
    from rich import cells as rich_cells

    widths = [max(map(rich_cells.cell_len, texts)) for texts in zip((c.title for c in columns), *cells, strict=True)]
    cuttable = sorted((index for index, column in enumerate(columns) if not column.whole), key=widths.__getitem__)
    left = room - GAP * (len(columns) - 1) - sum(widths[index] for index, c in enumerate(columns) if c.whole)
    for others, index in zip(range(len(cuttable), 0, -1), cuttable, strict=True):
        widths[index] = min(widths[index], max(left // others, NARROWEST))
        left -= widths[index]
    return widths


def facts(rows: Iterable[tuple[str, object]]) -> None:
    """Print what is known about one thing, a line each; what is None is left out."""
    known = [(name, printable(str(value), lines=True)) for name, value in rows if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        indented = value.replace("\n", "\n" + " " * (width + 2))
        line(f"{name:<{width}}  {indented}", style=STYLES.get(value))


def paragraph(text: str, *, indent: int) -> None:
    """Print a text of result, as many lines as the screen needs, each with *indent*."""
    import textwrap

    room = max(out().width, indent + NARROWEST)
    line(textwrap.indent(textwrap.fill(printable(text), room - indent), " " * indent))


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def line(text: str, *, style: str | None = None) -> None:
    """Print a line of result; the terminal wraps it, so that it can be copied whole."""
    out().print(printable(text, lines=True), style=style, soft_wrap=True)


def say(text: str) -> None:
    """Print what accompanies a result: whom the router chose, what to do next."""
    err().print(printable(text, lines=True), style="dim", soft_wrap=True)


def failure(message: str, notes: Sequence[str] = ()) -> None:
    """Print an error and, dimmed, what belongs to it."""
    err().print(printable(redaction.text(f"error: {message}"), lines=True), style="red", soft_wrap=True)
    for note in notes:
        say(f"  {note}")


def json(value: object, *, is_line: bool = False) -> None:
    """Print *value* as one JSON document; indented where a person looks on, unless *is_line*: it is one of many."""
    import msgspec

    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty() and not is_line:
        encoded = msgspec.json.format(encoded)
    text = encoded.decode()
    if not text.isascii() or DELETE in text:
        # What a terminal would obey is written as JSON's escapes, which mean the same.
        text = "".join(letter if letter.isprintable() or letter == "\n" else ascii_json(letter) for letter in text)
    print(text, flush=True)


def ascii_json(letter: str) -> str:
    return r"\u007f" if letter == DELETE else standard_json.dumps(letter)[1:-1]


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show on a terminal that something goes on."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(printable(text)):
        yield


def trouble(reason: str | None, *, grade: str | None, grade_reason: str | None) -> str | None:
    """Return what is to be said of an agent beside its row: why it is not ready or asleep, else why it is not well."""
    if reason:
        return reason
    return grade_reason if grade in ("degraded", "unhealthy") else None


def waiting(breaker: models.BreakerState) -> str | None:
    """Return what is to be said of an agent whose circuit breaker lets its tasks wait."""
    match breaker.state:
        case "open":
            return f"its circuit breaker is open until {moment(breaker.until)}, its tasks wait: {breaker.reason}"
        case "half_open":
            return f"its circuit breaker is half-open, some tasks are tried: {breaker.reason}"
        case _:
            return None


def printable(text: str, *, lines: bool = False, spaces: bool = False) -> str:
    """*text* without what a terminal would obey; on one line unless *lines*, its spaces made one unless *spaces*."""
    kept = "\n\t" if lines else ""
    if not lines and not spaces:
        text = " ".join(text.split())
    return "".join(character if character.isprintable() or character in kept else "�" for character in text)


def text_of(value: object) -> str:
    """*value* as a person reads it: text as it is, all else as JSON."""
    import msgspec

    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def span(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, unit_s in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= unit_s:
            return f"{seconds // unit_s:.0f}{unit}"
    return f"{seconds:.1f}s" if 0 < seconds < 10 else f"{max(seconds, 0):.0f}s"


def quantile(value_s: float | None) -> str:
    """Return a duration that was read from a histogram, with the three digits that it is good for."""
    if value_s is None:
        return ""
    if value_s >= 60:
        return span(value_s)
    return f"{value_s:.3g}s" if value_s >= 1 or not value_s else f"{1000 * value_s:.3g}ms"


def since(at: datetime | None, now: datetime) -> str:
    return "" if at is None else span((now - at).total_seconds())


def took(start_at: datetime | None, end_at: datetime | None) -> str:
    return "" if start_at is None or end_at is None else span((end_at - start_at).total_seconds())


def moment(at: datetime | None) -> str | None:
    """*at* as local time, to the second."""
    return None if at is None else at.astimezone().isoformat(sep=" ", timespec="seconds")
