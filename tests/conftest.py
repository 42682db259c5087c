"""Fixtures that need a model: the shipped bundle, or the one CALM_TEST_BUNDLE names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from calm_runtime import Calm
from calm_runtime.bundle import DEFAULT_BUNDLE

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="session")
def nano_bundle() -> Path:
    return Path(os.environ.get("CALM_TEST_BUNDLE", DEFAULT_BUNDLE))


@pytest.fixture(scope="session")
def calm(nano_bundle: Path) -> Iterator[Calm]:
    with Calm.load(nano_bundle, threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def example_photos() -> list[Path]:
    photos = sorted(EXAMPLES.glob("*.jpg"))
    assert len(photos) >= 8
    return photos


@pytest.fixture(scope="session")
def example_folder() -> Path:
    return EXAMPLES
