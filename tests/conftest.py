"""What holds for every test: no variable of the developer's is seen, no example drawn at random, no disk waited for."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from greenroom.testing import memory

if TYPE_CHECKING:
    from greenroom.testing.databases import Server

# Before anybody imports them: their assertions are to be explained.
pytest.register_assert_rewrite("greenroom.testing.store_contract", "greenroom.testing.rollouts_contract")
pytest.register_assert_rewrite("greenroom.testing.engine_contract")

_FOREIGN = ("GREENROOM_", "LLAMA_ARG_", "OPENAI_")

for name in [name for name in os.environ if name.startswith(_FOREIGN) and not name.startswith("GREENROOM_TEST_")]:
    del os.environ[name]
os.environ["AUTOGEN_DISABLE_RUNTIME_TRACING"] = "true"
if (place := memory.place()) is not None:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))  # of tmp_path

# AutoGen imports jsonschema, which would compile the grammar of URIs (2 s) for a format that no test asks for.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

hypothesis.settings.register_profile("greenroom", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("greenroom")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests and all that they import are walked by the collector once, not again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Give the memory back; not test by test, for an agent may still look for what the last one left it."""
    is_worker, base = hasattr(session.config, "workerinput"), os.environ.get("PYTEST_DEBUG_TEMPROOT")
    if exitstatus == 0 and not is_worker and place is not None and base == str(place):
        shutil.rmtree(session.config._tmp_path_factory.getbasetemp(), ignore_errors=True)  # type: ignore[attr-defined]


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
