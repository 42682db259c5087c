"""Evaluation gives the same figures through PyTorch and through the bundle, and notices which model is trained."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calm_runtime import Calm
from calm_train.data import load_pictures
from calm_train.evaluate import SPOILED, attribute_accuracy, bundle_scorer, held_out_views, open_scorer, pairwise_edits

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
ORIGINALS = ("astronaut", "cameraman", "cat", "coffee", "rocket")


@pytest.fixture(scope="module")
def pictures(example_folder):
    return [Image.fromarray(p) for p in load_pictures([example_folder / f"{name}.jpg" for name in ORIGINALS])]


def test_torch_and_bundle_agree_within_the_parity_gate(calm: Calm, pictures):
    torch_scores, torch_attributes = open_scorer(CHECKPOINT)(pictures)
    scores, attributes = bundle_scorer(calm)(pictures)
    assert np.abs(torch_scores - scores).max() <= 0.15
    assert np.abs(torch_attributes - attributes).max() <= 0.01


def test_every_spoiled_copy_differs_and_darkness_costs_score(calm: Calm, pictures):
    for spoil in SPOILED.values():
        spoiled = spoil(pictures[0])
        assert spoiled.mode == "RGB"
        assert spoiled.tobytes() != pictures[0].tobytes()
    results = pairwise_edits(bundle_scorer(calm), pictures)
    assert results["under-exposure"] >= 0.8
    assert results["all"] == pytest.approx(np.mean([results[name] for name in SPOILED]))


def test_brightness_is_named_better_than_by_chance(calm: Calm, pictures):
    results = attribute_accuracy(bundle_scorer(calm), held_out_views(pictures, 8, seed=2))
    assert results["brightness"].balanced > 0.5
