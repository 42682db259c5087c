"""Promises to apps in JavaScript: examples/node and examples/web score as the Python runtime does.

What is not there is skipped with a reason: Node.js 20 and npm; the npm registry; Chromium.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageOps

from calm_export.packs import PACK, make_pack
from calm_runtime import Calm
from calm_runtime.bundle import open_bundle
from calm_runtime.photo import PhotoSpec, to_pixel_values

REPOSITORY = Path(__file__).resolve().parents[1]
NODE_EXAMPLE, WEB_EXAMPLE = REPOSITORY / "examples" / "node", REPOSITORY / "examples" / "web"
BROWSER_DRIVER = REPOSITORY / "tests" / "web"
PICTURE_MODULE = REPOSITORY / "examples" / "js" / "picture.mjs"
NO_REGISTRY = ("ENOTFOUND", "ECONNREFUSED", "ECONNRESET", "EAI_AGAIN", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")
BOUND = 0.05
TECHNICAL_BOUND = (
    0.3  # it reads traces of single levels, in which decoders and blending with a transparent ground differ
)

pytestmark = [pytest.mark.web, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if not found:
        pytest.skip("Node.js is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < 20:
        pytest.skip(f"Node.js {version} is older than 20")
    return found


def npm_ci(folder: Path) -> None:
    """Install a folder's locked packages, unless they are there. Skips without npm or a registry, fails otherwise."""
    done = folder / "node_modules" / ".package-lock.json"
    if done.exists() and done.stat().st_mtime >= (folder / "package-lock.json").stat().st_mtime:
        return
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("npm is not installed")
    result = subprocess.run([npm, "ci"], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode and any(code in result.stderr for code in NO_REGISTRY):
        pytest.skip("the npm registry does not answer")
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def pack(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack") / "web"
    make_pack(open_bundle(nano_bundle), "web", folder)
    return folder


@pytest.fixture(scope="module")
def six_photos(example_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two as they are; a large one that decoders shrink, turned by its EXIF tag; a transparent, a grey and a framed one."""
    folder = tmp_path_factory.mktemp("photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(example_folder / "galaxies.jpg") as galaxies:
        galaxies.resize((2301, 1403), Image.Resampling.LANCZOS).save(folder / "large_turned.jpg", exif=exif, quality=92)
    with Image.open(example_folder / "coffee.jpg") as coffee:
        faded = coffee.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(faded.size))
    faded.save(folder / "faded.png")
    with Image.open(example_folder / "cat.jpg") as cat:
        ImageOps.expand(cat, (60, 40, 60, 90), "white").save(folder / "framed.jpg", quality=92)
    return [example_folder / "rocket.jpg", example_folder / "coffee_blurred.jpg", example_folder / "cameraman.jpg",
            folder / "large_turned.jpg", folder / "faded.png", folder / "framed.jpg"]  # fmt: skip


def assert_same_scores(found: list[dict[str, Any]], photos: list[Path], calm: Calm) -> None:
    expected = [calm.score(photo) for photo in photos]
    assert np.std([score.mean for score in expected]) > 0.5  # or agreement would mean nothing
    for record, score, photo in zip(found, expected, photos, strict=True):
        assert abs(record["score"] - score.mean) <= BOUND, photo
        assert abs(record["std"] - score.std) <= BOUND, photo
        assert abs(record["technical"] - score.technical) <= TECHNICAL_BOUND, photo
        among = calm.bundle.manifest.reference.percentile(record["score"])
        assert record["percentile"] == pytest.approx(among, abs=1e-6)
        assert record["frame"] == (None if score.frame is None else pytest.approx(score.frame, abs=0.01))
        assert record["histogram"] == pytest.approx(score.histogram, abs=BOUND)
        assert record["attributes"].keys() == score.attributes.keys()
        for name, reading in score.attributes.items():
            assert record["attributes"][name]["probabilities"] == pytest.approx(reading.probabilities, abs=0.1)
        keys = list(score.to_json())
        assert [key for key in record if key != "path"] == keys
        assert (record["model"], record["bundle"]) == (score.model, score.bundle)
        assert record["ms"]["total"] > 0


def run_in_node(node: str, script: str, data: bytes) -> bytes:
    source = (
        f'import * as picture from "{PICTURE_MODULE.as_uri()}"; import {{ readFileSync }} from "node:fs";\n{script}'
    )
    command = [node, "--input-type=module", "-e", source]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def random_picture(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    pixels = rng.integers(0, 256, (height, width, 3))
    pixels[: height // 2] = np.where(pixels[: height // 2] > 127, 255, 0)  # overshoot must be clipped as Pillow clips
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(("size", "target"), [((97, 61), (40, 23)), ((31, 50), (90, 111)), ((300, 7), (64, 7))])
def test_resizing_is_pillows_to_the_last_bit(node: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    picture = random_picture(*size)
    script = f"""const [width, height] = {list(size)};
        const from = {{ data: readFileSync(0), width, height, channels: 3 }};
        process.stdout.write(picture.resizeBicubic(from, ...{list(target)}).data);"""
    found = np.frombuffer(run_in_node(node, script, picture.tobytes()), np.uint8)
    expected = np.asarray(picture.resize(target, Image.Resampling.BICUBIC))
    assert np.array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_reducing_is_pillows_to_the_last_bit_and_drops_a_fourth_channel(node: str, factor: int) -> None:
    picture = random_picture(101, 67)
    script = f"""const from = {{ data: readFileSync(0), width: 101, height: 67, channels: 4 }};
        process.stdout.write(picture.reduce(from, {factor}).data);"""
    found = np.frombuffer(run_in_node(node, script, picture.convert("RGBA").tobytes()), np.uint8)
    expected = np.asarray(picture.reduce(factor))
    assert np.array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(
    ("fit", "size"), [("pad", (90, 61)), ("pad", (61, 90)), ("pad", (1000, 333)), ("stretch", (90, 61)),
                      ("stretch", (1000, 333)), ("stretch", (300, 400))]
)  # fmt: skip
def test_pixel_values_are_the_runtimes(node: str, fit: Literal["pad", "stretch"], size: tuple[int, int]) -> None:
    spec = PhotoSpec(size=64, fit=fit)
    picture = random_picture(*size)
    longer = max(size)
    factor = next((n for n in (8, 4, 2) if longer // n >= 2 * spec.size), 1)
    script = f"""const [width, height] = {list(size)};
        const shrunk = picture.shrink({{ data: readFileSync(0), width, height, channels: 3 }}, {spec.size});
        const values = picture.toPixelValues(shrunk, {msgspec.json.encode(spec).decode()});
        process.stdout.write(new Uint8Array(values.buffer));"""
    found = np.frombuffer(run_in_node(node, script, picture.tobytes()), "<f4").reshape(3, 64, 64)
    assert np.array_equal(found, to_pixel_values(picture.reduce(factor) if factor > 1 else picture, spec))


def test_cropping_drops_the_border_alone(node: str) -> None:
    picture = random_picture(23, 17)
    script = """const from = { data: readFileSync(0), width: 23, height: 17, channels: 3 };
        process.stdout.write(picture.crop(from, { left: 3, top: 1, right: 0, bottom: 5 }).data);"""
    assert run_in_node(node, script, picture.tobytes()) == picture.crop((3, 1, 23, 12)).tobytes()


@pytest.mark.parametrize("folder", [NODE_EXAMPLE, WEB_EXAMPLE, BROWSER_DRIVER], ids=lambda folder: folder.name)
def test_the_locked_packages_name_no_registry(folder: Path) -> None:
    packages = json.loads((folder / "package-lock.json").read_bytes())["packages"]
    assert len(packages) > 1
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert all("integrity" in package for name, package in packages.items() if name)


@pytest.fixture(scope="session")
def node_example(node: str) -> list[str]:
    npm_ci(NODE_EXAMPLE)
    return [node, str(NODE_EXAMPLE / "score.mjs")]


def run(command: list[str], *arguments: Path) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_node_scores_six_photos_as_python_and_one_bad_file_costs_nothing(
    node_example: list[str], pack: Path, six_photos: list[Path], calm: Calm, tmp_path: Path
) -> None:
    bad = [tmp_path / "note.jpg", tmp_path / "empty.jpg", tmp_path / "tiny.png", tmp_path / "missing.jpg"]
    bad[0].write_text("not a picture")
    bad[1].touch()
    Image.new("RGB", (8, 8)).save(bad[2])
    code, records, errors = run(node_example, pack, *bad, *six_photos)
    assert code == 1, errors
    assert [record["path"] for record in records] == [str(path) for path in (*bad, *six_photos)]
    told = [record["error"]["message"] for record in records[:4]]
    for message, cause in zip(told, ("not a picture", "empty", "8 x 8 pixels", "cannot be read"), strict=True):
        assert cause in message
    assert_same_scores(records[4:], six_photos, calm)


def test_node_leaves_nothing_of_onnx_runtimes_telemetry(
    node_example: list[str], pack: Path, six_photos: list[Path], tmp_path: Path
) -> None:
    """For a user who wants it; ONNX Runtime is silent where variables of continuous integration are set."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ORT_DISABLE_TELEMETRY": "0"}
    subprocess.run([*node_example, pack, six_photos[0]], env=env, cwd=tmp_path, capture_output=True, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.name.lower() in ("microsoft", ".onnxruntime")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("llm.onnx", "llm.onnx has changed"), (PACK, "pack.json has changed"), ("prompt_embeds.f32", "cannot be read")],
)
def test_node_refuses_a_changed_pack(
    node_example: list[str], pack: Path, six_photos: list[Path], tmp_path: Path, name: str, message: str
) -> None:
    changed = damaged(pack, tmp_path / "changed", name, remove=message == "cannot be read")
    code, records, errors = run(node_example, changed, six_photos[0])
    assert (code, records) == (2, [])
    assert message in errors
    assert "    at " not in errors  # no stack trace


def damaged(pack: Path, copy: Path, name: str, remove: bool) -> Path:
    shutil.copytree(pack, copy)
    if remove:
        (copy / name).unlink()
    else:
        data = bytearray((copy / name).read_bytes())
        at = data.index(b"score_meaning") + 20 if name == PACK else len(data) // 2
        data[at] ^= 1
        (copy / name).write_bytes(data)
    return copy


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("Chromium is not installed")
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A static server of the examples: address, and the folder it serves."""
    for name in ("js", "web"):
        (tmp_path / name).symlink_to(REPOSITORY / "examples" / name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def browse(node: str, chromium: str, url: str, *photos: Path) -> dict[str, Any]:
    npm_ci(WEB_EXAMPLE)
    npm_ci(BROWSER_DRIVER)
    command = [node, str(BROWSER_DRIVER / "drive.mjs"), chromium, url, "-", *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_page_scores_six_photos_as_python_and_asks_no_other_server(
    node: str, chromium: str, site: tuple[str, Path], pack: Path, six_photos: list[Path], calm: Calm, tmp_path: Path
) -> None:
    address, folder = site
    (folder / "pack").symlink_to(pack)
    note = tmp_path / "note.txt"
    note.write_text("not a picture")
    said = browse(node, chromium, f"{address}/web/?pack=../pack", *six_photos, note)
    assert said["state"] == "ready", said["status"]
    *scored, refused = said["results"]
    assert_same_scores([card["result"] for card in scored], six_photos, calm)
    for card, photo in zip(scored, six_photos, strict=True):
        assert (card["photo"], card["bars"]) == (photo.name, 10)
        assert float(card["shown"]) == pytest.approx(card["result"]["score"], abs=0.051)
        assert card["attributes"] == len(calm.bundle.manifest.attributes)
        assert re.search(r"Scored in [\d.]+ ms: decode [\d.]+ ms, .*LLM [\d.]+ ms", card["text"])
    assert refused["result"] is None
    assert "note.txt" in refused["text"]
    assert "not a picture this browser can decode" in refused["text"]
    assert calm.bundle.digest[:12] in said["footer"]
    assert f"{calm.bundle.manifest.model.name} {calm.bundle.manifest.model.version}" in said["footer"]
    assert said["origins"] == [address]
    assert said["errors"] == []


def test_the_page_says_what_is_wrong_with_a_pack(
    node: str, chromium: str, site: tuple[str, Path], pack: Path, six_photos: list[Path]
) -> None:
    address, folder = site
    damaged(pack, folder / "pack", "aligner.onnx", remove=False)
    said = browse(node, chromium, f"{address}/web/?pack=../pack", six_photos[0])
    assert said["state"] == "failed"
    assert "aligner.onnx has changed" in said["status"]
    assert said["results"] == []
