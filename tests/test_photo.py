"""Promises of photo.py: every kind of file gives the right upright sRGB picture or a typed error that says why."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from calm_runtime.errors import (
    PhotoError,
    PhotoFormatRefused,
    PhotoNotFound,
    PhotoTooLarge,
    PhotoTooSmall,
    PhotoUnreadable,
)
from calm_runtime.photo import PhotoLimits, PhotoSpec, leave_out_frame, load_photo, to_model_size, to_pixel_values

SPEC = PhotoSpec()


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """Red grows to the right, green downwards: any flip, turn or channel mix-up shows."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], -1).astype(np.uint8))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO", "HEIF"])
def test_every_admitted_format_gives_the_picture(kind: str) -> None:
    pillow_heif.register_heif_opener(thumbnails=False)
    picture = load_photo(encode(gradient(), kind))
    assert picture.mode == "RGB"
    assert distance(picture, gradient()) < 8


def test_a_truncated_or_too_large_heif_is_a_typed_error() -> None:
    pillow_heif.register_heif_opener(thumbnails=False)
    data = encode(gradient(640, 480), "HEIF")
    for length in (40, 200, len(data) // 2, len(data) - 20):
        with pytest.raises(PhotoUnreadable):
            load_photo(data[:length])
    with pytest.raises(PhotoTooLarge, match="640 x 480"):
        load_photo(data, limits=PhotoLimits(max_pixels=1000))


def test_without_its_package_a_heif_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "OPEN", {kind: entry for kind, entry in Image.OPEN.items() if kind != "HEIF"})
    with pytest.raises(PhotoFormatRefused, match=r"calm-edge\[heif\]"):
        load_photo(b"\x00\x00\x00\x20ftypheic" + bytes(100))


def test_an_upright_heif_stays_upright() -> None:
    pillow_heif.register_heif_opener(thumbnails=False)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned = gradient().rotate(90, expand=True)
    picture = load_photo(encode(turned, "HEIF", exif=exif.tobytes()))
    assert distance(picture, gradient()) < 8


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encode(gradient(), "PNG"))
    assert distance(load_photo(path), gradient()) == 0


