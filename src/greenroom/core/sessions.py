"""Sessions: what they may be called, wherever the name comes from."""

from __future__ import annotations

import re

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}"
NAME_IN_WORDS = "at most 128 of A-Z, a-z, 0-9 and _ . : @ -, beginning with a letter or a digit"
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
