"""The trainings of calm-nano: the shipped weights, five folds over held-out themes, and the ablation.

python benchmarks/train_nano.py prepare --photos UNLABELLED --rated RATED -o runs/views [--pairs 5008]
python benchmarks/train_nano.py language -o runs/language
python benchmarks/train_nano.py train final|fold-K|ARM-SEED --views runs/views --rated RATED --language runs/language
    --held-out VAL -o runs/nano [--steps 300 900]

RATED: a folder with ratings.csv (columns path, theme, mean) and the photos; the first folder of a path names the set.
A run goes through the stages of the recipe with `train_stage`, as `calm train` does; views are made, and seen by the frozen
encoders, once for all runs. A run leaves its checkpoint and scores.npz: its scores of rated, mirrored, black-and-white and
degraded pictures, which human_taste.py and self_supervision.py read.
"""

from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch
from PIL import Image, ImageOps
from prepared_views import FrozenEncoders, PreparedCollator, PreparedDataset, PreparedTeacher, prepare

from calm_runtime.photo import fit_picture, load_photo
from calm_train.build import build_model, photo_spec
from calm_train.checkpoint import load_checkpoint, save_checkpoint
from calm_train.data import BatchCollator, PromptEncoder
from calm_train.evaluation.degradations import DEGRADATIONS, black_and_white
from calm_train.library import find_photos, load_pictures, read_picture
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import expected_score
from calm_train.recipe import Recipe, load_recipe
from calm_train.run import language_checkpoint
from calm_train.stages import Stage
from calm_train.taste_fit import fit_teacher, standardise_sets, unfitted_teacher
from calm_train.taste_teacher import TasteTeacher, teacher_pixels, tilt_histogram
from calm_train.trainer import train_stage

FOLDS = 5
ARMS = ("self-supervised", "tuned-only", "last-tap-only")
RECIPE = str(Path(__file__).parent.parent / "models" / "recipe")