def test_a_name_in_any_script_is_read(tmp_path: Path) -> None:
    path = tmp_path / "été 写真 🏔.jpg"
    path.write_bytes(encode(gradient(), "JPEG"))
    assert load_photo(str(path)).size == (96, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_exif_orientations_give_the_same_upright_picture(orientation: int, kind: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that a camera's turn amounts to
    stored = gradient()
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    upright = load_photo(encode(stored, kind, exif=exif, **options))
    assert distance(upright, gradient()) < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_holds_when_the_photo_is_shrunk_while_decoding(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    big = gradient(2400, 1200)
    turned = load_photo(encode(big.transpose(Image.Transpose.ROTATE_90), kind, exif=exif))
    assert turned.width == 2 * turned.height
    assert max(turned.size) < 2400
    assert np.abs(to_pixel_values(turned, SPEC) - to_pixel_values(big, SPEC)).mean() < 0.03


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_shrinking_keeps_twice_the_models_size_and_the_look(kind: str) -> None:
    big = gradient(3000, 2000)
    small = load_photo(encode(big, kind))
    assert 2 * SPEC.size <= max(small.size) < 3000
    assert np.abs(to_pixel_values(small, SPEC) - to_pixel_values(big, SPEC)).mean() < 0.03


@pytest.mark.parametrize("size", [(300, 200), (90, 400), (640, 480)])
def test_a_stretched_picture_fills_the_square(size: tuple[int, int]) -> None:
    picture = gradient(*size)
    spec = PhotoSpec(size=96, fit="stretch")
    expected = np.asarray(picture.resize((96, 96), Image.Resampling.BICUBIC), np.float32) / 255
    shown = to_pixel_values(picture, spec).transpose(1, 2, 0) * spec.std + np.array(spec.mean)
    assert np.allclose(shown, expected, atol=1e-5)
    small = to_model_size(picture, spec)
    assert np.array_equal(to_pixel_values(small, spec), to_pixel_values(picture, spec))


def test_a_frame_is_left_out_and_told_in_shares() -> None:
    picture = gradient(300, 200)
    framed = ImageOps.expand(picture, (60, 40, 60, 90), (250, 250, 250))
    read, frame = leave_out_frame(framed, SPEC)
    assert frame == pytest.approx((60 / 420, 40 / 330, 60 / 420, 90 / 330), abs=0.01)
    assert np.abs(np.asarray(read.resize((300, 200)), np.float32) - np.asarray(picture, np.float32)).mean() < 2
    kept = msgspec.structs.replace(SPEC, leave_out_frames=False)
    assert leave_out_frame(framed, kept) == (framed, None)
    assert leave_out_frame(picture, SPEC) == (picture, None)


def test_transparency_shows_the_pad_colour() -> None:
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    for picture in (clear, clear.convert("LA"), clear.quantize()):
        loaded = load_photo(encode(picture, "PNG"))
        assert loaded.getpixel((5, 5)) == SPEC.pad_color


def test_half_transparent_pixels_are_blended() -> None:
    loaded = load_photo(encode(Image.new("RGBA", (64, 64), (255, 255, 255, 128)), "PNG"))
    expected = [round(c + (255 - c) * 128 / 255) for c in SPEC.pad_color]
    assert np.allclose(np.asarray(loaded)[5, 5], expected, atol=1)


def test_a_palette_with_a_transparent_colour_is_read() -> None:
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.paste(0, (0, 0, 32, 64))
    loaded = load_photo(encode(palette, "PNG", transparency=0))
    assert loaded.getpixel((5, 5)) == SPEC.pad_color
    assert loaded.getpixel((50, 5)) == (10, 200, 30)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_shown_as_a_negative(kind: str) -> None:
    loaded = load_photo(encode(Image.new("RGB", (64, 64), (250, 20, 20)).convert("CMYK"), kind))
    red, green, blue = loaded.getpixel((30, 30))  # type: ignore[misc]
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(64, 0)
    loaded = np.asarray(load_photo(encode(Image.fromarray(ramp), kind)))
    assert np.abs(loaded[0, :, 0].astype(int) - np.round(np.linspace(0, 255, 64))).max() <= 1


@pytest.mark.parametrize("peak", [1.0, 255.0, 65535.0, 1e6])
def test_float_pictures_keep_their_tones(peak: float) -> None:
    ramp = np.linspace(0, peak, 64, dtype=np.float32)[None].repeat(64, 0)
    ramp[0, 0] = np.nan
    loaded = np.asarray(load_photo(encode(Image.fromarray(ramp), "TIFF")))
    assert np.abs(loaded[1, :, 0].astype(int) - np.round(np.linspace(0, 255, 64))).max() <= 1


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("L", "JPEG"), ("I", "TIFF")])
def test_grey_of_any_depth_stays_grey(mode: str, kind: str) -> None:
    loaded = load_photo(encode(Image.new("L", (64, 64), 255).convert(mode), kind))
    assert loaded.getpixel((5, 5)) == (255, 255, 255)


def test_lab_is_converted() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (64, 64), (200, 60, 40)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    assert np.allclose(np.asarray(load_photo(encode(lab, "TIFF")))[5, 5], (200, 60, 40), atol=4)


def test_an_embedded_profile_is_applied() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = profile.replace(b"sRGB built-in", b"wide built-in")
    wide = wide.replace(b"s\x00R\x00G\x00B", b"w\x00R\x00G\x00B")
    # Swap the red and green primaries: pure red must come out as green.
    swapped = wide.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    loaded = load_photo(encode(Image.new("RGB", (64, 64), (255, 0, 0)), "PNG", icc_profile=swapped))
    red, green, _ = loaded.getpixel((5, 5))  # type: ignore[misc]
    assert green > 200
    assert red < 60


@pytest.mark.parametrize("profile", [b"not a profile", b"\x00" * 200])
def test_a_broken_profile_does_not_cost_the_photo(profile: bytes) -> None:
    assert distance(load_photo(encode(gradient(), "PNG", icc_profile=profile)), gradient()) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    loaded = load_photo(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    red, green, blue = loaded.getpixel((5, 5))  # type: ignore[misc]
    assert red > 240
    assert green + blue < 20


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PhotoNotFound, match=r"nowhere\.jpg: no such file"):
        load_photo(tmp_path / "nowhere.jpg")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PhotoUnreadable, match="is a folder"):
        load_photo(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoUnreadable, match="not a regular file"):
        load_photo(tmp_path / "pipe.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(encode(gradient(), "JPEG"))
    path.chmod(0)
    with pytest.raises(PhotoUnreadable, match="not allowed"):
        load_photo(path)


@pytest.mark.parametrize("source", ["a\0b.jpg", "x" * 5000])
def test_an_impossible_path(source: str) -> None:
    with pytest.raises(PhotoUnreadable):
        load_photo(source)


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(PhotoUnreadable, match=r"empty\.jpg: the file is empty"):
        load_photo(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    data = encode(noise, kind)
    for keep in (0.5, 0.9):
        with pytest.raises(PhotoUnreadable):
            load_photo(data[: int(len(data) * keep)])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "MPO"])
