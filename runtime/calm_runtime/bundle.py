"""The bundle: the folder a model is deployed as, its manifest and its integrity.

Export writes it, the runtime and Triton read it, training takes its photo spec, prompts and score scale from the
same classes. `docs/bundle.md` specifies the format for programs in other languages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from calm_runtime.attributes import Attribute
from calm_runtime.errors import BundleCorrupt, BundleNotFound
from calm_runtime.photo import PhotoSpec
from calm_runtime.prompt import Prompt
from calm_runtime.reference import Reference

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
DEFAULT_BUNDLE = Path(__file__).parent / "models" / "calm-nano"

Stage = Literal["vision_encoder", "aligner", "llm", "llm_decode"]
LLM_STAGES: tuple[Stage, ...] = ("llm", "llm_decode")
Target = Literal["cpu", "cuda", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4", "fp8"]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Format(msgspec.Struct, frozen=True):
    format_version: int


class ModelInfo(_Struct, frozen=True):
    """Which model this is and what may be done with it.

    use: what the weights may be used for, given the photographs that trained them.
    """

    name: str
    version: str
    licence: str
    data_note: str
    score_meaning: str
    use: str


class VisualTokens(_Struct, frozen=True):
    """Visual tokens per branch, in prompt order low, middle, high, thematic; width is the LLM's hidden size."""

    low: int
    middle: int
    high: int
    thematic: int
    width: int

    @property
    def total(self) -> int:
        return self.low + self.middle + self.high + self.thematic


class ScoreSpec(_Struct, frozen=True):
    """Rating scale and the ids of its tokens, lowest rating first."""

    low: int
    high: int
    token_ids: tuple[int, ...]


class LlmSpec(_Struct, frozen=True):
    """What a caller needs to drive the decoder graph and its KV cache."""

    hidden_size: int
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


class Graph(_Struct, frozen=True):
    """One executable file. onnx_sha256 is the digest of the ONNX file an engine was built from.

    stage: "llm_decode" is optional: the LLM again, its weights rounded for single tokens. It continues caches of "llm".
    profile: optimisation profile, input name -> (minimum, optimum, maximum) shapes; engines only.
    device: compute capability an engine was built for ("portable" or "8.9"); "any" for ONNX.
    """

    stage: Stage
    target: Target
    path: str
    precision: Precision
    onnx_sha256: str
    device: str = "any"
    tool: str = ""
    profile: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {}


class FileEntry(_Struct, frozen=True):
    """Digest and size of one file of the bundle."""

    sha256: str
    bytes: int


class Golden(_Struct, frozen=True):
    """Expected score of one known photo: `calm check` compares an install with it."""

    photo: str
    sha256: str
    score: float
    std: float
    technical: float


class ParityRow(_Struct, frozen=True):
    """One line of the parity report: a figure, the gate it had to meet, and whether it did."""

    stage: str
    metric: str
    value: float
    gate: float
    passed: bool
    photos: int


class EngineEvidence(_Struct, frozen=True):
    """What the builder reported of one ahead-of-time engine; engines can be neither run nor read where they are built.

    path: the engine's file. network_layers: layers before, engine_layers: kernels after optimisation, of which
    fused_attention are whole attention blocks. activation_bytes: device memory at the profile's largest batch.
    """

    path: str
    network_layers: int
    engine_layers: int
    fused_attention: int
    activation_bytes: int
    build_seconds: float


class Provenance(_Struct, frozen=True):
    """Where the bundle comes from: source checkpoint digest, tool versions, export options."""

    checkpoint_sha256: str
    tools: dict[str, str]
    options: dict[str, str]


