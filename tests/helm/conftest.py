"""Helm itself, where tests/manifests has what stands in for it."""

from pathlib import Path

import pytest

from scripts import settings
from tests.manifests.conftest import look

__all__ = ["look"]


@pytest.fixture(scope="session")
def helm() -> Path:
    binary = settings.load().tools_dir / "helm"
    assert binary.exists(), f"{binary} is not there: `make helm` brings it"
    return binary
