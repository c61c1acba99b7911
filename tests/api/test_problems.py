"""Problem documents: what people read in them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from greenroom import errors, settings
from greenroom.api import problems


def _kinds(kind: type[errors.GreenroomError] = errors.GreenroomError) -> Iterator[type[errors.GreenroomError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from _kinds(derived)


def test_every_title_is_a_sentence_for_people() -> None:
    titles = {kind.__qualname__: problems.problem(kind.__new__(kind), "request-1")["title"] for kind in _kinds()}
    assert "Overloaded" in titles
    assert not {name: title for name, title in titles.items() if not re.fullmatch(r"[A-Z][^`*_\n]+\.", title)}


def test_the_title_is_of_the_code_and_not_of_a_class_that_carries_more() -> None:
    error = settings.SettingsInvalid([settings.Problem("cluster.cpu", "is odd")])
    assert problems.problem(error, "request-1")["title"] == errors.SettingsInvalid.__doc__
