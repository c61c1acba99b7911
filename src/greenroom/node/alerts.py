"""The node's monitor: its rules out of the settings, and the gauges that read the node itself."""

from __future__ import annotations

import math
import shutil
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from greenroom import settings
from greenroom.control.monitor import Monitor
from greenroom.control.readings import Gauge
from greenroom.core.signals import Rule, Signal
from greenroom.node import tls
from greenroom.node.health import disk_free_mb
from greenroom.sdk import models

if TYPE_CHECKING:
    from greenroom.node.composition import Node

DAY_S = 86_400.0


def monitor(node: Node) -> Monitor:
    """Return the monitor of *node*, which is about to start."""
    clock, started_at = node.clock, node.clock.now()
    gauges: dict[Signal, Gauge] = {
        Signal.CERTIFICATE_DAYS: lambda: certificate_days(node.certificate, clock.now()),
        Signal.DISK_FREE_PCT: lambda: disk_free_pct(node.options.data_dir),
        Signal.DISK_FREE_MB: lambda: disk_free_mb(node.options.data_dir),
        Signal.BACKUP_OVERDUE_S: lambda: overdue_s(
            node.backups.state(), up_s=(clock.now() - started_at).total_seconds()
        ),
    }
    return Monitor(node.store, clock, node.facts, rules(node.settings.alerts), gauges=gauges)


def rules(found: settings.Alerts) -> list[Rule]:
    """Return those that are enabled, as `core.signals` has them."""
    return [
        Rule(
            name=name,
            signal=rule.signal,
            agents=rule.agents,
            except_agents=rule.except_agents,
            above=rule.above,
            below=rule.below,
            window_s=rule.window_s,
            min_volume=rule.min_volume,
            for_s=rule.for_s,
            keep_s=rule.keep_s,
            severity=rule.severity,
        )
        for name, rule in found.rules.items()
        if rule.enabled
    ]


def certificate_days(certificate: tls.Certificate | None, now: datetime) -> float:
    """Return the days that are left; for ever, where the node shows none."""
    return math.inf if certificate is None else (certificate.expires_at - now).total_seconds() / DAY_S


def disk_free_pct(folder: Path) -> float | None:
    """Return what is free for who is not root, as ``df`` counts it; None where the file system does not say."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    there = usage.used + usage.free
    return 100 * usage.free / there if there else None


def overdue_s(backups: models.Backups, *, up_s: float) -> float:
    """Return for how long there should have been another backup; before the first one it counts from the start."""
    if backups.every_s is None:
        return 0.0
    return (up_s if backups.age_s is None else backups.age_s) - backups.every_s