class Manifest(_Struct, frozen=True):
    """manifest.json. Unknown keys are refused, so that a reader never half-understands a bundle.

    score, technical: read from the logits at one position, each a softmax over its own tokens. reference: what the
    percentile of a score compares with.
    drift_allowed: a parity gate was missed and the bundle was written all the same (`calm export --allow-drift`).
    """

    format_version: int
    model: ModelInfo
    photo: PhotoSpec
    visual_tokens: VisualTokens
    score: ScoreSpec
    technical: ScoreSpec
    reference: Reference
    llm: LlmSpec
    prompts: dict[str, Prompt]
    attributes: tuple[Attribute, ...]
    graphs: tuple[Graph, ...]
    files: dict[str, FileEntry]
    golden: tuple[Golden, ...]
    parity: tuple[ParityRow, ...]
    provenance: Provenance
    drift_allowed: bool = False
    digest: str = ""
    engines: tuple[EngineEvidence, ...] = ()

    @property
    def rating_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that ratings are read from; a text never holds one."""
        return (*self.score.token_ids, *self.technical.token_ids)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical bytes of manifest.json: keys sorted, indented by two, closed by a newline."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def sign_manifest(manifest: Manifest) -> Manifest:
    """Fill in `digest`: SHA-256 of the canonical bytes with an empty digest. It is the bundle's identity."""
    blank = msgspec.structs.replace(manifest, digest="")
    return msgspec.structs.replace(blank, digest=hashlib.sha256(encode_manifest(blank)).hexdigest())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """Identity of the bundle: it covers the manifest and, through it, the digest of every file."""
        return self.manifest.digest

    def file(self, name: str) -> Path:
        """Path of a file the manifest lists. Raises BundleCorrupt when it is not listed."""
        if name not in self.manifest.files:
            raise BundleCorrupt(f"{self.path}: {name} is not listed in {MANIFEST}; export the bundle again")
        return self.path / name

    def graph(self, stage: Stage, target: Target, device: str | None = None) -> Graph | None:
        """The graph of a stage for a target, or None when the bundle has none."""
        for graph in self.manifest.graphs:
            if graph.stage == stage and graph.target == target and device in (None, graph.device):
                return graph
        return None

    def damaged(self) -> Iterator[str]:
        """Yield one sentence per missing, changed or unlisted file."""
        for name, entry in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                yield f"{name} is missing"
            elif path.stat().st_size != entry.bytes:
                yield f"{name} has {path.stat().st_size} bytes, expected {entry.bytes}"
            elif file_sha256(path) != entry.sha256:
                yield f"{name} has changed (SHA-256 differs)"
        known = {*self.manifest.files, MANIFEST}
        for found in sorted(self.path.rglob("*")):
            name = found.relative_to(self.path).as_posix()
            if found.is_file() and name not in known:
                yield f"{name} is not listed in {MANIFEST}"

    def verify(self) -> None:
        """Check every file's digest. Raises BundleCorrupt naming the files that differ."""
        faults = list(self.damaged())
        if faults:
            raise BundleCorrupt(f"{self.path}: {'; '.join(faults)}. Restore the bundle or export it again")


def open_bundle(path: str | Path = DEFAULT_BUNDLE, *, verify: bool = True) -> Bundle:
    """Parse a bundle's manifest strictly and, by default, check all digests before anything is loaded.

    Raises BundleNotFound, or BundleCorrupt with the file and the reason.
    """
    root = Path(path)
    manifest_path = root / MANIFEST
    if not manifest_path.is_file():
        raise BundleNotFound(f"{root}: no {MANIFEST} there; give the folder of a bundle made by `calm export`")
    raw = manifest_path.read_bytes()
    try:
        _check_format(msgspec.json.decode(raw, type=_Format).format_version, root)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleCorrupt(f"{manifest_path}: {MANIFEST} does not follow the contract: {error}") from error
    if encode_manifest(sign_manifest(manifest)) != raw:
        raise BundleCorrupt(f"{manifest_path}: {MANIFEST} has changed since export. Restore it or export again")
    _check(manifest, manifest_path)
    bundle = Bundle(root, manifest)
    if verify:
        bundle.verify()
    return bundle


def _check_format(version: int, root: Path) -> None:
    older = f"make the bundle again: calm export CHECKPOINT -o {root} --overwrite"
    remedy = older if version < FORMAT_VERSION else "install a newer calm-edge"
    if version != FORMAT_VERSION:
        raise BundleCorrupt(
            f"{root / MANIFEST}: format version {version}, this runtime reads {FORMAT_VERSION}; {remedy}"
        )


def _check(manifest: Manifest, path: Path) -> None:
    def refuse(reason: str) -> None:
        raise BundleCorrupt(f"{path}: {reason}")

    score, technical = manifest.score, manifest.technical
    if (score.low, score.high) != (technical.low, technical.high):
        refuse("score and technical have different scales")
    if any(len(spec.token_ids) != spec.high - spec.low + 1 for spec in (score, technical)):
        refuse("token ids do not cover the scale")
    ids = manifest.rating_tokens
    if len(set(ids)) != len(ids) or not all(0 <= token < manifest.llm.vocab_size for token in ids):
        refuse("token ids of score and technical are not distinct tokens of the vocabulary")
    for name in (*manifest.files, *(g.path for g in manifest.graphs)):
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            refuse(f"{name!r} leads outside the bundle")
    if not all(math.isfinite(number) for g in manifest.golden for number in (g.score, g.std, g.technical)):
        refuse("a golden score is not finite")
