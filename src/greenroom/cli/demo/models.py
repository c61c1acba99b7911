"""Which model the demonstration's agents use, and how it is called in the output.

An OpenAI-compatible endpoint where the usual variables name one, else the small local model; for tests, none at all.
Called by `story`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from greenroom.cli import local_model

CHOICE = "GREENROOM_DEMO_MODEL"  # "local" or "replay"; else the variables of OpenAI decide
DEFAULT_MODEL = "gpt-4o-mini"

# What OpenAI's client must be told of a model that it does not know. The agents here need text alone.
_TEXT_ONLY = {
    "vision": False,
    "function_calling": False,
    "json_output": False,
    "structured_output": False,
    "family": "unknown",
}
_USAGE_TOO = {"stream_options": {"include_usage": True}}  # a streamed answer has no token count otherwise
# So that 135 million parameters stay short and do not repeat themselves.
_SMALL = {"max_tokens": 110, "temperature": 0.5, "frequency_penalty": 0.5, "stop": ["\n\n"]}


@dataclass(frozen=True, slots=True)
class Model:
    """*arguments* are OpenAIChatCompletionClient's; *about* is one line for people."""

    about: str
    arguments: Mapping[str, Any]


@contextlib.contextmanager
def chosen(environ: Mapping[str, str]) -> Iterator[Model]:
    """The model that *environ* names, there for the length of the block."""
    choice = environ.get(CHOICE)
    if choice == "replay":
        yield Model("none: prepared answers are replayed", {"model": "replay"})
    elif choice != "local" and (environ.get("OPENAI_API_KEY") or environ.get("OPENAI_BASE_URL")):
        yield _endpoint(environ)
    else:
        with local_model.LocalModel() as served:
            yield _local(served)


def _endpoint(environ: Mapping[str, str]) -> Model:
    name, base_url = environ.get("OPENAI_MODEL") or DEFAULT_MODEL, environ.get("OPENAI_BASE_URL")
    arguments: dict[str, Any] = {"model": name, **_USAGE_TOO}
    if base_url:
        arguments |= {"base_url": base_url, "model_info": _TEXT_ONLY, "max_tokens": 300}
    if not environ.get("OPENAI_API_KEY"):
        arguments["api_key"] = "none"  # the client insists on one
    return Model(f"{name} at {base_url or 'OpenAI'}", arguments)


def _local(served: local_model.LocalModel) -> Model:
    arguments = {
        "model": served.name,
        "base_url": served.base_url,
        "api_key": "none",
        "model_info": _TEXT_ONLY,
        **_USAGE_TOO,
        **_SMALL,
    }
    about = f"{served.name} on this machine, at {served.base_url}: real, fluent, and often wrong"
    return Model(about, arguments)
