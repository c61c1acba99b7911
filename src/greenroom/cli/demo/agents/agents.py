# ruff: noqa: INP001 - a node's folder, not a package
"""The demonstration's three agents: AutoGen's own, each in a function that Greenroom calls with a task's input.

Greenroom copies this folder and runs it in the agents' replicas. Every task builds its AutoGen agents and their model
client anew: both keep a conversation, and nobody's text may enter another's prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ChatCompletionClient, CreateResult
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient

from greenroom import Context


async def research(input: str, context: Context, *, model: dict[str, Any]) -> Any:
    """Collect notes, and pass them on: what `analysis` returns is the answer."""
    notes = await context.run(
        _assistant("researcher", "You are a research assistant. You write three short sentences.", model),
        input,
    )
    return await context.call("analysis", notes)


async def analysis(input: str, context: Context, *, model: dict[str, Any]) -> Any:
    """Say what the notes mean, and have it written up."""
    findings = await context.run(
        _assistant("analyst", "You are an analyst. You answer in two short sentences.", model),
        f"{input}\n\nWho gains most from this, and why?",
    )
    return await context.call("writing", findings)


async def writing(input: str, context: Context, *, model: dict[str, Any]) -> Any:
    """A team of two: one writes, the other makes it shorter."""
    team = RoundRobinGroupChat(
        [
            _assistant("writer", "You are a journalist. You write short articles.", model),
            _assistant("editor", "You are an editor. You make articles shorter and simpler.", model),
        ],
        termination_condition=MaxMessageTermination(3),  # the request, the article, the edited article
    )
    return await context.run(team, f"Write a short article that says: {input}")


def _assistant(name: str, system_message: str, model: dict[str, Any]) -> AssistantAgent:
    return AssistantAgent(
        name, model_client=_client(name, model), system_message=system_message, model_client_stream=True
    )


def _client(name: str, model: dict[str, Any]) -> ChatCompletionClient:
    if model["model"] == "replay":
        return Replayed([REPLAYS[name]])
    return OpenAIChatCompletionClient(**model)


class Replayed(ReplayChatCompletionClient):
    """For tests: no model, but a prepared answer, word by word and slowly enough to be interrupted."""

    async def create_stream(self, *args: Any, **keywords: Any) -> AsyncGenerator[str | CreateResult, None]:
        async for piece in super().create_stream(*args, **keywords):
            await asyncio.sleep(0.02)
            yield piece


REPLAYS = {
    "researcher": "Small models run on laptops. Models reason step by step. Agents use tools.",
    "analyst": "Small models matter to everybody who may not send data away. Agents matter to those who run them.",
    "writer": "This year models learned to reason, shrank until they fit a laptop, and began to use tools.",
    "editor": "Models learned to reason, to run on laptops, and to use tools.",
}
