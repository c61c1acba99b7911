"""`greenroom init`: a manifest and an agent to start from."""

from __future__ import annotations

from pathlib import Path

from greenroom import errors
from greenroom.cli import config, render

AGENTS = '''\
"""The agents that greenroom.toml names: functions, classes, or AutoGen agents and teams."""


async def hello(input: str) -> str:
    return f"Hello, {input}!"


# An AutoGen agent is a factory, called for each session or task with the manifest's `arguments`:
#
#     from autogen_agentchat.agents import AssistantAgent
#     from autogen_ext.models.openai import OpenAIChatCompletionClient
#
#     def research(model: str) -> AssistantAgent:
#         client = OpenAIChatCompletionClient(model=model)
#         return AssistantAgent("research", model_client=client, system_message="You summarise sources.")
#
# and in greenroom.toml:
#
#     [agents.research]
#     factory = "agents:research"
#     description = "Finds and summarises sources"
#     arguments = { model = "gpt-4o-mini" }
#     env = ["OPENAI_API_KEY"]
#
# Agents work in a closed room: they write to a private TMPDIR, and read what is here; other folders are named by
# `read_paths` and `write_paths`.
'''


def init(folder: Path = Path(), /) -> None:
    """Write greenroom.toml and agents.py; what is there already is never overwritten.

    Parameters
    ----------
    folder
        Where to, else here.
    """
    from greenroom import settings

    files = {folder / config.MANIFEST: settings.starter_manifest(), folder / "agents.py": AGENTS}
    for path in files:
        if path.exists() or path.is_symlink():
            raise errors.Conflict(f"cannot write {path}: it is there already; move it away, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        render.line(f"wrote {path}")
    go_there = "" if folder == Path() else f"cd {folder}, then "
    render.say(f"next: {go_there}greenroom up, and in another terminal: greenroom submit hello Ada --wait")
