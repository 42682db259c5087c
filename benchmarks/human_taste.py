"""Does calm-nano score as people do, on themes and places it never saw? Rank correlation with people's ratings.

python benchmarks/human_taste.py --rated RATED --runs RUNS [--held-out DIR]     writes human_taste.json and .md beside itself

RATED: a folder with ratings.csv (columns path, theme, category, mean) and the photos; the first folder of a path names the
set. RUNS holds fold-0 to fold-4 of train_nano.py: each photo is scored by the run that was not taught on its theme or place.
With --held-out, contact_sheet.png shows the photos that the shipped bundle finds best and worst in that folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from contact_sheet import contact_sheet
from frozen_ridge import frozen_features, ridge_held_out
from nano_quality import CHECKPOINT, untrained_scorer
from nano_runs import Array, agreement, read_run, resampled_units, sets_of
from PIL import Image
from train_nano import FOLDS, folds_of, read_rated

from calm_runtime import Calm
from calm_runtime.errors import DataError
from calm_runtime.photo import PhotoSpec, load_photo
from calm_train.evaluation.scorer import BundleScorer
from calm_train.library import find_photos, load_pictures
from calm_train.pretrained.fetch import fetch
from calm_train.pretrained.teacher import NimaTeacher
from calm_train.taste_fit import standardise_sets

HERE = Path(__file__).parent
SETS = ("oasis", "vessel")
# Name on the page -> set, column, what that column starts with.
KINDS = {
    "oasis": ("oasis", "path", ""),
    "scenery": ("oasis", "category", "Scene"),
    "animals": ("oasis", "category", "Animal"),
    "objects": ("oasis", "category", "Object"),
    "people": ("oasis", "category", "Person"),
    "vessel": ("vessel", "path", ""),
    "landscapes": ("vessel", "theme", "landscape"),
    "interiors": ("vessel", "theme", "interior"),
    "facades": ("vessel", "theme", "facade"),
}
PUBLISHED = "published with 0.4.0's measurement"
QUOTED = {"calm-nano 0.4.0": {"oasis": -0.00, "vessel": -0.03}}
LEAST = 10  # photos of a kind
TITLES = {
    "folds": "calm-nano, fold models",
    "teacher": "their teachers",
    "nima": "NIMA, not fitted to these photos",
    "ridge": "ridge on frozen features, same folds",
    "untrained": "calm-nano, untrained",
    "shipped": "calm-nano as shipped",
}


def held_out_scores(folder: Path, photos: int) -> dict[str, Array]:
    """Scores of the rated photos by the fold that was not taught on them: of the models, and of their teachers, [N] each.

    Raises DataError when the folds do not leave every photo out once.
    """
    runs = [read_run(folder / f"fold-{number}", photos) for number in range(FOLDS)]
    out = np.stack([~run.kept for run in runs])
    if not (out.sum(axis=0) == 1).all():
        raise DataError(f"{folder}: the folds must leave every rated photo out once; make them with one ratings.csv")
    by = out.argmax(axis=0), np.arange(photos)
    return {
        "folds": np.stack([run.rated[:, 0] for run in runs])[by],
        "teacher": np.stack([run.teacher for run in runs])[by],
    }


def kinds_of(rows: Sequence[dict[str, str]]) -> dict[str, npt.NDArray[np.bool_]]:
    """Kind -> which rated photos are of it [N], for the kinds with enough photos."""
    sets = sets_of(rows)
    found = {
        kind: (sets == name) & np.array([row[column].startswith(start) for row in rows])
        for kind, (name, column, start) in KINDS.items()
    }
    return {kind: members for kind, members in found.items() if members.sum() >= LEAST}


def ridge_scores(pictures: Sequence[Image.Image], rows: list[dict[str, str]]) -> Array:
    """What a ridge on frozen features expects of the rated photos, over the same folds as the models [N]."""
    target = standardise_sets(torch.tensor([float(row["mean"]) for row in rows]), sets_of(rows).tolist())
    return ridge_held_out(frozen_features(pictures), target.double().numpy(), folds_of(rows, FOLDS))


def nima_scores(pictures: Sequence[Image.Image]) -> Array:
    """NIMA's mean votes [N]."""
    return (NimaTeacher(fetch("nima-mobilenet"))(pictures).double() @ torch.arange(1, 11).double()).numpy()


