"""A line that agent code wrote: on which stream and, of a record of Python's `logging`, its level and its logger.

Within a task it travels as an event (`event`), from outside of any through the process's pipe, which carries nothing
but text: there a record is marked with what it is (`marked`), and `read` takes the mark off. Imported by both sides.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
MAX_LOGGER_CHARACTERS = 100
_BEGIN, _BETWEEN = "\x1e", "\x1f"  # ASCII's separators of records and of their units


class Line(msgspec.Struct, frozen=True):
    """*level* and *logger* are empty where nobody has said them: of what was printed."""

    stream: str
    text: str
    level: str = ""
    logger: str = ""


def level_of(number: int) -> str:
    """Return the highest of `LEVELS` that *number* reaches: libraries make levels of their own in between."""
    return next((name for name, least in reversed(LEVELS.items()) if number >= least), "debug")


def logger_of(name: object) -> str:
    """Return the name of a logger, which agent code chooses, as one short word."""
    return "".join(letter for letter in str(name)[:MAX_LOGGER_CHARACTERS] if letter.isprintable())


def marked(line: Line) -> str:
    if not line.level:
        return line.text
    return f"{_BEGIN}{line.level}{_BETWEEN}{line.logger}{_BETWEEN}{line.text}"


def read(stream: str, text: str) -> Line:
    """Return what a pipe's line says; a mark that is none is text like any other."""
    if text.startswith(_BEGIN):
        level, *rest = text[1:].split(_BETWEEN, 2)
        if level in LEVELS and len(rest) == 2:
            return Line(stream, rest[1], level, logger_of(rest[0]))
    return Line(stream, text)


def event(line: Line) -> dict[str, Any]:
    """Return the data of the event that tells of *line*."""
    text = line.text.encode("utf-8", "replace").replace(b"\0", b"?").decode()
    said = {"stream": line.stream, "line": text}
    return said | {"level": line.level, "logger": line.logger} if line.level else said
