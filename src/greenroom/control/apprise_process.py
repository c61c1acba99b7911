"""A message by apprise, in a process of its own (`apprise_child`): it blocks, and only its end bounds it.

The URL, which holds passwords, goes in on stdin; the exit code says what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
from pathlib import Path

from greenroom.control import apprise_child
from greenroom.security.outgoing import Answer

TIMEOUT_S = 25.0
_WORDS = {
    apprise_child.NOT_SENT: "the message could not be delivered",
    apprise_child.NOT_KNOWN: "its URL is none that apprise knows",
}
# What it needs of the node's environment, in which other secrets may be.
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")


def is_there() -> bool:
    """Tell whether apprise is installed, without importing it."""
    return importlib.util.find_spec("apprise") is not None


async def send(url: str, title: str, text: str) -> Answer:
    """Send a message to an apprise URL; what was delivered is answered 200, as apprise tells no more."""
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    folders = [folder for folder in sys.path if folder.endswith("-packages")]
    # Isolated: what packages hook into Python's start has no business here, nor the node's working directory.
    command = (sys.executable, "-I", "-S", str(Path(apprise_child.__file__)), *folders)
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=nothing, stderr=nothing, env=environment, start_new_session=True
        )
    except OSError as error:
        return Answer(error=f"no process can be started: {error.strerror}")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await process.communicate(json.dumps([url, title, text]).encode())
    except TimeoutError:
        return Answer(error=f"no answer within {TIMEOUT_S:g} s")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == apprise_child.SENT:
        return Answer(200)
    return Answer(error=_WORDS.get(process.returncode or 0, "the process that sends it has failed"))
