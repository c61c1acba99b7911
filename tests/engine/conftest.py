"""Failures in the shipped contract are to be read like those of the tests here."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("greenroom.testing.engine_contract")
