"""The benchmarks of calm-nano's trainings: what runs left behind becomes the figures it holds, and nothing else does."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import spearmanr
from tiny_models import make_photo, make_photos

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import human_taste
import nano_quality
import self_supervision
from contact_sheet import CELL, COLUMNS, GAP, contact_sheet
from frozen_ridge import ridge_held_out
from nano_runs import agreement, read_run, resampled_units
from train_nano import ARMS, FOLDS, kept_photos, read_rated

from calm_runtime import Calm
from calm_runtime.errors import DataError
from calm_train.evaluation.degradations import DEGRADATIONS
from calm_train.evaluation.scorer import BundleScorer, CheckpointScorer

pytest_plugins = ["export_fixtures"]
THEMES, CATEGORIES, PLACES = 20, ("Animal", "Object", "Person", "Scene"), ("facade", "interior", "landscape")
HELD_OUT = 12


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """60 photos in 20 themes of one set, 36 in three kinds of place of another, with random ratings."""
    folder = tmp_path_factory.mktemp("rated")
    rng = np.random.default_rng(8)
    rows = [(f"oasis/t{n // 3}-{n % 3}.png", f"t{n // 3}", CATEGORIES[n % 4]) for n in range(3 * THEMES)]
    rows += [(f"vessel/{n}.png", PLACES[n % 3], "Scenery") for n in range(36)]
    with (folder / "ratings.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "theme", "category", "mean", "sd", "raters", "scale"])
        for path, theme, category in rows:
            writer.writerow([path, theme, category, f"{rng.uniform(2, 6):.2f}", 1.2, 20, "1-7"])
    for number, (path, _, _) in enumerate(rows):
        (folder / path).parent.mkdir(exist_ok=True)
        make_photo(number).resize((96, 72)).save(folder / path)
    return folder


def write_run(folder: Path, rows, scores: np.ndarray, kept: np.ndarray, **more: np.ndarray) -> None:
    """A run that gives the rated photos these scores."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = np.random.default_rng(1).uniform(4, 7, (HELD_OUT, 2)).astype(np.float32)
    degraded = {name: clean - 1 for name in DEGRADATIONS}
    both = np.stack([scores, 10 - scores], axis=1).astype(np.float32)
    others = {"rated": both, "rated mirrored": both, "rated grey": both, "clean": clean}
    np.savez(folder / "scores.npz", **{**others, **degraded, "teacher": -scores, "kept": kept, **more})


def means_of(rows) -> np.ndarray:
    return np.array([float(row["mean"]) for row in rows])


def invoke(command, *arguments: object) -> None:
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_each_photo_is_scored_by_the_fold_that_did_not_see_it(rated, tmp_path):
    rows = read_rated(rated)
    means = means_of(rows)
    for number in range(FOLDS):
        kept = kept_photos(f"fold-{number}", rows)
        # Right on the photos that were left out, wrong on the others: only the former may count.
        write_run(tmp_path / f"fold-{number}", rows, np.where(kept, -means, means), kept)
    invoke(human_taste.main, "--rated", rated, "--runs", tmp_path, "--output", tmp_path,
           "--only", "folds", "--only", "teacher")  # fmt: skip
    report = json.loads((tmp_path / "human_taste.json").read_text())
    assert set(report["held_out"]) == {"folds", "teacher"}
    assert set(report["photos"]) == set(human_taste.KINDS)
    assert report["photos"]["oasis"] == 60
    assert report["photos"]["facades"] == 12
    for kind in human_taste.KINDS:
        assert report["held_out"]["folds"][kind]["srcc"] == pytest.approx([1, 1, 1], abs=1e-5)
        assert report["held_out"]["teacher"][kind]["plcc"] == pytest.approx([-1, -1, -1], abs=1e-5)
    page = (tmp_path / "human_taste.md").read_text()
    assert "| calm-nano 0.4.0 (published with 0.4.0's measurement) | -0.00 |" in page
    assert "Trained on these" not in page
    assert not (tmp_path / "contact_sheet.png").exists()


def test_folds_that_leave_a_photo_out_twice_are_refused(rated, tmp_path):
    rows = read_rated(rated)
    for number in range(FOLDS):
        write_run(tmp_path / f"fold-{number}", rows, means_of(rows), kept_photos("fold-0", rows))
    with pytest.raises(DataError, match="every rated photo out once"):
        human_taste.held_out_scores(tmp_path, len(rows))


