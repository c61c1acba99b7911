"""Three agents, one request: the closing program of the AutoGen tutorial's chapter on production, with Greenroom's API.

    python examples/closing_program.py

It runs offline: the agents replay prepared answers unless OPENAI_API_KEY is set.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.openai import OpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient

from greenroom import Context, ProductionMultiAgentSystem


class Agent:
    """What the three have in common. Greenroom builds one for each task, in a replica: another process."""

    system_message: str
    offline: str

    def __init__(self, llm_config: dict[str, Any]) -> None:
        self.llm_config = llm_config

    async def ask(self, text: str, context: Context) -> str:
        """Run an AutoGen agent inside this task: its messages and its tokens are the task's."""
        assistant = AssistantAgent("assistant", model_client=self._client(), system_message=self.system_message)
        answer: str = await context.run(assistant, text)
        return answer

    def _client(self) -> ChatCompletionClient:
        if os.environ.get("OPENAI_API_KEY"):
            return OpenAIChatCompletionClient(**self.llm_config)
        return ReplayChatCompletionClient([self.offline])


class ResearchAgent(Agent):
    system_message = "You research a topic and answer with notes."
    offline = "Small models run on laptops. Models reason step by step. Agents use tools."

    async def execute_task(self, payload: dict[str, str], context: Context) -> Any:
        notes = await self.ask(payload["task"], context)
        findings = await context.call("analysis", notes)
        return await context.call("writing", findings)


class AnalysisAgent(Agent):
    system_message = "You say what the notes mean, in two sentences."
    offline = "Small models matter to those who may not send data away. Agents matter to those who run them."

    async def execute_task(self, payload: str, context: Context) -> Any:
        return await self.ask(payload, context)


class WritingAgent(Agent):
    system_message = "You write one short paragraph."
    offline = "Models learned to reason, shrank until they fit a laptop, and began to use tools."

    async def execute_task(self, payload: str, context: Context) -> Any:
        return await self.ask(payload, context)


AGENTS = [
    {"name": "research", "agent_class": ResearchAgent, "description": "Finds and summarises sources"},
    {"name": "analysis", "agent_class": AnalysisAgent, "description": "Analyses notes and says what they mean"},
    {"name": "writing", "agent_class": WritingAgent, "description": "Writes and edits articles and reports"},
]
LLM: dict[str, Any] = {"llm_config": {"model": "gpt-4o-mini"}, "env": ["OPENAI_API_KEY", "OPENAI_BASE_URL"]}


async def main() -> None:
    with tempfile.TemporaryDirectory() as data_dir:  # a system that is to remember its tasks keeps its folder
        async with ProductionMultiAgentSystem("production", data_dir=data_dir) as system:
            for agent in await system.deploy_agents([agent | LLM for agent in AGENTS]):
                print(f"deployed {agent.name}: {agent.state}")

            token = await system.create_token("user123")
            request = {"task": "Research and summarize the latest AI developments"}
            accepted = await system.process_request(token, request)
            print(f"request accepted: {accepted['agent']} does it")
            print(f"result: {await system.result(accepted['task_id'])}")

            status = await system.get_system_status()
            print(f"environment: {status['environment']}; tasks: {status['tasks']}")
    print("shut down")


if __name__ == "__main__":
    asyncio.run(main())
