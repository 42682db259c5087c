"""The language model: an ONNX decoder driven by embeddings, with the KV cache as plain values."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from calm_runtime.bundle import LlmSpec
from calm_runtime.errors import BundleCorrupt, UsageError
from calm_runtime.onnx_session import OnnxSession, Run
from calm_runtime.session import Array, Session

EMBED_TOKENS = "embed_tokens"
_PAIR = ("key", "value")
_STRIDE = 256  # positions by which a growing cache gets more room
_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_LONGEST_HEADER = 2**20  # bytes


class _TensorEntry(msgspec.Struct):
    """One tensor in a safetensors header; offsets count from the header's end."""

    dtype: str
    shape: tuple[int, int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class KvCache:
    """Keys and values of everything read so far; immutable, so that several branches can share one.

    layers: per layer (key, value), each [B, kv_heads, length, head_dim], read-only.
    """

    layers: tuple[tuple[Array, Array], ...]
    length: int

    def __post_init__(self) -> None:
        for key, value in self.layers:
            key.flags.writeable = False
            value.flags.writeable = False


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 takes the most probable one; top_p keeps the likeliest mass."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf") or not 0.0 < self.top_p <= 1.0:
            raise UsageError("temperature must be 0 or more, and top_p above 0 and at most 1")


class LanguageModel:
    """The bundle's decoder. Rows of a batch must have equal length: the graph gives logits of the last position only,
    and padding on either side would change them silently.
    """

    def __init__(
        self,
        session: Session,
        embed_tokens: Array,
        spec: LlmSpec,
        open_decode: Callable[[], Session] | None = None,
    ) -> None:
        """embed_tokens: [V, D] f32 or f16. open_decode: loads a graph that reads single tokens in `session`'s stead;
        called once, before the first of them. Raises BundleCorrupt when the table's shape contradicts the spec.
        """
        if embed_tokens.shape != (spec.vocab_size, spec.hidden_size):
            raise BundleCorrupt(
                f"embed_tokens is {embed_tokens.shape}, the manifest says {(spec.vocab_size, spec.hidden_size)}"
            )
        self._session = session
        self._table = embed_tokens
        self.spec = spec
        self._open_decode = open_decode
        self._decode_session: Session | None = None
        self._lock = threading.Lock()

    def embed(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Token ids -> embeddings [len(ids), D] f32."""
        return self._table[np.asarray(ids, dtype=np.int64)].astype(np.float32)

    def prefill(
        self, inputs_embeds: npt.NDArray[np.float32], cache: KvCache | None = None
    ) -> tuple[npt.NDArray[np.float32], KvCache]:
        """Read embeddings [B, S, D] f32 after what `cache` holds.

        Returns the logits at the last position [B, V] f32 and the longer cache; `cache` stays as it is. With a
        cache, B is 1: the decoder's attention extends batches by single tokens only.
        Raises UsageError when the context length is exceeded, EngineError when the engine fails.
        """
        return self._run(self._session, inputs_embeds, cache)

    def logits(self, inputs_embeds: npt.NDArray[np.float32], cache: KvCache | None = None) -> npt.NDArray[np.float32]:
        """The logits of `prefill` [B, V] f32 alone. In large batches on a GPU, fetching the cache takes half the time."""
        session, feeds = self._session, self._feeds(inputs_embeds, cache)
        return self._last(session.run(feeds, ["logits"]) if isinstance(session, OnnxSession) else session.run(feeds))

    def _run(
        self, session: Session, inputs_embeds: npt.NDArray[np.float32], cache: KvCache | None
    ) -> tuple[npt.NDArray[np.float32], KvCache]:
        out = session.run(self._feeds(inputs_embeds, cache))
        layers = tuple((out[f"present.{i}.key"], out[f"present.{i}.value"]) for i in range(self.spec.layers))
        return self._last(out), KvCache(layers, inputs_embeds.shape[1] + (cache.length if cache else 0))

    @staticmethod
    def _last(out: Mapping[str, Array]) -> npt.NDArray[np.float32]:
        """Logits [B, V] of the last position, whether or not the head is pruned."""
        return out["logits"][:, -1].astype(np.float32, copy=False)

    def _feeds(self, inputs_embeds: npt.NDArray[np.float32], cache: KvCache | None) -> dict[str, Array]:
        batch, steps, _ = inputs_embeds.shape
        past = cache.length if cache else 0
        self._check_room(past + steps)
        feeds: dict[str, Array] = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": np.ones((batch, past + steps), np.int64),
        }
        for layer, (key, value) in enumerate(cache.layers if cache else self._empty(batch)):
            feeds[f"past_key_values.{layer}.key"] = key
            feeds[f"past_key_values.{layer}.value"] = value
        return feeds

    def generate(
        self,
        cache: KvCache,
        ids: Sequence[int],
        max_new_tokens: int,
        stop: Collection[int],
        forbidden: Collection[int] = (),
        sampling: Sampling | None = None,
    ) -> Iterator[int]:
        """Yield tokens that follow `ids` after `cache` (one row), until a `stop` token or the limit.

        Stop tokens are not yielded; `forbidden` ones are never drawn. The same seed gives the same tokens.
        """
        sampling = sampling or Sampling()
        random = np.random.default_rng(sampling.seed)
        barred = np.asarray(sorted(forbidden), dtype=np.int64)
        count = min(max_new_tokens, self.spec.context_length - cache.length - len(ids))
        logits, cache = self.prefill(self.embed(ids)[None], cache)
        read = self.decoder(cache, max(0, count - 1))
        for step in range(count):
            row = logits[0]
            row[barred] = -np.inf
            token = draw(row, sampling, random)
            if token in stop:
                return
            yield token
            if step + 1 < count:
                logits = read(token)

    def decoder(self, cache: KvCache, room: int) -> Callable[[int], npt.NDArray[np.float32]]:
        """A function that reads up to `room` tokens, one a call, behind `cache` (one row), and gives their logits [1, V].

        Keys and values grow in place: `prefill` copies all of them for every token, on a GPU from and to the host. On a
        CPU that costs a model of 0.6 B parameters a quarter of its speed at 256 tokens.
        """
        self._check_room(cache.length + room)
        session = self._decoding_session()
        if not isinstance(session, OnnxSession):
            return self._copying_decoder(session, cache)
        length, end = cache.length, cache.length + room
        stride = _STRIDE if session.device == "cpu" else room  # what lies on a GPU stays as large as it is
        held = {
            (i, name): values for i, pair in enumerate(cache.layers) for name, values in zip(_PAIR, pair, strict=True)
        }
        capacity = 0
        run: Run | None = None

        def read(token: int) -> npt.NDArray[np.float32]:
            nonlocal held, length, capacity, run
            if length == capacity or run is None:
                capacity = min(end, length + stride)
                held = {place: self._grown(values, length, capacity) for place, values in held.items()}
                past = {f"past_key_values.{i}.{name}": values for (i, name), values in held.items()}
                present = {f"present.{i}.{name}": values for (i, name), values in held.items()}
                run = session.bind("logits", past, present)
            length += 1
            logits = run({"inputs_embeds": self.embed([token])[None], "attention_mask": np.ones((1, length), np.int64)})
            return logits[:, -1].astype(np.float32, copy=False)

        return read

    def _decoding_session(self) -> Session:
        with self._lock:
            if self._open_decode and self._decode_session is None:
                self._decode_session = self._open_decode()
            return self._decode_session or self._session

    def _check_room(self, tokens: int) -> None:
        if tokens > self.spec.context_length:
            raise UsageError(f"the text needs {tokens} tokens, the model reads {self.spec.context_length}")

    def _grown(self, values: Array, length: int, capacity: int) -> Array:
        """The first `length` positions of keys or values, with room for `capacity`."""
        grown = np.empty((1, self.spec.kv_heads, capacity, self.spec.head_dim), self.cache_dtype)
        grown[:, :, :length] = values[:, :, :length]
        return grown

    def _copying_decoder(self, session: Session, cache: KvCache) -> Callable[[int], npt.NDArray[np.float32]]:
        def read(token: int) -> npt.NDArray[np.float32]:
            nonlocal cache
            logits, cache = self._run(session, self.embed([token])[None], cache)
            return logits

        return read

    def close(self) -> None:
        self._session.close()
        with self._lock:
            self._open_decode = None
            if self._decode_session:
                self._decode_session.close()

    @property
    def cache_dtype(self) -> np.dtype[Any]:
        """Dtype of the KV cache's values."""
        return self._session.input_dtypes.get("past_key_values.0.key", np.dtype(np.float32))

    def _empty(self, batch: int) -> list[tuple[Array, Array]]:
        nothing = np.zeros((batch, self.spec.kv_heads, 0, self.spec.head_dim), self.cache_dtype)
        return [(nothing, nothing)] * self.spec.layers


def draw(logits: npt.NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """Next token from logits [V]; -inf bars a token."""
    if sampling.temperature == 0.0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) / sampling.temperature
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < sampling.top_p]  # the token that crosses the bound stays in
    return int(random.choice(kept, p=probabilities[kept] / probabilities[kept].sum()))


def read_embed_tokens(path: Path) -> Array:
    """The token embeddings [V, D] of a bundle, F32 or F16, memory-mapped: only rows that are looked up are read.

    safetensors' own NumPy reader copies the whole table, half a gigabyte for an LLM of 0.5 B parameters. Its format:
    eight bytes of header length, a JSON header, raw little-endian tensors. Raises BundleCorrupt.
    """
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = msgspec.json.decode(handle.read(min(length, _LONGEST_HEADER)), type=dict[str, Any])
        entry = msgspec.convert(header[EMBED_TOKENS], _TensorEntry)
        start, end = entry.data_offsets
        dtype = _SAFETENSORS_DTYPES[entry.dtype]
        if end - start != dtype.itemsize * math.prod(entry.shape):
            raise ValueError(f"{end - start} bytes for {entry.dtype} {entry.shape}")
        return np.memmap(path, dtype=dtype, mode="r", offset=8 + length + start, shape=entry.shape)
    except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
        raise BundleCorrupt(f"{path}: no tensor {EMBED_TOKENS} can be read from it ({error})") from error
