"""Checkpoint -> bundle: export every graph, prove parity, sign the manifest, and only then let the folder appear."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from calm_export import parity
from calm_export.aligner import export_aligner
from calm_export.engines import source_features, write_sources
from calm_export.graph import write_graph
from calm_export.llm import (
    CHOICES,
    PRECISIONS,
    LlmPrecision,
    export_embed_tokens,
    export_llm,
    llm_spec,
    write_llm_source,
)
from calm_export.options import ExportOptions
from calm_export.packs import staged_packs, write_pack
from calm_export.photos import parity_photos
from calm_export.staging import check_output, staged
from calm_export.tensorrt import BUILDERS, EngineTarget, build_devices, build_engine, library_version
from calm_export.vision import export_vision
from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    EngineEvidence,
    FileEntry,
    Golden,
    Graph,
    Manifest,
    ParityRow,
    Precision,
    Provenance,
    ScoreSpec,
    Stage,
    Target,
    VisualTokens,
    encode_manifest,
    file_sha256,
    open_bundle,
    sign_manifest,
)
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import load_photo
from calm_runtime.pipeline import Calm
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import CONFIG, INFO, TOKENIZER, CheckpointInfo, load_checkpoint
from calm_train.model import CalmForConditionalGeneration

VISION_ENCODER = "vision_encoder.onnx"
ALIGNER = "aligner.onnx"
LLM = "llm/model.onnx"
LLM_CUDA = "llm-cuda/model.onnx"
EMBED_TOKENS_FILE = "embed_tokens.safetensors"
ENGINE_STAGES: tuple[Stage, ...] = ("vision_encoder", "aligner")
ENGINE_PHOTOS = 16  # float16 on a CPU is emulated and slow: enough photos to see an overflow
_TOOLS = ("calm-edge", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai",
          "tokenizers", "safetensors", "numpy", "pillow")  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass
class _Work:
    """One export on its way: what each step adds to the manifest."""

    model: CalmForConditionalGeneration
    info: CheckpointInfo
    text: TextTokenizer
    folder: Path
    scratch: Path
    options: ExportOptions
    graphs: list[Graph] = field(default_factory=list)
    engines: list[EngineEvidence] = field(default_factory=list)
    rows: list[ParityRow] = field(default_factory=list)

    def gate(self, rows: Sequence[ParityRow], what: str) -> None:
        """Record the rows. Raises ExportError when one missed its gate, unless drift is allowed and can be told."""
        if not self.options.allow_drift or not all(math.isfinite(row.value) for row in rows):
            parity.require(rows, what)
        elif missed := parity.describe(rows):
            logger.warning("%s misses the parity gate: %s", what, missed)
        self.rows += rows

    def add_onnx(self, stage: Stage, name: str, precision: Precision, tool: str, target: Target = "cpu") -> None:
        self.graphs.append(Graph(stage, target, name, precision, file_sha256(self.folder / name), tool=tool))


def export_bundle(
    checkpoint: Path, output: Path, options: ExportOptions, progress: Callable[[str], None] = logger.info
) -> Manifest:
    """Export a checkpoint folder to a bundle folder.

    The bundle appears whole or not at all; so do packs, beside it. Raises ExportError (also for a missed parity gate, with the numbers,
    unless drift is allowed) or DataError when the checkpoint is not one.
    """
    check_output(output, options.overwrite)
    for target in _engine_targets(options):
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
        work = _Work(model, info, text, folder, Path(scratch), options)
        progress("running the torch model on the photos of the parity gate")
        photos = parity_photos(info.photo, options.photos, options.examples)
        pixels = parity.pixel_batch((photo.picture for photo in photos), info.photo)
        reference = parity.torch_side(model, pixels, info.prompts["score"], text)
        progress("exporting vision encoder and aligner")
        _export_eyes(work)
        features = parity.onnx_features(folder / VISION_ENCODER, folder / ALIGNER, pixels)
        work.gate(parity.feature_rows(reference, features, "fp32"), "the export of vision encoder and aligner")
        source = write_llm_source(model, tokenizer, work.scratch / "llm")
        _export_llm(work, source, reference, features["image_embeds"], progress)
        if "cuda" in options.targets:
            _export_cuda(work, source, reference, features["image_embeds"], progress)
        if _engine_targets(options):
            _export_engines(work, pixels, reference, progress)
        progress("scoring the examples with the finished bundle")
        manifest = _finish(work, checkpoint_sha256(checkpoint))
        for kind, place in packs.items():
            progress(f"writing the {kind} pack")
            write_pack(open_bundle(folder), kind, place)
    return manifest


def _export_eyes(work: _Work) -> None:
    tool = f"torch {torch.__version__.partition('+')[0]}"
    write_graph(export_vision(work.model), work.folder / VISION_ENCODER)
    work.add_onnx("vision_encoder", VISION_ENCODER, "fp32", tool)
    write_graph(export_aligner(work.model), work.folder / ALIGNER)
    work.add_onnx("aligner", ALIGNER, "fp32", tool)


def _export_llm(
    work: _Work,
    source: Path,
    reference: parity.Seen,
    image_embeds: parity.Array,
    progress: Callable[[str], None],
) -> None:
    """Build the LLM in the asked precision, or in the smallest that passes the gate.

    When none passes and drift is allowed, the most exact one stays.
    """
    asked = work.options.llm_precision
    choices: Sequence[LlmPrecision] = PRECISIONS if asked == "auto" else [p for p in CHOICES if p == asked]
    misses = []
    for precision in choices:
        progress(f"building the LLM as {precision}")
        export_llm(source, precision, work.folder / "llm")
        dtype = torch.float32 if precision == "fp32" else torch.float16
        export_embed_tokens(work.model, work.folder / EMBED_TOKENS_FILE, dtype)
        scores = _scores(work, LLM, image_embeds)
        rows = parity.score_rows(reference, scores, precision)
        missed = parity.describe(rows)
        if not missed or (work.options.allow_drift and precision == choices[-1]):
            work.gate(rows, f"the LLM as {precision}")
            work.add_onnx("llm", LLM, precision, f"onnxruntime-genai {_version('onnxruntime-genai')}")
            return
        misses.append(f"{precision}: {missed}")
        progress(f"the LLM misses the gate as {misses[-1]}")
        shutil.rmtree(work.folder / "llm")
    raise ExportError(f"the LLM misses the parity gate as {' / '.join(misses)}")


def _export_cuda(
    work: _Work,
    source: Path,
    reference: parity.Seen,
    image_embeds: parity.Array,
    progress: Callable[[str], None],
) -> None:
    """The same vision encoder and aligner, and a float16 LLM for ONNX Runtime's CUDA kernels."""
    for graph in list(work.graphs):
        if graph.stage != "llm":
            work.graphs.append(msgspec.structs.replace(graph, target="cuda"))
    progress("building the LLM as fp16 for CUDA")
    export_llm(source, "fp16", (work.folder / LLM_CUDA).parent, "cuda")
    rows = parity.score_rows(reference, _scores(work, LLM_CUDA, image_embeds), "fp16")
    rows = [msgspec.structs.replace(row, metric=f"fp16 for cuda: {row.metric}") for row in rows]
    work.gate(rows, "the LLM for CUDA")
    work.add_onnx("llm", LLM_CUDA, "fp16", f"onnxruntime-genai {_version('onnxruntime-genai')}", "cuda")


