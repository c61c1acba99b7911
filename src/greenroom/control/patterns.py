"""Patterns: regular expressions of other people, searched for in a process of their own.

A pattern can take longer than anybody lives (``(a+)+$``), and the interpreter does nothing else meanwhile. So it runs
where it can be ended. Called by `control.trials`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

SEARCH_S: Final = 5.0
_SEARCH: Final = """
import json, re, sys
pattern, texts = json.load(sys.stdin)
sys.exit(0 if any(re.search(pattern, text) for text in texts) else 1)
"""


async def is_found(pattern: str, texts: Sequence[str]) -> bool | None:
    """Whether *pattern* is found in one of *texts*; None where that is not known after `SEARCH_S`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _SEARCH, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(SEARCH_S):
            await process.communicate(msgspec.json.encode((pattern, list(texts))))
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode == 0
