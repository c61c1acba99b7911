"""A script as people run it: its classes are agents, and its guarded part must not run in a replica."""

from __future__ import annotations

import dataclasses
import typing

import script  # type: ignore[import-not-found]  # itself, by its own name: it must not run twice

Words = str


@dataclasses.dataclass
class Answer:
    text: Words


class Agent:
    def execute_task(self, payload: str) -> dict[str, typing.Any]:
        hints = typing.get_type_hints(Answer)
        return {
            "module": type(self).__module__,
            "hints": list(hints),
            "same": script.Agent is Agent,
            "payload": payload,
        }


if __name__ == "__main__":
    raise AssertionError("the script was run")