def read_rated(folder: Path) -> list[dict[str, str]]:
    """Rows of ratings.csv."""
    with (folder / "ratings.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


def folds_of(rows: list[dict[str, str]], folds: int, seed: int = 0) -> np.ndarray:
    """Fold of each rated photo: whole themes where a set has many, single photos where its themes are kinds of place."""
    rng = np.random.default_rng(seed)
    sets = np.array([row["path"].split("/")[0] for row in rows])
    themes = np.array([row["theme"] for row in rows])
    result = np.zeros(len(rows), int)
    for name in sorted(set(sets)):
        members = np.flatnonzero(sets == name)
        own = sorted(set(themes[members]))
        if len(own) > 3 * folds:
            place = {theme: i % folds for i, theme in enumerate(rng.permutation(own))}
            result[members] = [place[theme] for theme in themes[members]]
        else:
            result[members[rng.permutation(len(members))]] = np.arange(len(members)) % folds
    return result


def kept_photos(name: str, rows: list[dict[str, str]]) -> np.ndarray:
    """Which rated photos a run may see: all, all but a fold, or of the ablation's seeds one half each."""
    kind, _, number = name.rpartition("-")
    if name == "final":
        return np.ones(len(rows), bool)
    if kind == "fold":
        return folds_of(rows, FOLDS) != int(number)
    return folds_of(rows, 2) != int(number) % 2


def squares(pictures: list[Image.Image], spec: Any) -> np.ndarray:
    """Pictures as the model reads them, [N, S, S, 3] uint8."""
    return np.stack([np.asarray(fit_picture(picture, spec)) for picture in pictures])


@torch.inference_mode()
def predict(model: CalmForConditionalGeneration, pixels: np.ndarray, collator: BatchCollator) -> np.ndarray:
    """Squares [N, S, S, 3] uint8 -> score and technical [N, 2]."""
    rows = []
    config = model.config
    for start in range(0, len(pixels), 16):
        batch = torch.from_numpy(pixels[start : start + 16]).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids = [torch.tensor(side).expand(len(batch), -1) for side in collator.score_ids]
        logits = model(batch, *ids).logits[:, -1]
        both = (expected_score(logits[:, tokens]) for tokens in (config.score_token_ids, config.technical_token_ids))
        rows.append(torch.stack(list(both), dim=1).numpy())
    return np.concatenate(rows)


def fitted_teacher(views: Path, rows: list[dict[str, str]], kept: np.ndarray) -> TasteTeacher:
    """The teacher of a run."""
    seen = np.load(views / "rated.npz")
    votes, features = (torch.from_numpy(seen[name])[kept] for name in ("votes", "features"))
    target = standardise_sets(torch.tensor([float(r["mean"]) for r in rows]), [r["path"].split("/")[0] for r in rows])
    return fit_teacher(unfitted_teacher(), votes, features.float(), target[kept], f"{kept.sum()} rated photos")


def label_views(teacher: TasteTeacher, views: Path, pairs: int) -> torch.Tensor:
    """The votes a teacher expects for every view, [pairs, 2, 10]."""
    nima, features = (np.load(views / f"{name}.npy", mmap_mode="r")[:pairs] for name in ("nima", "features"))
    mean, spread = teacher.info.votes
    rows = []
    for start in range(0, len(nima), 256):
        votes, seen = (
            torch.from_numpy(np.array(values[start : start + 256])).float().flatten(0, 1) for values in (nima, features)
        )
        rows.append(tilt_histogram(votes, mean + spread * teacher.standing(votes, seen)))
    return torch.cat(rows).reshape(len(nima), 2, -1)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command("prepare")
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--rated", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--recipe", default=RECIPE)
@click.option("--pairs", default=5008, show_default=True)
def prepare_views(photos: Path, rated: Path, output: Path, recipe: str, pairs: int) -> None:
    """Views, what the encoders make of them, and what the teacher's make of the rated photos."""
    model, _ = build_model(load_recipe(recipe), 1)
    cores = os.cpu_count() or 1
    encoders = FrozenEncoders(model.vision_encoder, unfitted_teacher(), output / "onnx", cores)  # type: ignore[arg-type]
    rows = read_rated(rated)
    seen = [
        encoders.opinion(teacher_pixels(np.asarray(load_photo(rated / row["path"])))[None].numpy()) for row in rows
    ]  # at the files' own size: nearest-neighbour pixels depend on it
    np.savez(
        output / "rated.npz", votes=np.concatenate([v for v, _ in seen]), features=np.concatenate([f for _, f in seen])
    )
    pictures = [*load_pictures(find_photos(photos)), *(read_picture(rated / row["path"]) for row in rows)]
    prepare(pictures, photo_spec(load_recipe(recipe)), encoders, pairs, 1, cores, output)


@main.command("language")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--recipe", default=RECIPE)
def language(output: Path, recipe: str) -> None:
    """The checkpoint before any photo."""
    click.echo(language_checkpoint(load_recipe(recipe), output, 1))


