# ruff: noqa: ARG002, ARG005, T201 - agents as people write them
"""AutoGen AgentChat agents and teams on models that answer without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pydantic
from autogen_agentchat import agents, base, conditions, messages, teams
from autogen_core import CancellationToken, FunctionCall
from autogen_core import models as core_models
from autogen_ext.models import replay

from greenroom.sdk import context as sdk_context

Seen = Sequence[core_models.LLMMessage]
Reply = str | list[FunctionCall]


class Model(core_models.ChatCompletionClient):
    """Answers with what *answer* makes of the messages: tool calls and errors, which a replay cannot do."""

    def __init__(self, answer: Callable[[Seen], Reply], *, meet: asyncio.Barrier | None = None) -> None:
        self._answer, self._meet = answer, meet

    async def create(self, messages: Seen, **_: Any) -> core_models.CreateResult:
        if self._meet is not None:
            await self._meet.wait()
        content = self._answer(messages)
        return core_models.CreateResult(
            finish_reason="stop" if isinstance(content, str) else "function_calls",
            content=content,
            usage=core_models.RequestUsage(10, 5),
            cached=False,
        )

    async def create_stream(self, messages: Seen, **_: Any) -> AsyncGenerator[str | core_models.CreateResult, None]:
        result = await self.create(messages)
        for word in str(result.content).split():
            yield word
        yield result

    async def close(self) -> None:
        pass

    def actual_usage(self) -> core_models.RequestUsage:
        return core_models.RequestUsage(0, 0)

    total_usage = actual_usage

    def count_tokens(self, messages: Seen, **_: Any) -> int:
        return 0

    remaining_tokens = count_tokens

    @property
    def capabilities(self) -> Any:
        return self.model_info

    @property
    def model_info(self) -> core_models.ModelInfo:
        return core_models.ModelInfo(
            vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True
        )


def texts(seen: Seen) -> str:
    return json.dumps([m.content for m in seen if isinstance(m, core_models.UserMessage)])


def kinds(seen: Seen) -> str:
    return json.dumps([m.type for m in seen if m.type != "SystemMessage"])


_two = asyncio.Barrier(2)


def seen_by_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(texts, meet=_two))


def seen_by_team() -> base.Team:
    agent = agents.AssistantAgent("a", model_client=Model(texts, meet=_two))
    return teams.RoundRobinGroupChat([agent], termination_condition=conditions.MaxMessageTermination(2))


_one_agent = agents.AssistantAgent("a", model_client=Model(texts))
_one_team = teams.RoundRobinGroupChat([agents.AssistantAgent("b", model_client=Model(texts))], max_turns=1)
ready_made = _one_agent


def always_the_same() -> base.ChatAgent:
    return _one_agent


def team_of_shared_agents() -> base.Team:
    return teams.RoundRobinGroupChat([_one_agent], termination_condition=conditions.MaxMessageTermination(2))


def team_of_a_shared_team() -> base.Team:
    return teams.RoundRobinGroupChat([agents.SocietyOfMindAgent("s", _one_team, Model(texts))], max_turns=1)


async def stuck(x: str) -> str:
    """Wait for ever."""
    print("in the tool")
    try:
        await asyncio.Event().wait()
    finally:
        print("tool ended")
    return x


def call_stuck(seen: Seen) -> Reply:
    if seen[-1].content == "go":
        return [FunctionCall(id="1", name="stuck", arguments='{"x": "1"}')]
    return kinds(seen)


def stuck_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(call_stuck), tools=[stuck])


def stuck_team() -> base.Team:
    return teams.RoundRobinGroupChat([stuck_agent()], termination_condition=conditions.MaxMessageTermination(2))


def remembering_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(texts))


def remembering_team(names: Sequence[str] = ("a", "b")) -> base.Team:
    members = [agents.AssistantAgent(name, model_client=Model(texts)) for name in names]
    return teams.RoundRobinGroupChat([*members], termination_condition=conditions.MaxMessageTermination(3))


class Overloaded(ConnectionError):
    retryable = True


def fail(seen: Seen) -> Reply:
    match seen[-1].content:
        case "overloaded":
            raise Overloaded("come back: later")
        case _:
            raise TimeoutError("429")


def failing_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(fail))


def failing_team() -> base.Team:
    return teams.RoundRobinGroupChat([failing_agent()], max_turns=2)


def failing_team_of_teams() -> base.Team:
    return teams.RoundRobinGroupChat([failing_team()], max_turns=2)


def shout(text: str) -> str:
    """Say it louder."""
    print("shouting")
    sdk_context.current().emit({"from": "tool"})
    return text.upper()


def call_shout(seen: Seen) -> Reply:
    if isinstance(seen[-1], core_models.UserMessage):
        return [FunctionCall(id="1", name="shout", arguments=json.dumps({"text": seen[-1].content}))]
    return "I said " + str(seen[-1].content)


def tool_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(call_shout), tools=[shout], reflect_on_tool_use=True)


def summary_agent() -> base.ChatAgent:
    return agents.AssistantAgent("a", model_client=Model(call_shout), tools=[shout])


def streaming_agent() -> base.ChatAgent:
    client = replay.ReplayChatCompletionClient(["one two three"])
    return agents.AssistantAgent("a", model_client=client, model_client_stream=True)


def replay_team() -> base.Team:
    names = ("research", "analysis")
    members = [
        agents.AssistantAgent(name, model_client=replay.ReplayChatCompletionClient([f"{name} done"])) for name in names
    ]
    return teams.RoundRobinGroupChat([*members], max_turns=2)


class Verdict(pydantic.BaseModel):
    good: bool
    score: int


def structured_agent() -> base.ChatAgent:
    client = Model(lambda seen: '{"good": true, "score": 3}')
    return agents.AssistantAgent("a", model_client=client, output_content_type=Verdict)


class Handing(agents.BaseChatAgent):
    """Ends with a handoff, and says when it was closed."""

    def __init__(self) -> None:
        super().__init__("handing", "hands over")

    @property
    def produced_message_types(self) -> Sequence[type[messages.BaseChatMessage]]:
        return (messages.HandoffMessage,)

    async def on_messages(
        self, messages_: Sequence[messages.BaseChatMessage], cancellation_token: CancellationToken
    ) -> base.Response:
        message = messages.HandoffMessage(content="over to you", target="user", source=self.name)
        return base.Response(chat_message=message)

    async def on_reset(self, cancellation_token: CancellationToken) -> None:
        pass

    async def close(self) -> None:
        print("closed")


def handing_team() -> base.Team:
    return teams.RoundRobinGroupChat([Handing()], max_turns=1)


async def function_that_runs_agents(input: str, context: sdk_context.Context) -> Any:
    return [await context.run(tool_agent(), input), await context.run(remembering_agent(), input)]
