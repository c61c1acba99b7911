"""Data never becomes code: what would make it so is not in the sources, and is not called while a node runs."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import greenroom
import nodes

SOURCES = Path(greenroom.__file__).parent
MODULES = {
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib", "yaml"),
    *("code", "codeop", "runpy", "imp", "zipimport", "pkgutil", "dbm", "xml", "xmlrpc", "multiprocessing"),
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"}
ATTRIBUTES = {
    *("system", "popen", "spawnl", "spawnv", "getoutput", "getstatusoutput", "create_subprocess_shell"),
    *("load_component", "_from_config", "unsafe_load", "full_load", "literal_eval"),
    *("import_module", "exec_module", "load_module", "spec_from_file_location", "entry_points"),
}

# What is allowed, and why. A line that is needed no more fails, too.
ALLOWED = {
    ("__init__.py", "import_module"): "of names that are written there",
    ("cli/doctor.py", "system"): "of the module platform: the kernel's name",
    ("api/dashboard/pages.py", "system"): "of the page of that name",
    ("api/operations.py", "system"): "of the module grading: the system's grade",
    ("api/scrapes.py", "system"): "as above",
    ("embeddings.py", "import_module"): "of an optional package, whose name is written there",
    ("testing/databases.py", "import_module"): "of an optional package, whose name is written there",
    ("engine/factories.py", "import_module"): "in the replica: the agent's own code, which is what it is for",
    ("engine/factories.py", "spec_from_file_location"): "as above",
    ("engine/factories.py", "exec_module"): "as above",
    ("adapters/registry.py", "entry_points"): "in the replica: adapters that are installed",
    ("control/user_rules.py", "entry_points"): "the optimizer's rules that the operator has installed",
    ("testing/simulation/runs.py", "multiprocessing"): "simulations on several CPUs, never in a node",
    ("testing/simulation/rollout_runs.py", "multiprocessing"): "as above",
}


def _findings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (each.name.partition(".")[0] for each in aliases if each.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module), level=0):
                names = {alias.name for alias in node.names}
                yield from ({module.partition(".")[0]} & MODULES) | (names & ATTRIBUTES)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS | ATTRIBUTES:
                yield name
            case ast.Attribute(attr=name) if name in ATTRIBUTES:
                yield name
            case ast.keyword(arg="shell", value=ast.Constant(value=value)) if value:
                yield "shell"
            case _:
                pass


def test_nothing_in_the_sources_makes_code_of_data() -> None:
    found = {
        (path.relative_to(SOURCES).as_posix(), finding)
        for path in SOURCES.rglob("*.py")
        for finding in _findings(ast.parse(path.read_text()))
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import xml.etree",
        "eval('1')",
        "subprocess.run('x', shell=True)",
        "os.system('x')",
        "from os import system",
        "importlib.import_module(name)",
        "ComponentLoader.load_component(x)",
    ],
)
def test_the_ban_finds_what_it_looks_for(source: str) -> None:
    assert list(_findings(ast.parse(source)))


# Loaded into a node as it starts. It tells of what makes code of bytes: unpickling, and code that comes from no file.
HOOK = """
import json, os, sys
_into = os.open({into!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_owner = os.getpid()
def _hook(event, args):
    if os.getpid() != _owner:  # what a replica does is its own business
        return
    if event in ("pickle.find_class", "marshal.loads", "code.__new__", "function.__new__", "os.system"):
        frame = sys._getframe(1)
    elif event in ("exec", "compile"):
        frame = sys._getframe(1)
        name = args[0].co_filename if event == "exec" else str(args[1])
        if not {ready} or os.path.exists(name) or name.startswith("<frozen"):
            return
    else:
        return
    where = frame.f_code.co_filename
    if where.startswith("<frozen importlib") or not {ready}:
        return
    os.write(_into, (json.dumps([event, where, frame.f_lineno, repr(args)[:200]]) + "\\n").encode())
sys.addaudithook(_hook)
"""
READY = "os.path.exists({gate!r})"

# Who makes code while a node runs: of text of their own.
GENERATED = {
    "dataclasses.py": "methods of classes, by the standard library",
    "collections/__init__.py": "named tuples, by the standard library",
    "typing.py": "annotations of our own types, which msgspec reads when it first meets them",
    "ast.py": "an agent's file is parsed, and not run",
}


@pytest.mark.slow
def test_a_node_makes_no_code_of_what_it_receives(tmp_path: Path) -> None:
    folder, into, gate = nodes.Folder(tmp_path / "project"), tmp_path / "events", tmp_path / "ready"
    hook = HOOK.replace("{into!r}", repr(str(into))).replace("{ready}", READY.format(gate=str(gate)))
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(hook)
    folder.manifest('[agents.echo]\nfactory = "agents:echo"\nconcurrency = 4\n')
    folder.environment["PYTHONPATH"] = os.pathsep.join([str(site), nodes.SOURCE])
    try:
        up = folder.up()
        gate.touch()  # what is imported and built while it starts is no data
        _use(up)
        gate.unlink()
    finally:
        folder.close()
    lines = [json.loads(line) for line in into.read_text().splitlines()] if into.exists() else []
    assert [line for line in lines if not line[1].endswith(tuple(GENERATED))] == []
    assert [line for line in lines if any(word in line[3] for word in ("posix", "apply", "provider", "7*7"))] == []


def test_the_hook_sees_what_makes_code_of_data(tmp_path: Path) -> None:
    into = tmp_path / "events"
    hook = HOOK.replace("{into!r}", repr(str(into))).replace("{ready}", "True")
    acts = "import pickle; pickle.loads(pickle.dumps(print)); eval('1'); exec('2'); compile('3', 'x', 'eval')"
    subprocess.run([sys.executable, "-c", f"{hook}\n{acts}"], check=True, timeout=30)
    told = {json.loads(line)[0] for line in into.read_text().splitlines()}
    assert {"pickle.find_class", "exec", "compile"} <= told


def _use(up: nodes.Up) -> None:
    """Every kind of thing that a caller may send, some of it made to be unpacked by the wrong reader."""
    pickled = "gASVHwAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"  # os.system("true")
    inputs = (
        pickled,
        {"py/object": "os.system", "py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["true"]}]},
        {"__class__": "os.system", "lc": 2, "type": "constructor", "id": ["os", "system"], "kwargs": {}},
        "!!python/object/apply:os.system ['true']",
        {"provider": "autogen_core.tools.FunctionTool", "config": {"source_code": "import os"}},
        "__import__('os').system('true')",
        "${7*7} {{7*7}} #{7*7} %s {0.__class__}",
    )
    for given in inputs:
        assert up.end_of(up.submit("echo", given, metadata={"x": given}))["output"] == given
        assert up.call("PUT", "/v1/agents/x", {"factory": "agents:echo", "arguments": {"x": given}}).status_code
        up.call("POST", "/v1/keys", {"name": str(given)[:100]})
    assert up.call("GET", "/v1/status").status_code == 200
    assert up.call("GET", "/v1/tasks").status_code == 200
