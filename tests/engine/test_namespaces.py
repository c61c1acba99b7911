"""What a node that is not root does for T2: the tests of `unprivileged`, run by a user who is nobody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import greenroom
import isolated

TESTS = Path(__file__).with_name("unprivileged.py")
NAMES = re.findall(r"^(?:async def|class) (test_\w+|Test\w+)", TESTS.read_text(), re.MULTILINE)
NOBODY = 65_534
BEYOND = ("sysctl", "AppArmor", "container", "has to be version", "are filtered on", "seccomp")  # this node's power
LACKS = (
    "from greenroom.core import isolation; from greenroom.engine import rooms; "
    "print('lacks:' + '; '.join(isolation.decide('T2', rooms.powers(tries_namespaces=True)).lacks))"
)


def as_nobody(folder: Path, *arguments: str) -> str:
    """Run Python as a user without rights, where this one has them; return what it writes."""
    python = isolated.python_for_others(folder) if os.geteuid() == 0 else sys.executable
    source = Path(greenroom.__path__[0]).parent
    if python is None or any(not each.stat().st_mode & 1 for each in (*TESTS.parents, source, *source.parents)):
        pytest.skip("no other user can read these tests, or run a Python of this version")
    ids: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if ids:
        os.chown(home, NOBODY, NOBODY)
    sources = f"{source}:{TESTS.parents[1]}"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": sources, "PYTHONDONTWRITEBYTECODE": "1"}
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [python, *arguments], env=environment, cwd=TESTS.parents[2], capture_output=True, text=True, **ids, check=False
    )
    return done.stdout + done.stderr


def skip_without_namespaces(folder: Path) -> None:
    error, found, lacks = as_nobody(folder, "-c", LACKS).strip().partition("lacks:")
    assert (error, found) == ("", "lacks:")
    if any(reason in lacks for reason in BEYOND):
        pytest.skip(lacks)
    assert not lacks


FORBID = """
import ctypes, sys
from pathlib import Path
assert ctypes.CDLL(None).unshare(0x10000000) == 0
Path("/proc/sys/user/max_user_namespaces").write_text("0")
"""


def test_a_kernel_that_allows_no_namespaces_is_told_of(folder: Path) -> None:
    """In a namespace of its own, whose limit is nobody else's."""
    skip_without_namespaces(folder)
    lacks = as_nobody(folder, "-c", FORBID + LACKS)
    assert "user.max_user_namespaces is 0; allow some with sysctl (unshare: No space left on device)" in lacks


@pytest.fixture
def folder() -> Iterator[Path]:
    with isolated.a_folder() as made:
        yield made


@pytest.fixture(scope="module")
def told() -> Iterator[str]:
    """What pytest says of the tests, all run at once."""
    with isolated.a_folder() as folder:
        skip_without_namespaces(folder)
        base = folder / "home" / "tests"
        yield as_nobody(
            folder, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={base}", str(TESTS)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_root(told: str, name: str) -> None:
    outcomes = re.findall(rf"^(PASSED|FAILED|ERROR|SKIPPED) \S+::{name}\b", told, re.MULTILINE)
    assert set(outcomes) == {"PASSED"}, told
