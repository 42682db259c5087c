"""One training run: from options to a checkpoint with its report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import nn

from calm_runtime.bundle import ModelInfo
from calm_runtime.errors import DataError, UsageError
from calm_runtime.photo import leave_out_frame, to_pixel_values
from calm_runtime.prompt import PROMPTS
from calm_runtime.ratings import read_ratings, to_score_scale
from calm_runtime.reference import reference_of
from calm_train.build import build_model, photo_spec
from calm_train.checkpoint import INFO, CheckpointInfo, find_checkpoint, load_checkpoint, save_checkpoint, write_info
from calm_train.data import BatchCollator, PairDataset, PromptEncoder
from calm_train.datasets import DATASETS, CaptionedPhoto, Conversation, Photo, RatedPhoto, read_dataset
from calm_train.datasets.records import PhotoSource
from calm_train.flows import Example, Flow, rated_examples, told_examples
from calm_train.language import encode_cues, train_language
from calm_train.library import Picture, PictureLibrary, find_photos
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import expected_score
from calm_train.plan import plan
from calm_train.recipe import Recipe, StageName, StageRecipe, load_recipe
from calm_train.report import write_report
from calm_train.stages import Stage
from calm_train.taste_teacher import OwnTeacher, TasteTeacher, Teacher
from calm_train.trainer import is_main_process, processes, train_stage

SHIPPED_MODEL = "calm-nano"
STARTED = time.time()
REFERENCE_PHOTOS = 1000
CRITIQUES = ("ava-captions", "pccd-critiques")  # texts about a photo's qualities; other texts describe what it shows


@dataclass(frozen=True)
class RunOptions:
    """What `calm train pretrain|tune` was asked for; see its --help."""

    stage: StageName
    recipe: str
    output: Path
    seed: int
    photos: Path | None
    data: tuple[str, ...]
    teacher: Path | None
    ratings: Path | None
    rating_scale: tuple[float, float]
    init: str | None
    name: str | None
    max_steps: int | None
    save_every: int
    resume: bool
    workers: int


@dataclass(frozen=True)
class RunData:
    """Photos for self-supervision, and the labelled flows: examples by kind of label."""

    photos: list[PhotoSource]
    flows: dict[str, list[Example]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Number of photos and of examples per flow."""
        return {"photos": len(self.photos), **{name: len(examples) for name, examples in self.flows.items()}}


def run_stage(options: RunOptions) -> str:
    """Train one stage and leave a checkpoint with report.html. Returns the line that says so.

    Raises UsageError and DataError for what cannot be read or does not fit together.
    """
    recipe = load_recipe(options.recipe)
    start = _start(options, recipe)
    model, tokenizer, info = load_checkpoint(start)
    settings = _settings(options, recipe, info)
    if settings.weights.personal:  # a finished model of before learns to read examples, too
        info = msgspec.structs.replace(info, prompts={**PROMPTS, **info.prompts})
    data = read_data(options)
    torch.manual_seed(options.seed)
    model.train()
    data_seed = 2 * options.seed + int(options.stage == "tune")
    flows = [Flow(e, info.photo, settings.pairs, data_seed + n) for n, e in enumerate(data.flows.values(), start=10)]
    pictures = PictureLibrary(data.photos)
    pairs = settings.steps * settings.pairs
    patch = model.config.image_size // model.config.tap_shapes.sides[0]
    dataset = PairDataset(
        pictures, info.photo, pairs, data_seed, flows, settings.labelled, mask=settings.mask, patch=patch,
        taught=bool(settings.weights.score and options.teacher),
    )  # fmt: skip
    collator = BatchCollator(PromptEncoder(tokenizer, model.config.text_config), info.prompts, settings.text_every)
    teacher = _teacher(options, settings, model, info, collator)
    stage = Stage(model, settings.weights, settings.frozen, settings.raters, teacher)
    started = time.monotonic()
    history = train_stage(
        stage,
        settings,
        dataset,
        collator,
        options.output / "steps",
        seed=options.seed,
        save_every=options.save_every,
        resume=options.resume,
        workers=options.workers,
    )
    minutes = (time.monotonic() - started) / 60
    final = history[-1]["loss"] if history else float("nan")
    line = f"{options.output}: {options.stage}, {settings.steps} steps, loss {final:.4f}, {minutes:.1f} min"
    if is_main_process():
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        described = _info(recipe, info, options.stage, {**data.counts(), "photos": len(pictures)}, options.name)
        save_checkpoint(options.output, model, tokenizer, described)
        if described.stage == "tune":  # read again: what was trained may lie on several devices
            finished, _, _ = load_checkpoint(options.output)
            write_info(options.output, with_reference(described, finished, collator, pictures))
        if history:
            facts = {"start": start.name, "steps": settings.steps, "minutes": f"{minutes:.1f}", **data.counts()}
            line += f"; {write_report(options.output, f'{recipe.model.name}: {options.stage}', facts, history)}"
    return line


