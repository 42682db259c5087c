"""The half of a bundle that lives in a Triton Python model: the language model, with the rest reached by sessions."""

from __future__ import annotations

from pathlib import Path

from calm_runtime.aligner import Aligner
from calm_runtime.bundle import Bundle, file_sha256, open_bundle
from calm_runtime.engine import open_language_model
from calm_runtime.errors import BundleCorrupt
from calm_runtime.hardware import installed_libraries, probe_hardware
from calm_runtime.photo import PhotoLimits
from calm_runtime.pipeline import Calm
from calm_runtime.session import Session, select_engine
from calm_runtime.text import TextTokenizer
from calm_runtime.vision import VisionEncoder


def load_language_half(folder: Path, vision: Session, aligner: Session, threads: int | None = None) -> Calm:
    """A `Calm` of a folder that holds a bundle without its vision encoder and aligner; these run in `vision` and
    `aligner`. Raises BundleNotFound, BundleCorrupt (a file changed), EngineMissing or EngineError.
    """
    bundle = open_bundle(folder, verify=False)
    _verify_present(bundle)
    manifest = bundle.manifest
    choice = select_engine(manifest, installed_libraries(), probe_hardware(), "onnx")
    llm = open_language_model(bundle, choice, threads)
    text = TextTokenizer(bundle.file("tokenizer.json"), manifest.llm.bos_token_id)
    return Calm(bundle, choice, VisionEncoder(vision), Aligner(aligner), llm, text, PhotoLimits())


def _verify_present(bundle: Bundle) -> None:
    for name, entry in bundle.manifest.files.items():
        path = bundle.path / name
        if path.is_file() and file_sha256(path) != entry.sha256:
            raise BundleCorrupt(f"{path}: has changed (SHA-256 differs); build the model repository again")
