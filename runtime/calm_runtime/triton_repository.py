"""`calm triton build`: triton_models/ filled with a bundle, as a folder any Triton server can read.

Every model folder stands on its own (a server that fetches models from object storage copies them one by one), so
files needed twice are hard-linked, or copied where the file system has no links.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from calm_runtime.bundle import LLM_STAGES, MANIFEST, Bundle, Stage, open_bundle
from calm_runtime.errors import UsageError
from calm_runtime.triton_config import (
    TARGETS,
    TritonOptions,
    TritonTarget,
    config_values,
    render,
    served_file,
    stage_graphs,
)

MARKER = "calm_repository.json"
VERSION = "1"
_STAGE_OF: dict[str, Stage] = {"calm_vision_encoder": "vision_encoder", "calm_aligner": "aligner"}
_LANGUAGE_MODELS = ("calm_llm", "calm_text")


class RepositoryInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a repository was built from."""

    bundle: str
    model: str
    target: str
    max_batch: int


def build(
    bundle_path: str | Path,
    output: str | Path,
    target: TritonTarget = "cpu",
    options: TritonOptions | None = None,
) -> RepositoryInfo:
    """Fill `output` with a model repository, all at once: a reader sees the old repository or the new one.

    An earlier repository is replaced. Raises UsageError (unknown target, a folder with other content, a bundle
    without the target's graphs), BundleNotFound, BundleCorrupt, EngineMissing.
    """
    if target not in TARGETS:
        raise UsageError(f"no target {target!r}; choose one of {', '.join(TARGETS)}")
    destination = Path(output).absolute()
    _refuse_foreign(destination)
    bundle = open_bundle(bundle_path)
    values = config_values(bundle, target, options or TritonOptions())
    max_batch = int(values["calm_score"]["max_batch"])
    info = RepositoryInfo(
        bundle=bundle.digest,
        model=f"{bundle.manifest.model.name} {bundle.manifest.model.version}",
        target=target,
        max_batch=max_batch,
    )
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}-", dir=destination.parent) as scratch:
        fresh = Path(scratch) / "fresh"
        for name, filled in values.items():
            _write_model(fresh / name, sources() / name, bundle, target, filled)
        _write_warmup(fresh / "calm_preprocess" / "warmup")
        (fresh / MARKER).write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")
        fresh.chmod(0o755)
        if destination.exists():
            destination.rename(Path(scratch) / "old")
        fresh.rename(destination)
    return info


def read_info(repository: str | Path) -> RepositoryInfo:
    """What a repository was built from. Raises UsageError when `calm triton build` did not make the folder."""
    try:
        return msgspec.json.decode((Path(repository) / MARKER).read_bytes(), type=RepositoryInfo)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{repository}: not a model repository of ours ({error}); make one with "
            f"`calm triton build BUNDLE -o {repository}`"
        ) from error


def sources() -> Path:
    """The folder triton_models/: beside the package in a checkout, inside it once installed."""
    inside = Path(__file__).parent / "triton_models"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "triton_models"


def _refuse_foreign(destination: Path) -> None:
    if not destination.exists():
        return
    if not destination.is_dir():
        raise UsageError(f"{destination}: is a file; give a new folder")
    if any(destination.iterdir()) and not (destination / MARKER).is_file():
        raise UsageError(f"{destination}: has content that is not a model repository of ours; give a new folder")


def _write_model(folder: Path, source: Path, bundle: Bundle, target: TritonTarget, values: dict[str, str]) -> None:
    """One model folder: config.pbtxt, and in the version folder the code, the graph or the bundle's files."""
    version = folder / VERSION
    version.mkdir(parents=True)
    template = (source / "config.pbtxt").read_text(encoding="utf-8")
    (folder / "config.pbtxt").write_text(render(template, values), encoding="utf-8")
    code = source / VERSION / "model.py"
    if code.is_file():
        shutil.copyfile(code, version / "model.py")
    name = folder.name
    if name == "calm_preprocess":
        shutil.copyfile(bundle.path / MANIFEST, version / MANIFEST)
    if name in _LANGUAGE_MODELS:
        _link_language_model(bundle, version / "bundle")
    if name in _STAGE_OF:
        graphs = stage_graphs(bundle, _STAGE_OF[name], target)
        for graph in graphs:
            _link(bundle.path / graph.path, version / served_file(graph, len(graphs)))
            for data in _external_data(bundle, graph.path):  # found by the name written inside the graph
                _link(bundle.path / data, version / Path(data).name)


def _link_language_model(bundle: Bundle, folder: Path) -> None:
    """The part of the bundle that turns visual tokens into scores and text."""
    others = {g.path for g in bundle.manifest.graphs if g.stage not in LLM_STAGES}
    others |= {data for path in tuple(others) for data in _external_data(bundle, path)}
    folder.mkdir()
    shutil.copyfile(bundle.path / MANIFEST, folder / MANIFEST)
    for name in bundle.manifest.files:
        if name not in others:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(bundle.path / name, folder / name)


def _external_data(bundle: Bundle, graph_path: str) -> list[str]:
    stem = f"{graph_path}" if graph_path.endswith(".onnx") else None
    return [name for name in bundle.manifest.files if stem and name != stem and name.startswith(stem)]


def _link(source: Path, destination: Path) -> None:
    try:
        os.link(source.resolve(), destination)
    except OSError:
        shutil.copyfile(source, destination)


def _write_warmup(folder: Path) -> None:
    """A JPEG in Triton's form for strings: length, bytes. The server repeats it to fill a batch."""
    folder.mkdir()
    rows, columns = np.mgrid[0:768, 0:1024]
    colours = np.stack([columns // 4, rows // 3, (rows + columns) // 7], axis=-1).astype(np.uint8)  # [H, W, 3]
    stream = BytesIO()
    Image.fromarray(colours).save(stream, "JPEG", quality=90)
    (folder / "photo").write_bytes(struct.pack("<I", stream.tell()) + stream.getvalue())
