"""A tiny checkpoint and its bundle, made once per test run. Use: `pytest_plugins = ["export_fixtures"]`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_checkpoint, make_photos

from calm_export.bundle import ExportOptions, export_bundle


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_options(tmp_path_factory: pytest.TempPathFactory) -> ExportOptions:
    photos = make_photos(tmp_path_factory.mktemp("photos"), 4)
    return ExportOptions(llm_precision="int8", examples=tuple(sorted(photos.iterdir())))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tiny_options: ExportOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(tiny_checkpoint, folder, tiny_options)
    return folder
