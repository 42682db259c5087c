"""`calm train`: from unlabelled photos to a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

import click
import msgspec
import torch
from PIL import Image

from calm_runtime.bundle import ModelInfo
from calm_runtime.errors import CalmError
from calm_runtime.photo import PhotoSpec
from calm_runtime.prompt import PROMPTS
from calm_train.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from calm_train.data import PairCollator, PairDataset, PromptEncoder, find_photos, load_pictures
from calm_train.evaluate import attribute_accuracy, held_out_views, open_scorer, pairwise_edits
from calm_train.language import build_model, encode_cues, train_language, train_tokenizer
from calm_train.recipe import Recipe, StageRecipe, load_recipe
from calm_train.stages import PretrainStage, Stage, TuneStage
from calm_train.trainer import train_stage


@click.group()
def train() -> None:
    """Train CALM. Needs `pip install calm-edge[train]`.

    \b
    calm train language --recipe nano -o runs/language
    calm train pretrain --recipe nano --photos DIR --init runs/language -o runs/pretrain
    calm train tune     --recipe nano --photos DIR --init runs/pretrain -o runs/tune
    calm train evaluate --photos HELD_OUT_DIR runs/tune

    Each command leaves a checkpoint that the next one, and `calm export`, takes.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


def _info(recipe: Recipe, photos: int) -> CheckpointInfo:
    return CheckpointInfo(
        model=ModelInfo(
            name=recipe.name,
            version="0.1.0",
            licence="Apache-2.0 for the code; see the data note for the weights",
            data_note=f"Trained from scratch on {photos} unlabelled photographs; no human rating was used.",
            score_meaning=(
                "Technical and pictorial soundness as learnt from edits of known strength: an untouched, "
                "well-exposed photo scores about 7, a badly spoiled one 2. It is not a human opinion."
            ),
        ),
        photo=PhotoSpec(size=int(recipe.model.vision["image_size"])),
        prompts=dict(PROMPTS),
    )


RECIPE = click.option("--recipe", default="nano", show_default=True, help="Shipped recipe or a .yaml file.")
OUTPUT = click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint folder.")
SEED = click.option("--seed", default=1, show_default=True, help="Same seed, same run.")


@train.command()
@RECIPE
@OUTPUT
@SEED
def language(recipe: str, output: Path, seed: int) -> None:
    """Tokenizer and LLM from scratch, before any photo (skipped with a pretrained LLM)."""
    settings = load_recipe(recipe)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(settings.model.vocabulary, settings.language.sentences, seed)
    model = build_model(settings, tokenizer)
    loss = train_language(model, tokenizer, settings, seed)
    encode_cues(model, tokenizer)
    save_checkpoint(output, model, tokenizer, _info(settings, 0))
    click.echo(f"{output}: language model at {loss:.3f} nats per token")


def _stage_options(function: click.decorators.FC) -> click.decorators.FC:
    options = [
        RECIPE,
        OUTPUT,
        SEED,
        click.option("--photos", type=click.Path(path_type=Path), required=True, help="Folder of photos."),
        click.option("--init", type=click.Path(path_type=Path), required=True, help="Checkpoint to start from."),
        click.option("--max-steps", type=click.IntRange(1), help="Instead of the recipe's number of steps."),
        click.option("--save-every", default=200, show_default=True, help="Steps between resumable checkpoints."),
        click.option("--resume", is_flag=True, help="Go on from the last resumable checkpoint in OUTPUT."),
        click.option("--workers", default=1, show_default=True, help="Processes that prepare photos."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _run_stage(
    kind: type[Stage],
    settings: StageRecipe,
    recipe: Recipe,
    output: Path,
    seed: int,
    photos: Path,
    init: Path,
    max_steps: int | None,
    save_every: int,
    resume: bool,
    workers: int,
) -> None:
    if max_steps:
        settings = msgspec.structs.replace(settings, steps=max_steps)
    torch.manual_seed(seed)
    pictures = load_pictures(find_photos(photos))
    model, tokenizer, info = load_checkpoint(init)
    model.train()
    data_seed = 2 * seed + int(kind is TuneStage)
    dataset = PairDataset(pictures, info.photo, settings.steps * settings.pairs, data_seed)
    collator = PairCollator(PromptEncoder(tokenizer), info.prompts, settings.text_every)
    if not torch.cuda.is_available():
        for part in (model.vision_encoder.model, model.llm):
            part.set_attn_implementation("eager")  # fused attention's backward is the slower one on a CPU
    stage = kind(model, settings.weights, settings.frozen)
    started = time.monotonic()
    loss = train_stage(
        stage,
        settings,
        dataset,
        collator,
        output / "steps",
        seed=seed,
        save_every=save_every,
        resume=resume,
        workers=workers,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    save_checkpoint(output, model, tokenizer, _info(recipe, len(pictures)))
    click.echo(f"{output}: {settings.steps} steps, loss {loss:.4f}, {(time.monotonic() - started) / 60:.1f} min")


@train.command()
@_stage_options
def pretrain(recipe: str, **options: object) -> None:
    """Stage 1: text-guided self-supervision on unlabelled photos."""
    settings = load_recipe(recipe)
    _run_stage(PretrainStage, settings.pretrain, settings, **options)  # type: ignore[arg-type]


@train.command()
@_stage_options
def tune(recipe: str, **options: object) -> None:
    """Stage 2: instruction tuning on scores, critiques, suggestions and questions with known answers."""
    settings = load_recipe(recipe)
    _run_stage(TuneStage, settings.tune, settings, **options)  # type: ignore[arg-type]


@train.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--photos", type=click.Path(path_type=Path), required=True, help="Held-out photos, never trained on.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@SEED
def evaluate(source: Path, photos: Path, as_json: bool, seed: int) -> None:
    """Ranking against spoiled copies and attribute accuracy of a checkpoint or bundle SOURCE."""
    scorer = open_scorer(source)
    pictures = [Image.fromarray(p) for p in load_pictures(find_photos(photos))]
    pairs = pairwise_edits(scorer, pictures)
    attributes = attribute_accuracy(scorer, held_out_views(pictures, 6, seed))
    if as_json:
        named = {name: asdict(result) for name, result in attributes.items()}
        click.echo(json.dumps({"photos": len(pictures), "pairwise": pairs, "attributes": named}))
        return
    for name, value in pairs.items():
        click.echo(f"{name:22} {value:6.1%}")
    click.echo(f"{'attribute':16} accuracy  majority  balanced")
    for name, result in attributes.items():
        click.echo(f"{name:16} {result.accuracy:8.1%} {result.majority:9.1%} {result.balanced:9.1%}")


def main() -> None:
    """Entry for `python -m calm_train.cli`."""
    try:
        train()
    except CalmError as error:
        raise SystemExit(f"calm train: {error}") from None


if __name__ == "__main__":
    main()
