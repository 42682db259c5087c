"""Promises of the edits: exact in their units, undone by their inverse, the same at every size, no gaps left behind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from calm_runtime import retouch as module
from calm_runtime.framing import crops, tilt
from calm_runtime.lab import to_lab
from calm_runtime.retouch import (
    LUMA,
    LUMINANCE,
    Contrast,
    Crop,
    Denoise,
    Exposure,
    Frame,
    Rotation,
    Saturation,
    Sharpening,
    Tone,
    WhiteBalance,
    frame_of,
    noise_level,
    retouch,
    to_floats,
    to_linear,
    to_picture,
)

FRAME = Frame(200, 0.0)


def middle_tones(low: float = 0.35, high: float = 0.55) -> npt.NDArray[np.float32]:
    """Colours [40, 50, 3] that no edit below clips."""
    return np.random.default_rng(3).uniform(low, high, (40, 50, 3)).astype(np.float32)


def scene(width: int = 320, height: int = 240) -> Image.Image:
    """Smooth colours, hard edges and a little texture."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    rgb = np.stack([0.3 + 0.4 * x, 0.5 + 0.2 * np.sin(9 * y), 0.4 + 0.3 * y], axis=-1)
    rgb[height // 3 : height // 2, width // 4 : width // 2] = (0.8, 0.3, 0.2)
    rgb += 0.04 * np.sin(400 * x)[..., None]
    return to_picture(rgb.astype(np.float32))


def test_one_stop_doubles_the_light() -> None:
    rgb = middle_tones()
    assert to_linear(Exposure(1.0).apply(rgb, FRAME)) == pytest.approx(2 * to_linear(rgb), rel=1e-4)


@pytest.mark.parametrize(
    ("edit", "inverse"),
    [
        (Exposure(-1.3), Exposure(1.3)),
        (WhiteBalance(0.5, -0.3), WhiteBalance(-0.5, 0.3)),
        (Contrast(1.4, 0.45), Contrast(1 / 1.4, 0.45)),
        (Contrast(0.5, -0.2), Contrast(2.0, -0.2)),
        (Saturation(0.4), Saturation(2.5)),
    ],
)
def test_the_inverse_edit_undoes_an_edit(edit: Tone, inverse: Tone) -> None:
    rgb = middle_tones()
    edited = edit.apply(rgb, FRAME)
    assert np.abs(edited - rgb).mean() > 0.005
    assert np.abs(inverse.apply(edited, FRAME) - rgb).max() < 1e-4


def test_white_balance_goes_where_its_names_say_and_keeps_the_light() -> None:
    grey = np.full((2, 2, 3), 0.5, np.float32)
    warm, magenta = (to_linear(WhiteBalance(*v).apply(grey, FRAME))[0, 0] for v in ((0.4, 0.0), (0.0, 0.4)))
    assert np.log2(warm[0] / warm[2]) == pytest.approx(0.4, abs=1e-3)
    assert np.log2(magenta[0] / magenta[1]) == pytest.approx(0.4, abs=1e-3)
    assert magenta[0] == pytest.approx(magenta[2], rel=1e-4)
    for colour in (warm, magenta):
        assert colour @ LUMINANCE == pytest.approx(float(to_linear(grey)[0, 0, 0]), rel=0.02)


def test_contrast_keeps_its_pivot_and_saturation_its_luma() -> None:
    rgb = middle_tones()
    flat = np.full((2, 2, 3), 0.3, np.float32)
    assert Contrast(2.0, 0.3).apply(flat, FRAME) == pytest.approx(flat, abs=1e-6)
    assert Saturation(1.5).apply(rgb, FRAME) @ LUMA == pytest.approx(rgb @ LUMA, abs=1e-5)
    grey = Saturation(0.0).apply(rgb, FRAME)
    assert np.ptp(grey, axis=-1).max() < 1e-5


def test_values_stay_in_range() -> None:
    rgb = np.random.default_rng(1).uniform(0, 1, (30, 30, 3)).astype(np.float32)
    edits = (Exposure(3), WhiteBalance(1, 1), Contrast(4, 0.5), Saturation(4), Sharpening(2), Denoise(2))
    for edit in edits:
        edited = edit.apply(rgb, FRAME)
        assert edited.dtype == np.float32
        assert edited.min() >= 0
        assert edited.max() <= 1


def test_lab_agrees_with_published_values() -> None:
    colours = np.array([[[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]]], np.float32)
    expected = [(100, 0, 0), (53.24, 80.09, 67.20), (32.30, 79.19, -107.86), (0, 0, 0)]
    assert to_lab(colours)[0] == pytest.approx(np.array(expected), abs=0.05)


@pytest.mark.parametrize("edits", [
    [Exposure(0.7), Contrast(1.2, 0.4), Saturation(1.3), WhiteBalance(0.2, 0.1)],
    [Sharpening(1.0)],
    [Denoise(1.5), Exposure(0.5), Sharpening(0.5)],
])  # fmt: skip
def test_bands_leave_no_seams(edits: list[Tone], monkeypatch: pytest.MonkeyPatch) -> None:
    picture = scene()
    whole = np.asarray(retouch(picture, edits), np.int16)
    monkeypatch.setattr(module, "_BAND_PIXELS", 1)
    banded = np.asarray(retouch(picture, edits), np.int16)
    assert banded.shape == whole.shape
    assert np.abs(banded - whole).max() <= 1


def test_sharpening_means_the_same_at_every_size() -> None:
    large = scene(1280, 960)
    small = large.resize((640, 480), Image.Resampling.BOX)
    from_large = retouch(large, [Sharpening(1.0)]).resize((640, 480), Image.Resampling.BOX)
    from_small = retouch(small, [Sharpening(1.0)])
    change = np.abs(np.asarray(from_small, np.float32) - np.asarray(small, np.float32)).mean()
    difference = np.abs(np.asarray(from_small, np.float32) - np.asarray(from_large, np.float32)).mean()
    assert change > 0.3
    assert difference < 0.35 * change


def test_noise_is_measured_and_reduced_and_edges_stay() -> None:
    clean = np.full((160, 200, 3), 0.35, np.float32)
    clean[:, 100:] = 0.75
    noisy = clean + np.random.default_rng(0).normal(0, 0.04, (160, 200, 1)).astype(np.float32)
    values = np.asarray(to_picture(noisy))
    assert noise_level(values) == pytest.approx(0.04, rel=0.15)
    assert noise_level(np.asarray(to_picture(clean))) < 0.002
    quiet = to_floats(np.asarray(retouch(Image.fromarray(values), [Denoise(2.0)])))
    assert np.abs(quiet - clean).mean() < 0.5 * np.abs(to_floats(values) - clean).mean()
    step = quiet[:, 103:110].mean() - quiet[:, 90:97].mean()
    assert step > 0.36


def test_rotation_leaves_no_empty_corner_and_keeps_the_aspect() -> None:
    white = Image.new("RGB", (400, 260), "white")
    for degrees in (-20.0, -3.0, 0.5, 11.0):
        turned = Rotation(degrees).frame(white)
        assert np.asarray(turned).min() > 250
        assert turned.width / turned.height == pytest.approx(400 / 260, rel=0.02)
        assert turned.width < 400


def test_rotation_back_restores_the_middle() -> None:
    picture = scene()
    back = Rotation(-8.0).frame(Rotation(8.0).frame(picture))
    left, top = (picture.width - back.width) // 2, (picture.height - back.height) // 2
    middle = picture.crop((left, top, left + back.width, top + back.height))
    assert np.abs(np.asarray(back, np.float32) - np.asarray(middle, np.float32)).mean() < 3


@pytest.mark.parametrize("degrees", [-12.0, -5.0, 4.0, 9.0])
def test_tilt_is_measured_so_that_its_inverse_levels(degrees: float) -> None:
    values = np.full((300, 420, 3), 90, np.uint8)
    values[160:] = 200
    values[60:160, 120:150] = 240
    level = Image.fromarray(values)
    assert tilt(level) == (0.0, 0.0)
    found, clearness = tilt(Rotation(degrees).frame(level))
    assert found == pytest.approx(degrees, abs=1.0)
    assert clearness > 0
    assert tilt(Rotation(-found).frame(Rotation(degrees).frame(level)))[0] == pytest.approx(0, abs=1)


def test_crop_keeps_its_box_and_never_nothing() -> None:
    picture = scene(100, 80)
    assert Crop(0.1, 0.25, 0.6, 1.0).frame(picture).size == (50, 60)
    assert Crop(1.0, 1.0, 1.0, 1.0).frame(picture).size == (1, 1)


def test_bars_are_found_and_cut() -> None:
    barred = Image.new("RGB", (320, 300), "black")
    barred.paste(scene(), (0, 30))
    [(box, support)] = crops(barred)
    assert support > 0
    cut = Crop(*box).frame(barred)
    assert cut.height == pytest.approx(238, abs=2)
    assert cut.width == 320
    assert all(support <= 0 for _, support in crops(scene()))


def test_no_edit_changes_nothing() -> None:
    picture = scene()
    assert retouch(picture, []) is picture
    same = retouch(picture, [Exposure(0.0), Contrast(1.0, 0.5), Saturation(1.0)])
    assert np.array_equal(np.asarray(same), np.asarray(picture))
    assert frame_of(np.asarray(picture)).longer == 320
