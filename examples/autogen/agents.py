"""An AutoGen agent and an AutoGen team, as factories: Greenroom calls them for every session or task."""

from __future__ import annotations

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient


def assistant(model: str) -> AssistantAgent:
    """Streams its answers; tokens of a streamed answer are only counted where the client asks for them."""
    client = OpenAIChatCompletionClient(model=model, stream_options={"include_usage": True})
    return AssistantAgent(
        "assistant",
        model_client=client,
        system_message="You answer questions in one or two sentences.",
        model_client_stream=True,
    )


def newsroom(model: str) -> RoundRobinGroupChat:
    client = OpenAIChatCompletionClient(model=model)
    writer = AssistantAgent("writer", model_client=client, system_message="You write short articles.")
    editor = AssistantAgent("editor", model_client=client, system_message="You make articles shorter and simpler.")
    return RoundRobinGroupChat([writer, editor], termination_condition=MaxMessageTermination(3))
