"""The two sides `calm export verify` compares: the checkpoint in torch, and the bundle's decoders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from calm_export import parity
from calm_export.llm import BLOCK_SIZE, export_llm, llm_spec, open_llm, write_llm_source
from calm_export.parity import MAX_SCORE_DIFFERENCE, MIN_COSINE, MIN_SRCC, Array
from calm_export.stages import Distance, StageRow, most, number
from calm_runtime.bundle import Bundle, Graph, Manifest, Precision, Stage
from calm_runtime.errors import BundleCorrupt, DataError, UsageError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.prompt import split_prompt
from calm_runtime.rank_correlation import srcc
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import TOKENIZER, load_checkpoint

FLOAT32 = "float32"
LOGITS, DECODED, TEXT = "prefill logits", "decode logits", "greedy text"
ROUNDED = ("int8", "int8-dynamic", "int4")
MIN_SAME_WEIGHTS_COSINE = 0.9999  # rounding to few bits hides small changes of the weights from a float32 reference
MIN_AGREEMENT = {"fp32": 0.99, "fp16": 0.98, "int8": 0.9, "int8-dynamic": 0.9, "int4": 0.8}
TEXT_TASK = "comment"
TEXT_TOKENS = 24


class Source:
    """The checkpoint's side."""

    def __init__(self, checkpoint: Path) -> None:
        """Raises UsageError when the folder is no checkpoint."""
        try:
            self.model, self.tokenizer, self.info = load_checkpoint(checkpoint)
        except DataError as error:
            raise UsageError(f"--checkpoint: {error}") from error
        self.spec = llm_spec(self.model.config.text_config)
        self.text = TextTokenizer(checkpoint / TOKENIZER, self.spec.bos_token_id)

    def logits(self, image_embeds: Array, task: str, following: Sequence[int] = ()) -> Array:
        """Logits [1 + len(following), V] after the task's prompt, and after each of the tokens that follow it."""
        before, after = split_prompt(self.info.prompts[task], self.text)
        sides = [torch.tensor([ids]) for ids in (before, [*after, *following])]
        with torch.inference_mode():
            embeds = self.model.prompt_embeds(torch.from_numpy(image_embeds), *sides)
            logits: Array = self.model.llm(inputs_embeds=embeds).logits[0, -1 - len(following) :].numpy()
        return logits


