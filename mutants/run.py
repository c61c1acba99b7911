"""Removes one guard at a time and runs the tests that guard it: ``python -m mutants.run [PART OF A NAME …]``.

A mutant is *caught* when a test of its list fails. One that every test survives means that the tests are blind there, and
the run fails. So does one whose tests cannot even be run, for that proves nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.catalogue import CATALOGUE, Mutant

ROOT = Path(__file__).parent.parent
WORKERS = int(os.environ.get("WORKERS", "2"))
TIMEOUT_S = 600.0  # a mutant that hangs is caught: whoever runs the suite notices
FAILED = 1  # pytest's code for tests that ran and failed


def main(parts: list[str]) -> int:
    chosen = [mutant for mutant in CATALOGUE if not parts or any(part in mutant.without for part in parts)]
    print(f"{len(chosen)} mutants, each without one guard")
    with ThreadPoolExecutor(WORKERS) as pool:
        verdicts = list(pool.map(_run, chosen))
    survivors = [mutant.without for mutant, verdict in zip(chosen, verdicts, strict=True) if verdict != "caught"]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for survivor in survivors:
        print(f"not caught: without {survivor}", file=sys.stderr)
    return 1 if survivors or not chosen else 0


def _run(mutant: Mutant) -> str:
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        Path(folder).chmod(0o755)  # another user runs some of the tests
        source = Path(folder, "src")
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        for edit in mutant.edits:
            path = source / "greenroom" / edit.file
            path.write_text(path.read_text().replace(edit.before, edit.after))
        verdict, output = _test(source, mutant)
    print(f"{verdict:8} {time.monotonic() - began_s:5.0f} s   without {mutant.without}", flush=True)
    if verdict == "broken":
        print(output, file=sys.stderr)
    return verdict


def _test(source: Path, mutant: Mutant) -> tuple[str, str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0", *mutant.tests]
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{ROOT / 'tests'}"}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=TIMEOUT_S, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return "caught", ""
    if run.returncode == FAILED and " failed" in run.stdout:
        return "caught", ""
    return ("survived" if run.returncode == 0 else "broken"), run.stdout[-3000:] + run.stderr[-1000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
