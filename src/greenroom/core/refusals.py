"""Refusals: whether a model declined its task, by how its answer begins. Pure; who counts the tasks of a rollout asks.

A heuristic for English that rather says no: it serves to compare two revisions of one agent, so what it misses it
misses on both, while an answer that it takes for a refusal by mistake is held against one. A tool that failed or an
order that was not found is no refusal, however sorry the answer is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

MAX_BYTES: Final = 64 * 1024  # a longer output is not read at all: nobody declines at such length
MAX_CHARS: Final = 300  # of its text: who declines says so at once

_FILTER: Final = re.compile(r"content_?(filter|policy)|responsible_?ai", re.IGNORECASE)

# Where models and frameworks put their text; the first that there is counts.
_KEYS: Final = ("content", "output", "text", "message", "messages", "choices", "answer", "response", "result")
_STOPS: Final = ("finish_reason", "stop_reason")
_DEPTH: Final = 6

# All is lower case, and *can't*, *cannot* and *I'm* are written out; so the patterns need no variants of them.
_WRITTEN_OUT: Final = (
    ("can't", "can not"), ("cannot", "can not"), ("won't", "will not"), ("n't", " not"), ("'m", " am"), ("'re", " are"),
    ("'ll", " will"),
)  # fmt: skip

# What may stand before the point is reached, again and again.
_POLITE: Final = re.compile(
    r"""
    (?: (?: (?:i|we)\ (?:am|are)\ )? (?:(?:very|so|really|truly)\ )? (?:sorry|afraid)\b
      | (?:my\ |i\ |we\ )? (?:sincere(?:ly)?\ )? apologi(?:es|[sz]e)\b | unfortunately\b | regrettably\b | no\b
      | for\ (?:the|any)\ (?:inconvenience|confusion)\b | but\b | however\b | that\b
      | (?: (?:i|we)\ (?:understand|appreciate|know) | thank(?:s|\ you) ) \b [^.,!?]{0,100} (?=[.,!?])
    ) [ ,.:;!-]*
    """,
    re.VERBOSE,
)
_AI: Final = re.compile(
    r"as an? (?:(?:responsible|helpful) )?(?:(?:large |ai )?language model|ai|artificial intelligence)\b[^.,!?]{0,60}, "
)
_UNOPINIONATED: Final = re.compile(r"i do not (?:have|hold|form|express|engage|provide)\b")

_DECLINES: Final = re.compile(
    r"""
    (?: (?:i|we)\ )?
    (?: (?:can|will)\ not (?:\ be\ able\ to)?
      | (?:(?:am|are)\ )? (?:unable|not\ (?:able|allowed|permitted|going|programmed|designed))\ to
      | (?:(?:am|are)\ not|do\ not\ feel)\ comfortable (?:\ with)?
    )
    (?: ,?\ (?:directly|ethically|legally|in\ good\ conscience),? )?
    \ (?: help (?: \ (?:you|with|users?|anyone|people|in)\b | ing\b | [.,;:!] | $ )
        | assist | comply | fulfil | facilitat | participat | engag(?:e|ing)\b | discuss
        | do\ (?:this|that|so)\b (?!\ (?:until|before|because)\b)
        | answer (?:ing)? \ (?:this|that|your|the|questions|any)\b
        | (?:continue|proceed)\ with\ (?:this|that|your)\b
        | (?:writ|creat|generat|produc|provid|giv|offer|shar) (?:e|ing)? \b
          (?! (?:\ (?:you|with|a|an|the|any))*
              \ (?:more|exact|precise|better|file|column|table|index|directory|database)\b )
      )
    | (?:i|we)\ (?:(?:must|have\ to|need\ to|will\ have\ to|am\ going\ to\ have\ to)\ )? (?:respectfully\ )?
      (?:decline|refuse)\b
    | it\ (?:is|would\ be)\ (?:not\ appropriate|inappropriate|against\ my)\b
    | (?:this|your|the)\ (?:request|prompt|content|message)\ (?:violates|goes\ against|was\ (?:flagged|blocked)) \b
      [^.!?]{0,60} (?:polic|guideline|filter)
    """,
    re.VERBOSE,
)
_BARE: Final = re.compile(r"i can not(?: do (?:that|it|this))?[ .!]*$")


def is_refusal(output: bytes | None, error_type: str | None) -> bool:
    """Say whether a task that ended with *output*, in JSON, or with an error of *error_type* was declined by its model.

    >>> is_refusal(b'"I am sorry, but I cannot help with that."', None)
    True
    >>> is_refusal(b'"I am sorry to hear that. Your refund is on its way."', None)
    False
    """
    if error_type is not None and _FILTER.search(error_type):
        return True
    if not output or len(output) > MAX_BYTES:
        return False
    try:
        value = msgspec.json.decode(output)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    text = _text(value, _DEPTH)
    return text is None or _declines(text)


def _declines(text: str) -> bool:
    begin = _begin(text)
    after = begin
    while polite := _POLITE.match(after):
        after = after[polite.end() :]
    if ai := _AI.match(after):
        after = after[ai.end() :]
        if _UNOPINIONATED.match(after):
            return True
    return bool(_DECLINES.match(after) or (after != begin and _BARE.match(after)))


def _begin(text: str) -> str:
    begin = " ".join(text[:MAX_CHARS].replace("\u2019", "'").lower().split()).lstrip("*#>\"'_ ")
    for short, written_out in _WRITTEN_OUT:
        begin = begin.replace(short, written_out)
    return begin


def _text(value: object, depth: int) -> str | None:
    """Return the text of an answer, empty if it has none; None if the model's service says itself that it declined."""
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if isinstance(value, list):
        return _of_list(value, depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    return ""


def _of_list(values: list[object], depth: int) -> str | None:
    """The last message that says something; parts of one message are told by their type, and begin with the first."""
    parts = [each for each in values if isinstance(each, Mapping) and each.get("type") in ("text", "output_text")]
    for each in parts[:1] or reversed(values[-3:]):
        if (text := _text(each, depth - 1)) != "":
            return text
    return ""


def _of_object(value: Mapping[str, object], depth: int) -> str | None:
    refusal = value.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return None
    if any(value.get(stop) in ("content_filter", "refusal") for stop in _STOPS):
        return None
    for key in _KEYS:
        if key in value and (text := _text(value[key], depth - 1)) != "":
            return text
    return ""
