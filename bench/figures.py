"""Figures of a benchmark: values with their median and range, and their ratio to a bare loop's of the same round."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """*values* has one value for each round (or try); *bare* the bare loop's in the same rounds."""

    name: str
    unit: str
    values: Sequence[float]
    bare: Sequence[float] = ()
    aim: str = ""

    @property
    def ratios(self) -> list[float]:
        return [value / bare for value, bare in zip(self.values, self.bare, strict=bool(self.bare)) if bare]

    def document(self) -> dict[str, Any]:
        series = {"values": self.values, "bare": self.bare, "ratios": self.ratios}
        return {
            "name": self.name,
            "unit": self.unit,
            "aim": self.aim,
            **{name: _summary(values) for name, values in series.items() if values},
        }

    def line(self) -> str:
        cells = (_cell(self.values, self.unit), _cell(self.bare, ""), _cell(self.ratios, "", digits=2))
        return f"{self.name:44} {cells[0]:32} {cells[1]:26} {cells[2]:20} {self.aim}".rstrip()


HEADING = f"{'median (range)':44} {'Greenroom':32} {'bare loop':26} {'ratio':20} aim"


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "all": list(values),
    }


def _cell(values: Sequence[float], unit: str, *, digits: int | None = None) -> str:
    if not values:
        return ""
    show: Callable[[float], str] = lambda value: _show(value, digits)  # noqa: E731
    text = f"{show(statistics.median(values))} {unit}".rstrip()
    return f"{text} ({show(min(values))} to {show(max(values))})" if len(values) > 1 else text


def _show(value: float, digits: int | None) -> str:
    if digits is None:
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on; the disk's flush is that of the data folder's."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fdatasync_p50_ms": round(statistics.median(_flushes_ms(folder)), 3),
        "load_average": os.getloadavg(),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _flushes_ms(folder: Path, *, count: int = 200) -> list[float]:
    path, took_ms = folder / "flush", []
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(bytes(4096))
            begun_s = time.perf_counter()
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - begun_s) * 1000)
    path.unlink()
    return took_ms
