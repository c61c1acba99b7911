"""What holds for every test: no variable of the developer's is seen, and no example is drawn at random."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from greenroom.testing.databases import Server

# Before anybody imports them: their assertions are to be explained.
pytest.register_assert_rewrite("greenroom.testing.store_contract", "greenroom.testing.rollouts_contract")
pytest.register_assert_rewrite("greenroom.testing.engine_contract")

_FOREIGN = ("GREENROOM_", "LLAMA_ARG_", "OPENAI_")

for name in [name for name in os.environ if name.startswith(_FOREIGN) and not name.startswith("GREENROOM_TEST_")]:
    del os.environ[name]
os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"

hypothesis.settings.register_profile("greenroom", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("greenroom")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Where agents note what they do, a line each."""
    return tmp_path / "ledger"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What agents wait for, until a test makes it."""
    return tmp_path / "gate"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One for each test process; a test has databases of its own on it."""
    from greenroom.testing import databases  # not before its contracts are registered

    with databases.postgres() as server:
        yield server
