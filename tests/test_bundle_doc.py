"""docs/bundle.md promises that a bundle can be used without our code; docs/read_bundle.py is such a program."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_models import make_photo

from calm_runtime import Calm

pytest_plugins = ["export_fixtures"]

PROGRAM = Path(__file__).resolve().parents[1] / "docs" / "read_bundle.py"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ALLOWED = {"onnxruntime", "numpy", "PIL", "tokenizers"}


def hard_photos(folder: Path) -> list[Path]:
    """Photos that meet every step of the specification."""
    wide = Image.effect_noise((1800, 1100), 60).convert("RGB")
    wide.paste(make_photo(3).resize((900, 1100)), (0, 0))
    wide.save(folder / "large.jpg", quality=92)
    wide.save(folder / "large.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.crop((0, 0, 500, 300)).save(folder / "turned.jpg", exif=exif)
    wide.save(folder / "large_turned.jpg", exif=exif)
    wide.convert("L").save(folder / "grey.jpg")
    wide.convert("CMYK").save(folder / "print.jpg")
    faded = wide.resize((300, 200)).convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    faded.save(folder / "faded.png")
    wide.resize((301, 77)).quantize(16).save(folder / "palette.png")
    make_photo(5).save(folder / "plain.webp", quality=90)
    return sorted(folder.iterdir())


def test_the_program_uses_none_of_our_code() -> None:
    names: set[str] = set()
    for node in ast.walk(ast.parse(PROGRAM.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names - set(sys.stdlib_module_names) == ALLOWED


def test_a_reader_of_the_specification_gets_the_same_scores(tiny_bundle: Path, tmp_path: Path) -> None:
    photos = [*hard_photos(tmp_path), *sorted(EXAMPLES.glob("*.jpg"))[:3]]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(tiny_bundle), *map(str, photos)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [float(line.split()[0]) for line in done.stdout.splitlines()]
    with Calm.load(tiny_bundle) as calm:
        expected = [calm.score(photo).mean for photo in photos]
    assert np.std(expected) > 0.1  # the photos are told apart, or agreement would mean nothing
    for photo, ours, theirs in zip(photos, expected, found, strict=True):
        assert abs(ours - theirs) <= 0.01, photo.name
