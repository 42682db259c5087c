"""docs/bundle.md promises that a bundle can be used without our code; docs/read_bundle.py is such a program."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny_models import make_photo

from calm_runtime import Calm

pytest_plugins = ["export_fixtures"]

PROGRAM = Path(__file__).resolve().parents[1] / "docs" / "read_bundle.py"
SPECIFICATION = PROGRAM.with_name("bundle.md")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ALLOWED = {"onnxruntime", "numpy", "PIL", "tokenizers"}


def other_profile(srgb: bytes) -> bytes:
    """A colour profile that is valid and far from sRGB: its red and green are exchanged."""
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    return renamed.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


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
    deep = np.asarray(wide.convert("L").resize((400, 300)), np.uint16) * 257
    Image.fromarray(deep).save(folder / "deep_grey.png")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    coloured = make_photo(7)
    coloured.save(folder / "srgb_profile.jpg", icc_profile=srgb)
    coloured.save(folder / "other_profile.jpg", icc_profile=other_profile(srgb))
    coloured.save(folder / "broken_profile.jpg", icc_profile=b"not a profile")
    coloured.convert("L").save(folder / "foreign_profile.jpg", icc_profile=srgb)
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
    found = {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}
    assert list(found) == [str(photo) for photo in photos]
    with Calm.load(tiny_bundle) as calm:
        expected = {str(photo): calm.score(photo) for photo in photos}
        reference = calm.bundle.manifest.reference
    assert np.std([score.mean for score in expected.values()]) > 0.05  # or agreement would mean nothing
    for photo, score in expected.items():
        assert abs(score.mean - found[photo]["score"]) <= 0.01, photo
        assert abs(score.std - found[photo]["std"]) <= 0.01, photo
        assert abs(score.technical - found[photo]["technical"]) <= 0.01, photo
        among = reference.percentile(found[photo]["score"])
        assert found[photo]["percentile"] == pytest.approx(among, abs=1e-6)
        assert score.frame is None  # the program leaves out none
        assert found[photo]["attributes"].keys() == score.attributes.keys()
        for name, reading in score.attributes.items():
            assert found[photo]["attributes"][name]["probabilities"] == pytest.approx(reading.probabilities, abs=0.01)
    shown = {
        str(tmp_path / name): expected[str(tmp_path / name)].mean for name in ("srgb_profile.jpg", "other_profile.jpg")
    }
    assert len({round(mean, 2) for mean in shown.values()}) == 2  # the colour profile matters


def test_the_specification_names_every_key_of_the_manifest(tiny_bundle: Path) -> None:
    """A program that refuses unknown keys, as it should, must know them all."""
    page = SPECIFICATION.read_text("utf-8")
    manifest = json.loads((tiny_bundle / "manifest.json").read_bytes())
    names = set(manifest)
    for section in ("model", "photo", "visual_tokens", "score", "technical", "reference", "llm", "provenance"):
        names |= manifest[section].keys()
    for section in ("graphs", "attributes", "golden", "parity"):
        names |= manifest[section][0].keys()
    names |= manifest["provenance"]["options"].keys() | next(iter(manifest["files"].values())).keys()
    assert not {name for name in names if f"`{name}`" not in page}
