"""What ``[backups]`` may say."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom import settings
from greenroom.settings import SettingsInvalid


def test_without_a_word_it_is_once_an_hour_into_the_data_directory() -> None:
    assert settings.load(None, {}).backups == settings.Backups(
        to=None, every_s=3600.0, keep_last=24, keep_days=7, key_file=None
    )


def test_variables_say_it_too() -> None:
    environ = {"GREENROOM_BACKUPS__TO": "s3://bucket/prefix", "GREENROOM_BACKUPS__EVERY_S": "60"}
    found = settings.load(None, environ)
    assert (found.backups.to, found.backups.every_s) == ("s3://bucket/prefix", 60)
    assert found.origins["backups.to"] == "GREENROOM_BACKUPS__TO"


@pytest.mark.parametrize("to", ["/mnt/backups", "backups", "a/b/", "s3://my-bucket", "s3://my.bucket/a/b/"])
def test_a_place_is_a_folder_or_a_bucket(to: str) -> None:
    assert settings.load(overrides={"backups": {"to": to}}, environ={}).backups.to == to


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("to", value)
            for value in ("", "../up", "a/../b", "s3://", "s3://B", "s3://a", "s3:x", "s3://bucket/../x", "a\0b", 5)
        ),
        *(("every_s", value) for value in (0, 9.9, 604_801, "often")),
        *(("keep_last", value) for value in (0, -1, 1.5)),
        ("keep_days", -1),
        ("key_file", "../key"),
        ("keep", 5),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(overrides={"backups": {key: value}}, environ={})
    assert [problem.path for problem in caught.value.problems] == [f"backups.{key}"]