class Decoder:
    """One of the bundle's decoders with the bundle's prompts, and what was found of it so far.

    decode: the graph that reads what the LLM writes, where it is another one.
    """

    def __init__(self, bundle: Bundle, graph: Graph, decode: Graph | None, text: TextTokenizer) -> None:
        self.manifest, self.graph, self.decode, self.text = bundle.manifest, graph, decode, text
        self.llm = open_llm(
            bundle.file(graph.path),
            read_embed_tokens(bundle.file("embed_tokens.safetensors")),
            bundle.manifest.llm,
            bundle.file(decode.path) if decode else None,
        )
        self.eyes = cpu_graph(bundle, "aligner").precision  # what reads the photo before this decoder does
        self.engine = "onnxruntime" if graph.target == "cpu" else f"onnxruntime, {graph.target} graph on the CPU"
        self.twin: LanguageModel | None = None  # graphs of the same precision, made from the checkpoint
        self.logits, self.same_weights = Distance(), Distance()
        self.decoded, self.same_decoded = Distance(), Distance()
        self.ratings: list[parity.Ratings] = []  # of one photo each
        self.agreed: list[int] = []
        self.written: list[int] = []

    def read(self, source: Source, expected: Array, reference_embeds: Array, image_embeds: Array) -> str:
        """Read one photo: logits, against torch's `expected` [V], score and text. Returns the text."""
        prompt = split_prompt(self.manifest.prompts["score"], self.text)
        its_prompt = split_prompt(source.info.prompts["score"], source.text)
        same = image_embeds if self.eyes == "int8" else reference_embeds  # only the decoders' weights may differ
        logits = parity.prefill_logits(self.llm, image_embeds[0], *prompt)
        self.logits.add(expected, logits)
        if self.twin:
            self.same_weights.add(parity.prefill_logits(self.twin, same[0], *its_prompt), logits)
        if self.decode:
            decoded = parity.decode_logits(self.llm, image_embeds[0], *prompt)
            self.decoded.add(expected, decoded)
            if self.twin:
                self.same_decoded.add(parity.decode_logits(self.twin, same[0], *its_prompt), decoded)
        ids = parity.RatingIds(self.manifest.score.token_ids, self.manifest.technical.token_ids)
        self.ratings.append(parity.ratings_of(logits[None], ids))
        tokens = self._write(image_embeds)
        closed = [self.manifest.llm.eos_token_id] if len(tokens) < TEXT_TOKENS else []
        wanted = source.logits(reference_embeds, TEXT_TASK, tokens)[: len(tokens) + len(closed)]
        wanted[:, sorted(_barred(self.manifest))] = -np.inf
        self.agreed.append(int((wanted.argmax(axis=1) == [*tokens, *closed]).sum()))
        self.written.append(len(wanted))
        return self.text.decode(tokens)

    def rows(self, torch_ratings: Sequence[parity.Ratings]) -> Iterator[StageRow]:
        """The decoder's stages in order. torch_ratings: of one photo each, as `self.ratings`."""
        precision = self.graph.precision
        gate = parity.coarser(precision, self.eyes)
        yield self.logits.row(LOGITS, self.engine, precision, FLOAT32, min_cosine=MIN_COSINE[gate])
        if self.twin:
            rounded = f"checkpoint rounded to {precision}"
            yield self.same_weights.row(LOGITS, self.engine, precision, rounded, min_cosine=MIN_SAME_WEIGHTS_COSINE)
        writing, written = self.decode.precision if self.decode else precision, gate
        if self.decode:
            written = parity.coarser(writing, gate)
            yield self.decoded.row(DECODED, self.engine, writing, FLOAT32, min_cosine=MIN_COSINE[written])
            if self.twin:
                rounded = f"checkpoint rounded to {writing}"
                yield self.same_decoded.row(DECODED, self.engine, writing, rounded, min_cosine=MIN_SAME_WEIGHTS_COSINE)
        expected, found = (
            [np.concatenate(parts) for parts in zip(*rows, strict=True)] for rows in (torch_ratings, self.ratings)
        )
        for stage, theirs, ours in zip(parity.RATINGS, expected, found, strict=True):
            yield self._rating_row(stage, theirs, ours, gate)
        share, enough = sum(self.agreed) / sum(self.written), MIN_AGREEMENT[written]
        same = sum(agreed == written for agreed, written in zip(self.agreed, self.written, strict=True))
        yield StageRow(
            stage=TEXT,
            engine=self.engine,
            precision=writing,
            reference=FLOAT32,
            photos=len(self.written),
            agreement=number(share),
            gate=f"agreement >= {enough:g}",
            passed=share >= enough,
            note=f"{same} of {len(self.written)} texts the same to the last token",
        )

    def _rating_row(
        self, stage: str, theirs: npt.NDArray[np.float64], ours: npt.NDArray[np.float64], gate: Precision
    ) -> StageRow:
        difference, rank, limit = most(np.abs(theirs - ours)), srcc(theirs, ours), MAX_SCORE_DIFFERENCE[gate]
        return StageRow(
            stage=stage,
            engine=self.engine,
            precision=self.graph.precision,
            reference=FLOAT32,
            photos=len(ours),
            max_difference=number(difference),
            srcc=number(rank),
            gate=f"difference <= {limit:g}, SRCC >= {MIN_SRCC:g}",
            passed=difference <= limit and rank >= MIN_SRCC,
        )

    def _write(self, image_embeds: Array) -> list[int]:
        before, after = split_prompt(self.manifest.prompts[TEXT_TASK], self.text)
        _, cache = self.llm.prefill(np.concatenate([self.llm.embed(before)[None], image_embeds], axis=1))
        stop = {self.manifest.llm.eos_token_id}
        return list(self.llm.generate(cache, after, TEXT_TOKENS, stop, _barred(self.manifest)))


def open_decoders(bundle: Bundle, source: Source, scratch: Path, progress: Callable[[str], None]) -> list[Decoder]:
    """The bundle's decoders, that of the CPU first. A quantised one gets its twin."""
    text = TextTokenizer(bundle.file(TOKENIZER), bundle.manifest.llm.bos_token_id)
    cuda = bundle.graph("llm", "cuda")
    decoders = [
        Decoder(bundle, graph, bundle.graph("llm_decode", graph.target), text)
        for graph in (cpu_graph(bundle, "llm"), cuda)
        if graph
    ]
    block = int(bundle.manifest.provenance.options.get("llm_block", BLOCK_SIZE))
    for index, decoder in enumerate(decoders):
        graphs = [graph for graph in (decoder.graph, decoder.decode) if graph]
        if not any(graph.precision in ROUNDED for graph in graphs):
            continue
        rounding = write_llm_source(source.model, source.tokenizer, scratch / f"source-{index}")
        paths = []
        for graph in graphs:
            progress(f"rounding the checkpoint's LLM to {graph.precision}")
            folder = scratch / f"{graph.stage}-{index}"
            reads_only = graph.stage == "llm" and len(graphs) > 1
            export_llm(rounding, graph.precision, folder, block=block, reads_only=reads_only)  # type: ignore[arg-type]
            paths.append(folder / "model.onnx")
        table = source.model.get_input_embeddings().get_parameter("weight").detach().half().numpy()
        decoder.twin = open_llm(paths[0], table, source.spec, paths[1] if len(paths) > 1 else None)
    return decoders


def cpu_graph(bundle: Bundle, stage: Stage) -> Graph:
    """The bundle's graph of a stage for the CPU. Raises BundleCorrupt when it has none."""
    graph = bundle.graph(stage, "cpu")
    if graph is None:
        raise BundleCorrupt(f"{bundle.path}: no graph of {stage} for the CPU; export the bundle again")
    return graph


def _barred(manifest: Manifest) -> set[int]:
    """Tokens that never appear in a text, as in `calm_runtime.pipeline`."""
    llm = manifest.llm
    return {*manifest.rating_tokens, llm.bos_token_id, llm.pad_token_id} - {llm.eos_token_id}
