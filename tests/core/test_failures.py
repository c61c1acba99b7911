"""Why a replica died, in one word."""

from __future__ import annotations

import doctest

import pytest

from greenroom.core import failures


@pytest.mark.parametrize("failure", failures.Failure)
def test_every_failure_is_told_by_its_word(failure: failures.Failure) -> None:
    assert failures.of(failure.value) is failure


def test_who_was_stopped_has_not_failed_and_what_nobody_foresaw_was_killed() -> None:
    assert failures.of("stopped") is None
    assert failures.of("its engine was bored") is failures.Failure.KILLED


def test_the_examples_in_the_documentation_are_true() -> None:
    assert not doctest.testmod(failures).failed
