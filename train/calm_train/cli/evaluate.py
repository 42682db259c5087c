"""`calm train evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from PIL import Image
from rich.console import Console

from calm_runtime import Calm
from calm_runtime.errors import UsageError
from calm_train.datasets import DATASETS, CaptionedPhoto, RatedPhoto, read_dataset
from calm_train.evaluation.captions import bundle_commenter, checkpoint_commenter, evaluate_captions
from calm_train.evaluation.edits import attribute_accuracy, held_out_views, pairwise_edits
from calm_train.evaluation.published import AVA_CAPTIONS, AVA_TEST
from calm_train.evaluation.ratings import evaluate_ratings
from calm_train.evaluation.scorer import Scorer, open_scorer
from calm_train.library import find_photos, load_pictures

VIEWS_PER_PHOTO = 6
LABELLED = tuple(name for name, form in DATASETS.items() if form.kind in ("ratings", "captions"))


@click.command()
@click.option("--checkpoint", metavar="FOLDER", help="Checkpoint, through PyTorch; a path or `calm-nano`.")
@click.option("--bundle", metavar="FOLDER", help="Bundle, through the runtime; default: the built-in one.")
@click.option("--photos", type=click.Path(path_type=Path), help="Held-out unlabelled photos: edits and attributes.")
@click.option("--dataset", type=click.Choice(LABELLED), help="Rated or described photos, as published.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of that data set.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Default: every rated photo.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write FOLDER/evaluation.json and evaluation.md.")
@click.option("--seed", default=1, show_default=True, help="Of the views on which attributes are named.")
def evaluate(
    checkpoint: str | None,
    bundle: str | None,
    photos: Path | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    as_json: bool,
    report: Path | None,
    seed: int,
) -> None:
    """Measure a model on photos it never saw.

    \b
    calm train evaluate --photos DIR                       order against spoiled copies, attribute levels
    calm train evaluate --dataset ava --root DIR           SRCC, PLCC, MAE, accuracy and EMD against ratings
    calm train evaluate --dataset ava --root DIR --checkpoint runs/tune
    calm train evaluate --dataset ava-captions --root DIR  BLEU, ROUGE-L, CIDEr, METEOR of comments
    """
    if checkpoint is not None and bundle is not None:
        raise UsageError("--checkpoint and --bundle exclude each other")
    if (dataset is None) == (photos is None):
        raise UsageError("give either --photos DIR or --dataset NAME --root DIR")
    if (dataset is None) != (root is None):
        raise UsageError("--dataset and --root belong together")
    if dataset is not None and root is not None and DATASETS[dataset].kind == "captions":
        result, text = _captions(dataset, root, split, checkpoint, bundle)
        _give(result, text, as_json, report)
        return
    scorer = open_scorer(checkpoint=checkpoint, bundle=bundle)
    if dataset is not None and root is not None:
        photos_rated = [r for r in read_dataset(dataset, root, split) if isinstance(r, RatedPhoto)]
        agreement = evaluate_ratings(scorer, photos_rated)
        result = {"dataset": dataset, "split": split, **asdict(agreement), **scorer.identity}
        text = rating_table(result)
    else:
        assert photos is not None  # checked above
        result = _self_supervised(scorer, photos, seed)
        text = edit_tables(result)
    _give(result, text, as_json, report)


def _give(result: dict[str, Any], text: str, as_json: bool, report: Path | None) -> None:
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / "evaluation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
        (report / "evaluation.md").write_text(text)
    if as_json:
        click.echo(json.dumps(result, allow_nan=False))
    else:
        Console().print(text, markup=False, highlight=False)


def _captions(
    dataset: str, root: Path, split: str | None, checkpoint: str | None, bundle: str | None
) -> tuple[dict[str, Any], str]:
    photos = [record for record in read_dataset(dataset, root, split) if isinstance(record, CaptionedPhoto)]
    if checkpoint is not None:
        comment, name = checkpoint_commenter(checkpoint), {"checkpoint": checkpoint}
    else:
        calm = Calm.load(Path(bundle) if bundle else None)
        comment, name = bundle_commenter(calm), {"bundle": calm.bundle.digest}
    agreement = evaluate_captions(comment, photos)
    result = {"dataset": dataset, "split": split, **agreement.to_json(), **name}
    return result, caption_table(result)


def _self_supervised(scorer: Scorer, photos: Path, seed: int) -> dict[str, Any]:
    pictures = [Image.fromarray(picture) for picture in load_pictures(find_photos(photos))]
    pairs = pairwise_edits(scorer, pictures)
    attributes = attribute_accuracy(scorer, held_out_views(pictures, VIEWS_PER_PHOTO, seed))
    named = {name: asdict(row) for name, row in attributes.items()}
    return {"photos": len(pictures), "pairwise": pairs, "attributes": named, **scorer.identity}


def rating_table(result: dict[str, Any]) -> str:
    """Markdown: our figures, and for AVA the published ones below them."""
    rows = [
        f"# {result['model']} on {result['dataset']} ({result['split'] or 'all'}): {result['photos']} photos\n",
        "| model | PLCC | SRCC | accuracy | MAE | RMSE | EMD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = ("plcc", "srcc", "accuracy", "mae", "rmse", "emd")
    rows.append(f"| {result['model']} | {' | '.join(_figure(result[key]) for key in keys)} |")
    if result["dataset"] == "ava":
        rows += [f"| {name} (reported) | {p:.3f} | {s:.3f} | | | | |" for name, (p, s) in AVA_TEST.items()]
    return "\n".join(rows) + "\n"


def caption_table(result: dict[str, Any]) -> str:
    """Markdown: our figures, and for AVA-Captions the published ones below them."""
    rows = [
        f"# Comments on {result['dataset']} ({result['split'] or 'all'}): {result['photos']} photos\n",
        "| model | BLEU-1 | BLEU-4 | ROUGE-L | CIDEr | METEOR | SPICE |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    own = [result["bleu"][0], result["bleu"][3], *(result[k] for k in ("rouge_l", "cider", "meteor", "spice"))]
    rows.append(f"| this model | {' | '.join(map(_figure, own))} |")
    if result["dataset"] == "ava-captions":
        for name, row in AVA_CAPTIONS.items():
            known = [row.get(key) for key in ("bleu-1", "bleu-4", "rouge_l", "cider", "meteor", "spice")]
            rows.append(f"| {name} (reported) | {' | '.join(map(_figure, known))} |")
    rows += [f"\n{measure.upper()} was not measured: it {reason}." for measure, reason in result["missing"].items()]
    return "\n".join(rows) + "\n"


def edit_tables(result: dict[str, Any]) -> str:
    """Markdown: order against spoiled copies, and attribute accuracy."""
    rows = [f"# {result['model']} on {result['photos']} held-out photos\n", "| spoiled by | original scores higher |"]
    rows += ["| --- | ---: |", *(f"| {name} | {value:.1%} |" for name, value in result["pairwise"].items())]
    rows += ["", "| attribute | accuracy | majority level | balanced |", "| --- | ---: | ---: | ---: |"]
    for name, row in result["attributes"].items():
        rows.append(f"| {name} | {row['accuracy']:.1%} | {row['majority']:.1%} | {row['balanced']:.1%} |")
    return "\n".join(rows) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
