"""The truth taught to the model is true: measures follow the edits, labels follow the strength."""

import numpy as np
import pytest
import torch
from PIL import Image

from calm_runtime.attributes import ATTRIBUTE_NAMES, ATTRIBUTES
from calm_train.pretext.edits import EDITS, expose, rotate
from calm_train.pretext.faults import FAULTS
from calm_train.pretext.measures import (
    MEASURES,
    brightness,
    clutter,
    colourfulness,
    contrast,
    depth,
    detail,
    mood,
    placement,
    subject,
    symmetry,
    tint,
    tonal_balance,
    uprightness,
    warmth,
)
from calm_train.pretext.patches import STATISTICS, patch_statistics
from calm_train.pretext.texts import NOTHING_TO_DO, comment_text, suggestion_text
from calm_train.pretext.view import (
    another_rendering,
    make_pair,
    make_view,
    measure_frame,
    to_picture,
    to_tensor,
    visible_tilt,
)

PHOTOS = ("astronaut", "cat", "coffee", "rocket")


@pytest.fixture(scope="module", params=PHOTOS)
def rgb(request, example_folder):
    with Image.open(example_folder / f"{request.param}.jpg") as photo:
        photo.thumbnail((320, 320))
        return to_tensor(np.asarray(photo.convert("RGB")))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(4))
def test_measures_move_the_right_way(rgb, seed):
    def edited(name):
        return EDITS[name].apply(rgb, 0.8, rng(seed)).clamp(0, 1)

    assert brightness(edited("underexposed")) < brightness(rgb) < brightness(edited("overexposed"))
    assert contrast(edited("flat")) < contrast(rgb)
    assert colourfulness(edited("desaturated")) < colourfulness(rgb) < colourfulness(edited("oversaturated"))


def test_colour_measures_know_their_direction(rgb):
    warmer = (rgb * torch.tensor([1.2, 1.0, 0.8])[:, None, None]).clamp(0, 1)
    magenta = (rgb * torch.tensor([1.1, 0.8, 1.1])[:, None, None]).clamp(0, 1)
    assert warmth(warmer) > warmth(rgb)
    assert tint(magenta) > tint(rgb)


def test_measures_of_composition_move_the_right_way(rgb):
    height, width = rgb.shape[-2:]
    ys, xs = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    soft = EDITS["blurred"].apply(rgb, 1.0, rng(0)).clamp(0, 1)
    centre = ((xs**2 + ys**2) < 0.15).float()
    assert clutter(soft) < clutter(rgb)
    assert symmetry(0.5 * (rgb + rgb.flip(-1))) > max(0.95, float(symmetry(rgb)))
    assert placement(rgb.flip(-1)) == pytest.approx(-float(placement(rgb)), abs=0.05)
    plain = rgb.mean() + 0.02 * (soft - rgb.mean())
    right_only = torch.where(xs > 0.2, rgb, plain)
    assert placement(right_only) > 0.2 > -0.2 > placement(right_only.flip(-1))
    assert depth(rgb * centre + soft * (1 - centre)) < depth(rgb)
    assert subject(rgb * centre + plain * (1 - centre)) > subject(rgb)
    assert tonal_balance(rgb * (0.5 + 0.5 * (ys > 0))) > tonal_balance(rgb)
    assert mood(rgb * 0.5) < mood(rgb)


def test_detail_falls_with_blur_and_grows_with_noise(rgb):
    blurred, noisy = (EDITS[name].apply(rgb, 0.8, rng()).clamp(0, 1) for name in ("blurred", "noisy"))
    assert detail(blurred) < detail(rgb) < detail(noisy)


def test_uprightness_is_lost_by_a_tilt_where_there_are_lines(example_folder):
    with Image.open(example_folder / "rocket.jpg") as photo:
        tower = to_tensor(np.asarray(photo.convert("RGB").resize((320, 213))))
    upright = [float(uprightness(rotate(tower, degrees, "crop"))) for degrees in (0, 5, 12)]
    assert upright == sorted(upright, reverse=True)
    assert upright[0] > 2 * upright[2]
    assert float(uprightness(tower.rot90(1, (-2, -1)))) == pytest.approx(upright[0], abs=0.02)
    assert visible_tilt(upright[0], upright[2]) == 1.0
    assert visible_tilt(upright[0], upright[0] + 0.1) < 0.2  # no line tells: hardly any damage


