"""The LLM of a bundle: decoder graphs for the CPU and for CUDA, gated before they enter it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from calm_export import parity
from calm_export.llm import (
    BLOCK_SIZE,
    BLOCK_SIZES,
    CHOICES,
    IN_BLOCKS,
    PRECISIONS,
    LlmPrecision,
    export_embed_tokens,
    export_llm,
    llm_spec,
    open_llm,
)
from calm_export.work import Work, tool_version
from calm_runtime.bundle import ParityRow, Stage
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel, read_embed_tokens

LLM = "llm/model.onnx"
LLM_DECODE = "llm-decode/model.onnx"
LLM_CUDA = "llm-cuda/model.onnx"
EMBED_TOKENS_FILE = "embed_tokens.safetensors"
Candidate = tuple[LlmPrecision, int]  # weights, and how many of them share a scale
Judge = Callable[[LlmPrecision], list[ParityRow]]


def export_decoders(
    work: Work, source: Path, reference: parity.Seen, image_embeds: parity.Array, progress: Callable[[str], None]
) -> None:
    """Graphs for the CPU: one that reads and writes, or one for each. image_embeds: what the bundle's eyes give."""
    options = work.options
    asked = options.llm_precision
    choices: Sequence[LlmPrecision] = PRECISIONS if asked == "auto" else [p for p in CHOICES if p == asked]

    def judge(precision: LlmPrecision) -> list[ParityRow]:
        dtype = torch.float32 if precision == "fp32" else torch.float16
        export_embed_tokens(work.model, work.folder / EMBED_TOKENS_FILE, dtype)
        ratings = _ratings(work, _open(work, LLM), image_embeds)
        return parity.rating_rows(reference, ratings, parity.coarser(precision, options.encoder_precision))

    candidates = [(precision, block) for precision in choices for block in _blocks(work, precision)]
    first = _build(work, source, ("llm", LLM), candidates, judge, progress)
    if options.llm_decode_precision:
        _export_writing(work, source, reference, image_embeds, (first, options.llm_decode_precision), progress)


def _export_writing(
    work: Work,
    source: Path,
    reference: parity.Seen,
    image_embeds: parity.Array,
    precisions: tuple[LlmPrecision, LlmPrecision],
    progress: Callable[[str], None],
) -> None:
    """A second graph for single tokens. Its gate: ratings whose question it has read token by token."""
    first, second = precisions
    if first == second:  # what "auto" came to
        raise ExportError(f"the LLM is {second} already; leave out --llm-decode-precision, one graph does both")
    coarsest = parity.coarser(parity.coarser(first, second), work.options.encoder_precision)

    def judge(_: LlmPrecision) -> list[ParityRow]:
        ratings = _ratings(work, _open(work, LLM, LLM_DECODE), image_embeds, token_by_token=True)
        return [
            msgspec.structs.replace(row, stage="llm_decode", metric=f"{row.metric}, question token by token")
            for row in parity.rating_rows(reference, ratings, coarsest)
        ]

    _build(
        work, source, ("llm_decode", LLM_DECODE), [(second, block) for block in _blocks(work, second)], judge, progress
    )


def export_cuda_decoder(work: Work, source: Path, reference: parity.Seen, progress: Callable[[str], None]) -> None:
    """A float16 LLM for ONNX Runtime's CUDA kernels. Its gate is its own: it reads what PyTorch saw."""
    progress("building the LLM as fp16 for CUDA")
    export_llm(source, "fp16", (work.folder / LLM_CUDA).parent, "cuda")
    ratings = _ratings(work, _open(work, LLM_CUDA), reference.features["image_embeds"])
    rows = parity.rating_rows(reference, ratings, "fp16")
    rows = [msgspec.structs.replace(row, metric=f"fp16 for cuda: {row.metric}") for row in rows]
    work.gate(rows, "the LLM for CUDA")
    work.add_onnx("llm", LLM_CUDA, "fp16", _tool(), "cuda")


def _build(
    work: Work,
    source: Path,
    place: tuple[Stage, str],
    candidates: Sequence[Candidate],
    judge: Judge,
    progress: Callable[[str], None],
) -> LlmPrecision:
    """Build the first candidate that passes its gate; returns its precision.

    When none passes and drift is allowed, the last one, the most exact, stays.
    """
    stage, path = place
    reads_only = stage == "llm" and work.options.llm_decode_precision is not None
    misses = []
    for index, (precision, block) in enumerate(candidates):
        what = f"{precision} in blocks of {block}" if precision in IN_BLOCKS else precision
        what += ", to write" if stage == "llm_decode" else ""
        progress(f"building the LLM as {what}")
        folder = (work.folder / path).parent
        export_llm(source, precision, folder, block=block, reads_only=reads_only)
        rows = judge(precision)
        missed = parity.describe(rows)
        if not missed or (work.options.allow_drift and index == len(candidates) - 1):
            work.gate(rows, f"the LLM as {what}")
            work.add_onnx(stage, path, precision, _tool())
            if precision in IN_BLOCKS:
                work.llm_block = block
            return precision
        misses.append(f"{what}: {missed}")
        progress(f"the LLM misses the gate as {misses[-1]}")
        shutil.rmtree(folder)
    raise ExportError(f"the LLM misses the parity gate as {' / '.join(misses)}")


def _blocks(work: Work, precision: LlmPrecision) -> tuple[int, ...]:
    """Sizes of blocks to try, the coarsest first; both graphs of an LLM have the same."""
    if precision not in IN_BLOCKS:
        return (BLOCK_SIZE,)
    known = work.llm_block or work.options.llm_block
    return (known,) if known else BLOCK_SIZES[::-1]


def _open(work: Work, graph: str, decode: str | None = None) -> LanguageModel:
    """One or two of the bundle's decoders, on the CPU."""
    table = read_embed_tokens(work.folder / EMBED_TOKENS_FILE)
    spec = llm_spec(work.model.config.text_config)
    return open_llm(work.folder / graph, table, spec, work.folder / decode if decode else None)


def _ratings(
    work: Work, llm: LanguageModel, image_embeds: parity.Array, *, token_by_token: bool = False
) -> parity.Ratings:
    prompt, ids = work.info.prompts["score"], parity.rating_ids(work.model.config)
    return parity.onnx_ratings(llm, image_embeds, prompt, work.text, ids, token_by_token=token_by_token)


def _tool() -> str:
    return f"onnxruntime-genai {tool_version('onnxruntime-genai')}"
