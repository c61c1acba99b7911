"""What runs at every start of Python, before any program's own code: lines of ``.pth`` files, and ``sitecustomize``.

Packages put it there, most for good reasons (coverage, editable installs), some to steal what the next process holds.
By the time that this looks, it has run: to keep it out, see `greenroom.cli.isolated`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

CUSTOM = ("sitecustomize", "usercustomize")


def sites() -> list[str]:
    """Return the folders of packages of this process."""
    return [folder for folder in sys.path if Path(folder).name in {"site-packages", "dist-packages"}]


def found(folders: Iterable[str]) -> list[str]:
    """Return the files in *folders* whose code runs at every start."""
    files: list[str] = []
    for folder in map(Path, folders):
        files += [str(file) for file in sorted(folder.glob("*.pth")) if _has_code(file)]
        files += [str(file) for name in CUSTOM for file in sorted(folder.glob(f"{name}*"))]
    return files


def _has_code(file: Path) -> bool:
    """Whether the interpreter would run a line of it; the others are folders."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(("import ", "import\t")) for line in lines)


def is_kept_out() -> bool:
    """Whether this process was started without it."""
    return bool(sys.flags.no_site)
