"""What certainly is not in a snapshot is told without running it; where that cannot be known, nothing is said."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from greenroom.engine import snapshots


def missing(tmp_path: Path, source: str, reference: str, *, file: str = "agents.py") -> str | None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source))
    return snapshots.missing(tmp_path, reference)


@pytest.mark.parametrize(
    "source",
    [
        "def smoke(): ...",
        "async def smoke(): ...",
        "class smoke: ...",
        "smoke = 1",
        "a = smoke = 1",
        "smoke: int = 1",
        "a, (*smoke, b) = 1, (2, 3)",
        "smoke += 1",
        "import smoke",
        "import smoke.deep",
        "import other as smoke",
        "from other import smoke",
        "from .other import a as smoke",
        "if True:\n    smoke = 1",
        "if a: pass\nelse:\n    def smoke(): ...",
        "try:\n    import a\nexcept ImportError:\n    smoke = None",
        "try: pass\nfinally:\n    smoke = 1",
        "for smoke in (): pass",
        "while a:\n    smoke = 1",
        "with open('x') as smoke: pass",
        "with open('x'):\n    smoke = 1",
        "print(smoke := 1)",
        "[(smoke := x) for x in ()]",
        "def f(a=(smoke := 1)): ...",
        "class C(b := object, metaclass=(smoke := type)): ...",
        "match a:\n    case [b, *smoke]: pass",
        "match a:\n    case {'b': 1, **smoke}: pass",
        "match a:\n    case smoke: pass",
        "def f():\n    global smoke\n    smoke = 1",
        "from other import *",
        "def __getattr__(name): ...",
        "globals()['smo' + 'ke'] = 1",
        "import sys\nsetattr(sys.modules[__name__], 'smoke', 1)",
        "exec('smoke = 1')",
        "smoke = 1\ndel smoke",
    ],
)
def test_what_is_there_or_may_be_is_not_called_missing(tmp_path: Path, source: str) -> None:
    assert missing(tmp_path, source, "agents:smoke") is None
    assert missing(tmp_path, source, "agents.py:smoke") is None


@pytest.mark.parametrize(
    ("source", "has"),
    [
        ("", "it has nothing"),
        ("def smok(): ...\ndef other(): ...", "did you mean 'smok'?"),
        ("b = a = _hidden = 1", "it has a, b"),
        ("def f():\n    smoke = 1", "it has f"),
        ("class C:\n    smoke = 1", "it has C"),
        ("smoke: int", "it has nothing"),
        ("a = [smoke for smoke in ()]", "it has a"),
        ("a = lambda smoke: smoke", "it has a"),
        ("a = b.smoke", "it has a"),
        ("a.smoke = 1", "it has nothing"),
        ("import a.smoke", "it has a"),
        ("try: pass\nexcept ValueError as smoke: pass", "it has nothing"),
    ],
)
def test_what_certainly_is_not_there_is_told_with_what_is(tmp_path: Path, source: str, has: str) -> None:
    assert missing(tmp_path, source, "agents:smoke") == f"agents.py has no 'smoke'; {has}"
    assert missing(tmp_path, source, "agents.py:smoke") == f"agents.py has no 'smoke'; {has}"


@pytest.mark.parametrize(
    ("file", "reference", "expected"),
    [
        ("pack/__init__.py", "pack:smoke", "pack/__init__.py has no 'smoke'"),
        ("pack/deep/checks.py", "pack.deep.checks:smoke", "pack/deep/checks.py has no 'smoke'"),
        ("my-checks.py", "my-checks:smoke", "my-checks.py has no 'smoke'"),
        ("agents.py", "agents:smoke.deep", "agents.py has no 'smoke'"),
        ("agents.py", "agent.py:smoke", "there is no file agent.py in the agent's folder; did you mean 'agents.py'?"),
        ("agents.py", "../agents.py:smoke", "there is no file ../agents.py"),
        ("agents.py", "/etc/agents.py:smoke", "there is no file /etc/agents.py"),
        ("agents.py", "agents", "'agents' is not 'module:attribute'"),
        ("agents.py", ":smoke", "':smoke' is not 'module:attribute'"),
        ("agents.py", "agents..a:smoke", "'agents..a' is no name of a module"),
        ("agents.py", "a/agents:smoke", "'a/agents' is no name of a module"),
    ],
)
def test_it_is_told_where_nothing_is(tmp_path: Path, file: str, reference: str, expected: str) -> None:
    told = missing(tmp_path, "a = 1", reference, file=file)
    assert told is not None
    assert told.startswith(expected)


@pytest.mark.parametrize(
    ("file", "reference"),
    [
        ("agents.py", "installed:smoke"),
        ("agents.py", "agents.deep:smoke"),
        ("json.py", "json:smoke"),
        ("agents.py", "agents:__name__"),
        ("agents.py", "agents:a.b.c"),
        ("agents/smoke.py", "agents:smoke"),
    ],
)
def test_what_only_the_replica_can_know_is_left_to_it(tmp_path: Path, file: str, reference: str) -> None:
    assert missing(tmp_path, "a = 1", reference, file=file) is None


def test_a_submodule_is_no_missing_attribute(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "smoke.py").touch()
    assert missing(tmp_path, "", "pack:smoke", file="pack/__init__.py") is None


def test_native_code_of_that_name_goes_first(tmp_path: Path) -> None:
    (tmp_path / "agents.abi3.so").touch()
    assert missing(tmp_path, "", "agents:smoke") is None


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("a = 1\ndef (:", "agents.py:2 cannot be compiled: "),
        ("a = 1\n\0", "agents.py"),
        ("# coding: nothing\n", "agents.py"),
    ],
)
def test_a_syntax_error_is_told_with_its_place(tmp_path: Path, source: str, told: str) -> None:
    message = missing(tmp_path, source, "agents:a")
    assert message is not None
    assert message.startswith(told)
    assert "cannot be compiled" in message


def test_an_escape_that_python_warns_of_is_no_error(tmp_path: Path) -> None:
    assert missing(tmp_path, r"smoke = '\d'", "agents:smoke") is None


@pytest.mark.parametrize("source", ["x = " + "(" * 500 + ")" * 500, "x = " + "-" * 100_000 + "1", "#" * 3_000_000])
def test_source_that_is_too_much_to_read_is_left_to_the_replica(tmp_path: Path, source: str) -> None:
    told = missing(tmp_path, source, "agents:smoke")
    assert told is None or "cannot be compiled" in told
