"""Personal scores against single raters: the protocol, and that a taste is learnt where there is one."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dataset_miniatures import make_flickr_aes, make_flickr_aes_tastes
from scipy.stats import spearmanr

from calm_runtime import Calm
from calm_runtime.errors import DataError, UsageError
from calm_train.cli import train
from calm_train.datasets import RatedPhoto, read_dataset
from calm_train.evaluation.personal import LEAST_TESTED, evaluate_personal
from calm_train.evaluation.published import PIAA_FLICKR_AES

ORIGINALS = ("astronaut", "cameraman", "cat", "coffee", "rocket")
VERSIONS = 6
PHOTOS = len(ORIGINALS) * VERSIONS


@pytest.fixture(scope="module")
def root(tmp_path_factory, example_folder):
    folder = tmp_path_factory.mktemp("flickr")
    make_flickr_aes_tastes(folder, [example_folder / f"{name}.jpg" for name in ORIGINALS], VERSIONS)
    return folder


@pytest.fixture(scope="module")
def votes(root) -> list[RatedPhoto]:
    return [record for record in read_dataset("flickr-aes-raters", root) if isinstance(record, RatedPhoto)]


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(train, ["evaluate", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ten_ratings_teach_a_taste_that_the_base_score_does_not_have(root, tmp_path):
    result = json.loads(
        evaluate(
            "--dataset", "flickr-aes", "--root", root, "--personal", "--repeats", 5, "--json", "--report", tmp_path
        )
    )
    ten, hundred = result["counts"]
    assert (ten["count"], ten["raters"], hundred["raters"]) == (10, 2, 0)
    assert set(ten["by_rater"]) == {"ADARK", "ALIGHT"}
    assert all(len(rater["personal"]) == len(rater["base"]) == 5 for rater in ten["by_rater"].values())
    assert ten["personal"] > ten["base"] + 0.2
    assert all(np.mean(r["personal"]) > np.mean(r["base"]) for r in ten["by_rater"].values())
    assert ten["personal"] == pytest.approx(np.mean([np.mean(r["personal"]) for r in ten["by_rater"].values()]))
    assert ten["personal_std"] == pytest.approx(np.std([np.mean(r["personal"]) for r in ten["by_rater"].values()]))
    assert result["photos"] == PHOTOS
    assert hundred["personal"] is None
    table = (tmp_path / "evaluation.md").read_text()
    assert all(f"| {name} (reported) | {srcc[0]:.3f} |" in table for name, srcc in PIAA_FLICKR_AES.items())
    assert "its in-context reading alone" in table
    assert "its light head alone" in table


def test_photos_are_looked_at_once_and_base_figures_are_those_of_the_scores(calm: Calm, votes, monkeypatch):
    looked = []
    see = Calm.see
    monkeypatch.setattr(Calm, "see", lambda self, pixels: (looked.append(len(pixels)), see(self, pixels))[1])
    count = PHOTOS - LEAST_TESTED
    photos, (agreement,) = evaluate_personal(calm, votes, repeats=2, seed=4, counts=(count,))
    assert sum(looked) == photos == PHOTOS
    again = evaluate_personal(calm, votes, repeats=2, seed=4, counts=(count,))[1][0]
    assert again == agreement
    dark = {vote.path: vote.mean for vote in votes if vote.rater == "ADARK"}
    scores = {scored.path: scored.score.mean for scored in calm.score_many(list(dark))}
    # Raters and repeats are numbered in sorted order; the photos after the first `count` of a permutation are tested.
    order = np.random.default_rng((4, count, 0, 1)).permutation(PHOTOS)[count:]
    paths = [list(dark)[i] for i in order]
    expected = spearmanr([scores[str(path)] for path in paths], [dark[path] for path in paths]).statistic
    assert agreement.by_rater["ADARK"].base[1] == pytest.approx(expected)


def test_equal_ratings_leave_the_base_score_and_are_counted(calm: Calm, votes):
    photos = sorted({vote.path for vote in votes})[:12]
    # One photo differs: often it is among the tested, and then the ten known ratings are equal.
    flat = [RatedPhoto(path, 8.0 if n == 0 else 5.0, rater="A") for n, path in enumerate(photos)]
    with pytest.raises(DataError, match="no rater rated 15"):
        evaluate_personal(calm, flat)
    _, (agreement,) = evaluate_personal(calm, flat, repeats=20, counts=(12 - LEAST_TESTED,))
    assert agreement.untaught == 1.0
    assert agreement.by_rater["A"].personal == agreement.by_rater["A"].base


def test_wrong_use_is_explained(root, tmp_path):
    common = ("--dataset", "flickr-aes", "--root", root, "--personal")
    with pytest.raises(UsageError, match="calm export"):
        evaluate(*common, "--checkpoint", "calm-nano")
    with pytest.raises(UsageError, match="flickr-aes"):
        evaluate("--dataset", "ava", "--root", root, "--personal")
    with pytest.raises(UsageError, match="--photos"):
        evaluate("--dataset", "ava", "--root", root, "--suggestions")
    make_flickr_aes(tmp_path)
    with pytest.raises(DataError, match="the busiest rated 2"):
        evaluate("--dataset", "flickr-aes", "--root", tmp_path, "--personal")
