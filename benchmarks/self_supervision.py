"""The paper's claim at nano size: does text-guided self-supervision help, and do three taps beat the last one?

python benchmarks/self_supervision.py --photos TRAIN_DIR --held-out DIR --language CHECKPOINT

Three arms with the same number of optimiser steps, pairs, seeds and photos, from the same language checkpoint:

  self-supervised     half of the steps stage 1 (text-guided self-supervision), half stage 2 (scores and texts)
  tuned only          all of the steps stage 2
  last tap only       as the first, but all three Q-Formers attend to the encoder's last hidden state

Measured on held-out photos: share of photos that score above their spoiled copies, and accuracy of a linear probe on
the Q-Formers' outputs for the attribute levels (fitted on views of training photos), balanced over levels. Simulated
raters are left out: neither figure measures them. Every stage warms up over a tenth of its steps. Runs are kept in --work
and not repeated, so a stopped benchmark goes on where it was, and several processes may share the runs: start each with
its --part, then once more without. Writes self_supervision.json and .md.
"""

from __future__ import annotations

import itertools
import json
import platform
import tempfile
from datetime import date
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from PIL import Image

from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.photo import to_pixel_values
from calm_train.checkpoint import load_checkpoint, save_checkpoint
from calm_train.data import BatchCollator, PairDataset, PromptEncoder
from calm_train.evaluation.edits import held_out_views, pairwise_edits
from calm_train.evaluation.scorer import CheckpointScorer
from calm_train.library import find_photos, load_pictures
from calm_train.model import CalmForConditionalGeneration
from calm_train.recipe import StageRecipe, load_recipe
from calm_train.stages import Stage
from calm_train.trainer import train_stage

HERE = Path(__file__).parent
ARMS = ("self-supervised", "tuned only", "last tap only")
PROBE_VIEWS = 4
RIDGE = 10.0