def _teacher(
    options: RunOptions, settings: StageRecipe, model: CalmForConditionalGeneration, info: CheckpointInfo,
    collator: BatchCollator,
) -> Teacher | None:  # fmt: skip
    """Who says what people would vote: the teacher that was named, or the finished model itself, which keeps its taste."""
    if not settings.weights.score:
        return None
    if options.teacher is not None:
        teacher = TasteTeacher.load(options.teacher)
        nn.Module.to(teacher, "cuda" if torch.cuda.is_available() else "cpu")
        return teacher
    if info.stage == "tune":
        return OwnTeacher(model, *(torch.tensor(side) for side in collator.score_ids))
    raise DataError(
        "the recipe teaches `score`, and a model that is not finished needs a teacher for it: give --teacher DIR "
        "(calm train teacher makes one), or weigh `score` 0 in the recipe"
    )


@torch.inference_mode()
def with_reference(
    info: CheckpointInfo, model: CalmForConditionalGeneration, collator: BatchCollator, pictures: Sequence[Picture]
) -> CheckpointInfo:
    """The description with the scores of up to REFERENCE_PHOTOS of the photos, whole, for percentiles.

    model: as `load_checkpoint` gives it.
    """
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), REFERENCE_PHOTOS)).round().astype(int)
    ids = [torch.tensor([side]) for side in collator.score_ids]
    scores = []
    for index in chosen:
        whole, _ = leave_out_frame(Image.fromarray(pictures[index]), info.photo)
        pixels = torch.from_numpy(to_pixel_values(whole, info.photo))[None]
        scores.append(float(expected_score(model.score_logits(pixels, *ids))))
    return msgspec.structs.replace(info, reference=reference_of("the photographs it was trained on", scores))


def plan_run(options: RunOptions) -> dict[str, Any]:
    """What `run_stage` would do, without doing any of it."""
    recipe = load_recipe(options.recipe)
    adapt = False
    if options.init is not None or options.stage == "tune":
        _, _, info = load_checkpoint(find_checkpoint(options.init or SHIPPED_MODEL))
        adapt = info.stage == "tune"
    settings = _limited(recipe.stage(options.stage, adapt=adapt), options.max_steps)
    return plan(recipe, settings, read_data(options).counts(), processes())


def read_data(options: RunOptions) -> RunData:
    """All photos and labels the options name. Labelled photos serve as unlabelled ones when no folder is given."""
    flows: dict[str, list[Example]] = {}
    if options.ratings is not None:
        flows["ratings"] = rated_examples(_own_ratings(options.ratings, *options.rating_scale))
    photos: list[PhotoSource] = []
    for item in options.data:
        name, _, root = item.partition("=")
        if name not in DATASETS or not root:
            raise UsageError(f"--data {item}: expected NAME=ROOT with NAME one of {', '.join(DATASETS)}")
        records = list(read_dataset(name, Path(root), "train"))
        rated = [record for record in records if isinstance(record, RatedPhoto)]
        told = [record for record in records if isinstance(record, CaptionedPhoto | Conversation)]
        photos += [record.path for record in records if isinstance(record, Photo)]
        if rated:
            flows[name] = rated_examples(rated)
        elif told:
            flows[name] = told_examples(told, aesthetic=name in CRITIQUES)
    if options.photos is not None:
        photos += find_photos(options.photos)
    if not photos:
        photos = list(dict.fromkeys(example.source for examples in flows.values() for example in examples))
    if not photos:
        raise UsageError("no photos to learn from: give --photos DIR, --ratings CSV or --data NAME=ROOT")
    return RunData(photos, flows)


