"""What is wrong with a body, in words for people: msgspec's are for programmers. `schemas` asks for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect, structs

from greenroom.core.spelling import suggestion
from greenroom.settings import checking
from greenroom.settings.problems import dotted, shown

MOST = 5  # that one answer names


def told(value: Any, schema: type[msgspec.Struct]) -> str:
    """Say what of *value* is not as *schema* has it, a struct without structs in it."""
    return "; ".join(itertools.islice(_mistakes(value, schema), MOST))


def _mistakes(value: Any, schema: type[msgspec.Struct]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"expected an object, got {_shown(value)}"
        return
    fields = {field.name: field for field in structs.fields(schema)}
    for name in value:
        if name not in fields:
            yield f"{dotted((name,))}: unknown key; {suggestion(name, fields)}"
    for name, field in fields.items():
        if name not in value:
            if field.required:
                yield f"{name} is missing"
        elif not _is_valid(value[name], field.type):
            yield f"{name}: expected {_expectation(field)}, got {_shown(value[name])}"


def _is_valid(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return False
    return True


def _expectation(field: structs.FieldInfo) -> str:
    """Return the title of the field's type, or what its bounds say."""
    kind = inspect.type_info(field.type)
    if isinstance(kind, inspect.UnionType):
        (kind,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
    title = (kind.extra_json_schema or {}).get("title") if isinstance(kind, inspect.Metadata) else None
    return title or checking.expectation(kind)


def _shown(value: Any) -> str:
    return "an object" if isinstance(value, dict) else shown(value)
