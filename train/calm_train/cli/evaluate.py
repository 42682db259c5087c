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
from calm_train.evaluation.attributes import attribute_accuracy, held_out_views
from calm_train.evaluation.captions import bundle_commenter, checkpoint_commenter, evaluate_captions
from calm_train.evaluation.degradations import pairwise_degradations
from calm_train.evaluation.personal import evaluate_personal
from calm_train.evaluation.ratings import evaluate_ratings
from calm_train.evaluation.scorer import BundleScorer, Scorer, open_scorer
from calm_train.evaluation.suggestions import evaluate_suggestions, evenly_spaced
from calm_train.evaluation.tables import caption_table, held_out_tables, personal_table, rating_table
from calm_train.library import find_photos, load_pictures

VIEWS_PER_PHOTO = 6
LABELLED = tuple(name for name, form in DATASETS.items() if form.kind in ("ratings", "captions"))
RATERS = "-raters"  # data sets of single votes are named like those of mean ratings, with this
PERSONAL = tuple(name.removesuffix(RATERS) for name in DATASETS if name.endswith(RATERS))


@click.command()
@click.option("--checkpoint", metavar="FOLDER", help="Checkpoint, through PyTorch; a path or `calm-nano`.")
@click.option("--bundle", metavar="FOLDER", help="Bundle, through the runtime; default: the built-in one.")
@click.option(
    "--photos", type=click.Path(path_type=Path), help="Held-out unlabelled photos: degradations and attributes."
)
@click.option("--dataset", type=click.Choice(LABELLED), help="Rated or described photos, as published.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of that data set.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), help="Default: every rated photo.")
@click.option(
    "--personal", is_flag=True, help=f"Profiles learnt from 10 and 100 ratings of each rater: {', '.join(PERSONAL)}."
)
@click.option("--repeats", type=click.IntRange(min=1), default=10, show_default=True, help="Of --personal, per rater.")
@click.option("--suggestions", is_flag=True, help="With --photos: also ask for suggestions on known faults (slow).")
@click.option("--limit", type=click.IntRange(min=1), help="Photos for --suggestions, evenly spaced; default: all.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write FOLDER/evaluation.json and evaluation.md.")
@click.option("--seed", default=1, show_default=True, help="Of the views, and of the photos known to a profile.")
def evaluate(
    checkpoint: str | None,
    bundle: str | None,
    photos: Path | None,
    dataset: str | None,
    root: Path | None,
    split: str | None,
    personal: bool,
    repeats: int,
    suggestions: bool,
    limit: int | None,
    as_json: bool,
    report: Path | None,
    seed: int,
) -> None:
    """Measure a model on photos it never saw.

    \b
    calm train evaluate --photos DIR                       order against degraded copies, attribute levels
    calm train evaluate --dataset ava --root DIR           SRCC, PLCC, MAE, accuracy and EMD against ratings
    calm train evaluate --dataset ava --root DIR --checkpoint runs/tune
    calm train evaluate --dataset ava-captions --root DIR  BLEU, ROUGE-L, CIDEr, METEOR of comments
    calm train evaluate --dataset flickr-aes --root DIR --personal   SRCC of profiles with single raters
    calm train evaluate --photos DIR --suggestions         do suggestions undo known faults?
    """
    if checkpoint is not None and bundle is not None:
        raise UsageError("--checkpoint and --bundle exclude each other")
    if (dataset is None) == (photos is None):
        raise UsageError("give either --photos DIR or --dataset NAME --root DIR")
    if (dataset is None) != (root is None):
        raise UsageError("--dataset and --root belong together")
    if suggestions and photos is None:
        raise UsageError("--suggestions needs --photos DIR")
    if checkpoint is not None and (personal or suggestions):
        flag = "--personal" if personal else "--suggestions"
        raise UsageError(
            f"{flag} is measured through the runtime: `calm export` the checkpoint and give it as --bundle"
        )
    if personal:
        if dataset is None or root is None or dataset.removesuffix(RATERS) not in PERSONAL:
            raise UsageError(
                f"--personal needs --dataset and --root of a set with single raters: {', '.join(PERSONAL)}"
            )
        result = _personal(dataset.removesuffix(RATERS), root, split, bundle, repeats, seed)
        _give(result, personal_table(result), as_json, report)
        return
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
        if suggestions:
            assert isinstance(scorer, BundleScorer)  # no checkpoint, as checked above
            read, faults = evaluate_suggestions(scorer.calm, evenly_spaced(find_photos(photos), limit))
            result["suggestions"] = {"photos": read, "results": faults}
        text = held_out_tables(result)
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


def _personal(
    dataset: str, root: Path, split: str | None, bundle: str | None, repeats: int, seed: int
) -> dict[str, Any]:
    ratings = [record for record in read_dataset(dataset + RATERS, root, split) if isinstance(record, RatedPhoto)]
    scorer = open_scorer(bundle=bundle)
    assert isinstance(scorer, BundleScorer)
    photos, agreements = evaluate_personal(scorer.calm, ratings, repeats, seed)
    counts = [agreement.to_json() for agreement in agreements]
    return {
        "dataset": dataset,
        "split": split,
        "photos": photos,
        "repeats": repeats,
        "counts": counts,
        **scorer.identity,
    }


def _self_supervised(scorer: Scorer, photos: Path, seed: int) -> dict[str, Any]:
    pictures = [Image.fromarray(picture) for picture in load_pictures(find_photos(photos))]
    degradations = asdict(pairwise_degradations(scorer, pictures))
    attributes = attribute_accuracy(scorer, held_out_views(pictures, VIEWS_PER_PHOTO, seed))
    named = {name: asdict(row) for name, row in attributes.items()}
    return {"photos": len(pictures), "degradations": degradations, "attributes": named, **scorer.identity}
