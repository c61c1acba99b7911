"""Programs that Debian packages bring and no wheel does. A test without its program fails and says what to install."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {
    "chromium": "chromium",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "promtool": "prometheus",
}


def program(name: str) -> str:
    """Return the path of *name*, or fail the test that needs it."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"cannot test without {name}: on Debian, apt install {PACKAGES[name]} (make tools, as root)")
    return found
