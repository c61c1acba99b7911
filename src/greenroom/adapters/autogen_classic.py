"""AutoGen 0.2 style agents: AG2 Classic (PyPI ``autogen`` 0.14) and what has its ``generate_reply``.

Recognised by shape, so that pyautogen and subclasses fit as well. The agent is asked for one reply to the
conversation, without a sender, so that no history is kept in it: a session's state is that conversation. The
synchronous method runs in a thread; an agent that has asynchronous reply functions of its own is asked
asynchronously, because the synchronous method skips those. It has no way to cancel: a thread that does not
end is ended with its process.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import Any

from greenroom.adapters import contract, model_calls
from greenroom.sdk import context as sdk_context


class Classic:
    """The adapter."""

    name = "autogen-classic"
    took = "an AutoGen 0.2 style agent (generate_reply)"

    def recognises(self, agent: object) -> bool:
        return callable(getattr(agent, "generate_reply", None)) and not isinstance(agent, type)

    def parts(self, agent: object) -> list[object]:
        members = getattr(getattr(agent, "groupchat", None), "agents", ())
        return [agent, *(member for member in members if self.recognises(member))]

    def open(self, agent: object) -> contract.Instance:
        return ClassicInstance(agent)


class ClassicInstance:
    """One agent, for one task."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._history: list[dict[str, Any]] = []

    @property
    def usage(self) -> contract.Usage:
        read = getattr(self._agent, "get_total_usage", None)
        models = (read() if callable(read) else None) or {}
        total = contract.Usage()
        for usage in models.values():  # beside the models stands "total_cost", a number
            if isinstance(usage, dict):
                total += contract.Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        return total

    async def run(self, input: Any, context: sdk_context.Context) -> Any:
        self._history.extend(messages_of(input))
        messages = [dict(message) for message in self._history]
        if context.trace_headers:
            model_calls.trace_classic(Classic().parts(self._agent))
        if _is_asynchronous(self._agent):
            reply = await self._agent.a_generate_reply(messages=messages)
        else:
            reply = await asyncio.to_thread(self._agent.generate_reply, messages=messages)
        self._history.append(self._said(reply))
        output = reply.get("content") if isinstance(reply, dict) and not reply.get("tool_calls") else reply
        said = {"source": self._name, "content": output}
        contract.publish(context, said, type="message", shown=said)
        return output

    def cancel(self) -> None:
        pass

    async def save_state(self) -> Any:
        return {"messages": self._history}

    async def load_state(self, state: Any) -> None:
        self._history = list(state["messages"])

    async def close(self) -> None:
        pass

    @property
    def _name(self) -> str:
        return str(getattr(self._agent, "name", "agent"))

    def _said(self, reply: Any) -> dict[str, Any]:
        # "name" is left out: providers refuse names with spaces, and the role says who spoke.
        if isinstance(reply, dict):
            return {**reply, "role": "assistant"}
        return {"role": "assistant", "content": "" if reply is None else reply}


def messages_of(input: Any) -> list[dict[str, Any]]:
    """Return what a task's input adds to the conversation: messages as they are, or one of the user's."""
    if (
        isinstance(input, list)
        and input
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in input)
    ):
        return input
    if isinstance(input, dict) and isinstance(input.get("content"), str):
        return [{"role": "user", **input}]
    text = input if isinstance(input, str) else json.dumps(input, ensure_ascii=False, separators=(",", ":"))
    return [{"role": "user", "content": text}]


def _is_asynchronous(agent: Any) -> bool:
    if not inspect.iscoroutinefunction(getattr(agent, "a_generate_reply", None)):
        return False
    # The framework's own asynchronous reply functions have synchronous twins, and are marked so.
    return any(
        inspect.iscoroutinefunction(reply.get("reply_func")) and not reply.get("ignore_async_in_sync_chat")
        for reply in getattr(agent, "_reply_func_list", ())
    )