@main.command("train")
@click.argument("name")
@click.option("--views", type=click.Path(path_type=Path), required=True)
@click.option("--rated", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
@click.option("--language", "start", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--recipe", "recipe_name", default=RECIPE)
@click.option("--steps", type=(int, int), help="Of the two stages; default: the recipe's.")
@click.option("--no-text", is_flag=True, help="Leave out the texts: scores alone, for folds and arms.")
@click.option("--resume", is_flag=True)
def train_run(
    name: str, views: Path, rated: Path, held_out: Path, start: Path, output: Path, recipe_name: str,
    steps: tuple[int, int] | None, no_text: bool, resume: bool,
) -> None:  # fmt: skip
    """One training: NAME is final, fold-K, or an arm and its seed."""
    recipe: Recipe = load_recipe(recipe_name)
    rows = read_rated(rated)
    kept = kept_photos(name, rows)
    teacher = fitted_teacher(views, rows, kept)
    folder = output / name
    folder.mkdir(parents=True, exist_ok=True)
    arm, _, number = name.rpartition("-")
    seed = int(number) if arm in ARMS else 1
    model, tokenizer, info = load_checkpoint(start)
    if name != "final":
        model = _fresh(model, seed, last_only=arm == "last-tap-only")
    spec = info.photo
    facts = torch.load(views / "facts.pt", weights_only=True)
    photo_of = np.array([item["photo"] for item in facts])
    first_rated = int(photo_of.max()) + 1 - len(rows)
    allowed = np.flatnonzero((photo_of < first_rated) | kept[np.maximum(photo_of - first_rated, 0)])
    votes = label_views(teacher, views, len(facts))
    collator = BatchCollator(PromptEncoder(tokenizer, model.config.text_config), info.prompts, recipe.tune.text_every)
    plan = [(recipe.pretrain, steps[0] if steps else recipe.pretrain.steps),
            (recipe.tune, steps[1] if steps else recipe.tune.steps)]  # fmt: skip
    if arm == "tuned-only":
        plan = [(recipe.tune, plan[0][1] + plan[1][1])]
    taps = (2, 2, 2, 2) if arm == "last-tap-only" else (0, 1, 2, 2)
    history: dict[str, Any] = {}
    started = time.monotonic()
    for stage_number, (settings, count) in enumerate(plan):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        weights = settings.weights
        if no_text:
            weights = msgspec.structs.replace(weights, generation=0.0, cues=0.0)
        settings = msgspec.structs.replace(settings, steps=count, warmup_steps=max(1, count // 10))
        done = folder / f"stage-{stage_number}"
        if resume and (done / "calm.json").is_file():
            model, tokenizer, info = load_checkpoint(done)
            continue
        model.train()
        stage = Stage(model, weights, settings.frozen, teacher=PreparedTeacher())
        dataset = PreparedDataset(views, votes, allowed, count * settings.pairs, 10 * seed + stage_number)
        history[str(stage_number)] = train_stage(
            stage, settings, dataset, PreparedCollator(collator, taps), folder / f"steps-{stage_number}",
            seed=seed, save_every=150, resume=resume and (folder / f"steps-{stage_number}").is_dir(), workers=0,
        )  # fmt: skip
        save_checkpoint(done, model, tokenizer, info)
    model.eval()
    own = [Image.fromarray(read_picture(rated / row["path"])) for row in rows]
    others = [Image.fromarray(picture) for picture in load_pictures(find_photos(held_out))]
    shown = {
        "rated": own,
        "rated mirrored": [ImageOps.mirror(p) for p in own],
        "rated grey": [black_and_white(p) for p in own],
        "clean": others,
        **{kind: [degrade(p) for p in others] for kind, degrade in DEGRADATIONS.items()},
    }
    found = {what: predict(model, squares(pictures, spec), collator) for what, pictures in shown.items()}
    teacher_said = teacher.standing(
        *(torch.from_numpy(np.load(views / "rated.npz")[k]).float() for k in ("votes", "features"))
    )
    np.savez(folder / "scores.npz", teacher=teacher_said.numpy(), kept=kept, **found)
    (folder / "log.json").write_text(json.dumps(history))
    click.echo(f"{name}: {(time.monotonic() - started) / 60:.1f} min")


def _fresh(model: CalmForConditionalGeneration, seed: int, *, last_only: bool) -> CalmForConditionalGeneration:
    """The same LLM and encoders with new parts between them, drawn from a seed."""
    torch.manual_seed(seed)
    config = model.config
    if last_only:
        config.taps = [config.taps[-1]] * 3
        config.second_taps = None if config.second_taps is None else [config.second_taps[-1]] * 3
        config.neck_pools = [config.neck_pools[-1]] * 4
    fresh = CalmForConditionalGeneration(config)
    fresh.llm.load_state_dict(model.llm.state_dict())
    fresh.vision_encoder.backbones.load_state_dict(model.vision_encoder.backbones.state_dict())  # type: ignore[union-attr]
    fresh.aligner.cues.features.copy_(model.aligner.cues.features)
    return fresh


if __name__ == "__main__":
    main()
