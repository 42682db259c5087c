"""llm/model.onnx: the decoder with fused attention, fed by embeddings, its KV cache as inputs and outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import onnx
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerFast

from calm_export.dynamic import dynamic_int8
from calm_export.graph import write_graph
from calm_export.reading import reading_graph
from calm_runtime.bundle import LlmSpec
from calm_runtime.errors import ExportError
from calm_runtime.llm import EMBED_TOKENS, LanguageModel
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.session import Array
from calm_train.model import CalmForConditionalGeneration

LlmPrecision = Literal["int4", "int8", "int8-dynamic", "fp16", "fp32"]
Provider = Literal["cpu", "cuda"]
PRECISIONS: tuple[LlmPrecision, ...] = ("int4", "int8", "fp32")  # for the CPU, smallest first: what "auto" tries
DYNAMIC: LlmPrecision = "int8-dynamic"
CHOICES: tuple[LlmPrecision, ...] = (*PRECISIONS, DYNAMIC)
GENAI_CONFIG = "genai_config.json"
BLOCK_SIZES: tuple[int, ...] = (32, 64, 128)
BLOCK_SIZE = 32  # weights that share one scale; coarser blocks are faster and less exact
ACCURACY_LEVEL = 4  # products in int8: the fast CPU kernels
_WEIGHT_BITS: dict[LlmPrecision, int] = {"int4": 4, "int8": 8}
IN_BLOCKS = tuple(_WEIGHT_BITS)
_LOG_TAIL = 2000


def llm_spec(config: PretrainedConfig) -> LlmSpec:
    """What the bundle says about the decoder, from the causal LM's configuration."""
    heads = config.num_attention_heads
    eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if eos is None or config.bos_token_id is None:
        raise ExportError("the LLM's configuration names no bos_token_id or no eos_token_id")
    return LlmSpec(
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        context_length=_context_length(config),
        bos_token_id=config.bos_token_id,
        eos_token_id=eos,
        pad_token_id=eos if config.pad_token_id is None else config.pad_token_id,
    )


def _context_length(config: PretrainedConfig) -> int:
    """Positions the decoder may read. The builder drops a sliding window from most architectures without a word;
    up to the window's length, attention is the same with and without it.
    """
    longest: int = config.max_position_embeddings
    return min(longest, getattr(config, "sliding_window", None) or longest)


def write_llm_source(model: CalmForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> Path:
    """The LLM alone as a Hugging Face folder, the form the builder reads."""
    spec = llm_spec(model.config.text_config)
    model.llm.save_pretrained(folder)
    names = {key: tokenizer.id_to_token(getattr(spec, f"{key}_id")) for key in ("bos_token", "eos_token", "pad_token")}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(folder)
    return folder


def export_llm(
    source: Path,
    precision: LlmPrecision,
    folder: Path,
    provider: Provider = "cpu",
    block: int = BLOCK_SIZE,
    *,
    reads_only: bool = False,
) -> tuple[Path, ...]:
    """Build the decoder graph of `source` (see `write_llm_source`) into `folder`; returns the files written.

    provider: whose kernels the graph is made for; graphs for "cuda" also run on the CPU, slowly.
    block: weights that share one scale, of int4 and int8.
    reads_only: another graph will read what is written; see `reading`.

    The builder runs in a process of its own, offline: it reads global state and prints as it pleases.
    Raises ExportError with the end of its log when it fails or does not do what it was asked.
    """
    options = {"exclude_embeds": "true", "prune_lm_head": "true", "hf_token": "false"}
    if precision in _WEIGHT_BITS:
        options |= {"block_size": str(block), "accuracy_level": str(ACCURACY_LEVEL)}
    with tempfile.TemporaryDirectory(prefix="calm-llm-") as scratch:
        built = Path(scratch) / "out"
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(source), "-o", str(built)]
        command += ["-p", "fp32" if precision == DYNAMIC else precision, "-e", provider]
        command += ["-c", str(Path(scratch) / "cache"), "--extra_options"]
        command += [f"{name}={value}" for name, value in options.items()]
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1"}
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=os.environ | quiet, check=False
        )
        if result.returncode != 0 or not (built / "model.onnx").is_file():
            log = (result.stdout + result.stderr)[-_LOG_TAIL:]
            raise ExportError(
                f"onnxruntime-genai cannot build the LLM ({_architecture(source)}) as {precision}:\n{log}"
            )
        graph = built / "model.onnx"
        proto = dynamic_int8(graph) if precision == DYNAMIC else onnx.load(str(graph))
        _check(proto, precision, _architecture(source))
        if reads_only:
            proto = reading_graph(proto, llm_spec(AutoConfig.from_pretrained(source)).head_dim)
        files = write_graph(proto, folder / "model.onnx")
        config = folder / GENAI_CONFIG
        config.write_bytes((built / GENAI_CONFIG).read_bytes())
    return (*files, config)


def open_llm(path: Path, embed_tokens: Array, spec: LlmSpec, decode: Path | None = None) -> LanguageModel:
    """An exported LLM on the CPU, with a graph of its own to write where there is one."""
    return LanguageModel(OnnxSession(path), embed_tokens, spec, (lambda: OnnxSession(decode)) if decode else None)


def _architecture(source: Path) -> str:
    """What the folder's configuration calls its model class."""
    named = json.loads((source / "config.json").read_bytes()).get("architectures")
    return str(named[0]) if named else "no architecture named"


def _check(proto: onnx.ModelProto, precision: LlmPrecision, architecture: str) -> None:
    """The builder ignores options it does not know: trust the graph, not the request."""
    nodes = list(proto.graph.node)
    inputs = {value.name for value in proto.graph.input}
    if not any(node.op_type == "GroupQueryAttention" for node in nodes):
        raise ExportError(f"{architecture} was built without fused GroupQueryAttention: not a supported LLM")
    if "inputs_embeds" not in inputs or "past_key_values.0.key" not in inputs:
        raise ExportError(f"the graph of {architecture} takes {sorted(inputs)}: no inputs_embeds or no KV cache")
    quantised = [node for node in nodes if node.op_type == "MatMulNBits"]
    bits = {attribute.i for node in quantised for attribute in node.attribute if attribute.name == "bits"}
    wanted = {_WEIGHT_BITS[precision]} if precision in _WEIGHT_BITS else set()
    if bits != wanted:
        raise ExportError(f"{architecture} was asked for as {precision}, but has weights of {bits or 'no'} bits")
    if any(node.op_type == "MatMulInteger" for node in nodes) != (precision == DYNAMIC):
        raise ExportError(f"{architecture} was asked for as {precision}, but has other products than that")


def export_embed_tokens(model: CalmForConditionalGeneration, path: Path, dtype: torch.dtype) -> Path:
    """The token embeddings [V, D] as one safetensors file, float32 or float16."""
    weight = model.llm.get_input_embeddings().get_parameter("weight").detach().to(dtype).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({EMBED_TOKENS: weight}, path)
    return path
