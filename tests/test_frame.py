"""Promises of the frame finder: what was put around a photograph is found, what belongs to it is left."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from calm_runtime.frame import FrameBox, crop_frame, find_frame, frame_shares

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CHROMA_BLOCK = 16  # pixels: a frame as wide has an outer line that JPEG computes without the photo
SIZES = st.tuples(st.integers(120, 300), st.integers(120, 300))
COLOURS = st.tuples(*[st.integers(0, 255)] * 3)
SEEDS = st.integers(0, 2**32 - 1)
PROPERTY = settings(max_examples=50, deadline=None, derandomize=True, database=None)


def textured(size: tuple[int, int], seed: int, avoid: tuple[int, int, int] = WHITE) -> Image.Image:
    """Coarse and fine texture that keeps 40 levels away from a colour."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (size[1], size[0], 3))
    low, high = 0, 255
    if avoid[0] >= 128:
        high = avoid[0] - 40
    else:
        low = avoid[0] + 40
    pixels[..., 0] = low + (np.clip(pixels[..., 0], 0, 255) * (high - low)) // 255
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def saved(picture: Image.Image, quality: int) -> Image.Image:
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def assert_close(found: FrameBox | None, drawn: tuple[int, ...], cut: int = 2, early: int = 2) -> None:
    assert found is not None
    for side, true in zip(found, drawn, strict=True):
        assert (side == 0) if true == 0 else (true + cut - early <= side <= true + cut)


@PROPERTY
@given(SIZES, SEEDS, COLOURS, st.tuples(*[st.integers(3, 90)] * 4))
def test_a_frame_of_any_colour_and_widths_is_found_to_the_pixel(
    size: tuple[int, int], seed: int, colour: tuple[int, int, int], widths: tuple[int, int, int, int]
) -> None:
    photo = textured(size, seed, colour)
    framed = ImageOps.expand(photo, widths, colour)
    found = find_frame(framed)
    assert_close(found, widths, early=0)
    inside = crop_frame(framed, FrameBox(*found or (0, 0, 0, 0)))
    assert np.array_equal(np.asarray(inside), np.asarray(photo)[2:-2, 2:-2])


@PROPERTY
@given(SIZES, SEEDS, st.sampled_from([WHITE, BLACK]), st.integers(CHROMA_BLOCK, 70), st.integers(60, 95), st.booleans())
def test_bars_on_two_sides_are_found_behind_jpeg_noise(
    size: tuple[int, int], seed: int, colour: tuple[int, int, int], width: int, quality: int, upright: bool
) -> None:
    widths = (width, 0, width, 0) if upright else (0, width, 0, width)
    framed = ImageOps.expand(textured(size, seed, colour), widths, colour)
    assert_close(find_frame(saved(framed, quality)), widths, early=3)


@PROPERTY
@given(SIZES, SEEDS, st.integers(CHROMA_BLOCK, 60), st.integers(1, 3), st.integers(60, 95))
def test_a_black_line_inside_a_white_mat_goes_with_it(
    size: tuple[int, int], seed: int, mat: int, line: int, quality: int
) -> None:
    photo = textured(size, seed)
    framed = ImageOps.expand(ImageOps.expand(photo, line, BLACK), mat, WHITE)
    assert_close(find_frame(saved(framed, quality)), (mat + line,) * 4, early=4)


@PROPERTY
@given(SIZES, SEEDS)
def test_without_a_frame_none_is_found(size: tuple[int, int], seed: int) -> None:
    assert find_frame(textured(size, seed)) is None


def test_a_photo_on_a_third_of_the_canvas_is_found_and_one_on_less_than_a_fifth_is_not() -> None:
    photo = textured((150, 100), 1)
    assert_close(find_frame(ImageOps.expand(photo, (150, 100, 150, 100), WHITE)), (150, 100, 150, 100), early=0)
    assert find_frame(ImageOps.expand(photo, (400, 300, 400, 300), WHITE)) is None


def test_a_thick_bottom_and_a_signature_in_it_are_part_of_the_frame() -> None:
    framed = ImageOps.expand(textured((300, 200), 2), (15, 15, 15, 60), WHITE)
    ImageDraw.Draw(framed).text((200, 240), "by somebody", fill=BLACK)
    assert_close(find_frame(saved(framed, 80)), (15, 15, 15, 60))


def test_white_sky_in_a_white_frame_is_not_cut_off() -> None:
    photo = textured((300, 200), 3)
    ImageDraw.Draw(photo).polygon([(0, 0), (300, 0), (300, 30), (0, 90)], fill=WHITE)  # down to a slope
    framed = ImageOps.expand(photo, 20, WHITE)
    assert_close(find_frame(framed), (20, 20, 20, 20), early=0)


@pytest.mark.parametrize("colour", [WHITE, BLACK, (128, 128, 128)])
def test_a_uniform_picture_has_no_frame(colour: tuple[int, int, int]) -> None:
    assert find_frame(Image.new("RGB", (300, 200), colour)) is None


def test_one_bar_is_no_frame() -> None:
    for widths in ((0, 0, 0, 40), (0, 40, 0, 0), (40, 0, 0, 0)):
        assert find_frame(ImageOps.expand(textured((300, 200), 4), widths, WHITE)) is None


@pytest.mark.parametrize("ground", [WHITE, BLACK])
@pytest.mark.parametrize("shape", ["ellipse", "rhombus", "bottle"])
def test_an_object_on_a_plain_ground_keeps_its_ground(ground: tuple[int, int, int], shape: str) -> None:
    picture, mask = Image.new("RGB", (450, 300), ground), Image.new("L", (450, 300))
    draw = ImageDraw.Draw(mask)
    if shape == "ellipse":
        draw.ellipse((120, 40, 330, 250), fill=255)
    elif shape == "rhombus":
        draw.polygon([(225, 20), (400, 150), (225, 280), (50, 150)], fill=255)
    else:
        draw.rectangle((210, 30, 240, 120), fill=255)
        draw.rounded_rectangle((180, 100, 270, 260), 20, fill=255)
    picture.paste(textured((450, 300), 5, ground), (0, 0), mask)
    assert find_frame(picture) is None
    assert find_frame(picture.filter(ImageFilter.GaussianBlur(2))) is None


def test_skies_and_gradients_are_no_frame() -> None:
    photo = textured((450, 300), 6)
    ramp = Image.linear_gradient("L").resize((450, 300))
    assert find_frame(ramp.convert("RGB")) is None
    assert find_frame(Image.radial_gradient("L").resize((450, 300)).convert("RGB")) is None
    night = Image.composite(Image.new("RGB", photo.size), photo, ramp.point(lambda level: 255 * (level < 150)))
    assert find_frame(night) is None  # black down to a straight horizon


@PROPERTY
@given(SIZES, SEEDS, st.integers(4, 60))
def test_a_turned_or_mirrored_picture_has_the_same_frame(size: tuple[int, int], seed: int, width: int) -> None:
    framed = ImageOps.expand(textured(size, seed), (width, width + 7, width + 13, width + 29), WHITE)
    left, top, right, bottom = find_frame(framed) or (0, 0, 0, 0)
    assert find_frame(ImageOps.mirror(framed)) == (right, top, left, bottom)
    assert find_frame(framed.transpose(Image.Transpose.ROTATE_90)) == (top, right, bottom, left)


def test_shares_are_of_the_width_and_the_height() -> None:
    assert frame_shares(FrameBox(10, 30, 20, 0), (400, 300)) == (0.025, 0.1, 0.05, 0.0)


def test_another_mode_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="use convert"):
        find_frame(Image.new("L", (300, 200)))