def test_what_is_no_run_is_named(rated, tmp_path):
    rows = read_rated(rated)
    with pytest.raises(DataError, match="train_nano.py"):
        read_run(tmp_path / "fold-0", len(rows))
    (tmp_path / "scores.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not a run's scores"):
        read_run(tmp_path, len(rows))
    write_run(tmp_path, rows, means_of(rows), np.ones(len(rows), bool))
    with pytest.raises(DataError, match="ratings.csv has 7"):
        read_run(tmp_path, 7)


def test_models_are_scored_beside_the_runs_and_the_seen_ones_apart(rated, tiny_checkpoint, tiny_bundle, tmp_path):
    photos = make_photos(tmp_path / "photos", 6)
    invoke(human_taste.main, "--rated", rated, "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint,
           "--held-out", photos, "--output", tmp_path, "--only", "untrained", "--only", "shipped")  # fmt: skip
    report = json.loads((tmp_path / "human_taste.json").read_text())
    rows = read_rated(rated)
    places = [n for n, row in enumerate(rows) if row["theme"] == "interior"]
    with Calm.load(tiny_bundle, threads=1) as calm:
        scores = np.array([calm.score(rated / row["path"]).mean for row in rows])
        assert report["seen"]["bundle"] == calm.bundle.digest
    expected = spearmanr(scores[places], means_of(rows)[places]).statistic
    assert report["seen"]["kinds"]["interiors"]["srcc"][0] == pytest.approx(expected, abs=0.02)
    assert "shipped" not in report["held_out"]
    assert set(report["held_out"]) == {"untrained"}
    page = (tmp_path / "human_taste.md").read_text()
    assert page.index("Themes and places never seen") < page.index("untrained") < page.index("## Trained on these")
    assert Image.open(tmp_path / "contact_sheet.png").size[0] == COLUMNS * (CELL + GAP) + GAP


def test_intervals_are_the_wider_the_fewer_photos_are_drawn_apart():
    rng = np.random.default_rng(3)
    themes = np.repeat(np.arange(25), 8)
    truth = rng.normal(size=25)[themes]
    scores = truth + rng.normal(size=25)[themes]  # what is right or wrong of a theme is so of all its photos
    alone = agreement(scores, truth, np.arange(200))["srcc"]
    together = agreement(scores, truth, themes)["srcc"]
    assert alone[0] == together[0] == pytest.approx(spearmanr(scores, truth).statistic)
    assert alone[1] < alone[0] < alone[2]
    assert together[2] - together[1] > 1.5 * (alone[2] - alone[1])
    assert agreement(scores, truth, themes)["srcc"] == together
    with pytest.raises(ValueError, match="equal"):
        agreement(np.ones(200), truth, themes)


def test_themes_are_drawn_whole_and_places_one_by_one(rated):
    rows = read_rated(rated)
    units = resampled_units(rows)
    assert len(set(units[: 3 * THEMES])) == THEMES
    assert len(set(units[3 * THEMES :])) == 36
    assert all(len({rows[n]["theme"] for n in np.flatnonzero(units == unit)}) == 1 for unit in set(units))


def test_a_ridge_finds_what_features_tell_and_nothing_in_noise():
    rng = np.random.default_rng(4)
    features, folds = rng.normal(size=(250, 400)), np.arange(250) % 5
    features[:, :5] *= 3
    target = (features[:, :5] / 3) @ rng.normal(size=5)
    scale = np.ones(400)
    scale[5:] = 0.0
    expected = ridge_held_out(features * scale, target, folds)
    assert spearmanr(expected, target).statistic > 0.98
    shuffled = target.copy()
    shuffled[folds == 0] = rng.permutation(shuffled[folds == 0])
    assert np.array_equal(ridge_held_out(features, shuffled, folds)[folds == 0],
                          ridge_held_out(features, target, folds)[folds == 0])  # fmt: skip
    assert abs(spearmanr(ridge_held_out(features, rng.normal(size=250), folds), target).statistic) < 0.3