def test_damaged_bytes_give_a_picture_or_a_typed_error_and_nothing_else(kind: str) -> None:
    data = encode(gradient(), kind)
    random = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(data[: random.integers(1, len(data) + 1)])
        for position in random.integers(0, len(damaged), 4):
            damaged[position] = random.integers(0, 256)
        try:
            assert load_photo(bytes(damaged)).mode == "RGB"
        except PhotoError as error:
            assert str(error).startswith(f"<{len(damaged)} bytes>: ")


def test_text_with_a_photos_name(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("This is not a photo, whatever its name says.\n" * 40)
    with pytest.raises(PhotoUnreadable, match=r"notes\.jpg: not a picture"):
        load_photo(path)


def test_random_bytes() -> None:
    with pytest.raises(PhotoUnreadable):
        load_photo(np.random.default_rng(0).bytes(4096))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"8BPS" + bytes(100), "Photoshop"),
        (b"%PDF-1.7" + bytes(100), "PDF"),
        (b"\x00\x00\x00\x20ftypavif" + bytes(100), "AVIF"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(100), "video"),
        (b"\x00\x00\x00\x20ftypheic" + bytes(100), "HEIF header"),
    ],
)
def test_known_formats_that_are_not_admitted_are_named(data: bytes, what: str) -> None:
    with pytest.raises((PhotoFormatRefused, PhotoUnreadable), match=what):
        load_photo(data)


@pytest.mark.parametrize("tag", [(254, 1), (50706, b"\x01\x04\x00\x00")])
def test_a_raw_file_is_refused_instead_of_scoring_its_thumbnail(tag: tuple[int, object]) -> None:
    with pytest.raises(PhotoFormatRefused, match="raw"):
        load_photo(encode(gradient(), "TIFF", tiffinfo={tag[0]: tag[1]}))


def test_the_allow_list_is_obeyed() -> None:
    with pytest.raises(PhotoFormatRefused, match="is PNG"):
        load_photo(encode(gradient(), "PNG"), limits=PhotoLimits(formats=("JPEG",)))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(PhotoTooLarge, match="50000 x 50000 pixels"):
        load_photo(png_header(50_000, 50_000))


def test_our_pixel_limit_counts_and_not_pillows() -> None:
    # 190 megapixels: below our limit, above the point where Image.open warns and then raises.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PhotoUnreadable):  # admitted, then found to be truncated
            load_photo(png_header(19_000, 10_000))
        with pytest.raises(PhotoTooLarge):
            load_photo(png_header(21_000, 10_000))


def test_the_byte_limit_is_checked_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "huge.jpg"
    with path.open("wb") as handle:
        handle.truncate(3_000_000_000)  # sparse: reading it all would need 3 GB
    with pytest.raises(PhotoTooLarge, match="3,000,000,000 bytes"):
        load_photo(path)


def test_a_tiny_picture_is_refused_and_a_large_one_never_by_its_shrunk_size() -> None:
    with pytest.raises(PhotoTooSmall, match="31 x 200"):
        load_photo(encode(gradient(31, 200), "PNG"))
    assert load_photo(encode(gradient(6000, 32), "JPEG")).width > 448


def test_no_file_stays_open(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("counts descriptors in /proc")
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(encode(gradient(), "JPEG"))
    bad.write_bytes(good.read_bytes()[:300])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        load_photo(good)
        with pytest.raises(PhotoUnreadable):
            load_photo(bad)
    assert len(os.listdir("/proc/self/fd")) == before


def test_eight_threads_decode_the_same_pixels() -> None:
    data = encode(gradient(1500, 1000), "JPEG")
    expected = load_photo(data).tobytes()
    barrier = threading.Barrier(8)

    def decode(_: int) -> bytes:
        barrier.wait()
        return load_photo(data).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(decode, range(8))) == {expected}


def test_pixel_values_are_padded_to_a_square_and_normalised() -> None:
    values = to_pixel_values(Image.new("RGB", (100, 50), (255, 255, 255)), SPEC)
    assert values.shape == (3, 224, 224)
    assert values.dtype == np.float32
    white = (1 - np.asarray(SPEC.mean)) / np.asarray(SPEC.std)
    pad = (np.asarray(SPEC.pad_color) / 255 - np.asarray(SPEC.mean)) / np.asarray(SPEC.std)
    assert np.allclose(values[:, 112, 112], white, atol=1e-5)
    assert np.allclose(values[:, 0, 0], pad, atol=1e-5)
