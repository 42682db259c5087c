"""examples/js/frame.mjs finds the same frames as the runtime, to the pixel."""

from __future__ import annotations

import json
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from calm_runtime.frame import find_frame

MODULE = Path(__file__).resolve().parents[1] / "examples" / "js" / "frame.mjs"
SCRIPT = """
import { readFileSync } from "node:fs";
const { findFrame } = await import(process.argv[1]);
const sizes = JSON.parse(process.argv[2]);
const bytes = readFileSync(0);
let at = 0;
console.log(JSON.stringify(sizes.map(([width, height]) => {
  const data = new Uint8ClampedArray(bytes.subarray(at, (at += 4 * width * height)));
  const box = findFrame({ data, width, height });
  return box && [box.left, box.top, box.right, box.bottom];
})));
"""

pytestmark = pytest.mark.web


def some_picture(number: int) -> Image.Image:
    """Texture, mostly framed: many colours, widths, nestings and qualities, so that every rule is met."""
    rng = np.random.default_rng(number)
    size = (int(rng.integers(40, 200)), int(rng.integers(40, 200)))
    cells = rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3), np.uint8)
    picture = Image.fromarray(cells).resize(size, Image.Resampling(int(rng.integers(0, 4))))
    for _ in range(int(rng.integers(0, 4))):
        widths = rng.integers(0, 40, 4) if rng.random() < 0.4 else np.tile(rng.integers(0, 30, 2), 2)
        colour = rng.integers(0, 256, 3) if rng.random() < 0.3 else np.full(3, rng.choice([0, 20, 128, 240, 255]))
        picture = ImageOps.expand(picture, tuple(widths.tolist()), tuple(colour.tolist()))
    if rng.random() < 0.6:
        stream = BytesIO()
        picture.save(stream, "JPEG", quality=int(rng.integers(40, 96)))
        picture = Image.open(stream).convert("RGB")
    return picture


def test_javascript_finds_the_same_frames() -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("Node.js is not installed")
    pictures = [some_picture(number) for number in range(400)]
    data = b"".join(picture.convert("RGBA").tobytes() for picture in pictures)
    sizes = json.dumps([picture.size for picture in pictures])
    command = [node, "--input-type=module", "-e", SCRIPT, MODULE.as_uri(), sizes]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    expected = [find_frame(picture) for picture in pictures]
    assert 100 < sum(box is not None for box in expected) < 350  # or agreement would mean little
    assert json.loads(done.stdout) == [box and list(box) for box in expected]
