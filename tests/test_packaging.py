"""What a fresh clone gets: requirements pinned and hashed, and no address of a registry or a machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

# Assembled from parts, so that this file does not break its own rule.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("index", "crates", "io"),
        ("static", "crates", "io"),
        ("proxy", "golang", "org"),
        ("repo", "anaconda", "com"),
    )
]
FOLDERS = ["/" + "/".join(parts) + "/" for parts in (("work",), ("tmp", "w"), ("root",), ("home",), ("Users",))]
FORBIDDEN = re.compile(
    "|".join(map(re.escape, REGISTRIES)) + r"|(?<![\w.])(?:" + "|".join(map(re.escape, FOLDERS)) + ")"
)
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?P<rest>(?:.*\\\n)*.*)", re.MULTILINE)


def committed_files() -> list[Path]:
    """Those that git tracks or would add; outside a clone, those that are not in a folder of tools."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name != "__pycache__" and (not name.startswith(".") or name == ".ci")]
        found += [Path(folder, name) for name in files]
    return found


def pins(lock: Path) -> dict[str, re.Match[str]]:
    return {match["name"]: match for match in PIN.finditer(lock.read_text())}


def test_no_committed_file_names_a_registry_or_a_path_of_a_machine() -> None:
    named = [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in committed_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if (found := FORBIDDEN.search(line))
    ]
    assert named == []


def test_the_rule_finds_what_it_looks_for() -> None:
    assert all(FORBIDDEN.search(f"https://{host}/simple") for host in REGISTRIES)
    assert all(FORBIDDEN.search(f"see {path}notes") for path in FOLDERS)
    assert not FORBIDDEN.search("under /proc/self/root/ and var/root/x")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_pinned_and_hashed(lock: Path) -> None:
    text = lock.read_text()
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert len(requirements) == len(pins(lock)) > 0
    assert [name for name, pin in pins(lock).items() if "--hash=sha256:" not in pin["rest"]] == []
    assert "--index" not in text
    assert "--find-links" not in text


def test_the_tests_run_on_the_versions_of_the_demonstration() -> None:
    tested, shown = (pins(ROOT / "requirements" / name) for name in ("test.txt", "demo.txt"))
    assert {name: pin["version"] for name, pin in shown.items()}.items() <= {
        name: pin["version"] for name, pin in tested.items()
    }.items()
