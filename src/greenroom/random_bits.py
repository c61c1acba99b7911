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
        self._page, self._used = "", 0

    def token_hex(self, count: int) -> str:
        """Return *count* random bytes as hexadecimal digits, which nobody has seen, nor will; at most a page."""
        start, end = self._used, self._used + 2 * count
        if end > len(self._page):
            self._page, start, end = os.urandom(_PAGE_BYTES).hex(), 0, 2 * count
        self._used = end
        return self._page[start:end]


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.forget)  # a child must not repeat what its parent says
token_hex = _pool.token_hex
