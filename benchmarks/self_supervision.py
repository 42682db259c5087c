"""The paper's claim at nano size: does text-guided self-supervision help, and do several taps beat the last one?

python benchmarks/self_supervision.py --runs RUNS --rated RATED     writes self_supervision.json and .md beside itself

RUNS holds the runs ARM-SEED of train_nano.py, all of as many optimiser steps, on the same photos:

  self-supervised     first stage 1 (text-guided self-supervision), then stage 2 (scores and texts)
  tuned-only          stage 2 alone, for the steps of both
  last-tap-only       as the first, but every branch reads the encoders' last map

Measured: rank correlation with people on the rated photos that a run was not taught on, and the share of held-out photos
that come before their degraded copies, by score and by technical rating.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from nano_runs import Run, correlations, read_run, sets_of
from train_nano import ARMS, read_rated

from calm_runtime.errors import DataError
from calm_train.evaluation.degradations import DISLIKED, compare_degraded

HERE = Path(__file__).parent
COLUMNS = {"all": "all degradations, by score", "disliked": "those that cost votes, by score",
           "technical": "all, by technical"}  # fmt: skip


def find_runs(folder: Path, photos: int) -> dict[str, dict[int, Run]]:
    """Arm -> seed -> run. Raises DataError for an arm without runs."""
    runs: dict[str, dict[int, Run]] = {}
    for arm in ARMS:
        seeds = sorted(int(seed) for p in folder.glob(f"{arm}-*") if (seed := p.name.removeprefix(f"{arm}-")).isdigit())
        if not seeds:
            raise DataError(f"{folder}: no run {arm}-SEED there; make it with benchmarks/train_nano.py")
        runs[arm] = {seed: read_run(folder / f"{arm}-{seed}", photos) for seed in seeds}
    return runs


def measure_run(run: Run, rows: Sequence[dict[str, str]], degradations: Sequence[str]) -> dict[str, Any]:
    """One run: SRCC per set on the photos it was not taught on, and clean photos against degraded copies."""
    sets, means = sets_of(rows), np.array([float(row["mean"]) for row in rows])
    people = {}
    for name in dict.fromkeys(sets.tolist()):
        asked = (sets == name) & ~run.kept
        if asked.sum() < 3:
            raise DataError(f"{name}: a run left {asked.sum()} of its photos out; a rank correlation needs 3 or more")
        people[name] = correlations(run.rated[asked, 0], means[asked])[0]
    order = compare_degraded(run.clean, {name: run.degraded[name] for name in degradations})
    return {"srcc": people, "photos": int((~run.kept).sum()), **asdict(order)}


def shared_degradations(runs: Sequence[Run]) -> list[str]:
    """Those that every run measured, in order. Raises DataError when one of DISLIKED is not among them."""
    shared = [name for name in runs[0].degraded if all(name in run.degraded for run in runs)]
    missing = [name for name in DISLIKED if name not in shared]
    if missing:
        raise DataError(f"not measured by every run: {', '.join(missing)}; run benchmarks/train_nano.py again")
    return shared


def column_values(results: Sequence[dict[str, Any]], column: str) -> np.ndarray:
    """What the runs of an arm have in a column of the page [runs]."""
    if column == "all":
        return np.array([result["all"]["score"] for result in results])
    if column == "technical":
        return np.array([result["all"]["technical"] for result in results])
    if column == "disliked":
        return np.array([result["disliked"] for result in results])
    return np.array([result["srcc"][column] for result in results])


def render(report: dict[str, Any]) -> str:
    """The page."""
    sets = list(next(iter(report["arms"].values()))[0]["srcc"])
    lines = [
        "# Self-supervision and several taps, at nano size",
        "",
        f"{report['date']}; {report['clean']} held-out photos and their degraded copies.",
        *([report["note"]] if report["note"] else []),
        "Mean ± standard deviation over seeds. SRCC: with people, on rated photos of themes and places that the run was not",
        "taught on. Then shares of photos whose clean version comes first.",
        "",
        f"| arm | seeds | {' | '.join(f'SRCC, {name}' for name in sets)} | {' | '.join(COLUMNS.values())} |",
        "| --- | --- |" + " ---: |" * (len(sets) + len(COLUMNS)),
    ]
    for arm, results in report["arms"].items():
        cells = []
        for column in (*sets, *COLUMNS):
            values, form = column_values(results, column), ".1%" if column in COLUMNS else ".3f"
            spread = f" ± {values.std(ddof=1):{form}}" if len(values) > 1 else ""
            cells.append(f"{values.mean():{form}}{spread}")
        lines.append(f"| {arm} | {', '.join(map(str, report['seeds'][arm]))} | {' | '.join(cells)} |")
    names = list(next(iter(report["arms"].values()))[0]["clean_first"])
    lines += ["", "Clean version first by score, mean over seeds:", ""]
    lines += [f"| degradation | {' | '.join(report['arms'])} |", "| --- |" + " ---: |" * len(report["arms"])]
    for name in names:
        shares = [np.mean([r["clean_first"][name]["score"] for r in results]) for results in report["arms"].values()]
        lines.append(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.option("--runs", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--rated", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--note", default="", help="How the runs were made, for the page: steps, machine.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=HERE)
def main(folder: Path, rated: Path, note: str, output: Path) -> None:
    rows = read_rated(rated)
    runs = find_runs(folder, len(rows))
    every = [run for own in runs.values() for run in own.values()]
    degradations = shared_degradations(every)
    report = {
        "date": date.today().isoformat(),
        "note": note,
        "seeds": {arm: list(own) for arm, own in runs.items()},
        "clean": len(every[0].clean),
        "arms": {arm: [measure_run(run, rows, degradations) for run in own.values()] for arm, own in runs.items()},
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "self_supervision.json").write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (output / "self_supervision.md").write_text(render(report))
    click.echo(render(report))


if __name__ == "__main__":
    main()
