"""Promises of the percentile."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from calm_runtime.reference import STEPS, Reference, reference_of


def test_a_percentile_is_the_share_of_the_reference_below() -> None:
    scores = np.random.default_rng(0).normal(5.0, 1.0, 4000)
    reference = reference_of("drawn", scores)
    assert (reference.name, reference.photos, len(reference.quantiles)) == ("drawn", 4000, STEPS + 1)
    for score in (3.0, 4.4, 5.0, 6.1):
        assert reference.percentile(score) == pytest.approx(100 * (scores < score).mean(), abs=0.5)
    assert reference.percentile(scores.min() - 1) == 0.0
    assert reference.percentile(scores.max() + 1) == 100.0


def test_between_two_quantiles_it_is_linear_and_of_equal_ones_the_last_counts() -> None:
    reference = Reference("steps", 101, (*[4.0] * 51, *[4.0 + k / 10 for k in range(1, 51)]))
    assert reference.percentile(4.0) == 50.0
    assert reference.percentile(3.999) == 0.0
    assert reference.percentile(4.125) == pytest.approx(51.25)


@pytest.mark.parametrize(
    "quantiles", [(), (1.0,) * STEPS, (*[2.0] * STEPS, 1.0), (*[1.0] * STEPS, float("nan"))], ids=str
)
def test_other_quantiles_are_refused(quantiles: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="ascending quantiles"):
        Reference("wrong", 1, quantiles)


def test_a_file_with_other_quantiles_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="ascending quantiles"):
        msgspec.json.decode(b'{"name": "", "photos": 3, "quantiles": [3.0, 2.0]}', type=Reference)
