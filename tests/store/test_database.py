"""What the port itself computes."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom import errors
from greenroom.store import database, migrations

_instants = st.datetimes(datetime(1900, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - see timezones


@given(instant=_instants)
def test_no_microsecond_is_lost_between_instants_and_numbers(instant: datetime) -> None:
    assert database.instant(database.microseconds(instant)) == instant


def test_both_databases_have_the_same_migrations_in_order() -> None:
    names = [[(script.number, script.name) for script in migrations.scripts(dialect)] for dialect in migrations._TYPES]
    assert names[0] == names[1]
    assert [number for number, _ in names[0]] == list(range(2, len(names[0]) + 2))


def test_a_store_of_before_the_first_release_is_refused() -> None:
    with pytest.raises(errors.StoreOfAnotherRelease, match="before the first release"):
        migrations.missing("sqlite", 1)


def test_a_store_sees_what_it_has_not_seen() -> None:
    everything = migrations.missing("sqlite", 0)
    assert everything == list(migrations.scripts("sqlite"))
    assert migrations.missing("sqlite", everything[-1].number) == []
