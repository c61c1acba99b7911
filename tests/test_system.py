"""`ProductionMultiAgentSystem`: the platform inside one program, with agents that the program itself defines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import greenroom
import nodes
from greenroom import errors, settings, system

pytestmark = pytest.mark.slow

SOURCE = str(Path(greenroom.__file__).parents[1])

SCRIPT = """
import asyncio, json, sys
from greenroom import ProductionMultiAgentSystem, errors

class Research:
    def __init__(self, llm_config):
        self.model = llm_config["model"]
    async def execute_task(self, payload):
        return {"found": payload["task"], "model": self.model}

class Writing:
    def __init__(self, style="plain"):
        self.style = style
    def execute_task(self, payload):
        return self.style + ": " + payload["task"]

def shouting(input):
    return input["task"].upper()

async def main():
    told = {}
    async with ProductionMultiAgentSystem("development", data_dir=sys.argv[1]) as system:
        await system.deploy_agents([
            {"name": "research", "agent_class": Research, "llm_config": {"model": "m-1"},
             "description": "Finds sources"},
            {"name": "writing", "agent_class": Writing, "style": "curt", "description": "Writes an essay"},
            {"name": "shouting", "agent_class": shouting, "description": "Shouts"},
        ])
        token = await system.create_token("caller")
        routed = await system.process_request(token, {"task": "Find sources about owls"})
        named = await system.process_request(token, {"task": "on owls"}, agent="writing")
        shouted = await system.process_request(token, {"task": "owl"}, agent="shouting")
        told["routed"] = routed["agent"]
        told["results"] = [await system.result(task["task_id"], token=token) for task in (routed, named, shouted)]
        status = await system.get_system_status()
        told["pids"] = [replica.pid for replica in await system.client().replicas()]
        told["succeeded"] = status["tasks"]["succeeded"]
        for wrong in ("nonsense", token[:-1]):
            try:
                await system.process_request(wrong, {"task": "x"})
            except errors.Unauthenticated as error:
                told.setdefault("refused", []).append(type(error).__name__)
    print(json.dumps(told))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_script_deploys_its_own_classes_and_leaves_nothing(tmp_path: Path) -> None:
    script = tmp_path / "closing.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        env=os.environ | {"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["routed"] == "research"
    assert told["results"] == [{"found": "Find sources about owls", "model": "m-1"}, "curt: on owls", "OWL"]
    assert told["succeeded"] == 3
    assert told["refused"] == ["Unauthenticated"] * 2
    assert len(told["pids"]) == 3
    assert not [pid for pid in told["pids"] if Path(f"/proc/{pid}").exists()]


