"""The environments' table of product.md, as values: what each environment means.

Rows that are alike everywhere (authentication
is on, metrics are on) are written out all the same, so that the table here can be read beside the one there.
"""

from __future__ import annotations

import msgspec

from greenroom.settings.schema import Cluster, Environment, Security

DEFAULT_ENVIRONMENT = Environment.DEVELOPMENT


class Design(msgspec.Struct, frozen=True):
    """One column of the table."""

    cluster: Cluster
    security: Security


DESIGNS: dict[Environment, Design] = {
    Environment.DEVELOPMENT: Design(
        Cluster(
            max_replicas=10,
            max_surge=None,
            autoscaling=False,
            cpu=2.0,
            memory_mb=4 * 1024,
            metrics=True,
            health_checks=True,
            performance_rules=True,
            alert_delivery=False,
            tracing=False,
            json_logs=False,
            log_level="DEBUG",
            max_connections=128,
            result_cache=False,
            scheduled_backups=False,
        ),
        Security(
            authentication=True,
            encryption_at_rest=False,
            tls=False,
            rate_limit_per_minute="off",
            audit_log=True,
            intrusion_rules=False,
        ),
    ),
    Environment.STAGING: Design(
        Cluster(
            max_replicas=50,
            max_surge=None,
            autoscaling=True,
            cpu=4.0,
            memory_mb=8 * 1024,
            metrics=True,
            health_checks=True,
            performance_rules=True,
            alert_delivery=False,
            tracing=False,
            json_logs=False,
            log_level="INFO",
            max_connections=512,
            result_cache=True,
            scheduled_backups=False,
        ),
        Security(
            authentication=True,
            encryption_at_rest=True,
            tls=True,
            rate_limit_per_minute=100,
            audit_log=True,
            intrusion_rules=False,
        ),
    ),
    Environment.PRODUCTION: Design(
        Cluster(
            max_replicas=200,
            max_surge=None,
            autoscaling=True,
            cpu=8.0,
            memory_mb=16 * 1024,
            metrics=True,
            health_checks=True,
            performance_rules=True,
            alert_delivery=True,
            tracing=True,
            json_logs=True,
            log_level="WARNING",
            max_connections=4096,
            result_cache=True,
            scheduled_backups=True,
        ),
        Security(
            authentication=True,
            encryption_at_rest=True,
            tls=True,
            rate_limit_per_minute=100,
            audit_log=True,
            intrusion_rules=True,
        ),
    ),
}
