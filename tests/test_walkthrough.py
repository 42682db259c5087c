"""docs/your_own_photos.md in small: adapt to a folder, to ratings, export, score."""

import json
import shutil

import pytest
from click.testing import CliRunner
from tiny_recipe import write_recipe

from calm_export.cli import export
from calm_runtime.cli.app import calm
from calm_train.cli import train


def run(command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    assert not result.return_value, result.output
    return result.stdout


@pytest.mark.timeout(600)
def test_from_a_folder_and_thirty_ratings_to_a_bundle_that_scores(tmp_path, example_folder):
    recipe = write_recipe(tmp_path / "tiny.yaml")
    photos = sorted(example_folder.glob("*.jpg"))
    rows = []
    for number in range(30):
        name = f"{number:02d}.jpg"
        shutil.copy(photos[number % len(photos)], tmp_path / name)
        rows.append(f"{name},{1 + number % 5}")
    (tmp_path / "ratings.csv").write_text("\n".join(["path,rating", *rows]))
    start, mine, taste, bundle = (tmp_path / name for name in ("start", "mine", "taste", "taste.bundle"))
    run(train, "pretrain", "--recipe", recipe, "--photos", example_folder, "-o", tmp_path / "nothing")
    run(train, "tune", "--recipe", recipe, "--photos", example_folder, "--init", tmp_path / "nothing", "-o", start)
    run(train, "pretrain", "--recipe", recipe, "--photos", example_folder, "--init", start, "-o", mine)
    ratings = ("--ratings", tmp_path / "ratings.csv", "--rating-scale", 1, 5)
    run(train, "tune", "--recipe", recipe, *ratings, "--init", mine, "-o", taste)
    run(export, taste, "-o", bundle, "--target", "cpu", "--llm-precision", "fp32")
    scored = json.loads(run(calm, "score", "--json", "--bundle", bundle, photos[0]))
    assert 1 <= scored["score"] <= 10
    assert "adapted" in scored["model"]
