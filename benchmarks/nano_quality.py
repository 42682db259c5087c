"""How well does calm-nano rank photos against spoiled copies and name attribute levels, beside the untrained model?

python benchmarks/nano_quality.py --photos HELD_OUT_DIR     writes nano_quality.json and nano_quality.md beside itself
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path

import click
import torch
from PIL import Image

from calm_runtime import Calm
from calm_runtime.bundle import DEFAULT_BUNDLE
from calm_train.evaluation.edits import attribute_accuracy, held_out_views, pairwise_edits
from calm_train.evaluation.scorer import BundleScorer, CheckpointScorer
from calm_train.library import find_photos, load_pictures
from calm_train.model import CalmForConditionalGeneration

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "models" / "calm-nano"


def untrained_scorer() -> CheckpointScorer:
    """The same architecture with random weights (seed 1)."""
    scorer = CheckpointScorer(CHECKPOINT)
    torch.manual_seed(1)
    scorer.model = CalmForConditionalGeneration(scorer.model.config).eval()
    torch.nn.init.normal_(scorer.model.aligner.cues.features)
    return scorer


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
def main(photos: Path) -> None:
    pictures = [Image.fromarray(picture) for picture in load_pictures(find_photos(photos))]
    views = held_out_views(pictures, 6, seed=1)
    calm = Calm.load(DEFAULT_BUNDLE)
    results = {}
    for name, scorer in (("trained", BundleScorer(calm)), ("untrained", untrained_scorer())):
        attributes = {k: asdict(v) for k, v in attribute_accuracy(scorer, views).items()}
        results[name] = {"pairwise": pairwise_edits(scorer, pictures), "attributes": attributes}
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
        "photos": len(pictures),
        "views": len(views),
        "model": f"{calm.bundle.manifest.model.name} {calm.bundle.manifest.model.version}",
        "bundle": calm.bundle.digest,
    }
    (HERE / "nano_quality.json").write_text(json.dumps({**header, **results}, indent=2) + "\n")
    (HERE / "nano_quality.md").write_text(report(header, results))
    click.echo(report(header, results))


def report(header: dict, results: dict) -> str:
    """Markdown tables of both models."""
    trained, untrained = results["trained"], results["untrained"]
    lines = [
        "# calm-nano on held-out photos",
        "",
        f"{header['photos']} photos, {header['date']}, {header['machine']}, bundle `{header['bundle'][:12]}`.",
        "",
        "Share of photos that score higher than their spoiled copy:",
        "",
        "| edit | calm-nano | untrained |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {k} | {v:.1%} | {untrained['pairwise'][k]:.1%} |" for k, v in trained["pairwise"].items()]
    lines += [
        "",
        f"Attribute levels named right on {header['views']} seeded views (accuracy; majority = always the most frequent",
        "level; balanced = mean recall over levels, chance is 33%):",
        "",
        "| attribute | calm-nano | majority | untrained | balanced | untrained balanced |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in trained["attributes"].items():
        other = untrained["attributes"][name]
        lines.append(
            f"| {name} | {row['accuracy']:.1%} | {row['majority']:.1%} | {other['accuracy']:.1%} "
            f"| {row['balanced']:.1%} | {other['balanced']:.1%} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
