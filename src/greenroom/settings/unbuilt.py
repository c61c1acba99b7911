"""The switches whose control this release does not have: off everywhere, and an error where somebody turns
one on.

A switch that enforces nothing is worse than none. Whoever builds a control deletes its line here, and the
environments' designed values and the manifest's become effective. The value that stands for "off" is the
schema's default; ``*`` stands for every agent's name.
"""

from __future__ import annotations

from typing import TypeVar

from msgspec import structs

from greenroom.settings.environments import DESIGNS, Design
from greenroom.settings.problems import KeyPath, dotted
from greenroom.settings.schema import Cluster, Environment, Security

Section = TypeVar("Section", Cluster, Security)

NOT_YET_BUILT: dict[str, str] = {}


def why_not_built(path: KeyPath) -> str | None:
    """What happens instead, where *path* names a switch whose control this release does not have."""
    if path[:1] == ("agents",):
        path = ("agents", "*", *path[2:])
    return NOT_YET_BUILT.get(dotted(path))


def effective(environment: Environment) -> Design:
    """The defaults of *environment* in this release: its design without what is not yet built."""
    design = DESIGNS[environment]
    return Design(_built("cluster", design.cluster), _built("security", design.security))


def _built(name: str, section: Section) -> Section:
    off = {
        field.name: field.default for field in structs.fields(section) if why_not_built((name, field.name)) is not None
    }
    return structs.replace(section, **off)