def test_arms_are_compared_on_what_they_were_not_taught(rated, tmp_path):
    rows = read_rated(rated)
    means = means_of(rows)
    signs = {"self-supervised": 1, "tuned-only": 1, "last-tap-only": -1}
    for arm in ARMS:
        for seed in (1, 2):
            kept = kept_photos(f"{arm}-{seed}", rows)
            write_run(tmp_path / f"{arm}-{seed}", rows, signs[arm] * np.where(kept, -means, means), kept)
    # One run measured no motion blur, and has blurred copies ahead of a quarter of the photos by score.
    path = tmp_path / "tuned-only-2" / "scores.npz"
    stored = dict(np.load(path))
    del stored["motion blur"]
    stored["blur"][: HELD_OUT // 4, 0] += 5
    np.savez(path, **stored)
    invoke(self_supervision.main, "--runs", tmp_path, "--rated", rated, "--output", tmp_path, "--note", "300 steps.")
    report = json.loads((tmp_path / "self_supervision.json").read_text())
    for arm, results in report["arms"].items():
        assert [r["srcc"] for r in results] == [
            {"oasis": pytest.approx(signs[arm]), "vessel": pytest.approx(signs[arm])}
        ] * 2
        assert "motion blur" not in results[0]["clean_first"]
    assert report["seeds"]["tuned-only"] == [1, 2]
    assert report["arms"]["tuned-only"][1]["clean_first"]["blur"] == {"score": 0.75, "technical": 1.0}
    page = (tmp_path / "self_supervision.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| tuned-only | 1, 2 |"))
    assert "1.000 ± 0.000" in row
    assert f"{np.mean([1, 1 - 0.25 / 7]):.1%} ± {np.std([1, 1 - 0.25 / 7], ddof=1):.1%}" in row
    assert "300 steps." in page


def test_an_arm_without_runs_is_named(rated, tmp_path):
    rows = read_rated(rated)
    write_run(tmp_path / "self-supervised-1", rows, means_of(rows), kept_photos("self-supervised-1", rows))
    with pytest.raises(DataError, match="tuned-only"):
        self_supervision.find_runs(tmp_path, len(rows))


def test_the_sheet_shows_the_best_first_and_the_worst_last():
    scores = np.random.default_rng(2).permutation(45).astype(float)
    pictures = [Image.new("RGB", (90, 60), (int(5 * score), 0, 255)) for score in scores]
    sheet = contact_sheet(pictures, scores.tolist(), count=20)
    pixels = np.asarray(sheet)
    shown = pixels[..., 2] == 255
    reds = list(dict.fromkeys(pixels[shown & (pixels[..., 1] == 0)][:, 0].tolist()))
    assert reds == [5 * n for n in (*range(44, 24, -1), *range(19, -1, -1))]


def test_quality_is_written_with_what_must_not_change_a_score(tiny_bundle, tiny_checkpoint, tmp_path, monkeypatch):
    kinds = ("white", "polaroid")  # of the sixteen
    monkeypatch.setattr(nano_quality, "KINDS", {kind: nano_quality.KINDS[kind] for kind in kinds})
    photos = make_photos(tmp_path / "photos", 3)
    invoke(nano_quality.main, "--photos", photos, "--bundle", tiny_bundle, "--checkpoint", tiny_checkpoint,
           "--output", tmp_path)  # fmt: skip
    report = json.loads((tmp_path / "nano_quality.json").read_text())
    same = report["robustness"]
    assert set(same["frames"]) == set(kinds)
    assert same["mirror"]["largest"] >= same["mirror"]["mean_size"] > 0
    page = (tmp_path / "nano_quality.md").read_text()
    assert f"| in a frame: white | {same['frames']['white']['mean']:+.3f} |" in page
    blur = [report[name]["degradations"]["clean_first"]["blur"] for name in ("trained", "untrained")]
    assert (
        "| blur | " + " | ".join(f"{row[what]:.1%}" for row in blur for what in ("score", "technical")) + " |" in page
    )


def test_changes_of_score_are_those_of_the_changed_picture(tiny_bundle):
    pictures = [make_photo(seed) for seed in range(4)]
    with Calm.load(tiny_bundle, threads=1) as calm:
        scorer = BundleScorer(calm)
        found = nano_quality.robustness(scorer, pictures)
        apart = (
            scorer([p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pictures]).scores - scorer(pictures).scores
        )
    assert found["mirror"]["mean"] == pytest.approx(apart.mean(), abs=1e-6)
    assert found["mirror"]["largest"] == pytest.approx(np.abs(apart).max(), abs=1e-6)
    assert all(0 <= row["blurred_ahead"] <= 1 for row in found["frames"].values())
    assert set(found["frames"]) == set(nano_quality.KINDS)


def test_the_untrained_model_is_another_one(tiny_checkpoint):
    pictures = [make_photo(seed) for seed in range(3)]
    one, other = nano_quality.untrained_scorer(tiny_checkpoint)(pictures), CheckpointScorer(tiny_checkpoint)(pictures)
    assert np.abs(one.scores - other.scores).max() > 0.01
    assert np.array_equal(one.scores, nano_quality.untrained_scorer(tiny_checkpoint)(pictures).scores)
