"""What most verbs take: where the node is, and whether people or programs read the answer."""

from __future__ import annotations

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
