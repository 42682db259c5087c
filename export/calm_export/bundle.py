"""Checkpoint -> bundle: export every graph, prove parity, sign the manifest, and only then let the folder appear."""

from __future__ import annotations

import hashlib
import logging
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from calm_export import parity
from calm_export.decoders import export_cuda_decoder, export_decoders
from calm_export.eyes import export_cuda_eyes, export_engines, export_eyes
from calm_export.llm import llm_spec, write_llm_source
from calm_export.options import ExportOptions
from calm_export.packs import staged_packs, write_pack
from calm_export.photos import parity_photos
from calm_export.staging import check_output, staged
from calm_export.tensorrt import build_devices, library_version
from calm_export.work import Work, engine_targets, tool_version
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    Golden,
    Manifest,
    Provenance,
    ScoreSpec,
    VisualTokens,
    encode_manifest,
    file_sha256,
    open_bundle,
    sign_manifest,
)
from calm_runtime.photo import leave_out_frame, load_photo
from calm_runtime.pipeline import Calm
from calm_runtime.reference import Reference, reference_of
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import CONFIG, INFO, TOKENIZER, load_checkpoint

_TOOLS = ("calm-edge", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai",
          "tokenizers", "safetensors", "numpy", "pillow")  # fmt: skip

GATE_REFERENCE = "photos of the export's parity gate"

logger = logging.getLogger(__name__)


def export_bundle(
    checkpoint: Path, output: Path, options: ExportOptions, progress: Callable[[str], None] = logger.info
) -> Manifest:
    """Export a checkpoint folder to a bundle folder.

    The bundle appears whole or not at all; so do packs, beside it. Raises ExportError (also for a missed parity gate, with the numbers,
    unless drift is allowed) or DataError when the checkpoint is not one.
    """
    check_output(output, options.overwrite)
    for target in engine_targets(options):
        build_devices(target, options.devices)  # a missing library or GPU should not cost the minutes before its use
    progress("loading the checkpoint")
    model, tokenizer, info = load_checkpoint(checkpoint)
    with (
        staged_packs(output, options.targets, options.overwrite) as packs,
        staged(output, options.overwrite) as folder,
        tempfile.TemporaryDirectory(prefix="calm-export-") as scratch,
    ):
        tokenizer.save(str(folder / TOKENIZER), pretty=False)
        text = TextTokenizer(folder / TOKENIZER, llm_spec(model.config.text_config).bos_token_id)
        work = Work(model, info, text, folder, Path(scratch), options)
        progress("running the torch model on the photos of the parity gate")
        photos = parity_photos(info.photo, options.photos, options.examples)
        pixels = parity.pixel_batch((photo.picture for photo in photos), info.photo)
        reference = parity.torch_side(model, pixels, info.prompts["score"], text)
        progress("exporting vision encoder and aligner")
        features = export_eyes(work, pixels, reference, progress)
        source = write_llm_source(model, tokenizer, work.scratch / "llm")
        export_decoders(work, source, reference, features["image_embeds"], progress)
        if "cuda" in options.targets:
            export_cuda_eyes(work, pixels, reference, progress)
            export_cuda_decoder(work, source, reference, progress)
        if engine_targets(options):
            export_engines(work, pixels, reference, progress)
        progress("scoring the examples with the finished bundle")
        gate_scores = reference_of(GATE_REFERENCE, reference.ratings.scores)
        manifest = _finish(work, checkpoint_sha256(checkpoint), gate_scores)
        for kind, place in packs.items():
            progress(f"writing the {kind} pack")
            write_pack(open_bundle(folder), kind, place)
    return manifest


def _finish(work: Work, source_sha256: str, gate_scores: Reference) -> Manifest:
    """Write the manifest, score the examples through the runtime as a user would, and write it again with them.

    gate_scores: the reference of a checkpoint that has none.
    """
    config = work.model.config
    names = sorted(p.relative_to(work.folder).as_posix() for p in work.folder.rglob("*") if p.is_file())
    tools = {"python": platform.python_version()} | {name: tool_version(name) for name in _TOOLS}
    tools |= {target: library_version(target) for target in engine_targets(work.options)}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model=work.info.model,
        photo=work.info.photo,
        visual_tokens=VisualTokens(
            config.queries, config.queries, config.queries, config.thematic_tokens, config.text_config.hidden_size
        ),
        score=ScoreSpec(SCORE_LOW, SCORE_HIGH, tuple(config.score_token_ids)),
        technical=ScoreSpec(SCORE_LOW, SCORE_HIGH, tuple(config.technical_token_ids)),
        reference=work.info.reference or gate_scores,
        llm=llm_spec(config.text_config),
        prompts=work.info.prompts,
        attributes=ATTRIBUTES,
        graphs=tuple(work.graphs),
        files={name: _entry(work.folder / name) for name in names},
        golden=(),
        parity=tuple(work.rows),
        provenance=Provenance(source_sha256, tools, work.options.recorded(work.llm_block)),
        engines=tuple(work.engines),
        drift_allowed=_drifted(work),
    )
    _write(manifest, work.folder)
    if work.options.examples:
        golden = _golden(work)
        manifest = msgspec.structs.replace(
            manifest, golden=golden, parity=tuple(work.rows), drift_allowed=_drifted(work)
        )
        _write(manifest, work.folder)
    return sign_manifest(manifest)


def _drifted(work: Work) -> bool:
    return not all(row.passed for row in work.rows)


def _golden(work: Work) -> tuple[Golden, ...]:
    """Scores of the examples by the bundle, once they are as close to the torch model's as the gate asks."""
    examples, spec = work.options.examples, work.info.photo
    decoder = next(graph.precision for graph in work.graphs if graph.stage == "llm")
    precision = parity.coarser(decoder, work.options.encoder_precision)
    with Calm.load(work.folder, engine="cpu") as calm:
        scores = [calm.score(path) for path in examples]
    found = parity.Ratings(*(np.array([getattr(s, name) for s in scores]) for name in ("mean", "technical")))
    pixels = parity.pixel_batch((leave_out_frame(load_photo(path, spec), spec)[0] for path in examples), spec)
    reference = parity.torch_side(work.model, pixels, work.info.prompts["score"], work.text)
    work.gate(parity.golden_rows(reference, found, precision), "the finished bundle")
    return tuple(
        Golden(path.name, file_sha256(path), *(round(number, 6) for number in (score.mean, score.std, score.technical)))
        for path, score in zip(examples, scores, strict=True)
    )


def _write(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(encode_manifest(sign_manifest(manifest)))


def _entry(path: Path) -> FileEntry:
    return FileEntry(file_sha256(path), path.stat().st_size)


def checkpoint_sha256(checkpoint: Path) -> str:
    """Digest of the checkpoint: that of the lines `sha256sum` prints for its files, sorted by name."""
    names = {CONFIG, INFO, TOKENIZER, *(p.name for p in checkpoint.glob("model*.safetensors*"))}
    lines = "".join(f"{file_sha256(checkpoint / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()
