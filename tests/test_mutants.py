"""The catalogue of mutants names code that is there: what it cannot remove, `make mutants` would not miss."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _catalogue() -> Any:
    spec = importlib.util.spec_from_file_location("mutants_catalogue", ROOT / "mutants" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CATALOGUE


CATALOGUE = _catalogue()


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda mutant: mutant.without.replace(" ", "_"))
def test_a_mutant_removes_code_that_is_there_once_and_names_tests_that_there_are(mutant: Any) -> None:
    for edit in mutant.edits:
        assert (ROOT / "src" / "greenroom" / edit.file).read_text().count(edit.before) == 1, edit.before
        assert edit.before != edit.after
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)


def test_there_are_enough_of_them_and_each_is_another() -> None:
    assert len({mutant.without for mutant in CATALOGUE}) == len(CATALOGUE) >= 15
