"""Unpredictable bits for ids, by the kernel's generator, a page at a time: one system call for hundreds of ids.

For ids, of which hundreds are made for each secret: keys and other secrets use `secrets` itself.
"""

from __future__ import annotations

import os

_PAGE_BYTES = 4096


class _Pool:
    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._page, self._used = b"", 0

    def take(self, count: int) -> bytes:
        """Return *count* bytes that nobody has seen, nor will; at most a page."""
        if self._used + count > len(self._page):
            self._page, self._used = os.urandom(_PAGE_BYTES), 0
        self._used += count
        return self._page[self._used - count : self._used]


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)  # a child must not repeat what its parent says


def token_hex(count: int) -> str:
    """Return *count* random bytes as hexadecimal digits."""
    return _pool.take(count).hex()
