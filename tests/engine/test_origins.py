"""Whether a reference is certainly code of an agent's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from greenroom.engine import origins

FILES = {
    "agents.py": """
import os
import os as system
import subprocess, json
from os import system as run
from subprocess import *
from autogen_core import ComponentLoader
from team import Team, popen
from package.inner import made as remade
from . import sibling
import team
def echo(input): return input
async def later(input): return input
class Agent:
    def build(self): ...
built = Agent()
if True:
    from pickle import loads
    def guarded(input): return input
""",
    "team.py": "from os import popen\nclass Team: pass\n",
    "sibling.py": "def x(input): return input\n",
    "package/__init__.py": "from .inner import made\nfrom .gone import lost\nfrom .... import far\n",
    "package/inner.py": "def made(input): return input\nfrom ..team import Team\n",
    "loop.py": "from loop import x\n",
    "broken.py": "def (",
    "dynamic.py": "globals().update(vars(__import__('os')))\n",
    "os.py": "def system(input): return input\n",
    "script.py": "def run(input): return input\n",
}
OWN = (
    "agents:echo",
    "agents:later",
    "agents:Agent",
    "agents:Agent.build",
    "agents:built.build",
    "agents:guarded",
    "agents:Team",
    "agents:remade",
    "agents.py:echo",
    "package:made",
    "package.inner:made",
    "script.py:run",
    "team:nothing",  # the replica says so
)
FOREIGN = (
    "builtins:exec",
    "builtins:eval",
    "os:system",
    "subprocess:run",
    "pickle:loads",
    "importlib:import_module",
    "code:interact",
    "pip:main",
    "autogen_core:ComponentLoader.load_component",
    "autogen_core.tools:FunctionTool.load_component",
    "autogen_core.tools:FunctionTool._from_config",
    "autogen_agentchat.agents:AssistantAgent",
    "greenroom.engine.factories:load",
    "msgspec:json.decode",
    "agents:os",
    "agents:os.system",
    "agents:system.system",
    "agents:subprocess.run",
    "agents:json.loads",
    "agents:run",
    "agents:Popen",
    "dynamic:run",
    "agents:ComponentLoader",
    "agents:ComponentLoader.load_component",
    "agents:popen",
    "agents:loads",
    "agents:team.popen",
    "agents:sibling.x",
    "agents:__builtins__",
    "agents:__loader__.load_module",
    "agents:echo.__globals__",
    "agents:Agent.__init__.__globals__",
    "nothing:echo",
    "package:lost",
    "package:far",
    "loop:x",
    "broken:x",
    "../agents.py:echo",
    "/agents.py:echo",
    "agents..inner:x",
    "agents\0:echo",
)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


@pytest.mark.parametrize("reference", OWN)
def test_what_is_written_there_is_its_own(snapshot: Path, reference: str) -> None:
    assert origins.foreign(snapshot, reference) is None


@pytest.mark.parametrize("reference", FOREIGN)
def test_what_is_only_imported_or_reached_there_is_not(snapshot: Path, reference: str) -> None:
    assert origins.foreign(snapshot, reference)