def _scores(work: _Work, graph: str, image_embeds: parity.Array) -> npt.NDArray[np.float64]:
    """Scores by one of the bundle's decoders, on the CPU."""
    config = work.model.config
    table = read_embed_tokens(work.folder / EMBED_TOKENS_FILE)
    llm = LanguageModel(OnnxSession(work.folder / graph), table, llm_spec(config.text_config))
    return parity.onnx_scores(llm, image_embeds, work.info.prompts["score"], work.text, config.score_token_ids)


def _engine_targets(options: ExportOptions) -> list[EngineTarget]:
    return [target for target in BUILDERS if target in options.targets]


def _export_engines(work: _Work, pixels: parity.Array, reference: parity.Seen, progress: Callable[[str], None]) -> None:
    """Engines of vision encoder and aligner, from ONNX of their own whose weights carry the precision."""
    precision = work.options.engine_precision
    sources = write_sources(work.model, precision, work.scratch)
    progress(f"checking the {precision} graphs the engines are built from")
    few = parity.Seen({k: v[:ENGINE_PHOTOS] for k, v in reference.features.items()}, reference.scores[:ENGINE_PHOTOS])
    features = source_features(work.model, precision, sources, pixels[:ENGINE_PHOTOS])
    rows = parity.feature_rows(few, features, precision)
    rows = [msgspec.structs.replace(row, metric=f"{precision} engine source: {row.metric}") for row in rows]
    work.gate(rows, f"the {precision} graph for engines")
    for target in _engine_targets(work.options):
        for device in build_devices(target, work.options.devices):
            for stage in ENGINE_STAGES:
                progress(f"building the {BUILDERS[target].title} engine of {stage} for {device}")
                graph, evidence = build_engine(
                    target, stage, sources[stage], work.folder, device, precision, work.options.batches
                )
                work.graphs.append(graph)
                work.engines.append(evidence)


