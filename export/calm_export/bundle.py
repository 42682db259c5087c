"""Checkpoint -> bundle: export every graph, prove parity, sign the manifest, and only then let the folder appear."""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from calm_export import parity
from calm_export.eyes import export_cuda_eyes, export_engines, export_eyes
from calm_export.llm import (
    CHOICES,
    PRECISIONS,
    LlmPrecision,
    export_embed_tokens,
    export_llm,
    llm_spec,
    open_llm,
    write_llm_source,
)
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
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.photo import load_photo
from calm_runtime.pipeline import Calm
from calm_runtime.score import SCORE_HIGH, SCORE_LOW
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import CONFIG, INFO, TOKENIZER, load_checkpoint

LLM = "llm/model.onnx"
LLM_DECODE = "llm-decode/model.onnx"
LLM_CUDA = "llm-cuda/model.onnx"
EMBED_TOKENS_FILE = "embed_tokens.safetensors"
_TOOLS = ("calm-edge", "torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai",
          "tokenizers", "safetensors", "numpy", "pillow")  # fmt: skip

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
        _export_llm(work, source, reference, features["image_embeds"], progress)
        if options.llm_decode_precision:
            _export_decode(work, source, reference, features["image_embeds"], options.llm_decode_precision, progress)
        if "cuda" in options.targets:
            export_cuda_eyes(work, pixels, reference, progress)
            _export_cuda_llm(work, source, reference, progress)
        if engine_targets(options):
            export_engines(work, pixels, reference, progress)
        progress("scoring the examples with the finished bundle")
        manifest = _finish(work, checkpoint_sha256(checkpoint))
        for kind, place in packs.items():
            progress(f"writing the {kind} pack")
            write_pack(open_bundle(folder), kind, place)
    return manifest


def _export_llm(
    work: Work,
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
        reads_only = work.options.llm_decode_precision is not None
        export_llm(source, precision, work.folder / "llm", block=work.options.llm_block, reads_only=reads_only)
        dtype = torch.float32 if precision == "fp32" else torch.float16
        export_embed_tokens(work.model, work.folder / EMBED_TOKENS_FILE, dtype)
        scores = _scores(work, _open_llm(work, LLM), image_embeds)
        rows = parity.score_rows(reference, scores, parity.coarser(precision, work.options.encoder_precision))
        missed = parity.describe(rows)
        if not missed or (work.options.allow_drift and precision == choices[-1]):
            work.gate(rows, f"the LLM as {precision}")
            work.add_onnx("llm", LLM, precision, f"onnxruntime-genai {tool_version('onnxruntime-genai')}")
            return
        misses.append(f"{precision}: {missed}")
        progress(f"the LLM misses the gate as {misses[-1]}")
        shutil.rmtree(work.folder / "llm")
    raise ExportError(f"the LLM misses the parity gate as {' / '.join(misses)}")


def _export_decode(
    work: Work,
    source: Path,
    reference: parity.Seen,
    image_embeds: parity.Array,
    precision: LlmPrecision,
    progress: Callable[[str], None],
) -> None:
    """A second graph for single tokens. Its gate: scores whose question it has read token by token."""
    first = next(graph for graph in work.graphs if graph.stage == "llm")
    if first.precision == precision:  # what "auto" came to
        raise ExportError(f"the LLM is {precision} already; leave out --llm-decode-precision, one graph does both")
    progress(f"building the LLM as {precision}, to write")
    export_llm(source, precision, (work.folder / LLM_DECODE).parent, block=work.options.llm_block)
    scores = _scores(work, _open_llm(work, LLM, LLM_DECODE), image_embeds, token_by_token=True)
    coarsest = parity.coarser(parity.coarser(first.precision, precision), work.options.encoder_precision)
    rows = [
        msgspec.structs.replace(row, stage="llm_decode", metric=f"{row.metric}, question token by token")
        for row in parity.score_rows(reference, scores, coarsest)
    ]
    work.gate(rows, f"the LLM as {precision}, to write,")
    work.add_onnx("llm_decode", LLM_DECODE, precision, f"onnxruntime-genai {tool_version('onnxruntime-genai')}")


def _export_cuda_llm(work: Work, source: Path, reference: parity.Seen, progress: Callable[[str], None]) -> None:
    """A float16 LLM for ONNX Runtime's CUDA kernels. Its gate is its own: it reads what PyTorch saw."""
    progress("building the LLM as fp16 for CUDA")
    export_llm(source, "fp16", (work.folder / LLM_CUDA).parent, "cuda")
    rows = parity.score_rows(
        reference, _scores(work, _open_llm(work, LLM_CUDA), reference.features["image_embeds"]), "fp16"
    )
    rows = [msgspec.structs.replace(row, metric=f"fp16 for cuda: {row.metric}") for row in rows]
    work.gate(rows, "the LLM for CUDA")
    work.add_onnx("llm", LLM_CUDA, "fp16", f"onnxruntime-genai {tool_version('onnxruntime-genai')}", "cuda")


def _open_llm(work: Work, graph: str, decode: str | None = None) -> LanguageModel:
    """One or two of the bundle's decoders, on the CPU."""
    table = read_embed_tokens(work.folder / EMBED_TOKENS_FILE)
    spec = llm_spec(work.model.config.text_config)
    return open_llm(work.folder / graph, table, spec, work.folder / decode if decode else None)


def _scores(
    work: Work, llm: LanguageModel, image_embeds: parity.Array, *, token_by_token: bool = False
) -> npt.NDArray[np.float64]:
    prompt, token_ids = work.info.prompts["score"], work.model.config.score_token_ids
    return parity.onnx_scores(llm, image_embeds, prompt, work.text, token_ids, token_by_token=token_by_token)


def _finish(work: Work, source_sha256: str) -> Manifest:
    """Write the manifest, score the examples through the runtime as a user would, and write it again with them."""
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


def _drifted(work: Work) -> bool:
    return not all(row.passed for row in work.rows)


def _golden(work: Work) -> tuple[Golden, ...]:
    """Scores of the examples by the bundle, once they are as close to the torch model's as the gate asks."""
    examples, spec = work.options.examples, work.info.photo
    decoder = next(graph.precision for graph in work.graphs if graph.stage == "llm")
    precision = parity.coarser(decoder, work.options.encoder_precision)
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


def checkpoint_sha256(checkpoint: Path) -> str:
    """Digest of the checkpoint: that of the lines `sha256sum` prints for its files, sorted by name."""
    names = {CONFIG, INFO, TOKENIZER, *(p.name for p in checkpoint.glob("model*.safetensors*"))}
    lines = "".join(f"{file_sha256(checkpoint / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(lines.encode()).hexdigest()
