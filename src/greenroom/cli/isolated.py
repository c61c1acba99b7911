"""Starts the command without the code that packages hook into every start of Python (`security.start_code`).

    python -I -S …/greenroom/cli/isolated.py up

A stolen package needs only to be installed for its ``.pth`` line to run, in the process that holds the keys, before the
first line of ours. With ``-S`` no such file is read; here the folders that packages are in are named by hand. What a
node starts for itself is started likewise (`backups.process`); replicas are not: they are the agents' room.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

BACKUPS = "--greenroom.backups"  # in the place of a verb: run that module


def folders() -> Iterator[str]:
    """Yield where packages are: this one's folder, and that of the environment whose Python runs."""
    yield str(Path(__file__).parents[2])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield str(Path(sys.executable).parents[1] / "lib" / version / "site-packages")


def main(arguments: list[str]) -> int:
    sys.path += [folder for folder in dict.fromkeys(folders()) if folder not in sys.path]
    if arguments == [BACKUPS]:
        from greenroom.backups import process

        return process.main()
    from greenroom.cli.main import main as run

    return run(arguments)


if __name__ == "__main__":
    if not (sys.flags.isolated and sys.flags.no_site):
        sys.exit("error: cannot isolate this start: run it as python -I -S " + " ".join(sys.argv))
    sys.exit(main(sys.argv[1:]))