def _finish(work: _Work, source_sha256: str) -> Manifest:
    """Write the manifest, score the examples through the runtime as a user would, and write it again with them."""
    config = work.model.config
    names = sorted(p.relative_to(work.folder).as_posix() for p in work.folder.rglob("*") if p.is_file())
    tools = {"python": platform.python_version()} | {name: _version(name) for name in _TOOLS}
    tools |= {target: library_version(target) for target in _engine_targets(work.options)}
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model=work.info.model,
        photo=work.info.photo,
        visual_tokens=VisualTokens(
            config.queries, config.queries, config.queries, config.thematic_tokens, config.text_config.hidden_size
        ),
        score=ScoreSpec(SCORE_LOW, SCORE_HIGH, tuple(config.score_token_ids)),
        llm=llm_spec(config.text_config),
        prompts=work.info.prompts,
        attributes=ATTRIBUTES,
        graphs=tuple(work.graphs),
        files={name: _entry(work.folder / name) for name in names},
        golden=(),
        parity=tuple(work.rows),
        provenance=Provenance(source_sha256, tools, work.options.recorded()),
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


def _drifted(work: _Work) -> bool:
    return not all(row.passed for row in work.rows)


def _golden(work: _Work) -> tuple[Golden, ...]:
    """Scores of the examples by the bundle, once they are as close to the torch model's as the gate asks."""
    examples, spec = work.options.examples, work.info.photo
    precision = next(graph.precision for graph in work.graphs if graph.stage == "llm")
    with Calm.load(work.folder, engine="cpu") as calm:
        scores = [calm.score(path) for path in examples]
    pixels = parity.pixel_batch((load_photo(path, spec) for path in examples), spec)
    reference = parity.torch_side(work.model, pixels, work.info.prompts["score"], work.text)
    work.gate([parity.golden_row(reference, [score.mean for score in scores], precision)], "the finished bundle")
    return tuple(
        Golden(path.name, file_sha256(path), round(score.mean, 6), round(score.std, 6))
        for path, score in zip(examples, scores, strict=True)
    )


def _write(manifest: Manifest, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(encode_manifest(sign_manifest(manifest)))


def _entry(path: Path) -> FileEntry:
    return FileEntry(file_sha256(path), path.stat().st_size)


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def checkpoint_sha256(checkpoint: Path) -> str:
    """Digest of the checkpoint: that of the lines `sha256sum` prints for its files, sorted by name."""
    names = {CONFIG, INFO, TOKENIZER, *(p.name for p in checkpoint.glob("model*.safetensors*"))}
    lines = "".join(f"{file_sha256(checkpoint / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()
