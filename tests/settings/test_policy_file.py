"""The policy file that a manifest names: read with it, and its mistakes told with the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom import settings
from greenroom.core.permissions import ROLES
from greenroom.settings import SettingsInvalid


def _manifest(folder: Path, text: str = "") -> Path:
    path = folder / "greenroom.toml"
    path.write_text(f'[security]\npolicy_file = "policies/roles.toml"\n{text}')
    (folder / "policies").mkdir(exist_ok=True)
    return path


def _problems(manifest: Path) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(manifest, {})
    return dict(caught.value.problems)


def test_it_is_found_beside_the_manifest(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    (tmp_path / "policies/roles.toml").write_text('[roles.researcher]\ngrants = ["task:* on agent:research"]\n')
    assert settings.load(manifest, {}).security.policy_file == "policies/roles.toml"
    assert set(settings.read_roles(tmp_path / "policies/roles.toml")) == {*ROLES, "researcher"}


def test_its_mistakes_are_told_with_those_of_the_manifest(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, "[cluster]\nmax_replicas = 0\n")
    (tmp_path / "policies/roles.toml").write_text('[roles.r]\ngrants = ["task:fly"]\nextend = "viewer"\n')
    found = _problems(manifest)
    assert set(found) == {"cluster.max_replicas", "roles.toml: roles.r.grants[0]", "roles.toml: roles.r.extend"}
    assert 'did you mean "extends"?' in found["roles.toml: roles.r.extend"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no such file"),
        (b"roles = \n", "at line 1"),
        (b"\xff", "is not UTF-8"),
        (b"#" * 2_000_000, "is larger than"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, content: bytes | None, told: str) -> None:
    manifest = _manifest(tmp_path)
    if content is not None:
        (tmp_path / "policies/roles.toml").write_bytes(content)
    (message,) = _problems(manifest).values()
    assert told in message


def test_a_file_that_everybody_may_write_is_refused(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path)
    (tmp_path / "policies/roles.toml").write_text("")
    settings.load(manifest, {})
    (tmp_path / "policies/roles.toml").chmod(0o666)
    assert "chmod o-w" in _problems(manifest)["roles.toml"]


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "greenroom.toml"
    manifest.write_text('[security]\npolicy_file = "../roles.toml"\n')
    assert set(_problems(manifest)) == {"security.policy_file"}
