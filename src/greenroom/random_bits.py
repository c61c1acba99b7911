"""Unpredictable bits for ids and nonces, by the kernel's generator, a page at a time: one system call for hundreds.

Of these, hundreds are made for each secret: keys and other secrets use `secrets` itself.
"""

from __future__ import annotations

import io
import os

_PAGE_BYTES = 4096


class _Pool:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._read = io.BytesIO().read

    def token_bytes(self, count: int) -> bytes:
        """Return *count* random bytes, which nobody has seen, nor will; at most a page."""
        token = self._read(count)
        if len(token) < count:
            self._read = io.BytesIO(os.urandom(_PAGE_BYTES)).read
            token = self._read(count)
        return token

    def token_hex(self, count: int) -> str:
        """Return *count* of them as hexadecimal digits."""
        return self.token_bytes(count).hex()


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)  # a child must not repeat what its parent says
token_bytes, token_hex = _pool.token_bytes, _pool.token_hex
