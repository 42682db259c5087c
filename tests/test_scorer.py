"""Both scorers read a picture as the runtime reads its file, and say the same of it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_models import make_photo

from calm_runtime import Calm
from calm_runtime.photo import leave_out_frame, load_photo
from calm_train.datasets import RatedPhoto
from calm_train.evaluation.ratings import evaluate_ratings
from calm_train.evaluation.scorer import BundleScorer, CheckpointScorer

pytest_plugins = ["export_fixtures"]


@pytest.fixture(scope="module")
def pictures():
    return [make_photo(seed) for seed in range(20, 30)]


@pytest.fixture(scope="module")
def bundle_scorer(tiny_bundle):
    with Calm.load(tiny_bundle, threads=1) as calm:
        yield BundleScorer(calm, batch_size=1)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_a_bundle_is_scored_as_the_runtime_scores_files(bundle_scorer, pictures):
    judged = bundle_scorer([load_photo(png(picture), bundle_scorer.spec) for picture in pictures])
    scores = [bundle_scorer.calm.score(png(picture)) for picture in pictures]
    assert judged.scores == pytest.approx([score.mean for score in scores], abs=1e-4)
    assert judged.technical == pytest.approx([score.technical for score in scores], abs=1e-4)
    assert judged.histograms.shape == (10, 10)
    assert judged.attributes.sum(-1) == pytest.approx(np.ones((10, judged.attributes.shape[1])), abs=1e-6)


def test_a_checkpoint_and_its_bundle_agree(tiny_checkpoint, bundle_scorer, pictures):
    by_torch, by_bundle = CheckpointScorer(tiny_checkpoint, batch_size=4)(pictures), bundle_scorer(pictures)
    assert np.ptp(by_torch.scores) > 0.3
    assert np.abs(by_torch.scores - by_bundle.scores).max() <= 0.15
    assert np.abs(by_torch.technical - by_bundle.technical).max() <= 0.15
    assert np.abs(by_torch.scores - by_torch.technical).max() > 0.15  # two questions, two answers
    assert np.abs(by_torch.attributes - by_bundle.attributes).max() <= 0.02


def test_frames_are_left_out_by_both(tiny_checkpoint, bundle_scorer, pictures):
    framed = ImageOps.expand(pictures[1], 30, (255, 255, 255))
    inside, frame = leave_out_frame(framed, bundle_scorer.spec)
    assert frame is not None
    for scorer in (bundle_scorer, CheckpointScorer(tiny_checkpoint)):
        judged = scorer([framed, inside])
        assert judged.scores[0] == pytest.approx(judged.scores[1], abs=1e-4)
        assert judged.technical[0] == pytest.approx(judged.technical[1], abs=1e-4)
    score = bundle_scorer.calm.score(png(framed))
    assert score.frame is not None
    assert bundle_scorer([load_photo(png(framed), bundle_scorer.spec)]).scores[0] == pytest.approx(score.mean, abs=1e-4)


def test_rated_photos_in_frames_are_compared_by_what_is_inside(bundle_scorer, pictures, tmp_path):
    rated = []
    for number, picture in enumerate(pictures):
        path = tmp_path / f"{number}.png"
        ImageOps.expand(picture, 25, (0, 0, 0)).save(path)
        rated.append(RatedPhoto(path, mean=float(1 + number)))
    agreement = evaluate_ratings(bundle_scorer, rated)
    scores = np.array([bundle_scorer.calm.score(photo.path).mean for photo in rated])
    assert agreement.photos == len(rated)
    assert agreement.mae == pytest.approx(np.abs(scores - [photo.mean for photo in rated]).mean(), abs=1e-4)
