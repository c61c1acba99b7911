"""Mistakes are told with the line on which they stand, whatever the manifest looks like."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from greenroom import settings
from greenroom.settings.lines import lines_of

MANIFEST = '''\
environment = "development"   # "not" [a] = header
[cluster]
max_replicas = 0
[alerts . "rules".'odd.name'] # a comment
signal = """
[not.a.table]
x = 1 \\""" #"""
"a=b" = { c = [1, {d = "}]"}], e.f = 2 }

[[security.issuers]]
issuer = 'C:\\'
algorithms = [ # a list
    "EdDSA",

    "none",   # here
]
[[security.issuers]]
[security.issuers.deep]
'''


def test_each_key_and_item_has_its_line() -> None:
    assert lines_of(MANIFEST) == {
        ("environment",): 1,
        ("cluster",): 2,
        ("cluster", "max_replicas"): 3,
        ("alerts",): 4,
        ("alerts", "rules"): 4,
        ("alerts", "rules", "odd.name"): 4,
        ("alerts", "rules", "odd.name", "signal"): 5,
        ("alerts", "rules", "odd.name", "a=b"): 8,
        ("alerts", "rules", "odd.name", "a=b", "c"): 8,
        ("alerts", "rules", "odd.name", "a=b", "c", 0): 8,
        ("alerts", "rules", "odd.name", "a=b", "c", 1): 8,
        ("alerts", "rules", "odd.name", "a=b", "c", 1, "d"): 8,
        ("alerts", "rules", "odd.name", "a=b", "e"): 8,
        ("alerts", "rules", "odd.name", "a=b", "e", "f"): 8,
        ("security",): 10,
        ("security", "issuers"): 10,
        ("security", "issuers", 0): 10,
        ("security", "issuers", 0, "issuer"): 11,
        ("security", "issuers", 0, "algorithms"): 12,
        ("security", "issuers", 0, "algorithms", 0): 13,
        ("security", "issuers", 0, "algorithms", 1): 15,
        ("security", "issuers", 1): 17,
        ("security", "issuers", 1, "deep"): 18,
    }


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    if isinstance(value, dict):
        inner = {(*path, key): each for key, each in value.items()}
    elif isinstance(value, list):
        inner = {(*path, index): each for index, each in enumerate(value)}
    else:
        return set()
    return set(inner).union(*(paths_of(each, where) for where, each in inner.items()))


LINES = st.sampled_from(
    [
        *("[a]", "[a.b]", "[[a.c]]", "[ 'x' ]", "[[l]]", "[l.m]", "[[l.n]]", "", "# [c] = 1", '"k\\"=" = 1'),
        *("a = 1", "b.c = 'x'", 'd = "\\"]"', "e = [", "1,", "{x = [2]},", "]", "f = 1979-05-27 07:32:00 # d"),
        *(
            'g = """',
            '"""',
            "h = '''",
            "''' # end",
            "i = {j.k = [], l = {}}",
            "m = [[1], ['#', \"]\"]]",
            "n = -1_0.5e3",
        ),
    ]
)


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]))
@example(["x = '''", "'''''"], "\n")
@example(["[[l]]", "[l.m]", "[[l]]", "[l.m]"], "\n")
def test_what_has_a_line_is_what_the_parser_finds(lines: list[str], end: str) -> None:
    text = end.join(lines)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        lines_of(text)  # raises nothing
        return
    told = lines_of(text)
    assert set(told) == paths_of(found)
    assert all(1 <= line <= len(lines) for line in told.values())


@given(st.text("[]{}=.,#'\"\\\n ab1"))
def test_no_text_is_too_odd(text: str) -> None:
    lines_of(text)


def test_a_mistake_is_told_with_file_and_line_and_a_missing_key_with_its_table(tmp_path: Path) -> None:
    manifest = tmp_path / "greenroom.toml"
    manifest.write_text(
        "[cluster]\nmax_replicas = 0\n\n[agents.a]\ntimeout_s = 1\n"
        '[agents.b]\nfactory = "m:f"\nenv = [\n "A",\n "=",\n]\n'
    )
    with pytest.raises(settings.SettingsInvalid) as caught:
        settings.load(manifest, {"GREENROOM_AGENTS__B__CONCURRENCY": "0"})
    told = {path: message.rpartition(" (")[2] for path, message in caught.value.problems}
    assert told == {
        "cluster.max_replicas": "greenroom.toml:2)",
        "agents.a.factory": "greenroom.toml:4)",
        "agents.b.env[1]": "greenroom.toml:10)",
        "agents.b.concurrency": "GREENROOM_AGENTS__B__CONCURRENCY)",
    }
