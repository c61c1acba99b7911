# ruff: noqa: ARG001, T201 - agents as people write them
"""AG2 Classic agents whose replies are functions: no model, no network."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import autogen


def _reply(recipient: Any, messages: list[dict[str, Any]], sender: Any, config: Any) -> tuple[bool, Any]:
    print("replying")
    last = messages[-1]["content"]
    if last == "dict":
        return True, {"role": "assistant", "content": "in a dict"}
    if last == "long":
        return True, "y" * 1_000_000
    if last == "nothing":
        return True, None
    if last == "block":
        time.sleep(30)
    return True, f"{len(messages)}: " + ", ".join(m["content"] for m in messages)


async def _reply_later(recipient: Any, messages: list[dict[str, Any]], sender: Any, config: Any) -> tuple[bool, Any]:
    return True, "later: " + messages[-1]["content"]


def agent() -> autogen.ConversableAgent:
    made = autogen.ConversableAgent("classic", llm_config=False, human_input_mode="NEVER")
    made.register_reply([autogen.Agent, None], _reply)
    return made


def asynchronous_agent() -> autogen.ConversableAgent:
    made = autogen.ConversableAgent("classic", llm_config=False, human_input_mode="NEVER")
    made.register_reply([autogen.Agent, None], _reply_later)
    return made


class Counted(autogen.ConversableAgent):
    """Has used a model."""

    def get_total_usage(self) -> Any:
        return {
            "total_cost": 0.1,
            "model": {"cost": 0.1, "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }


def counted_agent() -> autogen.ConversableAgent:
    made = Counted("classic", llm_config=False, human_input_mode="NEVER")
    made.register_reply([autogen.Agent, None], _reply)
    return made


class Miscounted(autogen.ConversableAgent):
    """Has used a model whose client counts badly."""

    def get_total_usage(self) -> Any:
        return {"model": {"prompt_tokens": 7.0, "completion_tokens": None}}


def miscounted_agent() -> autogen.ConversableAgent:
    made = Miscounted("classic", llm_config=False, human_input_mode="NEVER")
    made.register_reply([autogen.Agent, None], _reply)
    return made


_member = agent()


def manager_of_a_shared_agent() -> autogen.GroupChatManager:
    other = autogen.ConversableAgent("other", llm_config=False, human_input_mode="NEVER")
    chat = autogen.GroupChat(agents=[_member, other], messages=[], speaker_selection_method="round_robin")
    return autogen.GroupChatManager(chat, llm_config=False)


def shout(text: str) -> str:
    return text.upper()


class Scripted:
    """A model client as AG2 lets people bring their own: it asks for a tool, then says what that said."""

    def __init__(self, config: dict[str, Any], **_: Any) -> None:
        self._config = config

    def create(self, params: dict[str, Any]) -> Any:
        last = params["messages"][-1]
        function = {"name": "shout", "arguments": '{"text": "hush"}'}
        call = [{"id": "1", "type": "function", "function": function}]
        message = SimpleNamespace(content=None, function_call=None, tool_calls=None)
        if last["role"] == "tool":
            message.content = f"it said {last['content']}"
        else:
            message.content, message.tool_calls = "", call
        usage = SimpleNamespace(prompt_tokens=7, completion_tokens=3, total_tokens=10)
        choice = SimpleNamespace(message=message, finish_reason="stop")
        return SimpleNamespace(
            choices=[choice], model="scripted-1", usage=usage, cost=0.0, message_retrieval_function=None
        )

    def message_retrieval(self, response: Any) -> list[Any]:
        message = response.choices[0].message
        if message.tool_calls:
            return [{"role": "assistant", "content": "", "tool_calls": message.tool_calls}]
        return [message.content]

    def cost(self, response: Any) -> float:  # noqa: ARG002
        return 0.0

    @staticmethod
    def get_usage(response: Any) -> dict[str, Any]:
        usage = response.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "cost": 0.0,
            "model": response.model,
        }


def modelled_agent() -> autogen.ConversableAgent:
    config = {"model": "scripted-1", "model_client_cls": "Scripted", "api_key": "none"}
    made = autogen.ConversableAgent("classic", llm_config={"config_list": [config]}, human_input_mode="NEVER")
    made.register_model_client(model_client_cls=Scripted)  # type: ignore[arg-type] # it does what is asked of one
    made.register_function({"shout": shout})
    return made
