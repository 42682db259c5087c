"""Each statistic moves with what it is named after, whatever the frame's shape, and none is ever NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from calm_runtime.photo import PhotoSpec, load_photo, to_pixel_values
from calm_runtime.picture_statistics import STATISTICS, picture_statistics

SPEC = PhotoSpec(size=224)


def read(picture: Image.Image) -> dict[str, float]:
    """Statistic -> standardised value."""
    values = picture_statistics(to_pixel_values(picture, SPEC)[None], SPEC)[0]
    return dict(zip(STATISTICS, values, strict=True))


@pytest.fixture(scope="module")
def coffee(example_folder: Path) -> Image.Image:
    return load_photo(example_folder / "coffee.jpg")


def _mirrored(picture: Image.Image) -> Image.Image:
    half = picture.crop((0, 0, picture.width // 2, picture.height))
    twice = Image.new("RGB", (2 * half.width, half.height))
    twice.paste(half, (0, 0))
    twice.paste(ImageOps.mirror(half), (half.width, 0))
    return twice


CHANGES: dict[str, tuple[str, Callable[[Image.Image], Image.Image], int]] = {
    "darker": ("brightness", lambda p: ImageEnhance.Brightness(p).enhance(0.6), -1),
    "flatter": ("contrast", lambda p: ImageEnhance.Contrast(p).enhance(0.5), -1),
    "greyer": ("saturation", lambda p: ImageEnhance.Color(p).enhance(0.3), -1),
    "colourful": ("strong colour", lambda p: ImageEnhance.Color(p).enhance(1.6), 1),
    "cooler": ("warmth", lambda p: Image.merge("RGB", [p.getchannel(0).point(lambda v: v // 2), *p.split()[1:]]), -1),
    "softer": ("fine detail", lambda p: p.filter(ImageFilter.GaussianBlur(3)), -1),
    "softer edges": ("detail", lambda p: p.filter(ImageFilter.GaussianBlur(6)), -1),
    "left is right": ("mirror left-right", _mirrored, 1),
    "up is down": ("mirror top-bottom", lambda p: _mirrored(p.rotate(90, expand=True)).rotate(90, expand=True), 1),
    "black": ("shadows", lambda p: ImageEnhance.Brightness(p).enhance(0.1), 1),
    "white": ("highlights", lambda p: ImageEnhance.Brightness(p).enhance(4), 1),
    "tall": ("shape", lambda p: p.rotate(90, expand=True), -1),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_statistic_moves_with_what_it_names(coffee: Image.Image, change: str) -> None:
    name, edit, direction = CHANGES[change]
    assert direction * (read(edit(coffee))[name] - read(coffee)[name]) > 0.2


def test_the_border_that_makes_a_photo_square_does_not_count(coffee: Image.Image) -> None:
    wide = coffee.crop((0, 0, coffee.width, coffee.height // 2))
    doubled = Image.new("RGB", (wide.width, 2 * wide.height))
    doubled.paste(wide, (0, 0))
    doubled.paste(wide, (0, wide.height))
    for name in ("brightness", "saturation", "warmth"):
        assert read(doubled)[name] == pytest.approx(read(wide)[name], abs=0.1)


@pytest.mark.parametrize("colour", ["black", "white", "red", tuple(SPEC.pad_color)])
@pytest.mark.parametrize("size", [(224, 224), (500, 32)])
def test_an_empty_picture_has_finite_statistics(colour: str | tuple[int, ...], size: tuple[int, int]) -> None:
    values = np.array(list(read(Image.new("RGB", size, colour)).values()))
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 3).all()
