"""All trainings of calm-nano in one go: the shipped weights, five folds over held-out themes, and the ablation.

python benchmarks/train_nano.py --photos UNLABELLED --rated RATED --held-out VAL -o runs/nano
    [--recipe models/recipe] [--pairs-made 20000] [--runs final,folds,ablation] [--processes 6] [--workers 16]

RATED: a folder with ratings.csv (columns path, theme, mean) and the photos; the first folder of a path names the set.
Every run goes through the stages of the recipe with `train_stage`, as `calm train` does; the views are made and labelled
once for all of them. Leaves the final checkpoint's learnt tensors and every run's scores of rated, mirrored, black-and-white
and degraded pictures (scores.npz), which human_taste.py and self_supervision.py read.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch
from PIL import Image, ImageOps
from prepared_views import PreparedDataset, PreparedTeacher, make_items, teacher_features
from safetensors.torch import save_file

from calm_runtime.photo import fit_picture
from calm_train.build import photo_spec
from calm_train.checkpoint import load_checkpoint, save_checkpoint
from calm_train.data import BatchCollator, PromptEncoder
from calm_train.evaluation.edits import SPOILED
from calm_train.library import find_photos, load_pictures, read_picture
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import expected_score
from calm_train.recipe import Recipe, load_recipe
from calm_train.run import language_checkpoint
from calm_train.stages import Stage
from calm_train.taste_fit import fit_teacher, standardise_sets, unfitted_teacher
from calm_train.taste_teacher import teacher_pixels, tilt_histogram
from calm_train.trainer import train_stage

FOLDS = 5
ARMS = ("self-supervised", "tuned only", "last tap only")
FROZEN = "vision_encoder.backbones."
PART_BYTES = 15_500_000


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


def plan_runs(which: str, seeds: int) -> list[dict[str, Any]]:
    """Every training: name, arm, seed, and the fold left out (None: all rated photos teach)."""
    runs: list[dict[str, Any]] = []
    if "final" in which:
        runs.append({"name": "final", "arm": ARMS[0], "seed": 1, "folds": None, "fold": None, "long": True})
    if "folds" in which:
        runs += [{"name": f"fold-{k}", "arm": ARMS[0], "seed": 1, "folds": FOLDS, "fold": k} for k in range(FOLDS)]
    if "ablation" in which:
        runs += [
            {"name": f"{arm.replace(' ', '-')}-{seed}", "arm": arm, "seed": seed, "folds": 2, "fold": seed % 2}
            for seed in range(1, seeds + 1)
            for arm in ARMS
        ]
    return runs


def stages_of(run: dict[str, Any], recipe: Recipe, steps: tuple[int, int]) -> list[tuple[str, Any, int]]:
    """Settings and optimiser steps of each stage; without stage 1 its steps go to stage 2."""
    first, second = steps
    if run["arm"] == "tuned only":
        return [("tune", recipe.tune, first + second)]
    return [("pretrain", recipe.pretrain, first), ("tune", recipe.tune, second)]


def train(run: dict[str, Any], shared: dict[str, Any]) -> None:
    """One training, in a process of its own."""
    started = time.monotonic()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.set_num_threads(1)
    recipe: Recipe = shared["recipe"]
    start, tokenizer, info = load_checkpoint(shared["language"])
    torch.manual_seed(run["seed"])
    model = start
    if run["arm"] == "last tap only":
        config = start.config
        deepest, second = config.taps[-1], config.second_taps[-1] if config.second_taps else None
        config.taps = [deepest] * 3
        config.second_taps = None if second is None else [second] * 3
        model = CalmForConditionalGeneration(config)
        own = model.state_dict()
        own.update({k: v for k, v in start.state_dict().items() if k in own and own[k].shape == v.shape})
        model.load_state_dict(own)
    else:  # the language checkpoint holds one draw of the new parts: each seed draws its own
        fresh = CalmForConditionalGeneration(start.config)
        state = {k: v for k, v in fresh.state_dict().items() if k.startswith(("vision_encoder.necks", "aligner"))}
        kept = {"aligner.cues.features"}
        model.load_state_dict({k: v for k, v in state.items() if k not in kept}, strict=False)
    model.vision_encoder.to(memory_format=torch.channels_last)
    folder = shared["output"] / run["name"]
    history = {}
    for number, (name, settings, steps) in enumerate(stages_of(run, recipe, shared["steps"][bool(run.get("long"))])):
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.train()
        settings = msgspec.structs.replace(settings, steps=steps, warmup_steps=max(1, steps // 10))
        stage = Stage(model, settings.weights, settings.frozen, teacher=PreparedTeacher())
        dataset = PreparedDataset(
            shared["items"], run["votes"], run["allowed"], steps * settings.pairs, 10 * run["seed"] + number
        )
        collator = BatchCollator(PromptEncoder(tokenizer, model.config.text_config), info.prompts, settings.text_every)
        with tempfile.TemporaryDirectory() as scratch:
            history[name] = train_stage(
                stage, settings, dataset, collator, Path(scratch) / "steps",
                seed=run["seed"], save_every=10**6, resume=False, workers=shared["loaders"],
            )  # fmt: skip
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    collator = BatchCollator(PromptEncoder(tokenizer, model.config.text_config), info.prompts, 1)
    found = {name: predict(model, pictures, collator) for name, pictures in shared["pictures"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "scores.npz", **found)
    (folder / "log.json").write_text(json.dumps(history))
    if run.get("long"):
        save_learnt(model.cpu(), folder)
        save_checkpoint(folder / "checkpoint", model, tokenizer, info)
    last = {name: log[-1] for name, log in history.items()}
    print(f"{run['name']}: {time.monotonic() - started:.0f} s, {json.dumps(last)}", flush=True)


@torch.inference_mode()
def predict(model: CalmForConditionalGeneration, pixels: np.ndarray, collator: BatchCollator) -> np.ndarray:
    """Squares [N, S, S, 3] uint8 -> score and technical [N, 2]."""
    device = model.device
    rows = []
    for start in range(0, len(pixels), 64):
        batch = torch.from_numpy(pixels[start : start + 64]).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        ids = [torch.tensor(side, device=device).expand(len(batch), -1) for side in collator.score_ids]
        logits = model(batch, *ids).logits[:, -1]
        config = model.config
        both = (expected_score(logits[:, tokens]) for tokens in (config.score_token_ids, config.technical_token_ids))
        rows.append(torch.stack(list(both), dim=1).cpu().numpy())
    return np.concatenate(rows)


def save_learnt(model: CalmForConditionalGeneration, folder: Path) -> None:
    """What training changed, in files of at most PART_BYTES: the frozen encoders are at hand elsewhere."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, value in model.state_dict().items():
        if name.startswith(FROZEN) or (name == "llm.lm_head.weight" and model.config.text_config.tie_word_embeddings):
            continue
        if size + value.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = value.contiguous().clone()
        size += value.nbytes
    for number, part in enumerate(parts):
        save_file(part, str(folder / f"learnt-{number}.safetensors"))