def test_another_rendering_is_the_same_photo_in_slightly_other_tones(rgb):
    differences = [float((another_rendering(rgb, rng(seed)) - rgb).abs().mean()) for seed in range(8)]
    assert 0 < min(differences)
    assert max(differences) < 0.2


def test_every_attribute_has_one_source_of_truth():
    sources = [m.attribute for m in MEASURES] + [fault.attribute for fault in FAULTS] + ["impression"]
    assert sorted(sources) == sorted(ATTRIBUTE_NAMES)
    counts = {scale: sum(a.scale == scale for a in ATTRIBUTES) for scale in ("low", "middle", "high")}
    assert counts["low"] >= 8
    assert counts["middle"] >= 7
    assert counts["high"] >= 3


@pytest.mark.parametrize("name", list(EDITS))
def test_every_edit_grows_with_its_severity_and_is_seeded(rgb, name):
    edit = EDITS[name]
    mild, strong = (
        np.mean([float((edit.apply(rgb, s, rng(k)).clamp(0, 1) - rgb).abs().mean()) for k in range(6)])
        for s in (0.1, 1.0)
    )
    assert strong > mild > 0
    assert torch.equal(edit.apply(rgb, 0.5, rng(3)), edit.apply(rgb, 0.5, rng(3)))


def test_exposure_is_exact_in_linear_light():
    grey = torch.full((3, 8, 8), 0.25)
    assert torch.allclose(expose(expose(grey, 1.0), -1.0), grey, atol=1e-5)


def test_positive_rotation_is_counter_clockwise():
    picture = torch.zeros(3, 101, 101)
    picture[:, 50, 60:95] = 1  # a line from the centre to the right
    turned = rotate(picture, 45, "black")
    assert turned[0, 20:45, 56:85].sum() > 10 * turned[0, 56:85, 56:85].sum()


def test_levels_follow_known_edits(rgb):
    def level(edits, attribute):
        view = make_view(measure_frame(rgb), edits, rng())
        index = ATTRIBUTE_NAMES.index(attribute)
        return ATTRIBUTES[index].levels[view.levels[index]].name

    assert level([], "horizon") == "level"
    assert level([("tilt left", 0.5)], "horizon") == "tilted left"
    assert level([("blurred", 0.9)], "sharpness") == "blurred"
    assert level([("noisy", 0.1)], "noise") == "grainy"
    assert level([], "impression") == "good"
    assert level([("blurred", 1.0), ("noisy", 1.0)], "impression") == "poor"


@pytest.mark.parametrize("seed", range(12))
def test_the_second_view_of_a_pair_is_never_rated_higher(rgb, seed):
    first, second = make_pair(to_picture(rgb), rng(seed))
    assert second.damage >= first.damage
    assert 1 <= second.rating <= 10


def test_suggestions_invert_the_edit_and_comments_name_it(rgb):
    view = make_view(measure_frame(rgb), [("tilt left", 0.5), ("underexposed", 0.9)], rng())
    text = suggestion_text(view)
    assert "Rotate the picture clockwise" in text
    assert "Raise the exposure" in text
    assert suggestion_text(make_view(measure_frame(rgb), [], rng())) == NOTHING_TO_DO
    assert comment_text(view.levels, rng()).count(".") >= 4


def test_every_attribute_has_three_levels_with_four_phrases():
    for attribute in ATTRIBUTES:
        assert len(attribute.levels) == 3
        assert all(len(set(level.phrases)) >= 4 for level in attribute.levels)


def test_patch_statistics_know_direction_detail_and_colour():
    size, patch = 64, 16
    rows = torch.sin(torch.arange(size) * 1.5)
    pixels = torch.zeros(2, 3, size, size)
    pixels[0] = rows[None, :, None]  # horizontal stripes
    pixels[1] = rows[None, None, :]  # vertical stripes
    statistics = patch_statistics(pixels, patch)
    assert statistics.shape == (2, 16, STATISTICS)
    bands = statistics[..., :24].reshape(2, 16, 4, 6).mean(1)  # [picture, radius, orientation]
    horizontal, vertical = bands[0].sum(0), bands[1].sum(0)
    assert horizontal.argmax() != vertical.argmax()
    assert torch.isfinite(patch_statistics(torch.zeros(1, 3, size, size), patch)).all()
