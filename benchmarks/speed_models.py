"""What the speed benchmark runs: each size's checkpoint, its graphs, and every form of its LLM, in a work folder."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from calm_runtime.bundle import DEFAULT_BUNDLE, LlmSpec

SIZES = ("nano", "edge")
NANO = Path(__file__).parents[1] / "models" / "calm-nano"
EYES = ("fp32", "int8", "int8-dynamic", "fp16")
CALIBRATION_PHOTOS = 8
GGUF = "llm.gguf"
SHAPE = "shape.json"
EMBED = "embed_tokens.safetensors"


class Shape(msgspec.Struct, frozen=True):
    """What an engine must know of a model beside its weights. before, after: the score prompt around the photo."""

    name: str
    parameters: int
    photo_size: int
    image_tokens: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    score_token_ids: tuple[int, ...]
    llm: LlmSpec

    @property
    def prompt_tokens(self) -> int:
        """Tokens the LLM reads to score one photo."""
        return len(self.before) + self.image_tokens + len(self.after)


class LlmForm(msgspec.Struct, frozen=True):
    """One way to write the decoder: weights, what shares a scale, and whether another graph reads what is written."""

    precision: str  # of `export_llm`, or of `DYNAMIC`
    block: int = 32
    reads: bool = False
    provider: str = "cpu"


DYNAMIC: dict[str, dict[str, bool]] = {
    "int8-dynamic": {},
    "int8-dynamic-full": {"reduce_range": False},
    "int8-dynamic-unsigned": {"reduce_range": False, "signed": False},
}
LLM_FORMS: dict[str, LlmForm] = {
    "fp32": LlmForm("fp32"),
    "int4": LlmForm("int4"),
    "int4-128": LlmForm("int4", 128),
    "int8": LlmForm("int8"),
    "int8-dynamic": LlmForm("int8-dynamic"),
    "int8-dynamic-full": LlmForm("int8-dynamic-full"),
    "int8-dynamic-unsigned": LlmForm("int8-dynamic-unsigned"),
    "int8-dynamic-reading": LlmForm("int8-dynamic", reads=True),
    "cuda": LlmForm("fp16", provider="cuda"),
}


def read_shape(folder: Path) -> Shape:
    """The shape of a prepared size."""
    return msgspec.json.decode((folder / SHAPE).read_bytes(), type=Shape)


def checkpoint_of(size: str, folder: Path) -> Path:
    """The checkpoint behind a size's graphs."""
    return NANO if size == "nano" else folder / "checkpoint"


def prepare(size: str, folder: Path, llms: set[str], eyes: set[str], gguf: bool, say: Callable[[str], None]) -> None:
    """Write what is not there yet: graphs of the eyes, and each form of the LLM. Safe to stop and start again."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SHAPE).is_file():
        _start(size, folder, say)
    for name in sorted(eyes):
        if not (folder / f"eyes-{name}").is_dir():
            say(f"{size}: vision encoder and aligner as {name}")
            rounded = {"int8": _calibrate_eyes, "fp16": _halve_eyes}.get(name, _quantise_eyes)
            _whole(folder / f"eyes-{name}", lambda place, rounded=rounded: rounded(folder / "eyes-fp32", place))
    for name in sorted(llms, key=list(LLM_FORMS).index):
        if not (folder / f"llm-{name}").is_dir():
            say(f"{size}: LLM as {name}")
            from speed_forms import write_form

            _whole(
                folder / f"llm-{name}", lambda place, form=LLM_FORMS[name]: write_form(folder / "source", form, place)
            )
    if gguf and not (folder / GGUF).is_file():
        from speed_gguf import write_gguf

        say(f"{size}: LLM as GGUF, Q4_0")
        write_gguf(folder / "source", folder / GGUF)


def _start(size: str, folder: Path, say: Callable[[str], None]) -> None:
    """Checkpoint, source of the LLM, graphs of the eyes. nano's graphs are those of the bundle inside the package."""
    import torch

    from calm_export.llm import export_embed_tokens, write_llm_source
    from calm_train.checkpoint import load_checkpoint

    if size == "edge":
        say("edge: random weights after the recipe")
        _write_edge(folder / "checkpoint")
    say(f"{size}: checkpoint, vision encoder and aligner")
    model, tokenizer, info = load_checkpoint(checkpoint_of(size, folder))
    write_llm_source(model, tokenizer, folder / "source")
    if size == "nano":
        eyes, llm = folder / "eyes-fp32", folder / "llm-int4"
        for place, names in ((eyes, ("vision_encoder.onnx", "aligner.onnx")), (llm, ("llm/model.onnx",))):
            place.mkdir(exist_ok=True)
            for name in names:
                shutil.copyfile(DEFAULT_BUNDLE / name, place / Path(name).name)
        shutil.copyfile(DEFAULT_BUNDLE / EMBED, folder / EMBED)
    else:
        export_embed_tokens(model, folder / EMBED, torch.float16)
        _write_eyes(model, folder / "eyes-fp32")
    (folder / SHAPE).write_bytes(msgspec.json.encode(_shape_of(model, tokenizer, info)))