def label(votes: torch.Tensor, standing: torch.Tensor, scale: tuple[float, float]) -> torch.Tensor:
    """NIMA's votes [N, 10] moved to where the regression puts each picture."""
    return tilt_histogram(votes, scale[0] + scale[1] * standing)


def squares(pictures: list[Image.Image], spec: Any) -> np.ndarray:
    """Pictures as the model reads them, [N, S, S, 3] uint8."""
    return np.stack([np.asarray(fit_picture(picture, spec)) for picture in pictures])


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--rated", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@click.option("--recipe", "recipe_name", default="models/recipe")
@click.option("--pairs-made", default=20_000)
@click.option("--steps", type=(int, int), default=(250, 500), help="Of the two stages of folds and arms.")
@click.option("--final-steps", type=(int, int), default=(600, 1500), help="Of the two stages of the shipped model.")
@click.option("--runs", default="final,folds,ablation")
@click.option("--seeds", default=3)
@click.option("--processes", default=6)
@click.option("--workers", default=os.cpu_count() or 2)
@click.option("--loaders", default=2)
@click.option("--language", type=click.Path(path_type=Path), help="A finished language checkpoint.")
def main(
    photos: Path, rated: Path, held_out: Path, output: Path, recipe_name: str, pairs_made: int, steps: tuple[int, int],
    final_steps: tuple[int, int], runs: str, seeds: int, processes: int, workers: int, loaders: int,
    language: Path | None,
) -> None:  # fmt: skip
    recipe = load_recipe(recipe_name)
    spec = photo_spec(recipe)
    rows = list(csv.DictReader((rated / "ratings.csv").open()))
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        rated_pictures = pool.map(read_picture, [rated / row["path"] for row in rows], chunksize=16)
    pictures = [*load_pictures(find_photos(photos)), *rated_pictures]
    first_rated = len(pictures) - len(rows)
    if language is None:
        language = output / "language"
        child = multiprocessing.get_context("spawn").Process(target=language_checkpoint, args=(recipe, language, 1))
        child.start()
    else:
        child = None
    items = make_items(pictures, spec, pairs_made, 1, workers)
    others = [Image.fromarray(picture) for picture in load_pictures(find_photos(held_out))]
    own = [Image.fromarray(picture) for picture in rated_pictures]
    shown = {
        "rated": squares(own, spec),
        "rated mirrored": squares([ImageOps.mirror(p) for p in own], spec),
        "rated grey": squares([p.convert("L").convert("RGB") for p in own], spec),
        "clean": squares(others, spec),
        **{name: squares([spoil(p) for p in others], spec) for name, spoil in SPOILED.items()},
    }
    rated_sight = [teacher_pixels(picture).numpy() for picture in rated_pictures]
    if child is not None:
        child.join()
    # The parent never touches the GPU, so that its children can be forked with the views in memory
    labels = _in_child(_label_all, items, rated_sight, rows, plan_runs(runs, seeds))
    photo_of = np.array([item["photo"] for item in items])
    shared = {
        "items": items, "recipe": recipe, "language": language, "output": output, "pictures": shown,
        "steps": {False: steps, True: final_steps}, "loaders": loaders,
    }  # fmt: skip
    for item in items:
        del item["teacher_pixels"]
    waiting = []
    for run, votes in zip(plan_runs(runs, seeds), labels["votes"], strict=True):
        left_out = np.zeros(len(pictures), bool)
        if run["fold"] is not None:
            left_out[first_rated:] = folds_of(rows, run["folds"]) == run["fold"]
        waiting.append({**run, "votes": votes, "allowed": np.flatnonzero(~left_out[photo_of])})
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "teacher.npz", **{key: value.numpy() for key, value in labels["rated"].items()})
    running: list[Any] = []
    while waiting or running:
        running = [process for process in running if process.is_alive()]
        while waiting and len(running) < processes:
            process = multiprocessing.get_context("fork").Process(target=train, args=(waiting.pop(0), shared))
            process.start()
            running.append(process)
        time.sleep(0.2)


