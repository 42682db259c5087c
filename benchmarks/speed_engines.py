"""One model on one engine, as the speed benchmark drives it. Each imports its own library, and nothing else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from speed_models import GGUF, Shape, checkpoint_of

Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded model. `score` is None for an engine of the LLM alone, `prefill` and `decode` for one of the whole."""

    score: Callable[[Floats], Floats] | None
    """pixel_values [B, 3, S, S] -> logits of the score tokens [B, 10]."""
    prefill: Callable[[Floats], None] | None
    """Read embeddings [1, n, D] from nothing and keep their cache."""
    decode: Callable[[int], None] | None
    """Write one token after another behind the cache."""


class CalmEngine:
    """This project's runtime on the exported graphs."""

    def __init__(self, folder: Path, shape: Shape, threads: int, eyes: str, llm: str, device: str = "cpu") -> None:
        from calm_runtime.aligner import Aligner
        from calm_runtime.llm import KvCache, LanguageModel, read_embed_tokens
        from calm_runtime.onnx_session import OnnxSession
        from calm_runtime.vision import VisionEncoder

        place = folder / f"eyes-{eyes}"
        self.vision = VisionEncoder(OnnxSession(place / "vision_encoder.onnx", device, threads, keep_on_device=True))
        self.aligner = Aligner(OnnxSession(place / "aligner.onnx", device, threads))
        table = read_embed_tokens(folder / "embed_tokens.safetensors")
        reads, *writes = (
            lambda form=form: OnnxSession(folder / f"llm-{form}" / "model.onnx", device, threads, spin=True)
            for form in llm.split("+")
        )
        self.llm = LanguageModel(reads(), table, shape.llm, writes[0] if writes else None)
        self.before, self.after = self.llm.embed(shape.before)[None], self.llm.embed(shape.after)[None]
        self.ids = list(shape.score_token_ids)
        self.cache: KvCache | None = None

    def score(self, pixels: Floats) -> Floats:
        batch = len(pixels)
        image = self.aligner(self.vision(pixels)).image_embeds
        parts = (self.before.repeat(batch, 0), image, self.after.repeat(batch, 0))
        logits: Floats = self.llm.logits(np.concatenate(parts, axis=1))[:, self.ids]
        return logits

    def prefill(self, embeds: Floats) -> None:
        _, self.cache = self.llm.prefill(embeds)

    def decode(self, steps: int) -> None:
        assert self.cache is not None
        for _ in self.llm.generate(self.cache, [5], steps, stop=()):
            pass


class TorchEngine:
    """The checkpoint in PyTorch. Like the graphs, the head sees the last position alone."""

    def __init__(
        self, folder: Path, shape: Shape, threads: int, dtype: str, compiled: bool, device: str = "cpu"
    ) -> None:
        import torch
        from transformers.utils import logging

        from calm_train.model import CalmForConditionalGeneration

        logging.disable_progress_bar()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.device, self.dtype = torch, device, getattr(torch, dtype)
        checkpoint = checkpoint_of("edge" if folder.name == "edge" else "nano", folder)
        self.model = CalmForConditionalGeneration.from_pretrained(checkpoint, dtype=self.dtype).eval().to(device)
        self.call = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.before, self.after = (torch.tensor([ids], device=device) for ids in (shape.before, shape.after))
        self.ids = list(shape.score_token_ids)
        self.cache: Any = None
        if compiled:
            self.prefill = self.decode = None  # type: ignore[assignment]

    def score(self, pixels: Floats) -> Floats:
        batch = len(pixels)
        sides = self.before.expand(batch, -1), self.after.expand(batch, -1)
        values = self.torch.from_numpy(pixels).to(self.device, self.dtype)
        out = self.call(values, *sides, logits_to_keep=1, use_cache=False)
        return out.logits[:, -1, self.ids].float().cpu().numpy()

    def prefill(self, embeds: Floats) -> None:
        inputs = self.torch.from_numpy(embeds).to(self.device, self.dtype)
        self.cache = self.model.llm(inputs_embeds=inputs, use_cache=True, logits_to_keep=1).past_key_values

    def decode(self, steps: int) -> None:
        token = self.torch.tensor([[5]], device=self.device)
        for _ in range(steps):
            out = self.model.llm(input_ids=token, past_key_values=self.cache, use_cache=True)
            token, self.cache = out.logits[:, -1:].argmax(-1), out.past_key_values


