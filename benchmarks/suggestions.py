"""Do suggestions mend known faults? `calm_train.evaluation.suggestions`, written down.

python benchmarks/suggestions.py --photos HELD_OUT_DIR --limit 30     writes suggestions.json and suggestions.md beside itself
"""

from __future__ import annotations

import json
import platform
from datetime import date
from pathlib import Path

import click

from calm_runtime import Calm
from calm_train.evaluation.suggestions import evaluate_suggestions, evenly_spaced, suggestion_table
from calm_train.library import find_photos

HERE = Path(__file__).parent


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--limit", type=click.IntRange(min=1), help="Photos, evenly spaced over the folder; default: all.")
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Default: the built-in one."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default="beside this file"
)
def main(photos: Path, limit: int | None, bundle: Path | None, output: Path) -> None:
    with Calm.load(bundle) as calm:
        read, results = evaluate_suggestions(calm, evenly_spaced(find_photos(photos), limit))
        header = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "photos": read,
            "model": f"{calm.bundle.manifest.model.name} {calm.bundle.manifest.model.version}",
            "bundle": calm.bundle.digest,
        }
    text = (
        "# Suggestions on photos with one known fault\n\n"
        f"{header['photos']} photos, {header['date']}, {header['machine']},\n"
        f"{header['model']}, bundle `{str(header['bundle'])[:12]}`.\n\n{suggestion_table(results)}"
    )
    output.mkdir(parents=True, exist_ok=True)
    (output / "suggestions.json").write_text(json.dumps({**header, "results": results}, indent=2) + "\n")
    (output / "suggestions.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