def _label_all(items: list[dict[str, Any]], rated: list[np.ndarray], rows: list[dict[str, str]], runs: list) -> dict:
    """Per run the votes of its teacher for every view, [items, 2, 10]; and what each teacher says of the rated photos."""
    started = time.monotonic()
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = unfitted_teacher().to(device)
    votes, features = teacher_features(teacher, rated)
    view_votes, view_features = teacher_features(teacher, [p for item in items for p in item["teacher_pixels"]])
    target = standardise_sets(torch.tensor([float(r["mean"]) for r in rows]), [r["path"].split("/")[0] for r in rows])
    found: dict[tuple[int | None, int | None], torch.Tensor] = {}
    said: dict[str, torch.Tensor] = {}
    for run in runs:
        key = (run["folds"], run["fold"])
        if key in found:
            continue
        kept = np.ones(len(rows), bool) if run["fold"] is None else folds_of(rows, run["folds"]) != run["fold"]
        teacher = fit_teacher(teacher, votes[kept], features[kept].float(), target[kept], f"{kept.sum()} rated photos")
        teacher.to(device)
        standing = torch.cat([
            teacher.standing(view_votes[i : i + 512].to(device), view_features[i : i + 512].to(device).float()).cpu()
            for i in range(0, len(view_votes), 512)
        ])  # fmt: skip
        found[key] = label(view_votes, standing, teacher.info.votes).reshape(len(items), 2, 10)
        own = teacher.standing(votes.to(device), features.to(device).float()).cpu()
        said[f"{key[0]}-{key[1]}"] = own
    said["nima"] = votes @ torch.arange(1, 11).float()
    print(f"{len(view_votes)} views labelled in {time.monotonic() - started:.0f} s", flush=True)
    return {"votes": [found[(run["folds"], run["fold"])] for run in runs], "rated": said}


def _call(target: Any, args: tuple[Any, ...], path: str) -> None:
    torch.save(target(*args), path)


def _in_child(target: Any, *args: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "result")
        process = multiprocessing.get_context("fork").Process(target=_call, args=(target, args, path))
        process.start()
        process.join()
        return torch.load(path, weights_only=True)


if __name__ == "__main__":
    main()
