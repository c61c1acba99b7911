"""The contract of the store, with all that is stored encrypted."""

from __future__ import annotations

import pytest

from greenroom.store.vault import Vault
from greenroom.testing import databases
from greenroom.testing.fakes import FakeKeySource
from greenroom.testing.results_contract import ResultsContract
from greenroom.testing.store_contract import StoreContract


def encrypted(scratch: databases.Scratch) -> databases.Scratch:
    """Have *scratch* encrypt what its stores write; all of them with one key."""
    source = FakeKeySource()
    scratch.vault = lambda: Vault(source, is_on=True)
    return scratch


class TestSqlite(StoreContract):
    @pytest.fixture
    def scratch(self, sqlite_scratch: databases.Scratch) -> databases.Scratch:
        return encrypted(sqlite_scratch)


@pytest.mark.long
class TestPostgres(StoreContract):
    @pytest.fixture
    def scratch(self, postgres_scratch: databases.Scratch) -> databases.Scratch:
        return encrypted(postgres_scratch)


class TestResultsOnSqlite(ResultsContract):
    @pytest.fixture
    def scratch(self, sqlite_scratch: databases.Scratch) -> databases.Scratch:
        return encrypted(sqlite_scratch)


@pytest.mark.long
class TestResultsOnPostgres(ResultsContract):
    @pytest.fixture
    def scratch(self, postgres_scratch: databases.Scratch) -> databases.Scratch:
        return encrypted(postgres_scratch)
