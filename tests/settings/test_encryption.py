"""Settings of encryption at rest."""

from __future__ import annotations

import pytest

from greenroom import errors, settings


@pytest.mark.parametrize(("environment", "is_on"), [("development", False), ("staging", True), ("production", True)])
def test_it_is_on_wherever_others_work_with_it(environment: str, is_on: bool) -> None:
    security = settings.load(None, {"GREENROOM_ENVIRONMENT": environment}).security
    assert security.encryption_at_rest is is_on
    assert (security.encryption_key_file, security.encryption_command) == (None, ())


@pytest.mark.parametrize(("file", "to"), [("/mnt/copies/key", "/mnt/copies"), ("copies/keys/key", "copies")])
def test_the_key_is_not_kept_where_the_backups_go(file: str, to: str) -> None:
    given = {"security": {"encryption_key_file": file}, "backups": {"to": to}}
    with pytest.raises(errors.SettingsInvalid, match="is where the backups go"):
        settings.load(overrides=given, environ={})


@pytest.mark.parametrize(("file", "to"), [("/mnt/copies-key", "/mnt/copies"), ("/run/key", "s3://copies"), ("k", None)])
def test_elsewhere_it_may_be(file: str, to: str | None) -> None:
    given = {"security": {"encryption_key_file": file}, "backups": {"to": to}}
    assert settings.load(overrides=given, environ={}).security.encryption_key_file == file
