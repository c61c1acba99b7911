"""Places: a folder, and a bucket of a real S3 server over HTTP; both are held to the same."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from moto.server import ThreadedMotoServer

from greenroom import errors
from greenroom.backups import archive, creating, listing, places, restoring, sealing
from greenroom.testing import databases
from greenroom.testing.store_contract import Node

BUCKET = "backups-of-ours"


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The endpoint of an S3 server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket, and the variables with which it is reached."""
    variables = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "ours",
        "AWS_SECRET_ACCESS_KEY": "secret-5a7d",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    httpx.put(f"{s3}/{BUCKET}").raise_for_status()
    try:
        yield f"s3://{BUCKET}/deep/prefix"
    finally:
        httpx.post(f"{s3}/moto-api/reset").raise_for_status()


@pytest.fixture(params=["folder", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "place") if request.param == "folder" else request.getfixturevalue("bucket")


def test_what_is_put_is_there_until_it_is_deleted(url: str) -> None:
    place = places.open(url)
    assert place.stored("chunks/") == []
    assert place.get("chunks/ab/abc") is None
    place.put("mark", b"")
    for number in range(3):
        place.put(f"chunks/ab/{number}", bytes(number))
    place.put("chunks/ab/2", b"other")
    place.settle()
    again = places.open(url)
    assert {found.name: found.size_bytes for found in again.stored("chunks/")} == {
        "chunks/ab/0": 0,
        "chunks/ab/1": 1,
        "chunks/ab/2": 5,
    }
    assert all(found.modified_at.tzinfo is not None for found in again.stored("chunks/"))
    assert (again.get("mark"), again.get("chunks/ab/2")) == (b"", b"other")
    again.delete(["chunks/ab/0", "chunks/ab/1", "chunks/ab/nothing"])
    assert [found.name for found in place.stored("chunks/")] == ["chunks/ab/2"]
    place.delete([])


async def test_a_backup_goes_there_and_comes_back(url: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    async with databases.sqlite(data_dir) as scratch:
        node = Node(await scratch.open())
        await node.submit()
        wanted = creating.Wanted(
            store_url=scratch.url,
            data_dir=str(data_dir),
            to=url,
            key_file=str(data_dir / "backup.key"),
            keep_last=2,
            keep_days=0,
        )
        for _ in range(2):
            await creating.create(wanted, now=scratch.clock.now())
        await node.submit()
        made = await creating.create(wanted, now=scratch.clock.now())
        found = listing.backups(wanted)
        assert (len(found), found[0]) == (2, made.backup)
        kept = archive.Archive(places.open(url), sealing.load(Path(wanted.key_file)))
        with restoring.scratch(data_dir) as scratch_url:
            assert (await restoring.drill(kept, kept.find("latest"), scratch_url=scratch_url)).is_good
        other = msgspec.structs.replace(wanted, key_file=str(tmp_path / "other.key"))
        sealing.make(tmp_path / "other.key")
        with pytest.raises(errors.BackupInvalid, match="another key"):
            await creating.create(other, now=scratch.clock.now())


def test_a_bucket_that_is_not_there_is_said_with_what_to_check(bucket: str) -> None:
    del bucket
    place = places.open("s3://no-such-bucket/x")
    with pytest.raises(errors.BackupFailed, match="check the bucket and AWS_ENDPOINT_URL"):
        place.put("a", b"")
    with pytest.raises(errors.BackupFailed, match="NoSuchBucket"):
        place.get("a")
    with pytest.raises(errors.BackupFailed) as caught:
        place.stored("a/")
    assert "secret-5a7d" not in str(caught.value)


def test_a_server_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setattr("greenroom.backups.bucket.RETRY_FOR_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(errors.BackupFailed):
            places.open(bucket).get("a")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = places.open(str(tmp_path))
    place.put("a/b", b"whole")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(errors.BackupFailed, match="No space left"):
        place.put("a/b", b"other")
    monkeypatch.undo()
    assert place.get("a/b") == b"whole"
    assert len(place.stored("a/")) == 1