def _whole(folder: Path, write: Callable[[Path], object]) -> None:
    """Let a folder appear only when it is complete."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write(part)
    part.rename(folder)


def _write_edge(folder: Path) -> None:
    """The recipe `edge` with random weights; calm-nano's tokenizer stands in for the LLM's, which has to be fetched."""
    import torch

    from calm_train.build import describe_config
    from calm_train.checkpoint import load_checkpoint, save_checkpoint
    from calm_train.model import CalmForConditionalGeneration
    from calm_train.recipe import load_recipe

    nano, tokenizer, info = load_checkpoint(NANO)
    config = describe_config(load_recipe("edge"))
    config.score_token_ids = nano.config.score_token_ids
    config.technical_token_ids = nano.config.technical_token_ids
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text_config, key, getattr(nano.config.text_config, key))
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(config).eval()
    described = msgspec.structs.replace(info.model, name="calm-edge", data_note="random weights")
    photo = msgspec.structs.replace(info.photo, size=config.vision_config.image_size)
    save_checkpoint(folder, model, tokenizer, msgspec.structs.replace(info, model=described, photo=photo))


def _write_eyes(model: Any, folder: Path) -> None:
    from calm_export.eyes import cpu_graphs
    from calm_export.graph import write_graph

    for stage, proto in cpu_graphs(model, "fp32").items():
        write_graph(proto, folder / f"{stage}.onnx")


def _quantise_eyes(source: Path, folder: Path) -> None:
    from calm_export.dynamic import dynamic_int8
    from calm_export.graph import write_graph

    for name in ("vision_encoder.onnx", "aligner.onnx"):
        write_graph(dynamic_int8(source / name), folder / name)


def _halve_eyes(source: Path, folder: Path) -> None:
    """What `calm export --target cuda` writes."""
    from calm_export.engines import write_sources
    from calm_train.checkpoint import load_checkpoint

    model, _, _ = load_checkpoint(checkpoint_of(source.parent.name, source.parent))
    write_sources(model, "fp16", folder)


def _calibrate_eyes(source: Path, folder: Path) -> None:
    """What `calm export --encoder-precision int8` writes when no group of products has to stay float."""
    import tempfile

    from calm_export.calibrate import CPU_SCHEME
    from calm_export.eyes import cpu_graphs
    from calm_export.sensitivity import calibrate_stages
    from calm_train.checkpoint import load_checkpoint

    model, _, _ = load_checkpoint(checkpoint_of(source.parent.name, source.parent))
    with tempfile.TemporaryDirectory(prefix="calm-int8-") as scratch:
        pixels = calibration_pixels(source.parent)
        for stage, part in calibrate_stages(cpu_graphs(model, "int8"), pixels, Path(scratch), CPU_SCHEME).items():
            part.quantise(part.groups, folder / f"{stage}.onnx")


def calibration_pixels(folder: Path) -> Any:
    """pixel_values [CALIBRATION_PHOTOS, 3, S, S] f32 of the examples and edits of them, for a prepared size."""
    from itertools import islice

    from calm_export import parity
    from calm_export.photos import parity_photos
    from calm_runtime.photo import PhotoSpec

    spec = PhotoSpec(size=read_shape(folder).photo_size)
    examples = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
    photos = islice(parity_photos(spec, None, examples), CALIBRATION_PHOTOS)
    return parity.pixel_batch((photo.picture for photo in photos), spec)


def _shape_of(model: Any, tokenizer: Any, info: Any) -> Shape:
    from calm_export.llm import llm_spec
    from calm_runtime.prompt import PROMPTS, split_prompt
    from calm_train.data import PromptEncoder

    config = model.config
    before, after = split_prompt(PROMPTS["score"], PromptEncoder(tokenizer, config.text_config))
    return Shape(
        name=f"{info.model.name} {info.model.version}" if info.model.data_note != "random weights" else "recipe edge",
        parameters=sum(p.numel() for p in model.parameters()),
        photo_size=config.vision_config.image_size,
        image_tokens=config.image_tokens,
        before=tuple(before),
        after=tuple(after),
        score_token_ids=tuple(config.score_token_ids),
        llm=llm_spec(config.text_config),
    )


if __name__ == "__main__":
    wanted, where, *names = sys.argv[1:]
    prepare(
        wanted,
        Path(where),
        {n for n in names if n in LLM_FORMS},
        {n.removeprefix("eyes-") for n in names if n.startswith("eyes-")},
        "gguf" in names,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
