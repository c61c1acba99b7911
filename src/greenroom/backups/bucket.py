"""A bucket of an S3-compatible store, by obstore. Where it is and who we are say the usual variables (``AWS_…``)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta

from greenroom import errors
from greenroom.backups.places import Stored

try:
    import obstore
    from obstore import exceptions
    from obstore.store import S3Store
except ImportError as error:  # the extra is not installed; said where such a place is named
    raise errors.BackupFailed(
        "cannot use a bucket: obstore is not installed; run: pip install 'greenroom[s3]'"
    ) from error

MOST_AT_ONCE = 1000  # deletions in one request
RETRY_FOR_S = 30.0


class Bucket:
    """``s3://BUCKET/PREFIX``; an endpoint (``AWS_ENDPOINT_URL``) may be plain HTTP, for what is sent is sealed."""

    def __init__(self, url: str) -> None:
        self._url = url
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
        with self._trouble():
            self._store = S3Store.from_url(
                url,
                client_options={"allow_http": endpoint.startswith("http://"), "timeout": timedelta(seconds=60)},
                retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=RETRY_FOR_S)},
            )

    def put(self, name: str, content: bytes) -> None:
        with self._trouble():
            obstore.put(self._store, name, content)

    def get(self, name: str) -> bytes | None:
        with self._trouble():
            try:
                return bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def stored(self, under: str) -> list[Stored]:
        with self._trouble():
            return [
                Stored(found["path"], found["size"], found["last_modified"])
                for page in obstore.list(self._store, under)
                for found in page
            ]

    def delete(self, names: Iterable[str]) -> None:
        wanted = list(names)
        with self._trouble():
            for start in range(0, len(wanted), MOST_AT_ONCE):
                with contextlib.suppress(FileNotFoundError):  # it is gone already
                    obstore.delete(self._store, wanted[start : start + MOST_AT_ONCE])

    def settle(self) -> None:
        """What a bucket has acknowledged is stored."""

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.BaseError, OSError, ValueError) as error:
            told = " ".join(str(error).partition("Debug source")[0].split())[:300]
            raise errors.BackupFailed(
                f"cannot use {self._url} for backups: {told}; check the bucket and AWS_ENDPOINT_URL, AWS_REGION, "
                "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
            ) from error
