"""`calm export verify`: does a bundle compute what its checkpoint computes? Stage by stage, over many photos."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from calm_export import parity
from calm_export.bundle import checkpoint_sha256
from calm_export.eyes import ENGINE_PHOTOS
from calm_export.parity import MIN_COSINE
from calm_export.photos import GatePhoto, parity_photos
from calm_export.sides import FLOAT32, TEXT_TASK, Decoder, Source, cpu_graph, open_decoders
from calm_export.stages import Distance, PhotoRow, StageRow, VerifyReport
from calm_runtime.aligner import Aligner
from calm_runtime.bundle import Bundle, EngineEvidence, Manifest, VisualTokens, open_bundle
from calm_runtime.errors import BundleNotFound, ExportError, UsageError
from calm_runtime.hardware import probe_hardware
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.photo import PhotoSpec, to_pixel_values
from calm_runtime.prompt import split_prompt
from calm_runtime.text import TextTokenizer
from calm_runtime.vision import VISION_OUTPUTS, VisionEncoder

PIXELS, PROMPTS = "pixels", "prompt tokens"
MAX_PIXEL_DIFFERENCE = 1e-6
_QUESTION = "Is the horizon straight?"
_THUMBNAIL = 112


@dataclass(frozen=True)
class Verification:
    """The report, and for each of its photos a small JPEG."""

    report: VerifyReport
    thumbnails: tuple[bytes, ...]


def verify_bundle(
    bundle_path: Path,
    checkpoint: Path,
    photos: Path | None = None,
    examples: Sequence[Path] = (),
    progress: Callable[[str], None] = lambda message: None,
) -> Verification:
    """Compare a bundle's ONNX graphs, on the CPU, with the checkpoint in torch; each side goes its own way from the
    picture on, so the first stage that fails is the one that is wrong.

    photos: a folder of 100 or more; None takes edits of `examples`. Raises UsageError when one of the folders is not
    what it should be or the two are models of different shape, BundleCorrupt, EngineError, ScoreError or ExportError.
    """
    try:
        bundle = open_bundle(bundle_path)
    except BundleNotFound as error:
        raise UsageError(str(error)) from error
    progress("loading the checkpoint")
    source = Source(checkpoint)
    _check_same_shape(bundle, source)
    with tempfile.TemporaryDirectory(prefix="calm-verify-") as scratch:
        decoders = open_decoders(bundle, source, Path(scratch), progress)
        pictures = _photos(source.info.photo, photos, examples)
        return _compare(bundle, source, checkpoint_sha256(checkpoint), decoders, pictures, progress)


def _compare(
    bundle: Bundle,
    source: Source,
    source_sha256: str,
    decoders: Sequence[Decoder],
    photos: Iterable[GatePhoto],
    progress: Callable[[str], None],
) -> Verification:
    manifest = bundle.manifest
    vision_graph, aligner_graph = cpu_graph(bundle, "vision_encoder"), cpu_graph(bundle, "aligner")
    encoder = VisionEncoder(OnnxSession(bundle.file(vision_graph.path)))
    aligner = Aligner(OnnxSession(bundle.file(aligner_graph.path)))
    ids = parity.rating_ids(source.model.config)
    cuda = _cuda_eyes(bundle)
    distances: dict[str, Distance] = {}
    on_cuda: dict[str, Distance] = {}
    rows: list[PhotoRow] = []
    thumbnails: list[bytes] = []
    torch_ratings: list[parity.Ratings] = []
    for count, (name, picture) in enumerate(photos, start=1):
        progress(f"photo {count}: {name}")
        own, pixels = (to_pixel_values(picture, spec)[None] for spec in (source.info.photo, manifest.photo))
        reference = {PIXELS: own} | parity.torch_features(source.model, own)
        found = {PIXELS: pixels} | parity.bundle_features(encoder, aligner, pixels)
        for stage, values in reference.items():
            distances.setdefault(stage, Distance()).add(values, found[stage])
        if cuda and count <= ENGINE_PHOTOS:
            for stage, values in parity.bundle_features(*cuda, pixels).items():
                on_cuda.setdefault(stage, Distance()).add(reference[stage], values)
        embeds = reference["image_embeds"], found["image_embeds"]
        expected = source.logits(embeds[0], "score")[0]
        texts = [decoder.read(source, expected, *embeds) for decoder in decoders]
        ratings = parity.ratings_of(expected[None], ids)
        torch_ratings.append(ratings)
        first = decoders[0]
        both = float(ratings.scores[0]), float(first.ratings[-1].scores[0])
        rows.append(PhotoRow(name, *both, texts[0], first.agreed[-1] / first.written[-1]))
        thumbnails.append(_thumbnail(picture))
    stages = []
    for stage, distance in distances.items():
        precision = (vision_graph if stage in VISION_OUTPUTS else aligner_graph).precision
        gate = {"max_difference": MAX_PIXEL_DIFFERENCE} if stage == PIXELS else {"min_cosine": MIN_COSINE[precision]}
        engine = "calm_runtime.photo" if stage == PIXELS else "onnxruntime"
        stages.append(distance.row(stage, engine, "fp32" if stage == PIXELS else precision, FLOAT32, **gate))
    for stage, distance in on_cuda.items():
        engine = "onnxruntime, cuda graph on the CPU"
        stages.append(distance.row(stage, engine, "fp16", FLOAT32, min_cosine=MIN_COSINE["fp16"]))
    stages.append(_prompt_row(bundle, source))
    for decoder in decoders:
        stages += decoder.rows(torch_ratings)
    failing = next((row.stage for row in stages if row.passed is False), None)
    report = VerifyReport(
        bundle=manifest.digest,
        model=f"{manifest.model.name} {manifest.model.version}",
        checkpoint_sha256=source_sha256,
        same_checkpoint=source_sha256 == manifest.provenance.checkpoint_sha256,
        passed=failing is None,
        first_failing_stage=failing,
        stages=(*stages, *(_engine_row(manifest, evidence) for evidence in manifest.engines)),
        photos=tuple(rows),
    )
    return Verification(report, tuple(thumbnails))


def _cuda_eyes(bundle: Bundle) -> tuple[VisionEncoder, Aligner] | None:
    vision, aligner = bundle.graph("vision_encoder", "cuda"), bundle.graph("aligner", "cuda")
    if vision is None or aligner is None:
        return None
    return VisionEncoder(OnnxSession(bundle.file(vision.path))), Aligner(OnnxSession(bundle.file(aligner.path)))


def _prompt_row(bundle: Bundle, source: Source) -> StageRow:
    """Does every prompt become the same token ids by the bundle's texts and tokenizer as by the checkpoint's?"""
    manifest = bundle.manifest
    text = TextTokenizer(bundle.file("tokenizer.json"), manifest.llm.bos_token_id)
    tasks = sorted(manifest.prompts.keys() | source.info.prompts.keys())
    differ = [
        task
        for task in tasks
        if task not in manifest.prompts
        or task not in source.info.prompts
        or split_prompt(manifest.prompts[task], text, _QUESTION)
        != split_prompt(source.info.prompts[task], source.text, _QUESTION)
    ]
    return StageRow(
        stage=PROMPTS,
        engine="tokenizers",
        precision="ids",
        reference="checkpoint",
        gate="the same",
        passed=not differ,
        note=f"differs for {', '.join(differ)}" if differ else f"{len(tasks)} tasks",
    )


def _engine_row(manifest: Manifest, evidence: EngineEvidence) -> StageRow:
    """An engine can only be run on the GPU it is for: what its builder reported stands in for figures."""
    graph = next(graph for graph in manifest.graphs if graph.path == evidence.path)
    gpu = probe_hardware().compute_capability
    why = "no GPU" if gpu is None else "verify runs on the CPU; see `calm check --engine tensorrt-rtx`"
    return StageRow(
        stage=graph.stage,
        engine=f"{graph.target} {graph.device}",
        precision=graph.precision,
        note=f"built, not run: {why}. {evidence.network_layers} layers became {evidence.engine_layers}, "
        f"{evidence.fused_attention} fused attention, {evidence.activation_bytes / 2**20:.1f} MiB of activations "
        f"at the largest batch, built by {graph.tool} in {evidence.build_seconds:g} s",
    )


def _check_same_shape(bundle: Bundle, source: Source) -> None:
    """Raise UsageError unless the two are models of one shape, so that every stage can be compared."""
    manifest, config = bundle.manifest, source.model.config
    queries, width = config.queries, config.text_config.hidden_size
    tokens = VisualTokens(queries, queries, queries, config.thematic_tokens, width)
    pairs = {
        "photo size": (manifest.photo.size, source.info.photo.size),
        "visual tokens": (manifest.visual_tokens, tokens),
        "LLM": (manifest.llm, source.spec),
        "score tokens": (manifest.score.token_ids, tuple(config.score_token_ids)),
        "technical tokens": (manifest.technical.token_ids, tuple(config.technical_token_ids)),
    }
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(f"{bundle.path} and the checkpoint are different models: {what} {ours} and {theirs}")
    for prompts in (manifest.prompts, source.info.prompts):
        if missing := {"score", TEXT_TASK} - prompts.keys():
            raise UsageError(f"{bundle.path} or its checkpoint has no prompt for {', '.join(sorted(missing))}")


def _photos(spec: PhotoSpec, photos: Path | None, examples: Sequence[Path]) -> Iterator[GatePhoto]:
    try:
        yield from parity_photos(spec, photos, examples)
    except ExportError as error:  # too few of them
        raise UsageError(f"--photos: {error}") from error


def _thumbnail(picture: Image.Image) -> bytes:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = BytesIO()
    small.save(data, "JPEG", quality=70)
    return data.getvalue()
