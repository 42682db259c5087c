"""Evaluation gives the same figures through PyTorch and through the bundle, and the figures are the field's."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from calm_runtime import Calm
from calm_runtime.errors import DataError, UsageError
from calm_runtime.retouch import retouch
from calm_train.cli import train
from calm_train.evaluation import suggestions
from calm_train.evaluation.attributes import attribute_accuracy, held_out_views
from calm_train.evaluation.degradations import pairwise_degradations
from calm_train.evaluation.ratings import compare, earth_movers_distance
from calm_train.evaluation.scorer import BundleScorer, CheckpointScorer
from calm_train.library import load_pictures

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
ORIGINALS = ("astronaut", "cameraman", "cat", "coffee", "rocket")


@pytest.fixture(scope="module")
def pictures(example_folder):
    return [Image.fromarray(p) for p in load_pictures([example_folder / f"{name}.jpg" for name in ORIGINALS])]


@pytest.fixture(scope="module")
def ava(tmp_path_factory, example_folder):
    """An AVA-format folder whose votes are drawn at random: agreement is low, and must be reported as it is."""
    root = tmp_path_factory.mktemp("ava")
    (root / "images").mkdir()
    rng = np.random.default_rng(5)
    rows = []
    for index, photo in enumerate(sorted(example_folder.glob("*.jpg")), start=1):
        shutil.copy(photo, root / "images" / f"{900 + index}.jpg")
        votes = rng.multinomial(200, rng.dirichlet(np.ones(10)))
        rows.append(" ".join(map(str, [index, 900 + index, *votes, 1, 22, 1396])))
    (root / "AVA.txt").write_text("\n".join(rows) + "\n")
    return root


def evaluate(*arguments: object) -> dict:
    result = CliRunner().invoke(train, ["evaluate", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_torch_and_bundle_agree_within_the_parity_gate(calm: Calm, pictures):
    by_torch, by_bundle = CheckpointScorer(CHECKPOINT)(pictures), BundleScorer(calm)(pictures)
    assert np.abs(by_torch.scores - by_bundle.scores).max() <= 0.15
    assert np.abs(by_torch.technical - by_bundle.technical).max() <= 0.15
    assert np.abs(by_torch.attributes - by_bundle.attributes).max() <= 0.03  # the shipped aligner is int8


def test_darkness_costs_score(calm: Calm, pictures):
    results = pairwise_degradations(BundleScorer(calm), pictures)
    assert results.clean_first["under-exposure"].score >= 0.8
    assert results.clean_first["under-exposure"].technical >= 0.8


def test_brightness_is_named_better_than_by_chance(calm: Calm, pictures):
    results = attribute_accuracy(BundleScorer(calm), held_out_views(pictures, 8, seed=2))
    assert results["brightness"].balanced > 0.5


def test_ava_figures_are_what_scipy_gives_from_the_scores_of_the_runtime(calm: Calm, ava):
    result = evaluate("--dataset", "ava", "--root", ava)
    photos, means = [], []
    for row in (ava / "AVA.txt").read_text().splitlines():
        fields = list(map(int, row.split()))
        votes = np.array(fields[2:12])
        photos.append(ava / "images" / f"{fields[1]}.jpg")
        means.append(votes @ np.arange(1, 11) / votes.sum())
    scores = [scored.score.mean for scored in calm.score_many(photos)]
    assert result["srcc"] == pytest.approx(spearmanr(scores, means).statistic, abs=1e-6)
    assert result["plcc"] == pytest.approx(pearsonr(scores, means).statistic, abs=1e-6)
    assert result["mae"] == pytest.approx(np.abs(np.array(scores) - means).mean(), abs=1e-6)
    assert (result["photos"], result["failed"]) == (len(photos), 0)
    assert result["bundle"] == calm.bundle.digest
    torch_result = evaluate("--dataset", "ava", "--root", ava, "--checkpoint", CHECKPOINT)
    assert torch_result["mae"] == pytest.approx(result["mae"], abs=0.15)
    assert torch_result["checkpoint"] == "calm-nano"


def test_a_broken_rated_photo_is_counted_not_fatal(ava):
    before = evaluate("--dataset", "ava", "--root", ava)
    (ava / "images" / "901.jpg").write_bytes(b"not a photo")
    after = evaluate("--dataset", "ava", "--root", ava)
    assert (after["photos"], after["failed"]) == (before["photos"] - 1, 1)


def test_suggestions_are_followed_on_known_faults(calm: Calm, pictures, tmp_path, monkeypatch):
    kept = ("darker by half", "tilted")  # all sixteen take minutes
    monkeypatch.setattr(suggestions, "FAULTS", {name: suggestions.FAULTS[name] for name in kept})
    pictures[2].save(tmp_path / "cat.png")
    pictures[3].save(tmp_path / "coffee.png")
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    result = evaluate("--photos", tmp_path, "--suggestions", "--report", tmp_path / "report")["suggestions"]
    rows = result["results"]
    assert result["photos"] == 2
    assert set(rows) == {*kept, suggestions.UNTOUCHED, suggestions.TONES}
    assert rows["darker by half"]["top2"] == 1.0
    assert rows["darker by half"]["first gains"] == 1.0
    assert rows[suggestions.TONES] == rows["darker by half"]  # a tilt is no fault of tone
    assert rows["darker by half"]["distance after"] < rows["darker by half"]["distance before"]
    table = (tmp_path / "report" / "evaluation.md").read_text()
    assert "| darker by half | " in table
    assert "| untouched | - | - |" in table


def test_what_a_suggestion_gains_is_measured_on_the_edited_photo(calm: Calm, pictures):
    dark = suggestions.FAULTS["darker by half"].apply(pictures[3])
    row = suggestions.examine(calm, pictures[3], dark, "exposure")
    buffer = io.BytesIO()
    dark.save(buffer, "PNG")
    first = calm.suggest(buffer.getvalue()).suggestions[0]
    edited = io.BytesIO()
    retouch(dark, [first.edit]).save(edited, "PNG")
    before, after = (calm.score(data.getvalue()).quality for data in (buffer, edited))
    assert row["first gain"] == pytest.approx(after - before, abs=1e-6)
    assert row["first"] == float(first.edit.name == "exposure")


def test_a_limit_spreads_over_the_folder():
    photos = [Path(f"{n}.jpg") for n in range(10)]
    assert suggestions.evenly_spaced(photos, 3) == [photos[0], photos[4], photos[9]]
    assert suggestions.evenly_spaced(photos, None) == suggestions.evenly_spaced(photos, 20) == photos


def test_measures_are_those_of_the_field():
    truth = np.array([[0.0] * 9 + [1.0], [1.0] + [0.0] * 9])
    assert earth_movers_distance(truth, truth) == pytest.approx([0, 0])
    assert earth_movers_distance(truth[::-1], truth) == pytest.approx([0.9**0.5] * 2)
    agreement = compare(np.array([4.0, 6.0, 5.5]), np.array([4.5, 4.0, 7.0]), None, failed=0)
    assert agreement.accuracy == pytest.approx(2 / 3)
    assert agreement.mae == pytest.approx(4 / 3)
    assert compare(np.array([5.0, 5.0]), np.array([4.0, 6.0]), None, 0).srcc is None


def test_wrong_use_is_explained(tmp_path):
    for arguments in ([], ["--dataset", "ava"], ["--photos", tmp_path, "--bundle", "a", "--checkpoint", "b"]):
        with pytest.raises(UsageError):
            evaluate(*arguments)
    with pytest.raises(DataError, match="AVA.txt"):
        evaluate("--dataset", "ava", "--root", tmp_path)