OF_A_PACKAGE = """
import asyncio, sys
import {imported} as tools
from greenroom import ProductionMultiAgentSystem, errors

class Loud:
    def execute_task(self, payload):
        return tools.louder(payload)

async def main():
    async with ProductionMultiAgentSystem(data_dir=sys.argv[1]) as system:
        try:
            await system.deploy_agents([{{"name": "loud", "agent_class": Loud}}])
        except errors.GreenroomError as error:
            print(error)
        else:
            task = await system.process_request(system.token, "owl", agent="loud")
            print(await system.result(task["task_id"]))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("argv", "path", "words"),
    [
        (["-m", "pkg.run"], "", "OWL"),
        (["pkg/run.py"], ".", "run the script as a part of its package, `python -m pkg.run` in "),
        (["main.py"], "lib", "lib, and a replica only what is in its folder or installed: put it there, or install it"),
        (["-"], ".", "agents.loud.agent_class: Loud comes from <stdin>, and replicas import files only"),
        (["-c", OF_A_PACKAGE.format(imported="pkg.tools")], ".", "Loud is defined interactively"),
    ],
)
def test_a_class_that_replicas_cannot_import_is_refused_with_the_way_out(
    tmp_path: Path, argv: list[str], path: str, words: str
) -> None:
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/tools.py": "def louder(text): return text.upper()",
        "pkg/run.py": OF_A_PACKAGE.format(imported="pkg.tools"),
        "lib/tools.py": "def louder(text): return text.upper()",
        "main.py": OF_A_PACKAGE.format(imported="tools"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        [sys.executable, *argv, str(tmp_path / "data")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{SOURCE}:{path}"},
        input=OF_A_PACKAGE.format(imported="pkg.tools"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert words in done.stdout, done.stderr


@pytest.fixture(autouse=True)
def _in_the_agents_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nodes.AGENTS)


async def test_several_systems_one_after_another_keep_what_they_had(tmp_path: Path) -> None:
    tokens, ids = [], []
    for number in range(3):
        async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
            (agent,) = await running.deploy_agents([{"name": "echo", "factory": "agents:echo"}])
            assert (agent.state, agent.revision) == ("ready", 1)
            task = await running.process_request(running.token, number, agent="echo")
            assert await running.result(task["task_id"]) == number
            tokens.append(running.token)
            ids.append(task["task_id"])
            assert await running.result(ids[0]) == 0
    assert len(set(tokens)) == 1


async def test_two_systems_side_by_side_do_not_meet(tmp_path: Path) -> None:
    async with (
        system.ProductionMultiAgentSystem(data_dir=tmp_path / "one") as one,
        system.ProductionMultiAgentSystem(data_dir=tmp_path / "two") as two,
    ):
        for each in (one, two):
            await each.deploy_agents([{"name": "echo", "factory": "agents:echo"}])
        task = await one.process_request(one.token, "x", agent="echo")
        assert await one.result(task["task_id"]) == "x"
        with pytest.raises(errors.NotFound):
            await two.client().task(task["task_id"])
        with pytest.raises(errors.Unauthenticated):
            await two.process_request(one.token, "x", agent="echo")


async def test_in_production_the_program_is_not_limited_by_its_own_rates(tmp_path: Path) -> None:
    few = {"rate_limit_per_minute": 5}
    async with system.ProductionMultiAgentSystem(
        "production", data_dir=tmp_path / "data", overrides={"security": few}
    ) as running:
        await running.deploy_agents([{"name": "echo", "factory": "agents:echo"}])
        requests = (running.process_request(running.token, number, agent="echo") for number in range(20))
        tasks = await asyncio.gather(*requests)
        results = await asyncio.gather(*(running.result(task["task_id"]) for task in tasks))
        assert results == list(range(20))
        assert (tmp_path / "data" / "encryption.key").stat().st_mode & 0o777 == 0o600
        await running.create_token("somebody")
        (entry, *_) = (await running.client().audit()).items
        assert (entry.action, entry.source) == ("key.create", "this program")
        controls = {each.name: each.state for each in (await running.client().security()).controls}
        assert (controls["encryption at rest"], controls["tls"]) == ("on", "off by setting")


async def test_a_failed_deployment_raises_with_the_reasons_and_can_be_mended(tmp_path: Path) -> None:
    async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
        with pytest.raises(errors.AgentInvalid) as raised:
            await running.deploy_agents(
                [
                    {"name": "good", "factory": "agents:echo"},
                    {"name": "raising", "factory": "agents:raising"},
                    {"name": "junk", "factory": "agents:junk"},
                ]
            )
        for word in ("raising", "the model is missing", "junk", "execute_task"):
            assert word in str(raised.value)
        assert "good" not in str(raised.value)
        mended = await running.deploy_agents([{"name": name, "factory": "agents:echo"} for name in ("raising", "junk")])
        assert [(agent.state, agent.revision) for agent in mended] == [("ready", 2)] * 2
        task = await running.process_request(running.token, 1, agent="junk")
        assert await running.result(task["task_id"]) == 1


@pytest.mark.parametrize("strategy", [pytest.param("rolling", marks=pytest.mark.long), "blue-green"])
async def test_a_next_revision_takes_over_by_the_strategy_that_is_asked_for(tmp_path: Path, strategy: str) -> None:
    async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
        config = {"name": "echo", "factory": "agents:echo", "rollout": {"scale_down_delay_s": 0}}
        await running.deploy_agents([config])
        (agent,) = await running.deploy_agents([config | {"factory": "agents:pid"}], strategy=strategy)
        assert (agent.revision, agent.rollout and agent.rollout.strategy) == (2, strategy)
        assert agent.spec is not None
        assert agent.spec["rollout"]["strategy"] == "rolling"  # the other one was for once
        task = await running.process_request(running.token, 1, agent="echo")
        assert isinstance(await running.result(task["task_id"]), int)
        with pytest.raises(errors.AgentInvalid, match="the model is missing"):
            await running.deploy_agents([config | {"factory": "agents:raising"}], strategy=strategy)
        with pytest.raises(errors.SettingsInvalid, match="strategy"):
            await running.deploy_agents([config], strategy="purple")
        task = await running.process_request(running.token, 1, agent="echo")
        assert isinstance(await running.result(task["task_id"]), int)


async def test_a_failed_task_raises_with_its_error(tmp_path: Path) -> None:
    async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
        await running.deploy_agents([{"name": "failing", "factory": "agents:failing"}])
        task = await running.process_request(running.token, "no luck", agent="failing")
        with pytest.raises(errors.TaskFailed, match="no luck"):
            await running.result(task["task_id"])


async def test_all_that_is_wrong_is_said_at_once_before_anything_is_deployed(tmp_path: Path) -> None:
    class Local:
        pass

    good = {"name": "good", "factory": "agents:echo"}
    configs: list[dict[str, Any]] = [
        good,
        {"factory": "agents:echo"},
        {"name": "local", "agent_class": Local, "timeout_s": -1},
        {"name": "both", "agent_class": nodes.Api, "factory": "agents:echo"},
        {"name": "idle", "factory": "agents:echo", "concurrency": 0, "arguments": 5, "model": "m"},
        good,
        {"name": "Loud", "factory": "agents:echo"},
    ]
    async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
        with pytest.raises(settings.SettingsInvalid) as raised:
            await running.deploy_agents(configs)
        assert [path for path, _ in raised.value.problems] == [
            "configs[1].name",
            "agents.local.agent_class",
            "agents.local.timeout_s",
            "agents.both.agent_class",
            "agents.idle.arguments",
            "agents.idle.concurrency",
            "configs[5].name",
            "agents.Loud",
        ]
        told = dict(raised.value.problems)
        assert "top level" in told["agents.local.agent_class"]
        assert "give one of the two" in told["agents.both.agent_class"]
        assert "stands twice" in told["configs[5].name"]
        missing = {"name": "missing", "factory": "agents:echo", "include": ["no such file.txt"]}
        with pytest.raises(errors.AgentInvalid, match=r"no such file\.txt"):
            await running.deploy_agents([good, missing])
        assert (await running.get_system_status())["agents"] == []


async def test_more_agents_than_there_may_be_replicas_are_refused_before_anything_is_deployed(tmp_path: Path) -> None:
    def echoes(count: int, **spec: Any) -> list[dict[str, Any]]:
        return [{"name": f"echo-{number}", "factory": "agents:echo", **spec} for number in range(count)]

    async with system.ProductionMultiAgentSystem(
        data_dir=tmp_path / "data", overrides={"cluster": {"max_replicas": 2}}
    ) as running:
        with pytest.raises(errors.Conflict, match=r"0 replicas of other agents and 3 of these .* \(2\)"):
            await running.deploy_agents(echoes(3))
        await running.deploy_agents(echoes(2))
        with pytest.raises(errors.Conflict, match="2 replicas of other agents and 1 of these"):
            await running.deploy_agents([{"name": "more", "factory": "agents:echo"}])
        await running.deploy_agents(echoes(2, timeout_s=10))
        assert len((await running.get_system_status())["agents"]) == 2


async def test_an_agent_that_nothing_would_wake_is_refused_before_anything_is_deployed(tmp_path: Path) -> None:
    good = {"name": "good", "factory": "agents:echo"}
    asleep = {"name": "asleep", "factory": "agents:echo", "scaling": {"min_replicas": 0}}
    async with system.ProductionMultiAgentSystem(data_dir=tmp_path / "data") as running:
        with pytest.raises(errors.Conflict, match=r"cannot deploy asleep: .*cluster\.autoscaling is off"):
            await running.deploy_agents([good, asleep])
        assert (await running.get_system_status())["agents"] == []


async def test_a_system_that_is_not_started_says_so(tmp_path: Path) -> None:
    idle = system.ProductionMultiAgentSystem(data_dir=tmp_path / "data")
    with pytest.raises(errors.StartRefused, match="not started"):
        await idle.process_request("gr_x", "x")
    await idle.shutdown()
    with pytest.raises(errors.SettingsInvalid):
        system.ProductionMultiAgentSystem("prodution", data_dir=tmp_path / "data")