class OpenVinoEngine:
    """OpenVINO on the same ONNX files; the LLM reads a batch row by row, and keeps its cache as plain values."""

    def __init__(self, folder: Path, shape: Shape, threads: int, eyes: str, llm: str) -> None:
        import openvino

        from calm_runtime.llm import read_embed_tokens

        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        names = [folder / f"eyes-{eyes}" / name for name in ("vision_encoder.onnx", "aligner.onnx")]
        names.append(folder / f"llm-{llm}" / "model.onnx")
        self.vision, self.aligner, self.llm = (core.compile_model(str(name), "CPU", settings) for name in names)
        self.table = read_embed_tokens(folder / "embed_tokens.safetensors")
        self.before, self.after = self._embed(shape.before), self._embed(shape.after)
        self.shape, self.ids = shape, list(shape.score_token_ids)
        self.cache: dict[str, Any] = {}
        self.length = 0

    def score(self, pixels: Floats) -> Floats:
        hidden = self.vision({"pixel_values": pixels})
        names = [port.get_any_name() for port in self.aligner.inputs]
        image = self.aligner({name: hidden[name] for name in names})["image_embeds"]
        rows = [self._read(np.concatenate([self.before, row[None], self.after], axis=1)) for row in image]
        return np.concatenate(rows)[:, self.ids]

    def prefill(self, embeds: Floats) -> None:
        self._read(embeds)

    def decode(self, steps: int) -> None:
        token = 5
        for _ in range(steps):
            token = int(self._run(self._embed([token]))[0].argmax())

    def _embed(self, ids: Any) -> Floats:
        return self.table[np.asarray(ids)].astype(np.float32)[None]

    def _read(self, embeds: Floats) -> Floats:
        llm = self.shape.llm
        empty = np.zeros((1, llm.kv_heads, 0, llm.head_dim), np.float32)
        self.cache = {f"past_key_values.{i}.{kind}": empty for i in range(llm.layers) for kind in ("key", "value")}
        self.length = 0
        return self._run(embeds)

    def _run(self, embeds: Floats) -> Floats:
        self.length += embeds.shape[1]
        out = self.llm({"inputs_embeds": embeds, "attention_mask": np.ones((1, self.length), np.int64), **self.cache})
        self.cache = {name: out[name.replace("past_key_values", "present")] for name in self.cache}
        return out["logits"][:, -1]


class LlamaEngine:
    """llama.cpp on the LLM alone."""

    score = None

    def __init__(self, folder: Path, shape: Shape, threads: int) -> None:
        from llama_cpp import Llama

        options = {"n_threads": threads, "n_threads_batch": threads, "n_ctx": 1024, "n_batch": 512, "n_ubatch": 512}
        self.llama = Llama(str(folder / GGUF), verbose=False, **options)

    def prefill(self, embeds: Floats) -> None:
        self.llama.reset()
        self.llama.eval([5 + index % 100 for index in range(embeds.shape[1])])

    def decode(self, steps: int) -> None:
        for step in range(steps):
            self.llama.eval([5 + step % 100])


def open_engine(name: str, folder: Path, shape: Shape, threads: int) -> Engine:
    """The engine of a name: eager-fp32, compile-bf16, llama.cpp, openvino:EYES:LLM, calm:EYES:LLM[+LLM to write]."""
    kind, _, rest = name.partition(":")
    if kind in ("calm", "openvino"):
        eyes, llm = rest.split(":")
        return (CalmEngine if kind == "calm" else OpenVinoEngine)(folder, shape, threads, eyes, llm)
    if kind == "llama.cpp":
        return LlamaEngine(folder, shape, threads)
    how, _, short = kind.partition("-")
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[short]
    return TorchEngine(folder, shape, threads, dtype, how == "compile")
