"""The environments' table of the design, row by row, and what of it is effective in this release."""

from __future__ import annotations

import pytest

from greenroom import settings
from greenroom.settings import Environment, SettingsInvalid

TABLE = {
    # key path: development, staging, production
    "cluster.max_replicas": (10, 50, 200),
    "cluster.max_surge": (None, None, None),
    "cluster.autoscaling": (False, True, True),
    "cluster.cpu": (2.0, 4.0, 8.0),
    "cluster.memory_mb": (4096, 8192, 16384),
    "cluster.metrics": (True, True, True),
    "cluster.health_checks": (True, True, True),
    "cluster.performance_rules": (True, True, True),
    "cluster.alert_delivery": (False, False, True),
    "cluster.tracing": (False, False, True),
    "cluster.json_logs": (False, False, True),
    "cluster.log_level": ("DEBUG", "INFO", "WARNING"),
    "cluster.max_connections": (128, 512, 4096),
    "cluster.result_cache": (False, True, True),
    "cluster.scheduled_backups": (False, False, True),
    "security.authentication": (True, True, True),
    "security.encryption_at_rest": (False, True, True),
    "security.tls": (False, True, True),
    "security.rate_limit_per_minute": ("off", 100, 100),
    "security.audit_log": (True, True, True),
    "security.intrusion_rules": (False, False, True),
}
COLUMNS = list(enumerate(Environment))


def _value(of: object, path: str) -> object:
    for name in path.split("."):
        of = getattr(of, name)
    return of


@pytest.mark.parametrize("path", TABLE)
@pytest.mark.parametrize(("column", "environment"), COLUMNS)
def test_the_design_is_the_table_of_the_product(path: str, column: int, environment: Environment) -> None:
    assert _value(settings.DESIGNS[environment], path) == TABLE[path][column]


def test_the_table_has_every_row() -> None:
    names = {f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.__struct_fields__}
    assert names >= TABLE.keys()
    for path in names - TABLE.keys():  # what is the same everywhere needs no row
        assert len({repr(_value(design, path)) for design in settings.DESIGNS.values()}) == 1, path


SECTIONS = {"cluster": settings.Cluster, "security": settings.Security}


@pytest.mark.parametrize("path", TABLE)
@pytest.mark.parametrize(("column", "environment"), COLUMNS)
def test_every_environment_has_the_defaults_of_its_design(path: str, column: int, environment: Environment) -> None:
    loaded = settings.load(None, {"GREENROOM_ENVIRONMENT": environment})
    assert _value(loaded, path) == TABLE[path][column]
    assert loaded.origins[path] == f"default of {environment}"


def test_without_a_name_it_is_development() -> None:
    loaded = settings.load(None, {})
    assert loaded.environment is Environment.DEVELOPMENT
    assert loaded.origins["environment"] == "default"


@pytest.mark.parametrize(("name", "meant"), [("prod", "production"), ("Staging", "staging"), ("dev", "development")])
def test_an_unknown_environment_is_refused_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(None, {"GREENROOM_ENVIRONMENT": name})
    [problem] = caught.value.problems
    assert problem.path == "environment"
    assert '"development", "staging", "production"' in problem.message
    assert f'did you mean "{meant}"?' in problem.message
    assert "GREENROOM_ENVIRONMENT" in problem.message
