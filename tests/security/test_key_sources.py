"""Where the key-encryption key comes from: real files, and a real program for a key management service."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from greenroom import errors
from greenroom.security import key_sources
from greenroom.security.key_sources import Sources
from greenroom.security.vault import KeyEncryptionKey

SERVICE = """\
import base64, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "calls").open("a") as calls:
    calls.write(sys.argv[2] + "\\n")
given = base64.b64decode(sys.stdin.read())
mask = b"never do this: a mask is no cipher, but a test."[:32]
answer = bytes(a ^ b for a, b in zip(given, mask))
print(base64.b64encode(answer).decode())
"""


def service(folder: Path, text: str = SERVICE) -> tuple[str, ...]:
    """A command for a program that stands for a key management service, and notes how it is called."""
    program = folder / "kms.py"
    program.write_text(text)
    return (sys.executable, str(program), str(folder))


def sources(folder: Path, *, command: tuple[str, ...] = (), is_ours: bool = True) -> Sources:
    return Sources(folder / "encryption.key", command, is_ours=is_ours)


async def test_the_first_start_makes_the_file_and_the_next_finds_the_key_in_it(tmp_path: Path) -> None:
    first = await sources(tmp_path).first()
    assert (tmp_path / "encryption.key").stat().st_mode & 0o777 == 0o600
    assert first.wrapped is None
    assert (await sources(tmp_path).first()).key.id == first.key.id
    assert (await sources(tmp_path).find(first.key.id, None)).id == first.key.id


async def test_a_file_that_was_named_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match="greenroom encryption make-key"):
        await sources(tmp_path, is_ours=False).first()
    assert not (tmp_path / "encryption.key").exists()


async def test_a_missing_file_is_not_made_for_a_store_that_has_a_key(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match="is missing"):
        await sources(tmp_path).find("00" * 8, None)
    assert not (tmp_path / "encryption.key").exists()


async def test_another_key_is_refused_and_both_are_named(tmp_path: Path) -> None:
    there = key_sources.make(tmp_path / "encryption.key")
    with pytest.raises(errors.StartRefused, match=f"encrypted with the key {'00' * 8}, and .* holds {there}"):
        await sources(tmp_path).find("00" * 8, None)


async def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    id = key_sources.make(tmp_path / "encryption.key")
    (tmp_path / "encryption.key").chmod(0o640)
    with pytest.raises(errors.StartRefused, match="chmod 600"):
        await sources(tmp_path).find(id, None)


@pytest.mark.parametrize("text", ["", "secret", "greenroom-encryption-key-1:00", "greenroom-backup-key-1:" + "00" * 32])
async def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "encryption.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(errors.StartRefused, match="not a key file"):
        await sources(tmp_path).first()


async def test_the_next_key_stands_before_the_one_in_use_and_a_rotation_cut_off_goes_on_with_it(tmp_path: Path) -> None:
    first = await sources(tmp_path).first()
    following = await sources(tmp_path).next(first.key.id)
    assert following.key.id != first.key.id
    assert (await sources(tmp_path).find(first.key.id, None)).id == first.key.id  # the store has not moved yet
    again = await sources(tmp_path).next(first.key.id)
    assert again.key.id == following.key.id
    assert len(key_sources.load(tmp_path / "encryption.key")) == 2
    assert (tmp_path / "encryption.key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    id = key_sources.make(tmp_path / "key")
    with pytest.raises(errors.Conflict, match="is there already"):
        key_sources.make(tmp_path / "key")
    assert KeyEncryptionKey(key_sources.load(tmp_path / "key")[0]).id == id


async def test_a_command_wraps_the_key_once_and_unwraps_it_at_each_start(tmp_path: Path) -> None:
    command = service(tmp_path)
    first = await sources(tmp_path, command=command).first()
    assert first.wrapped is not None
    assert not (tmp_path / "encryption.key").exists()
    found = await sources(tmp_path, command=command).find(first.key.id, first.wrapped)
    assert found.id == first.key.id
    assert (tmp_path / "calls").read_text().split() == ["wrap", "unwrap", "unwrap"]


async def test_a_store_whose_service_has_the_key_needs_the_command(tmp_path: Path) -> None:
    first = await sources(tmp_path, command=service(tmp_path)).first()
    with pytest.raises(errors.StartRefused, match=r"security\.encryption_command"):
        await sources(tmp_path).find(first.key.id, first.wrapped)


async def test_a_store_of_a_file_moves_to_a_service_by_a_rotation(tmp_path: Path) -> None:
    first = await sources(tmp_path).first()
    moving = sources(tmp_path, command=service(tmp_path))
    assert (await moving.find(first.key.id, None)).id == first.key.id
    assert (await moving.next(first.key.id)).wrapped is not None


async def test_another_key_from_the_service_is_refused(tmp_path: Path) -> None:
    command = service(tmp_path)
    first = await sources(tmp_path, command=command).first()
    service(tmp_path, SERVICE.replace("never", "Never"))
    with pytest.raises(errors.StartRefused, match=f"its key is {first.key.id}, and .* unwrap has answered with"):
        await sources(tmp_path, command=command).find(first.key.id, first.wrapped)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "import sys; sys.stderr.write('secret\\nno such key \\x1b[31m\\n'); sys.exit(4)",
            "ended with 4: no such key",
        ),
        ("print('&&&')", "not answered with a key in base64"),
        ("", "not answered with a key in base64"),
        ("import sys; sys.stdout.write('QUJD' * 100000)", "not answered with a key in base64"),
        ("import sys; print(sys.stdin.read())", "answers with the key itself"),
        ("import base64, os; print(base64.b64encode(os.urandom(32)).decode())", "does not give back"),
    ],
)
async def test_a_command_that_does_not_do_it_is_told_why(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(errors.StartRefused, match=re.escape(why)) as caught:
        await sources(tmp_path, command=service(tmp_path, text)).first()
    assert str(caught.value).isprintable()
    assert "secret" not in str(caught.value)


async def test_a_command_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sources, "COMMAND_TIMEOUT_S", 0.2)
    text = "import os, sys, time\nopen(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)"
    with pytest.raises(errors.StartRefused, match="has not answered within"):
        await sources(tmp_path, command=service(tmp_path, text)).first()
    if (pid := tmp_path / "pid").exists():  # it had begun in time
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


async def test_a_command_that_cannot_be_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.StartRefused, match=r"cannot run /no/such/program wrap .*No such file"):
        await sources(tmp_path, command=("/no/such/program",)).first()


async def test_a_command_that_says_the_key_when_it_fails_is_masked(tmp_path: Path) -> None:
    text = "import sys\nsys.exit('cannot wrap ' + sys.stdin.read())\n"
    with pytest.raises(errors.StartRefused, match=r"has ended with 1: cannot wrap \*\*\*=?$"):
        await sources(tmp_path, command=service(tmp_path, text)).first()
