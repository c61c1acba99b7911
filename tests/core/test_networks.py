"""Whose an address is."""

from __future__ import annotations

import doctest

from greenroom.core import networks


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(networks).attempted > 0
    assert doctest.testmod(networks).failed == 0
