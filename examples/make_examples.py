"""Make the example photos from scikit-image's samples, and spoil one of them in known ways.

    python examples/make_examples.py        (needs scikit-image; writes JPEG files beside this script)

The files are committed: golden scores are bound to their bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageFilter

HERE = Path(__file__).resolve().parent
SAMPLES = Path(skimage.__file__).parent / "data"
LONGER_SIDE = 1024
QUALITY = 82

PHOTOS = {
    "astronaut": "astronaut.png",
    "cameraman": "camera.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
    "rocket": "rocket.jpg",
}
SPOILED = "coffee"


def main() -> None:
    for name, sample in PHOTOS.items():
        with Image.open(SAMPLES / sample) as picture:
            photo = picture.convert("RGB")
        photo.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
        save(photo, name)
        if name == SPOILED:
            save(darken(photo, stops=2.0), f"{name}_dark")
            save(photo.filter(ImageFilter.GaussianBlur(5)), f"{name}_blurred")
            save(tilt(photo, degrees=9.0), f"{name}_tilted")
            save(add_noise(photo, sigma=40.0), f"{name}_noisy")


def save(photo: Image.Image, name: str) -> None:
    photo.save(HERE / f"{name}.jpg", quality=QUALITY, optimize=True)


def darken(photo: Image.Image, stops: float) -> Image.Image:
    """Lower the exposure in linear light."""
    linear = (np.asarray(photo, dtype=np.float64) / 255.0) ** 2.2 * 2.0**-stops
    return Image.fromarray(np.uint8(np.rint(255.0 * linear ** (1 / 2.2))))


def tilt(photo: Image.Image, degrees: float) -> Image.Image:
    """Turn a landscape picture counter-clockwise and crop it to its shape, so that no corner is empty."""
    turned = photo.rotate(degrees, Image.Resampling.BICUBIC)
    width, height = photo.size
    angle = np.deg2rad(degrees)
    keep = height / (width * np.sin(angle) + height * np.cos(angle))
    margin_x, margin_y = (round(side * (1 - keep) / 2) for side in photo.size)
    return turned.crop((margin_x, margin_y, width - margin_x, height - margin_y))


def add_noise(photo: Image.Image, sigma: float) -> Image.Image:
    pixels = np.asarray(photo, dtype=np.float64)
    noise = np.random.default_rng(0).normal(0.0, sigma, pixels.shape)
    return Image.fromarray(np.uint8(np.clip(pixels + noise, 0, 255)))


if __name__ == "__main__":
    main()
