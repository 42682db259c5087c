"""Degraded copies are what their names say, and clean photos are counted ahead of them only where they score higher."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tiny_models import make_photo, make_photos

from calm_runtime import Calm
from calm_train.cli import train
from calm_train.evaluation.degradations import (
    DEGRADATIONS,
    DISLIKED,
    CleanFirst,
    best_third,
    black_and_white,
    compare_degraded,
    pairwise_degradations,
)
from calm_train.evaluation.scorer import BundleScorer

pytest_plugins = ["export_fixtures"]


def roughness(picture, axis: int) -> float:
    return float(np.abs(np.diff(np.asarray(picture, np.float64), axis=axis)).mean())


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_every_degraded_copy_differs(name):
    for picture in (make_photo(3), make_photo(4)):
        degraded = DEGRADATIONS[name](picture)
        assert degraded.mode == "RGB"
        assert degraded.tobytes() != picture.tobytes()
        assert DEGRADATIONS[name](picture).tobytes() == degraded.tobytes()
        assert name == "tilt (cropped)" or degraded.size == picture.size


def test_motion_blurs_along_one_direction():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (200, 300, 3), np.uint8))
    blurred = DEGRADATIONS["motion blur"](picture)
    assert roughness(blurred, axis=1) < 0.15 * roughness(picture, axis=1)
    assert roughness(blurred, axis=0) > 2 * roughness(blurred, axis=1)


@pytest.mark.parametrize("size", [(300, 200), (120, 400)])
def test_a_watermark_lies_across_the_middle(size):
    grey = Image.new("RGB", size, (100, 100, 100))
    changed = np.asarray(DEGRADATIONS["watermark"](grey), int) != 100
    rows, columns = np.flatnonzero(changed.any(axis=(1, 2))), np.flatnonzero(changed.any(axis=(0, 2)))
    assert np.ptp(columns) > 0.85 * size[0]
    assert abs(rows.mean() - size[1] / 2) < 0.05 * size[1]


def test_ties_count_as_wrong_and_the_summaries_are_means():
    clean = np.array([[5.0, 6.0], [4.0, 7.0], [6.0, 5.0], [3.0, 5.0]])
    worse, tied = clean - 1, clean.copy()
    half = clean + np.array([[-1, 1], [-1, 1], [1, 1], [1, 1]])
    degraded = dict.fromkeys(DISLIKED, worse) | {"blur": half, "watermark": tied}
    result = compare_degraded(clean, degraded)
    assert result.clean_first["noise"] == CleanFirst(1.0, 1.0)
    assert result.clean_first["watermark"] == CleanFirst(0.0, 0.0)
    assert result.clean_first["blur"] == CleanFirst(0.5, 0.0)
    assert result.all == CleanFirst(pytest.approx(6.5 / 8), pytest.approx(6 / 8))
    assert result.disliked == pytest.approx(6.5 / 7)
    assert result.watermark_raises == 0.0
    assert compare_degraded(clean, degraded | {"watermark": half}).watermark_raises == 0.5
    assert compare_degraded(clean, dict.fromkeys(DISLIKED, worse)).watermark_raises is None


def test_the_best_third():
    assert best_third(np.array([1.0, 9.0, 3.0, 8.0, 2.0, 4.0, 0.0])).tolist() == [1, 3]
    assert best_third(np.array([1.0, 2.0])).tolist() == [1]


def test_a_model_is_measured_on_its_own_scores(tiny_bundle):
    pictures = [make_photo(seed) for seed in range(40, 49)]
    with Calm.load(tiny_bundle, threads=1) as calm:
        scorer = BundleScorer(calm)
        result = pairwise_degradations(scorer, pictures)
        clean, noisy = scorer(pictures), scorer([DEGRADATIONS["noise"](p) for p in pictures])
        best = np.argsort(-clean.scores)[:3]
        grey = scorer([black_and_white(pictures[i]) for i in best]).scores
    assert set(result.clean_first) == set(DEGRADATIONS)
    assert result.clean_first["noise"].score == (clean.scores > noisy.scores).mean()
    assert result.clean_first["noise"].technical == (clean.technical > noisy.technical).mean()
    assert result.black_and_white == pytest.approx((grey - clean.scores[best]).mean(), abs=1e-6)


def test_both_ratings_are_printed(tiny_bundle, tmp_path):
    photos = make_photos(tmp_path / "photos", 4)
    arguments = ["evaluate", "--photos", str(photos), "--bundle", str(tiny_bundle), "--report", str(tmp_path)]
    run = CliRunner().invoke(train, [*arguments, "--json"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)["degradations"]
    blur = found["clean_first"]["blur"]
    table = (tmp_path / "evaluation.md").read_text()
    assert f"| blur | {blur['score']:.1%} | {blur['technical']:.1%} |" in table
    assert f"| the 7 faults that cost votes | {found['disliked']:.1%} |  |" in table
    assert f"raises the score of {found['watermark_raises']:.1%}" in table
    assert f"{found['black_and_white']:+.2f} points" in table
