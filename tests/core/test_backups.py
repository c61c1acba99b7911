"""When a backup is due, and which old ones may go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenroom.core import backups
from greenroom.core.backups import Retention

NOON = datetime(2030, 1, 10, 12, tzinfo=UTC)


def made(*hours_ago: float) -> list[tuple[str, datetime]]:
    return [(f"{hours:g}h", NOON - timedelta(hours=hours)) for hours in sorted(hours_ago, reverse=True)]


def test_the_newest_stay_and_one_of_each_of_the_last_days() -> None:
    every = made(*range(0, 96, 6))  # of 7 January 18:00 to 10 January 12:00
    kept = [id for id, _ in every if id not in backups.expired(every, Retention(keep_last=3, keep_days=3))]
    assert kept == ["42h", "18h", "12h", "6h", "0h"]


def test_where_none_was_made_for_a_month_the_old_ones_stay() -> None:
    every = made(*(24 * 40 + hours for hours in (0, 24, 48)), 0)
    assert backups.expired(every, Retention(keep_last=1, keep_days=4)) == []


_times = st.lists(st.integers(0, 60 * 24 * 30), unique=True)
_retentions = st.builds(Retention, keep_last=st.integers(1, 5), keep_days=st.integers(0, 5))


@given(minutes=_times, retention=_retentions)
def test_what_is_kept_is_bounded_and_has_the_newest(minutes: list[int], retention: Retention) -> None:
    every = made(*(minute / 60 for minute in minutes))
    expired = set(backups.expired(every, retention))
    kept = [id for id, _ in every if id not in expired]
    newest = [id for id, _ in every[-retention.keep_last :]]
    assert set(newest) <= set(kept)
    assert len(kept) <= retention.keep_last + retention.keep_days
    again = [item for item in every if item[0] in kept]
    assert backups.expired(again, retention) == []


@pytest.mark.parametrize(
    ("ago_s", "delay_s"),
    [(None, 0), (0, 3600), (600, 3000), (3600, 0), (1e6, 0), (-1e6, 3600)],  # the last: the clock was set back
)
def test_a_node_that_starts_goes_on_where_the_last_backup_left_off(ago_s: float | None, delay_s: float) -> None:
    last_at = None if ago_s is None else NOON - timedelta(seconds=ago_s)
    assert backups.first_delay_s(last_at, NOON, every_s=3600) == delay_s


def test_a_failure_is_tried_again_sooner_and_then_no_sooner_than_the_next_is_due() -> None:
    assert [backups.retry_delay_s(failures, every_s=300) for failures in (1, 2, 3, 4, 999)] == [60, 120, 240, 300, 300]
    assert backups.retry_delay_s(1, every_s=10) == 10