def train_arm(arm: str, seed: int, steps: int, pairs: int, pictures: list, language: Path, folder: Path) -> None:
    """Train one arm and save its checkpoint."""
    recipe = load_recipe("nano")
    start, tokenizer, info = load_checkpoint(language)
    config = start.config
    config.taps = [config.vision_config.num_hidden_layers] * 3 if arm == "last tap only" else list(recipe.model.taps)
    torch.manual_seed(seed)
    model = CalmForConditionalGeneration(config).train()
    model.llm.load_state_dict(start.llm.state_dict())
    model.aligner.cues.features.copy_(start.aligner.cues.features)
    plan = [(recipe.tune, steps)] if arm == "tuned only" else [(recipe.pretrain, steps // 2), (recipe.tune, steps // 2)]
    for number, (settings, count) in enumerate(plan):
        _train(
            model,
            tokenizer,
            info,
            msgspec.structs.replace(settings, steps=count, pairs=pairs, warmup_steps=count // 10),
            pictures,
            seed,
            number,
        )
    save_checkpoint(folder, model, tokenizer, info)


def _train(model, tokenizer, info, settings: StageRecipe, pictures: list, seed: int, number: int) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    stage = Stage(model, msgspec.structs.replace(settings.weights, personal=0.0), settings.frozen)
    dataset = PairDataset(pictures, info.photo, settings.steps * settings.pairs, 10 * seed + number, mask=settings.mask)
    collator = BatchCollator(PromptEncoder(tokenizer, model.config.text_config), info.prompts, settings.text_every)
    with tempfile.TemporaryDirectory() as steps:
        train_stage(
            stage, settings, dataset, collator, Path(steps) / "steps",
            seed=seed, save_every=10**6, resume=False, workers=0,
        )  # fmt: skip


@torch.inference_mode()
def probe_features(model: CalmForConditionalGeneration, spec, views: list) -> dict[str, np.ndarray]:
    """Scale -> mean query output per view [N, C]."""
    rows: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(views), 16):
        batch = [to_pixel_values(Image.fromarray(view.picture), spec) for view in views[start : start + 16]]
        states = model.look(torch.from_numpy(np.stack(batch)).to(model.device)).query_states
        for scale, values in states.items():
            rows.setdefault(scale, []).append(values.mean(1).cpu().numpy())
    return {scale: np.concatenate(values) for scale, values in rows.items()}


def probe_accuracy(fit: dict[str, np.ndarray], fit_views: list, test: dict[str, np.ndarray], views: list) -> float:
    """Balanced accuracy of ridge classifiers, mean over the attributes; each reads its own scale's Q-Former."""
    truth, wanted = (np.array([view.levels for view in group]) for group in (fit_views, views))
    scores = []
    for a, attribute in enumerate(ATTRIBUTES):
        mean, std = fit[attribute.scale].mean(0), fit[attribute.scale].std(0) + 1e-6
        known, asked = ((x - mean) / std for x in (fit[attribute.scale], test[attribute.scale]))
        known, asked = (np.hstack([x, np.ones((len(x), 1))]) for x in (known, asked))
        shares = np.bincount(truth[:, a], minlength=3) / len(truth)
        weight = 1 / np.maximum(shares[truth[:, a]], 1e-3)
        target = np.eye(3)[truth[:, a]] - 1 / 3
        gram = known.T @ (known * weight[:, None]) + RIDGE * np.eye(known.shape[1])
        named = (asked @ np.linalg.solve(gram, known.T @ (target * weight[:, None]))).argmax(1)
        scores.append(np.mean([(named[wanted[:, a] == k] == k).mean() for k in set(wanted[:, a])]))
    return float(np.mean(scores))


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--held-out", type=click.Path(path_type=Path), required=True)
@click.option("--language", type=click.Path(path_type=Path), required=True,
              help="Of `calm train language`, or any checkpoint: its LLM and its cues alone are kept.")  # fmt: skip
@click.option("--steps", default=600, show_default=True, help="Optimiser steps per run, both stages together.")
@click.option("--pairs", default=8, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/self_supervision"), show_default=True)
@click.option("--machine", help="Where the runs in --work were made, for the page; default: here.")
@click.option("--part", metavar="I/N", help="Only every N-th run from the I-th (0..N-1), and no page.")
def main(
    photos: Path,
    held_out: Path,
    language: Path,
    steps: int,
    pairs: int,
    seeds: int,
    work: Path,
    part: str | None,
    machine: str | None,
) -> None:
    first, _, of = (part or "0/1").partition("/")
    pictures = load_pictures(find_photos(photos))
    others = [Image.fromarray(picture) for picture in load_pictures(find_photos(held_out))]
    fit_views = held_out_views([Image.fromarray(p) for p in pictures[:300]], PROBE_VIEWS, seed=11)
    views = held_out_views(others, PROBE_VIEWS, seed=12)
    rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed, arm in list(itertools.product(range(1, seeds + 1), ARMS))[int(first) :: int(of)]:
        folder = work / f"{arm.replace(' ', '-')}-{seed}-{steps}x{pairs}"
        if not (folder / "result.json").is_file():
            if not (folder / "calm.json").is_file():
                train_arm(arm, seed, steps, pairs, pictures, language, folder)
            scorer = CheckpointScorer(folder)
            features = [probe_features(scorer.model, scorer.spec, group) for group in (fit_views, views)]
            result = {
                "pairwise": pairwise_edits(scorer, others)["all"],
                "probe": probe_accuracy(features[0], fit_views, features[1], views),
            }
            (folder / "result.json").write_text(json.dumps(result))
        rows[arm].append(json.loads((folder / "result.json").read_text()))
        click.echo(f"{arm}, seed {seed}: {rows[arm][-1]}", err=True)
    if part is not None:
        return
    header = {
        "date": date.today().isoformat(),
        "machine": machine or f"{platform.machine()}, {torch.get_num_threads()} threads",
        "steps": steps,
        "pairs": pairs,
        "seeds": seeds,
        "held_out": len(others),
        "language": language.name,
    }
    (HERE / "self_supervision.json").write_text(json.dumps({**header, "runs": rows}, indent=2) + "\n")
    lines = [
        "# Self-supervision and three taps, at nano size",
        "",
        (
            f"{header['date']}, {header['machine']}; {steps} steps of {pairs} pairs in every arm, {seeds} seeds, "
            f"{len(others)} held-out photos, LLM and cues of `{language.name}`. Mean ± standard deviation over seeds."
        ),
        "",
        "| arm | original above spoiled copy | linear probe, balanced (chance 33%) |",
        "| --- | ---: | ---: |",
    ]
    for arm, results in rows.items():
        cells = []
        for key in ("pairwise", "probe"):
            values = np.array([result[key] for result in results])
            cells.append(f"{values.mean():.1%} ± {values.std(ddof=1) if len(values) > 1 else 0:.1%}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    (HERE / "self_supervision.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