def measure(scores: Array, rows: Sequence[dict[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Kind -> SRCC and PLCC with their intervals."""
    means, units = np.array([float(row["mean"]) for row in rows]), resampled_units(rows)
    return {kind: agreement(scores[own], means[own], units[own]) for kind, own in kinds_of(rows).items()}


def render(report: dict[str, Any]) -> str:
    """The page."""
    counts = report["photos"]
    lines = [
        "# Agreement with people",
        "",
        f"{report['date']}; {', '.join(f'{counts[name]} photos of {name}' for name in SETS if name in counts)}. Rank correlation",
        "(SRCC) with people's mean ratings, and 95% intervals of a bootstrap over themes (oasis) and photos (vessel).",
        "",
        "## Themes and places never seen",
        "",
        f"{FOLDS} folds: whole themes of oasis and single places of vessel are held out. Models, teachers and ridge were fitted to",
        f"the other folds; NIMA and the untrained model to none. 0.4.0: {PUBLISHED}.",
        "",
        *_table(report["held_out"], list(counts), "srcc", quoted=True),
        "",
        "Linear correlation (PLCC):",
        "",
        *_table(report["held_out"], list(counts), "plcc"),
    ]
    if report["seen"]:
        lines += [
            "",
            "## Trained on these",
            "",
            "**Not held out:** the shipped model was trained on these very photos. This shows what it took in, not how it",
            f"does on others. {report['seen']['model']}, bundle `{report['seen']['bundle'][:12]}`.",
            "",
            *_table({"shipped": report["seen"]["kinds"]}, list(counts), "srcc"),
            "",
            "Linear correlation (PLCC):",
            "",
            *_table({"shipped": report["seen"]["kinds"]}, list(counts), "plcc"),
        ]
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, Any], kinds: list[str], measured: str, *, quoted: bool = False) -> list[str]:
    lines = [f"| | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for name, found in rows.items():
        cells = ["{:.2f} ({:.2f} to {:.2f})".format(*found[kind][measured]) for kind in kinds]
        lines.append(f"| {TITLES[name]} | {' | '.join(cells)} |")
    for name, figures in QUOTED.items() if quoted else ():
        cells = [f"{figures[kind]:.2f}" if kind in figures else "" for kind in kinds]
        lines.append(f"| {name} ({PUBLISHED}) | {' | '.join(cells)} |")
    return lines


@click.command(help=__doc__)
@click.option("--rated", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--runs", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of the fold models.")
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the built-in one.")
@click.option("--checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT, help="Its architecture, untrained.")
@click.option("--only", multiple=True, type=click.Choice(list(TITLES)), help="Rows to measure; default: all.")
@click.option(
    "--held-out", type=click.Path(exists=True, file_okay=False, path_type=Path), help="For the contact sheet."
)
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=HERE)
def main(
    rated: Path, runs: Path | None, bundle: Path | None, checkpoint: Path, only: tuple[str, ...],
    held_out: Path | None, output: Path,
) -> None:  # fmt: skip
    wanted = only or tuple(TITLES)
    if runs is None and {"folds", "teacher"} & set(wanted):
        raise click.UsageError("the fold models and their teachers need --runs; or choose other rows with --only")
    rows = read_rated(rated)

    def pictures(spec: PhotoSpec | None = None) -> list[Image.Image]:
        return [load_photo(rated / row["path"], spec) for row in rows]

    scores = {} if runs is None else held_out_scores(runs, len(rows))
    computed: dict[str, Callable[[], Array]] = {
        "nima": lambda: nima_scores(pictures()),
        "ridge": lambda: ridge_scores(pictures(), rows),
        "untrained": lambda: untrained_scorer(checkpoint)(pictures()).scores,
    }
    scores |= {name: compute() for name, compute in computed.items() if name in wanted}
    output.mkdir(parents=True, exist_ok=True)
    seen: dict[str, Any] = {}
    if "shipped" in wanted or held_out is not None:
        with Calm.load(bundle) as calm:
            scorer = BundleScorer(calm)
            if "shipped" in wanted:
                seen = {**scorer.identity, "kinds": measure(scorer(pictures(scorer.spec)).scores, rows)}
            if held_out is not None:
                others = [Image.fromarray(picture) for picture in load_pictures(find_photos(held_out))]
                sheet = contact_sheet(others, scorer(others).scores.tolist())
                sheet.save(output / "contact_sheet.png")
    report = {
        "date": date.today().isoformat(),
        "photos": {kind: int(own.sum()) for kind, own in kinds_of(rows).items()},
        "held_out": {name: measure(scores[name], rows) for name in TITLES if name in scores and name in wanted},
        "seen": seen,
        "quoted": {"source": PUBLISHED, **QUOTED},
    }
    (output / "human_taste.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (output / "human_taste.md").write_text(render(report))
    click.echo(render(report))


if __name__ == "__main__":
    main()
