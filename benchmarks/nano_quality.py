"""calm-nano on held-out photos: degraded copies, what must not change a score, and attribute levels; the untrained model beside it.

python benchmarks/nano_quality.py --photos HELD_OUT_DIR     writes nano_quality.json and nano_quality.md beside itself
"""

from __future__ import annotations

import json
import platform
import random
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from frames import KINDS
from PIL import Image, ImageOps

from calm_runtime import Calm
from calm_train.evaluation.attributes import attribute_accuracy, held_out_views
from calm_train.evaluation.degradations import DEGRADATIONS, WATERMARK, Picture, pairwise_degradations
from calm_train.evaluation.scorer import BundleScorer, CheckpointScorer, Scorer
from calm_train.evaluation.tables import degradation_table
from calm_train.library import find_photos, load_pictures
from calm_train.model import CalmForConditionalGeneration
from calm_train.vision import MapEncoder

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "models" / "calm-nano"
VIEWS_PER_PHOTO = 6


def untrained_scorer(checkpoint: Path) -> CheckpointScorer:
    """The same architecture with random weights (seed 1); pretrained encoders that training leaves as they are keep theirs."""
    scorer = CheckpointScorer(checkpoint)
    trained = scorer.model
    torch.manual_seed(1)
    scorer.model = CalmForConditionalGeneration(trained.config).to(scorer.device).eval()  # type: ignore[arg-type]
    torch.nn.init.normal_(scorer.model.aligner.cues.features)
    if isinstance(trained.vision_encoder, MapEncoder) and isinstance(scorer.model.vision_encoder, MapEncoder):
        scorer.model.vision_encoder.backbones.load_state_dict(trained.vision_encoder.backbones.state_dict())
    return scorer


def robustness(scorer: Scorer, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Changes of score by what says nothing about the photograph, in points: a mirror image, frames, a watermark.

    Per kind of frame also the share of blurred photos that outscore the sharp, unframed one inside it.
    """
    before = scorer(pictures).scores

    def change(changed: Sequence[Picture]) -> dict[str, float]:
        apart = scorer(changed).scores - before
        return {"mean": float(apart.mean()), "mean_size": float(abs(apart).mean()), "largest": float(abs(apart).max())}

    blurred = [DEGRADATIONS["blur"](picture) for picture in pictures]
    frames = {}
    for kind, draw in KINDS.items():
        sharp, soft = ([draw(p, random.Random(n))[0] for n, p in enumerate(group)] for group in (pictures, blurred))
        frames[kind] = {**change(sharp), "blurred_ahead": float((scorer(soft).scores > before).mean())}
    return {
        "mirror": change([ImageOps.mirror(picture) for picture in pictures]),
        "watermark": change([DEGRADATIONS[WATERMARK](picture) for picture in pictures]),
        "frames": frames,
    }


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the built-in one.")
@click.option("--checkpoint", type=click.Path(path_type=Path), default=CHECKPOINT, help="Its architecture, untrained.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=HERE)
def main(photos: Path, bundle: Path | None, checkpoint: Path, output: Path) -> None:
    pictures = [Image.fromarray(picture) for picture in load_pictures(find_photos(photos))]
    views = held_out_views(pictures, VIEWS_PER_PHOTO, seed=1)
    with Calm.load(bundle) as calm:
        scorers: dict[str, Scorer] = {"trained": BundleScorer(calm), "untrained": untrained_scorer(checkpoint)}
        results: dict[str, Any] = {}
        for name, scorer in scorers.items():
            attributes = {key: asdict(row) for key, row in attribute_accuracy(scorer, views).items()}
            degradations = asdict(pairwise_degradations(scorer, pictures))
            results[name] = {"degradations": degradations, "attributes": attributes}
        results["robustness"] = robustness(scorers["trained"], pictures)
        header = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
            "photos": len(pictures),
            "views": len(views),
            **scorers["trained"].identity,
        }
    output.mkdir(parents=True, exist_ok=True)
    (output / "nano_quality.json").write_text(json.dumps({**header, **results}, indent=2, allow_nan=False) + "\n")
    (output / "nano_quality.md").write_text(report(header, results))
    click.echo(report(header, results))


def report(header: dict[str, Any], results: dict[str, Any]) -> str:
    """Markdown tables of both models."""
    trained, untrained = results["trained"], results["untrained"]
    lines = [
        f"# {header['model']} on held-out photos",
        "",
        f"{header['photos']} photos, {header['date']}, {header['machine']}, bundle `{header['bundle'][:12]}`. Untrained: random",
        "weights behind the same encoders.",
        "",
        "## Degradations",
        "",
        degradation_table(trained["degradations"], untrained["degradations"]),
        "## What must not change a score",
        "",
        "Changes of score in points. Blurred ahead: share of blurred photos in that frame that score higher than the sharp photo",
        "without one.",
        "",
        "| the same photo | mean | mean size | largest | blurred ahead |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    same = results["robustness"]
    lines.append(f"| mirrored | {_change(same['mirror'])} | |")
    for kind, row in same["frames"].items():
        lines.append(f"| in a frame: {kind} | {_change(row)} | {row['blurred_ahead']:.1%} |")
    frames = list(same["frames"].values())
    everything = {key: float(np.mean([row[key] for row in frames])) for key in frames[0]}
    everything["largest"] = max(row["largest"] for row in frames)
    lines += [
        f"| all frames | {_change(everything)} | {everything['blurred_ahead']:.1%} |",
        f"| with a large watermark | {_change(same['watermark'])} | |",
        "",
        "## Attributes",
        "",
        f"Levels named right on {header['views']} seeded views (accuracy; majority = always the most frequent level; balanced =",
        "mean recall over levels, chance is 33%).",
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


def _change(row: dict[str, float]) -> str:
    return f"{row['mean']:+.3f} | {row['mean_size']:.3f} | {row['largest']:.3f}"


if __name__ == "__main__":
    main()
