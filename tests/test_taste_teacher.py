"""The teacher of taste: it learns from rated photos, keeps pairs in order, and a finished model can be its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_maps import efficientnet, map_config, map_model, mobilenet, save_encoder
from tiny_models import make_photo

from calm_runtime.errors import DataError
from calm_train.pretrained.convert import HEAD
from calm_train.taste_fit import fit_teacher, standardise_sets, unfitted_teacher
from calm_train.taste_teacher import (
    OwnTeacher,
    TasteTeacher,
    TeacherPart,
    order_pairs,
    teacher_pixels,
    tilt_histogram,
)

RATINGS = torch.arange(1, 11).float()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[TeacherPart, ...]:
    root = tmp_path_factory.mktemp("parts")
    nima, other = save_encoder(root / "nima", mobilenet()), save_encoder(root / "lite", efficientnet())
    channels = 1024 // 4
    head = {"head.weight": torch.randn(10, channels) * 0.3, "head.bias": torch.zeros(10)}
    save_file(head, str(nima / HEAD))
    return TeacherPart(str(nima), (1, 5)), TeacherPart(str(other), (0, 1))


def seen(count: int) -> torch.Tensor:
    return torch.stack([teacher_pixels(np.asarray(make_photo(seed))) for seed in range(count)])


def test_a_tilted_histogram_has_the_mean_it_was_asked_for_and_stays_a_distribution():
    histogram = torch.softmax(torch.randn(50, 10, generator=torch.Generator().manual_seed(0)), dim=-1)
    wanted = torch.linspace(1.5, 9.5, 50)
    tilted = tilt_histogram(histogram, wanted)
    assert torch.allclose(tilted @ RATINGS, wanted, atol=1e-3)
    assert torch.allclose(tilted.sum(-1), torch.ones(50), atol=1e-5)
    same = tilt_histogram(histogram, histogram @ RATINGS)
    assert torch.allclose(same, histogram, atol=1e-3)


def test_a_degraded_view_never_gets_more_votes_and_a_harmless_edit_costs_none():
    means = torch.tensor([5.0, 6.0, 5.0, 6.0, 5.0, 4.0, 5.0, 4.8])
    histograms = tilt_histogram(torch.full((8, 10), 0.1), means)
    batch = {
        "disliked_gap": torch.tensor([1.0, 0.0, 0.0, 0.5]),
        "harmless": torch.tensor([False, False, True, False]),
    }
    ordered = order_pairs(histograms, batch) @ RATINGS
    first, second = ordered[0::2], ordered[1::2]
    assert torch.allclose(first, means[0::2], atol=1e-3)
    assert second[0] < first[0] - 1  # disliked in full
    assert abs(second[1] - first[1]) < 1e-3  # no gain from a degradation that people do not mind
    assert abs(second[2] - first[2]) < 1e-3  # harmless
    assert second[3] < 4.5  # never above what the drop leaves


def test_a_teacher_learns_what_rated_photos_show_and_survives_saving(tmp_path: Path, parts):
    pixels = seen(160)
    start = unfitted_teacher(parts)
    votes, features = start.nima_votes(pixels), start.features(pixels)
    liking = pixels[:, 1].float().mean(dim=(1, 2, 3))  # a set of raters that likes bright pictures
    target = standardise_sets(liking, ["one"] * 160)
    teacher = fit_teacher(start, votes[:120], features[:120], target[:120], "120 photos")
    said = teacher(pixels[120:]) @ RATINGS
    assert np.corrcoef(said.numpy(), target[120:].numpy())[0, 1] > 0.5  # on photos it was not fitted on
    teacher.save(tmp_path)
    again = TasteTeacher.load(tmp_path)
    assert torch.allclose(again(pixels[:3]), teacher(pixels[:3]))
    assert torch.equal(again.train().encoders[0].training * torch.ones(1), torch.zeros(1))


def test_ratings_of_two_sets_are_put_on_one_scale():
    ratings = torch.cat([torch.linspace(1, 7, 12), torch.linspace(0, 100, 12)])
    standard = standardise_sets(ratings, ["a"] * 12 + ["b"] * 12)
    assert torch.allclose(standard[:12], standard[12:], atol=1e-5)
    with pytest.raises(DataError, match="10 or more"):
        standardise_sets(torch.ones(12), ["a"] * 12)


def test_a_folder_that_is_no_teacher_is_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(DataError, match="calm train teacher"):
        TasteTeacher.load(tmp_path)


def test_a_finished_model_keeps_its_own_opinion():
    model = map_model(map_config())
    before, after = torch.tensor([1]), torch.tensor([30, 31])
    own = OwnTeacher(model, before, after)
    pixels = torch.rand(4, 3, 64, 64)
    batch = {"pixel_values": pixels, "disliked_gap": torch.zeros(2), "harmless": torch.tensor([True, True])}
    with torch.no_grad():
        expected = model.score_logits(pixels, *(ids.expand(4, -1) for ids in (before, after))).softmax(-1)
        for parameter in model.llm.parameters():
            parameter.zero_()
    assert torch.allclose(own.pair_histograms(batch)[0::2], expected[0::2], atol=1e-4)
