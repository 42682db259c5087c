"""Packs: what of a bundle an app without Python needs to score photos, in one folder to ship or to serve.

    pack.json            the manifest's facts a scorer needs, the prompt's token ids, digests of the files below
    prompt_embeds.f32    embeddings of the prompt's tokens, so that the app needs no tokenizer and no embedding table
    *.onnx (web)         the bundle's graphs for the CPU, each in one file
    *.ort (mobile)       the same in ORT format, and required_operators.config for a reduced build of ONNX Runtime

docs/embedding.md says how to use one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx

from calm_export.graph import PROTOBUF_LIMIT, data_file, write_graph
from calm_export.photos import parity_photos
from calm_export.staging import check_output, staged
from calm_runtime.aligner import Aligner
from calm_runtime.attributes import Attribute
from calm_runtime.bundle import (
    Bundle,
    FileEntry,
    Golden,
    LlmSpec,
    ModelInfo,
    ScoreSpec,
    Stage,
    VisualTokens,
    file_sha256,
)
from calm_runtime.errors import ExportError
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.pipeline import Calm
from calm_runtime.prompt import split_prompt
from calm_runtime.reference import Reference
from calm_runtime.session import STAGES
from calm_runtime.text import TextTokenizer
from calm_runtime.vision import VisionEncoder

PACK = "pack.json"
PACK_FORMAT = 2
EMBED_TOKENS = "embed_tokens.safetensors"
TOKENIZER = "tokenizer.json"
PROMPT_EMBEDS = "prompt_embeds.f32"
OPERATORS = "required_operators.config"
MAX_SCORE_DIFFERENCE = 0.01  # converted graphs compute the same but for the order of float32 sums
_CHECKED_PHOTOS = 8

PackTarget = Literal["web", "mobile"]
PACK_TARGETS: tuple[PackTarget, ...] = ("web", "mobile")


class PackPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The score prompt. path: float32 rows [len(before) + len(after), D], little-endian, in that order.

    before, after: token ids before and after the image.
    """

    path: str
    before: tuple[int, ...]
    after: tuple[int, ...]


class Pack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """pack.json. bundle: digest of the bundle the pack was made from; digest: identity of the pack itself."""

    format_version: int
    target: PackTarget
    bundle: str
    model: ModelInfo
    photo: PhotoSpec
    visual_tokens: VisualTokens
    score: ScoreSpec
    technical: ScoreSpec
    reference: Reference
    llm: LlmSpec
    prompt: PackPrompt
    attributes: tuple[Attribute, ...]
    graphs: dict[Stage, str]
    files: dict[str, FileEntry]
    golden: tuple[Golden, ...]
    drift_allowed: bool
    digest: str = ""


def encode_pack(pack: Pack) -> bytes:
    """Canonical bytes of pack.json, as those of a bundle's manifest."""
    return msgspec.json.format(msgspec.json.encode(pack, order="deterministic"), indent=2) + b"\n"


def sign_pack(pack: Pack) -> Pack:
    """Fill in `digest`: SHA-256 of the canonical bytes with an empty digest."""
    blank = msgspec.structs.replace(pack, digest="")
    return msgspec.structs.replace(blank, digest=hashlib.sha256(encode_pack(blank)).hexdigest())


def pack_folder(bundle: Path, target: PackTarget) -> Path:
    """Where `calm export --target web` and `--target mobile` put a pack: beside the bundle."""
    place = bundle.absolute()
    return place.with_name(f"{place.name}-{target}")


def pack_targets(targets: Sequence[str]) -> tuple[PackTarget, ...]:
    """Those of an export's targets that are packs."""
    return tuple(target for target in PACK_TARGETS if target in targets)


@contextmanager
def staged_packs(bundle: Path, targets: Sequence[str], overwrite: bool) -> Iterator[dict[PackTarget, Path]]:
    """Empty folders for the packs among an export's targets. They take their places on success, vanish on failure.

    Raises ExportError at once when something else is in a place.
    """
    places = {target: pack_folder(bundle, target) for target in pack_targets(targets)}
    for place in places.values():
        check_output(place, overwrite, PACK)
    with ExitStack() as stack:
        yield {target: stack.enter_context(staged(place, overwrite, PACK)) for target, place in places.items()}


def make_pack(bundle: Bundle, target: PackTarget, output: Path, overwrite: bool = False) -> Pack:
    """Write a pack of a bundle to a folder outside it that appears whole or not at all. Raises as `write_pack`."""
    if output.resolve().is_relative_to(bundle.path.resolve()):
        raise ExportError(f"{output} is inside the bundle, whose files are all listed; give a place outside it")
    check_output(output, overwrite, PACK)
    with staged(output, overwrite, PACK) as folder:
        return write_pack(bundle, target, folder)


