"""What most verbs take: where the node is, and whether people or programs read the answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from greenroom import errors

if TYPE_CHECKING:
    from greenroom.sdk import client


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Options:
    """Where the node is, and who reads the answer."""

    json: Annotated[bool, Parameter(help="Print JSON, for programs.", show_default=False)] = False
    url: Annotated[str | None, Parameter(help="The node's address, else GREENROOM_URL, else the data directory's.")] = (
        None
    )
    data_dir: Annotated[
        Path | None, Parameter(help="The node's data directory, else GREENROOM_DATA_DIR, else .greenroom.")
    ] = None

    def connect(self) -> client.Client:
        from greenroom.sdk import client  # late: takes longer to import than `--help` takes to print

        return client.Client(self.url, data_dir=self.data_dir)


DEFAULT = Options()


class Usage(errors.GreenroomError):
    """The words of the command line make no sense together."""

    code = "usage"


_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def seconds(text: str, *, of: str) -> float:
    """Read a span like ``90m``; raises `Usage`, naming the option *of* which it is."""
    found = re.fullmatch(r"(\d{1,9})([smhdw])", text.strip())
    if found is None or not int(found[1]):
        raise Usage(f"cannot take {of} {text}: give a number with a unit: 30d, 12h, 90m")
    return float(int(found[1]) * _UNITS_S[found[2]])
