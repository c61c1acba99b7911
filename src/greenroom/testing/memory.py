"""A place in memory for what tests store: they kill processes, never the machine, so that no disk has to wait."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_PLACE = Path("/dev/shm")
_ROOM = 2 << 30  # bytes; containers often have 64 MiB


def place() -> Path | None:
    """Return a folder in memory; None where there is none with room, or where ``TMPDIR`` names another place."""
    if "TMPDIR" in os.environ or not os.access(_PLACE, os.W_OK | os.X_OK):
        return None
    if os.statvfs(_PLACE).f_flag & os.ST_NOEXEC or shutil.disk_usage(_PLACE).free < _ROOM:
        return None
    return _PLACE
