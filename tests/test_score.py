"""Promises of the score read-out."""

from __future__ import annotations

import numpy as np
import pytest

from calm_runtime.attributes import ATTRIBUTES
from calm_runtime.errors import ScoreError
from calm_runtime.readout import read_attributes
from calm_runtime.score import histogram_moments, score_histogram


def test_a_sure_model_gives_that_rating_and_no_spread() -> None:
    logits = np.full(10, -100.0)
    logits[6] = 100.0
    mean, std = histogram_moments(score_histogram(logits))
    assert mean == pytest.approx(7.0)
    assert std == pytest.approx(0.0, abs=1e-6)


def test_an_ignorant_model_gives_the_middle_of_the_scale() -> None:
    mean, std = histogram_moments(score_histogram(np.zeros((2, 10), np.float16)))
    assert mean == pytest.approx([5.5, 5.5])
    assert std == pytest.approx(np.sqrt([8.25, 8.25]))


def test_moments_are_those_of_drawn_ratings() -> None:
    histogram = score_histogram(np.random.default_rng(0).normal(size=10))
    drawn = np.random.default_rng(1).choice(np.arange(1, 11), size=400_000, p=histogram)
    mean, std = histogram_moments(histogram)
    assert mean == pytest.approx(drawn.mean(), abs=0.02)
    assert std == pytest.approx(drawn.std(), abs=0.02)


def test_huge_logits_do_not_overflow() -> None:
    histogram = score_histogram(np.full((3, 10), 1e30))
    assert histogram.sum(-1) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_is_never_nan(bad: float) -> None:
    logits = np.zeros((2, 10), np.float32)
    logits[1, 3] = bad
    with pytest.raises(ScoreError, match="not finite"):
        score_histogram(logits)
    attributes = np.zeros((2, len(ATTRIBUTES), 3), np.float32)
    attributes[1, 4, 1] = bad
    with pytest.raises(ScoreError, match="not finite"):
        read_attributes(attributes, ATTRIBUTES)


def test_attributes_keep_the_bundles_order_and_name_the_most_probable_level() -> None:
    logits = np.zeros((2, len(ATTRIBUTES), 3), np.float32)
    logits[1, :, 2] = 3.0
    readings = read_attributes(logits, ATTRIBUTES)[1]
    assert list(readings) == [attribute.name for attribute in ATTRIBUTES]
    for attribute in ATTRIBUTES:
        reading = readings[attribute.name]
        assert reading.level == attribute.levels[2].name
        assert reading.scale == attribute.scale
        assert sum(reading.probabilities.values()) == pytest.approx(1.0)


def test_attribute_rows_must_match_the_list() -> None:
    with pytest.raises(ValueError, match="shorter|longer"):
        read_attributes(np.zeros((1, len(ATTRIBUTES) - 1, 3), np.float32), ATTRIBUTES)