def write_pack(bundle: Bundle, target: PackTarget, folder: Path) -> Pack:
    """Write a pack into an empty folder.

    Raises ExportError when a graph is too large for the target, cannot be converted, or scores differently.
    """
    manifest = bundle.manifest
    sources = {stage: _source(bundle, stage) for stage in STAGES}
    names = _WRITERS[target](sources, folder)
    copied = target == "web" and not any(data_file(source).is_file() for source in sources.values())
    if not copied:
        _require_same_scores(bundle, {stage: folder / name for stage, name in names.items()})
    tokenizer = TextTokenizer(bundle.file(TOKENIZER), manifest.llm.bos_token_id)
    before, after = split_prompt(manifest.prompts["score"], tokenizer)
    table = read_embed_tokens(bundle.file(EMBED_TOKENS))
    (folder / PROMPT_EMBEDS).write_bytes(table[[*before, *after]].astype("<f4").tobytes())
    files = {path.name: FileEntry(file_sha256(path), path.stat().st_size) for path in sorted(folder.iterdir())}
    pack = sign_pack(
        Pack(
            format_version=PACK_FORMAT,
            target=target,
            bundle=bundle.digest,
            model=manifest.model,
            photo=manifest.photo,
            visual_tokens=manifest.visual_tokens,
            score=manifest.score,
            technical=manifest.technical,
            reference=manifest.reference,
            llm=manifest.llm,
            prompt=PackPrompt(PROMPT_EMBEDS, tuple(before), tuple(after)),
            attributes=manifest.attributes,
            graphs=names,
            files=files,
            golden=manifest.golden,
            drift_allowed=manifest.drift_allowed,
        )
    )
    (folder / PACK).write_bytes(encode_pack(pack))
    return pack


def _source(bundle: Bundle, stage: Stage) -> Path:
    """The graph of a stage for the CPU. Raises ExportError when it is too large for one file, weights included."""
    graph = bundle.graph(stage, "cpu")
    if graph is None:
        raise ExportError(f"{bundle.path}: no {stage} for the CPU; export the bundle again")
    files = [bundle.manifest.files.get(name) for name in (graph.path, f"{graph.path}.data")]
    if sum(entry.bytes for entry in files if entry is not None) > PROTOBUF_LIMIT:
        raise ExportError(
            f"{bundle.path}: {graph.path} with its weights is above 2 GB, more than browsers and ORT format can load; "
            "export a smaller model or a lower precision"
        )
    return bundle.file(graph.path)


def _write_web(sources: dict[Stage, Path], folder: Path) -> dict[Stage, str]:
    for stage, source in sources.items():
        target = folder / f"{stage}.onnx"
        shutil.copyfile(source, target)
        if (weights := data_file(source)).is_file():
            beside = shutil.copyfile(weights, folder / weights.name)  # onnx reads no weights through a link
            graph = onnx.load(target)
            beside.unlink()
            write_graph(graph, target, inline_limit=PROTOBUF_LIMIT)
    return {stage: f"{stage}.onnx" for stage in sources}


def _write_mobile(sources: dict[Stage, Path], folder: Path) -> dict[Stage, str]:
    """ORT format, optimised for ARM but for nothing an x86 emulator lacks. The converter runs in its own process."""
    with tempfile.TemporaryDirectory(prefix="calm-pack-") as scratch:
        plain, ort = Path(scratch) / "onnx", Path(scratch) / "ort"
        plain.mkdir()
        _write_web(sources, plain)
        command = [sys.executable, "-m", "onnxruntime.tools.convert_onnx_models_to_ort", str(plain),
                   "--output_dir", str(ort), "--optimization_style", "Fixed", "--target_platform", "arm"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise ExportError(f"ONNX Runtime's converter to ORT format failed: {reason}")
        for stage in sources:
            shutil.copyfile(ort / f"{stage}.ort", folder / f"{stage}.ort")
        operators = (ort / OPERATORS).read_text("utf-8").splitlines()
    # The converter's comment holds this machine's paths.
    listed = "\n".join(line for line in operators if not line.startswith("#"))
    (folder / OPERATORS).write_text(f"# Operators of {', '.join(f'{s}.ort' for s in sources)}\n{listed}\n", "utf-8")
    return {stage: f"{stage}.ort" for stage in sources}


_WRITERS: dict[PackTarget, Callable[[dict[Stage, Path], Path], dict[Stage, str]]] = {
    "web": _write_web,
    "mobile": _write_mobile,
}


def _require_same_scores(bundle: Bundle, graphs: dict[Stage, Path]) -> None:
    """Raise ExportError unless the graphs score drawn photos as the bundle does."""
    manifest = bundle.manifest
    drawn = (photo.picture for photo in islice(parity_photos(manifest.photo, None, ()), _CHECKED_PHOTOS))
    pixels = np.stack([to_pixel_values(picture, manifest.photo) for picture in drawn])
    with Calm.load(bundle.path, engine="cpu", verify=False) as original:
        llm = LanguageModel(OnnxSession(graphs["llm"]), read_embed_tokens(bundle.file(EMBED_TOKENS)), manifest.llm)
        packed = Calm(
            bundle,
            original.engine,
            VisionEncoder(OnnxSession(graphs["vision_encoder"])),
            Aligner(OnnxSession(graphs["aligner"])),
            llm,
            TextTokenizer(bundle.file(TOKENIZER), manifest.llm.bos_token_id),
            original.limits,
        )
        with packed:
            ours, theirs = (model.score_pixels(pixels, [{}] * len(pixels)) for model in (original, packed))
    pairs = list(zip(ours, theirs, strict=True))
    worst = max(max(abs(a.mean - b.mean), abs(a.technical - b.technical)) for a, b in pairs)
    if worst > MAX_SCORE_DIFFERENCE:
        raise ExportError(f"the converted graphs score up to {worst:.3f} apart from the bundle's; no pack was written")
