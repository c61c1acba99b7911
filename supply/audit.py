"""Looks the pinned requirements up among the known vulnerabilities: ``make audit``.

Where the database cannot be reached it says so, and that nothing was checked: a check that did not happen is not one
that found nothing. With ``--strict`` that fails, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements/test.txt", "requirements/llm-model.txt")  # the first holds the demonstration's pins, too
TIMEOUT_S = 300.0
SERVICE = "osv"  # pip-audit's other one asks the package index, of which mirrors often have the files only


def main(arguments: list[str]) -> int:
    # The locks are whole and hashed: nothing has to be resolved, and nothing is installed.
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", SERVICE, "--format", "json"]
    command += ["--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command += [word for lock in LOCKS for word in ("--requirement", lock)]
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        found, complaint = _read(run.stdout), run.stderr
    except subprocess.TimeoutExpired:
        found, complaint = None, f"no answer within {TIMEOUT_S:g} s"
    code, lines = verdict(found, complaint, is_strict="--strict" in arguments)
    for line in lines:
        print(line, file=sys.stderr if code else sys.stdout)
    return code


def _read(output: str) -> list[dict[str, Any]] | None:
    try:
        dependencies = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    return dependencies if isinstance(dependencies, list) else None


def verdict(found: list[dict[str, Any]] | None, complaint: str, *, is_strict: bool) -> tuple[int, list[str]]:
    """Return the exit code and what to say. *found* is what pip-audit reports of each requirement; None: nothing."""
    unchecked = 1 if is_strict else 0
    if not found:
        last = (complaint.strip().splitlines() or ["it says nothing"])[-1]
        return unchecked, [f"not checked: the database of vulnerabilities cannot be asked: {last[:300]}"]
    known = [
        f"{each['name']} {each['version']}: {each_vulnerability['id']}, fixed in "
        f"{', '.join(each_vulnerability.get('fix_versions', [])) or 'no version yet'}"
        for each in found
        for each_vulnerability in each.get("vulns", [])
    ]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    lines = [*known, *([f"not checked: {', '.join(skipped)}"] if skipped else [])]
    if known:
        return 1, [*lines, f"{len(known)} known vulnerabilities; next: make lock LOCK_ARGS='--upgrade-package NAME'"]
    checked = len(found) - len(skipped)
    return (unchecked if skipped else 0), [
        *lines,
        f"{checked} of {len(found)} requirements have no known vulnerability",
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
