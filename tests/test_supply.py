"""The supply chain: what is pinned is listed and looked up, and no package's start code gets into a node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from supply import audit

import greenroom
import nodes
from greenroom.security import start_code

ROOT = Path(__file__).resolve().parent.parent
CLEAN = {"name": "good", "version": "1", "vulns": []}
SKIPPED = {"name": "unknown", "skip_reason": "Dependency not found on PyPI and could not be audited: unknown (1)"}
BAD = {"name": "bad", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2"}]}


@pytest.mark.parametrize(
    ("found", "is_strict", "code", "told"),
    [
        ([CLEAN], False, 0, "1 of 1 requirements have no known vulnerability"),
        ([CLEAN, BAD], False, 1, "bad 1: CVE-1, fixed in 2"),
        ([CLEAN, BAD], False, 1, "bad 1: CVE-2, fixed in no version yet"),
        ([CLEAN, SKIPPED], False, 0, "not checked: unknown"),
        ([CLEAN, SKIPPED], True, 1, "not checked: unknown"),
        ([SKIPPED], False, 0, "0 of 1 requirements have no known vulnerability"),
        ([BAD, SKIPPED], False, 1, "not checked: unknown"),
        (None, False, 0, "not checked: the database of vulnerabilities cannot be asked: cannot resolve"),
        (None, True, 1, "not checked: the database"),
        ([], False, 0, "not checked: the database"),
    ],
)
def test_what_was_not_checked_is_never_said_to_be_clean(
    found: list[dict[str, Any]] | None, is_strict: bool, code: int, told: str
) -> None:
    verdict = audit.verdict(found, "a traceback\ncannot resolve\n", is_strict=is_strict)
    assert verdict[0] == code
    assert told in "\n".join(verdict[1])
    if not found:
        assert len(verdict[1]) == 1


@pytest.mark.slow
def test_the_bill_of_materials_is_of_what_is_pinned_and_the_same_each_time(tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text().partition("$(BIN)/cyclonedx-py ")[2].partition("-o dist")[0]
    words = recipe.replace("\\\n", " ").split()
    made = []
    for name, valid in (("a.json", "--validate"), ("b.json", "--no-validate")):  # which takes longer than all else
        path = tmp_path / name
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", *words, valid, "-o", str(path)], cwd=ROOT, check=True
        )
        made.append(path.read_bytes())
    assert made[0] == made[1]
    document = json.loads(made[0])
    assert (document["bomFormat"], document["metadata"]["component"]["name"]) == ("CycloneDX", "greenroom")
    pins = {line.partition("==")[0] for line in (ROOT / words[1]).read_text().splitlines() if line[:1].isalpha()}
    assert {each["name"] for each in document["components"]} == pins
    hashed = [each for each in document["components"] if each["externalReferences"][0]["hashes"]]
    assert len(hashed) == len(pins)


# Code that runs when Python starts


def test_start_code_is_found(tmp_path: Path) -> None:
    for name, text in {
        "evil.pth": "import os; os.system('true')\n",
        "tabbed.pth": "# comment\nimport\tos\n",
        "folder.pth": "/somewhere\nimportant\n",
        "sitecustomize.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    found = {Path(file).name for file in start_code.found([str(tmp_path)])}
    assert found == {"evil.pth", "tabbed.pth", "sitecustomize.py"}
    assert start_code.found([str(tmp_path / "nowhere")]) == []


@pytest.fixture
def environment(tmp_path: Path) -> tuple[Path, Path]:
    """A virtual environment with our packages and one that is evil: its Python, and what it has said."""
    told, folder = tmp_path / "told", tmp_path / "environment"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if package.suffix != ".pth":
            (packages / package.name).symlink_to(package)
    (packages / "greenroom").unlink(missing_ok=True)
    (packages / "greenroom").symlink_to(Path(greenroom.__file__).parent)
    line = f"open({str(told)!r}, 'a').write(open('/proc/self/cmdline').read().replace(chr(0), ' ') + chr(10))"
    (packages / "evil.pth").write_text(f"import os; {line}\n")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (folder / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    return python, told


@pytest.mark.slow
def test_an_isolated_node_runs_no_start_code_of_packages(tmp_path: Path, environment: tuple[Path, Path]) -> None:
    python, told = environment
    packages = next((python.parents[1] / "lib").glob("*/site-packages"))
    isolated = packages / "greenroom" / "cli" / "isolated.py"
    folder = nodes.Folder(tmp_path / "project")
    folder.manifest('[agents.echo]\nfactory = "agents:echo"\n[backups]\nto = "kept"\n')
    folder.environment["PYTHONPATH"] = ""
    folder.interpreter = (str(python), "-I", "-S", str(isolated))
    try:
        up = folder.up()
        assert up.end_of(up.submit("echo", "x"))["output"] == "x"
        assert up.call("POST", "/v1/backups").status_code == 202
        nodes.wait_until(lambda: up.call("GET", "/v1/backups").json()["items"])
        doctor = subprocess.run(
            [*folder.interpreter, "doctor"], cwd=folder.path, capture_output=True, text=True, check=False
        )
    finally:
        folder.close()
    assert "kept out: " in doctor.stdout
    assert "evil.pth" in doctor.stdout
    lines = told.read_text().splitlines() if told.exists() else []
    assert lines, "the trap is set, and the agents' room steps into it"
    assert [line for line in lines if "isolated.py" in line or "greenroom" in line.split(" -c ")[0]] == []


@pytest.mark.slow
def test_a_start_that_is_not_isolated_says_so(environment: tuple[Path, Path]) -> None:
    python, told = environment
    packages = next((python.parents[1] / "lib").glob("*/site-packages"))
    isolated = packages / "greenroom" / "cli" / "isolated.py"
    run = subprocess.run(
        [python, isolated, "--version"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert run.returncode == 1
    assert "python -I -S" in run.stderr
    assert told.exists()
