"""Are attribute levels named right? Seeded views of held-out photos, whose levels are known because we made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from calm_runtime.attributes import ATTRIBUTES
from calm_train.evaluation.scorer import Scorer
from calm_train.pretext.view import View, make_view, measure_frame, plan_edits, random_frame, to_tensor


@dataclass(frozen=True)
class AttributeResult:
    """Accuracy of one attribute's level beside the share of its most frequent level, on the same pictures."""

    accuracy: float
    majority: float
    balanced: float


def held_out_views(pictures: Sequence[Image.Image], per_photo: int, seed: int) -> list[View]:
    """Seeded random views of held-out photos: half of them with one edit, some with two, some untouched."""
    views = []
    for index, picture in enumerate(pictures):
        for n in range(per_photo):
            rng = np.random.default_rng((seed, index, n))
            frame = measure_frame(random_frame(to_tensor(np.asarray(picture)), rng))
            views.append(make_view(frame, plan_edits(rng, int(rng.choice([0, 1, 2], p=[0.2, 0.5, 0.3]))), rng))
    return views


def attribute_accuracy(scorer: Scorer, views: Sequence[View]) -> dict[str, AttributeResult]:
    """Per attribute: accuracy of the most probable level, the majority class, and the mean recall over levels."""
    probabilities = scorer([Image.fromarray(view.picture) for view in views]).attributes
    truth = np.array([view.levels for view in views])  # [N, A]
    named = probabilities.argmax(-1)
    results = {}
    for a, attribute in enumerate(ATTRIBUTES):
        shares = np.bincount(truth[:, a], minlength=3) / len(views)
        recalls = [(named[truth[:, a] == k, a] == k).mean() for k in range(3) if shares[k] > 0]
        results[attribute.name] = AttributeResult(
            float((named[:, a] == truth[:, a]).mean()), float(shares.max()), float(np.mean(recalls))
        )
    return results
