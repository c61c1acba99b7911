"""Judges an interpreter that an agent brings along: Python 3.11 or newer, with msgspec. Called by `engine.local`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from greenroom import errors

OWN = sys.executable
_DEADLINE_S = 20.0
_QUESTION = """
import ctypes, sys
if sys.version_info < (3, 11): sys.exit("it is older than Python 3.11")
import msgspec
"""


class Interpreters:
    """Remembers those that were found good, until their file changes."""

    def __init__(self) -> None:
        self._good: dict[str, int] = {}

    async def check(self, agent: str, python: str) -> None:
        """Raise `errors.AgentInvalid` when *python*, an absolute path, cannot run replicas."""
        try:
            changed_ns = os.stat(python).st_mtime_ns  # noqa: PTH116  # one look at a local file
        except OSError as error:
            raise errors.AgentInvalid(
                f"cannot run agent {agent} with {python}: {error.strerror}; correct the agent's python"
            ) from error
        if self._good.get(python) == changed_ns:
            return
        problem = await asyncio.to_thread(_ask, python)
        if problem:
            raise errors.AgentInvalid(f"cannot run agent {agent} with {python}: {problem}")
        self._good[python] = changed_ns


def _ask(python: str) -> str:
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DEADLINE_S,
            env={},
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{error}; correct the agent's python"
    if "No module named 'msgspec'" in answer.stderr:
        return f"it has no msgspec, which a replica needs; install it there: {python} -m pip install msgspec"
    return (answer.stderr.strip().splitlines() or ["it says nothing and fails"])[-1] if answer.returncode else ""
