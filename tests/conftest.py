"""Shared set-up of the tests: shape checks, one thread, the device to test on."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Shapes and types are checked in the tests only. The hook must be in place before the first import.
install_import_hook(
    ["ups.physics", "ups.data", "ups.models", "ups.training", "ups.evaluation"], "beartype.beartype"
).__enter__()

WHOLE_RUNS = ("cli", "faults", "pipeline")
"""Folders of tests of whole runs, which the checks would slow by half; what is marked `shapes` there is checked."""


@pytest.fixture(autouse=True)
def shape_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checks shapes and types in all tests but those of whole runs."""
    unchecked = request.path.parent.name in WHOLE_RUNS and request.node.get_closest_marker("shapes") is None
    jaxtyping.config.update("jaxtyping_disable", unchecked)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device that numerical tests run on: cpu (default) or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device named by ``--device``."""
    return str(request.config.getoption("--device"))