def _own_ratings(file: Path, low: float, high: float) -> list[RatedPhoto]:
    if low >= high:
        raise UsageError(f"--rating-scale {low:g} {high:g}: the worst rating must be the smaller number")
    rated = read_ratings(file)
    for row in rated:
        if not low <= row.rating <= high:
            raise DataError(
                f"{file}: rating {row.rating:g} of {row.path.name} is not on {low:g}..{high:g}; "
                "say which scale it is with --rating-scale WORST BEST"
            )
    lost = [row.path for row in rated if not row.path.is_file()]
    if lost:
        raise DataError(f"{file}: {len(lost)} of {len(rated)} photos are not there, the first is {lost[0]}")
    return [RatedPhoto(path=row.path, mean=to_score_scale(row.rating, low, high)) for row in rated]


def language_checkpoint(recipe: Recipe, output: Path, seed: int) -> str:
    """The checkpoint before any photo: parts of the recipe, and the language of a from-scratch LLM."""
    torch.manual_seed(seed)
    model, tokenizer = build_model(recipe, seed)
    said = "pretrained LLM"
    if recipe.language is not None:
        said = f"language model at {train_language(model, tokenizer, recipe.language, seed):.3f} nats per token"
    encode_cues(model, tokenizer)
    empty = CheckpointInfo(ModelInfo("", "", "", "", "", ""), photo_spec(recipe))
    save_checkpoint(output, model, tokenizer, _info(recipe, empty, "language", {"photos": 0}))
    return f"{output}: {said}"


def _start(options: RunOptions, recipe: Recipe) -> Path:
    """The checkpoint a stage starts from; stage 1 makes its own when none is named."""
    if options.init is not None or options.stage == "tune":
        return find_checkpoint(options.init or SHIPPED_MODEL)
    folder = options.output / "language"
    if is_main_process():
        if not (options.resume and (folder / INFO).is_file()):
            threads = torch.get_num_threads()
            torch.set_num_threads(os.cpu_count() or threads)  # the other processes wait
            language_checkpoint(_shortened(recipe, options.max_steps), folder, options.seed)
            torch.set_num_threads(threads)
    else:
        while not _is_written(folder / INFO, options.resume):
            time.sleep(0.5)
    return folder


def _is_written(info: Path, resume: bool) -> bool:
    """Whether the main process has written the starting checkpoint of this run, not an earlier one."""
    return info.is_file() and (resume or info.stat().st_mtime > STARTED)


def _settings(options: RunOptions, recipe: Recipe, info: CheckpointInfo) -> StageRecipe:
    return _limited(recipe.stage(options.stage, adapt=info.stage == "tune"), options.max_steps)


def _shortened(recipe: Recipe, max_steps: int | None) -> Recipe:
    """A short trial run does not begin with the whole language stage."""
    if recipe.language is None or max_steps is None:
        return recipe
    language = msgspec.structs.replace(recipe.language, steps=min(recipe.language.steps, max_steps))
    return msgspec.structs.replace(recipe, language=language)


def _limited(settings: StageRecipe, max_steps: int | None) -> StageRecipe:
    return msgspec.structs.replace(settings, steps=max_steps) if max_steps else settings


def _info(
    recipe: Recipe, before: CheckpointInfo, stage: StageName | str, counts: dict[str, int], name: str | None = None
) -> CheckpointInfo:
    adapted = before.stage == "tune" and bool(before.model.name)
    data_note = before.model.data_note
    labels = [f"{count} labels of {name}" for name, count in counts.items() if name != "photos"]
    note = f"{counts['photos']} photographs, with {', '.join(labels) or 'no human rating'}."
    if adapted and not data_note.endswith(f" on {note}"):  # going on with the same data adds nothing new
        data_note += f" Then adapted on {note}"
    return CheckpointInfo(
        model=ModelInfo(
            name=name or (f"{before.model.name} adapted" if adapted else recipe.model.name),
            version="1.0.0",
            licence="Apache-2.0 for the code; see the data note for the weights",
            data_note=data_note if adapted else f"Trained on {note}",
            score_meaning=before.model.score_meaning if adapted else SCORE_MEANING,
            use=before.model.use if adapted else USE,
        ),
        photo=before.photo,
        prompts=before.prompts,
        stage="tune" if adapted else stage,  # type: ignore[arg-type]
    )


USE = "What the licences of the photographs named in the data note allow."
SCORE_MEANING = (
    "Technical and pictorial soundness as learnt from edits of known strength: most untouched photos score between 4 "
    "and 7, badly spoiled ones near 2. Unless human ratings are named above, it is not a human opinion."
)
