"""Promises of suggestions: every gain was measured, the picture's own measurements have a say, and originals are never touched."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageEnhance

from calm_runtime import Calm, Suggestions
from calm_runtime.advice import Opinion, read_opinion
from calm_runtime.candidates import mend_tones, propose
from calm_runtime.cli.app import calm as calm_command
from calm_runtime.errors import UsageError
from calm_runtime.framing import tilt
from calm_runtime.improve import BEFORE_AFTER_FOLDER, plan_outputs, write_improved
from calm_runtime.lab import to_lab
from calm_runtime.photo import PhotoSpec, load_photo, to_pixel_values
from calm_runtime.retouch import Contrast, Exposure, Rotation, Saturation, WhiteBalance, retouch, to_floats
from calm_runtime.score import AttributeReading, Score
from calm_runtime.suggest import LEAST_GAIN, find_suggestions

SPOILERS = {
    "exposure": lambda p: ImageEnhance.Brightness(p).enhance(0.4),
    "contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.35),
    "saturation": lambda p: ImageEnhance.Color(p).enhance(0.2),
    "white balance": lambda p: Image.fromarray(
        (np.asarray(p, np.float32) * np.array([0.7, 1.05, 1.2])).clip(0, 255).astype(np.uint8)
    ),
}
COLOURFUL = ("astronaut.jpg", "cat.jpg", "coffee.jpg", "rocket.jpg")


@pytest.fixture(scope="module")
def photos(example_folder: Path) -> list[Image.Image]:
    return [load_photo(example_folder / name) for name in COLOURFUL]


@pytest.fixture(scope="module")
def dark(photos: list[Image.Image]) -> bytes:
    return png(SPOILERS["exposure"](photos[0]))


@pytest.fixture(scope="module")
def found(calm: Calm, dark: bytes) -> Suggestions:
    return calm.suggest(dark)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def lab_distance(one: Image.Image, other: Image.Image) -> float:
    first, second = (to_lab(to_floats(np.asarray(p))) for p in (one, other))
    return float(np.linalg.norm(first - second, axis=-1).mean())


def score_of(calm: Calm, picture: Image.Image) -> float:
    pixels = to_pixel_values(picture, calm.bundle.manifest.photo)
    return calm.score_pixels(pixels[None], [{}])[0].quality


def test_every_reported_gain_can_be_measured_again(calm: Calm, dark: bytes, found: Suggestions) -> None:
    assert found.suggestions
    picture = load_photo(dark)
    for suggestion in found.suggestions:
        assert suggestion.gain >= LEAST_GAIN
        assert suggestion.gain == pytest.approx(suggestion.quality_after - found.score.quality)
        # The search edits at model size; edits of the larger picture differ by rounding and resampling.
        assert score_of(calm, retouch(picture, [suggestion.edit])) == pytest.approx(suggestion.quality_after, abs=0.15)


def test_suggestions_are_one_per_kind_and_ranked(found: Suggestions) -> None:
    kinds = [s.edit.name for s in found.suggestions]
    assert len(set(kinds)) == len(kinds)
    worths = [s.worth for s in found.suggestions]
    assert worths == sorted(worths, reverse=True)


def test_the_composition_gains_and_has_each_kind_once(calm: Calm, dark: bytes, found: Suggestions) -> None:
    assert found.composition
    assert len({edit.name for edit in found.composition}) == len(found.composition)
    assert found.quality_after > found.score.quality
    assert score_of(calm, retouch(load_photo(dark), found.composition)) > found.score.quality


def test_a_look_suggests_the_same_as_the_model(calm: Calm, dark: bytes, found: Suggestions) -> None:
    again = calm.look(dark).suggest()
    assert again.composition == found.composition
    assert [s.edit for s in again.suggestions] == [s.edit for s in found.suggestions]


@pytest.mark.parametrize("kind", SPOILERS)
def test_the_measurements_alone_propose_an_edit_that_mends(kind: str, photos: list[Image.Image]) -> None:
    nearer = 0
    for original in photos:
        spoiled = SPOILERS[kind](original)
        own = [c for c in propose(spoiled, Opinion()) if c.edit.name == kind]
        if own:
            whole = own[len(own) // 2]  # the strengths surround the measured magnitude
            nearer += lab_distance(retouch(spoiled, [whole.edit]), original) < lab_distance(spoiled, original)
    assert nearer >= len(photos) - 1


@pytest.mark.parametrize("kind", SPOILERS)
def test_all_that_the_tones_need_brings_a_spoiled_photo_nearer(kind: str, photos: list[Image.Image]) -> None:
    nearer = 0
    for original in photos:
        spoiled = SPOILERS[kind](original)
        nearer += lab_distance(retouch(spoiled, mend_tones(spoiled)), original) < lab_distance(spoiled, original)
    assert nearer >= len(photos) - 1


@pytest.mark.parametrize("degrees", [-9, 6])
def test_the_lines_of_a_picture_tell_its_tilt(degrees: float, example_folder: Path) -> None:
    rocket = load_photo(example_folder / "rocket.jpg")
    found, clearness = tilt(Rotation(degrees).frame(rocket))
    assert found == pytest.approx(degrees, abs=1.5)
    assert clearness > 0.3
    assert abs(tilt(rocket)[0]) < 1.5


def test_a_grey_photo_is_offered_no_colour(example_folder: Path) -> None:
    kinds = {c.edit.name for c in propose(load_photo(example_folder / "cameraman.jpg"), Opinion())}
    assert kinds.isdisjoint({"saturation", "white balance"})


class Wishful:
    """Scores pictures by one number of their pixels: a model that can be gamed."""

    def __init__(self, score: Score, weight: float) -> None:
        self._score = score
        self._weight = weight

    def score_pixels(self, pixels: npt.NDArray[np.float32], timings: Sequence[dict[str, float]]) -> list[Score]:
        ratings = [5 + self._weight * float(row.mean()) for row in pixels]
        return [replace(self._score, mean=rating, technical=rating) for rating in ratings]


def test_nothing_is_suggested_when_nothing_gains(photos: list[Image.Image], found: Suggestions) -> None:
    score = replace(found.score, mean=5.0, technical=5.0)
    result = find_suggestions(Wishful(score, 0.0), PhotoSpec(), "photo", photos[0], "", score)
    assert result.suggestions == ()
    assert result.composition == ()
    assert result.quality_after == 5.0


def test_a_model_that_loves_light_cannot_make_a_bright_photo_brighter(photos: list[Image.Image]) -> None:
    for original in photos:
        bright = Image.fromarray((255 * (np.asarray(original) / 255) ** 0.35).astype(np.uint8))
        score = Score(5.0, 5.0, 50.0, 1.0, (0.1,) * 10, (1, 10), {}, "lover of light", "none")
        lover = Wishful(score, 1.0)
        score = lover.score_pixels(to_pixel_values(bright, PhotoSpec())[None], [{}])[0]
        result = find_suggestions(lover, PhotoSpec(), "photo", bright, "", score)
        assert not [s for s in result.suggestions if isinstance(s.edit, Exposure) and s.edit.stops > 0]


@pytest.mark.parametrize(("words", "edit", "opposite"), [
    ("Raise the exposure by about 1.5 stops.", Exposure(1.0), Exposure(-1.0)),
    ("Lower the exposure by about 2 stops.", Exposure(-1.0), Exposure(1.0)),
    ("Raise the contrast clearly.", Contrast(1.3, 0.5), Contrast(0.7, 0.5)),
    ("Remove the haze slightly.", Contrast(1.3, 0.5), Contrast(0.7, 0.5)),
    ("Lower the saturation strongly.", Saturation(0.7), Saturation(1.3)),
    ("Shift the white balance clearly towards blue.", WhiteBalance(-0.3, 0), WhiteBalance(0.3, 0)),
    ("Shift the white balance clearly towards magenta.", WhiteBalance(0, 0.3), WhiteBalance(0, -0.3)),
    ("Rotate the picture clockwise by about 10 degrees.", Rotation(-5), Rotation(5)),
    ("Rotate the picture counter-clockwise by about 5 degrees.", Rotation(5), Rotation(-5)),
])  # fmt: skip
def test_the_models_words_are_understood(words: str, edit: Exposure, opposite: Exposure) -> None:
    opinion = read_opinion({}, f"{words} Leave the rest.")
    assert opinion.of(edit) == 1
    assert opinion.of(opposite) == -1
    assert read_opinion({}, "Leave the picture as it is.").of(edit) == 0


def test_amounts_in_the_models_words_become_candidates(photos: list[Image.Image]) -> None:
    opinion = read_opinion(
        {}, "Raise the exposure by about 1.5 stops. Rotate the picture clockwise by about 10 degrees."
    )
    edits = [c.edit for c in propose(photos[0], opinion)]
    assert Exposure(1.5) in edits
    assert Rotation(-10.0) in edits


def test_attributes_of_the_model_count(calm: Calm, photos: list[Image.Image]) -> None:
    dark = AttributeReading("low", "dark", {"dark": 0.9, "balanced": 0.1, "bright": 0.0})
    opinion = read_opinion({"brightness": dark, "something new": dark}, "")
    assert opinion.of(Exposure(1)) == pytest.approx(0.9)
    assert any(isinstance(c.edit, Exposure) and c.edit.stops > 0 for c in propose(photos[1], opinion))


# --- files and the command line


def command(*arguments: str | Path, bundle: Path) -> Result:
    return CliRunner().invoke(calm_command, [*map(str, arguments), "--bundle", str(bundle)], standalone_mode=False)


@pytest.fixture
def folder(tmp_path: Path, photos: list[Image.Image], example_folder: Path) -> Path:
    """A dark photo that lies on its side by its EXIF tag, a pale PNG below, and a file that is no photo."""
    place = tmp_path / "holiday"
    (place / "more").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A camera"
    SPOILERS["exposure"](photos[1]).rotate(90, expand=True).save(place / "cat.JPG", exif=exif)
    SPOILERS["saturation"](photos[2]).save(place / "more" / "coffee.png")
    (place / "notes.jpg").write_text("not a photo")
    return place


def test_json_is_one_record_per_photo(folder: Path, nano_bundle: Path) -> None:
    done = command("suggest", folder, "--json", bundle=nano_bundle)
    assert done.return_value == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(r["path"]).name for r in records] == ["cat.JPG", "notes.jpg", "coffee.png"]
    assert records[1]["error"]["type"] == "PhotoUnreadable"
    for record in records[::2]:
        assert list(record) == ["path", "score", "technical", "quality", "suggestions", "model", "bundle", "ms"]
        assert record["suggestions"]
        for suggestion in record["suggestions"]:
            assert list(suggestion) == ["edit", "amount", "unit", "quality_after", "gain"]
            assert suggestion["gain"] == pytest.approx(suggestion["quality_after"] - record["quality"])


def test_apply_writes_one_better_picture_per_photo_and_keeps_the_originals(folder: Path, nano_bundle: Path) -> None:
    originals = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = folder / "improved"
    for _ in range(2):  # the second time finds its own results in the way, and not among the photos
        done = command("suggest", "--apply", out, folder, "--json", bundle=nano_bundle)
        assert done.return_value == 1
        assert all(path.read_bytes() == data for path, data in originals.items())
        files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
        assert files == [
            f"{BEFORE_AFTER_FOLDER}/cat.before-after.jpg",
            "cat.JPG",
            f"more/{BEFORE_AFTER_FOLDER}/coffee.before-after.jpg",
            "more/coffee.png",
        ]
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if "written" in record:
            written = record["written"]
            assert written["quality"] > record["quality"] or not written["edits"]
            assert Calm.load(nano_bundle).score(written["path"]).quality == pytest.approx(written["quality"], abs=1e-3)
    with Image.open(out / "cat.JPG") as improved, Image.open(folder / "cat.JPG") as original:
        assert improved.size == original.size[::-1]
        assert improved.getexif().get(0x0112) is None
        assert improved.getexif()[0x010F] == "A camera"
    with Image.open(out / "more" / "coffee.png") as improved:
        assert improved.format == "PNG"


def test_an_original_is_never_overwritten(folder: Path, nano_bundle: Path) -> None:
    before = (folder / "cat.JPG").read_bytes()
    with pytest.raises(UsageError, match="would overwrite"):
        plan_outputs([(str(folder / "cat.JPG"), "cat.JPG")], folder)
    done = command("suggest", "--apply", folder, folder, bundle=nano_bundle)
    assert isinstance(done.exception, UsageError)
    assert (folder / "cat.JPG").read_bytes() == before


def test_a_foreign_file_is_never_overwritten(folder: Path, tmp_path: Path, nano_bundle: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "cat.JPG").write_bytes(b"dear")
    done = command("suggest", "--apply", out, folder / "cat.JPG", bundle=nano_bundle)
    assert done.return_value == 1
    assert "in the way" in done.stderr
    assert (out / "cat.JPG").read_bytes() == b"dear"


def test_two_photos_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "cat.JPG"
    other.parent.mkdir()
    shutil.copy(folder / "cat.JPG", other)
    with pytest.raises(UsageError, match="same name"):
        plan_outputs([(str(folder / "cat.JPG"), "cat.JPG"), (str(other), "cat.JPG")], tmp_path / "out")


def test_what_cannot_be_written_as_it_is_becomes_a_jpeg(tmp_path: Path) -> None:
    assert plan_outputs([("a/b.heic", "b.heic"), ("a/c", "c")], tmp_path) == {
        "a/b.heic": tmp_path / "b.heic.jpg", "a/c": tmp_path / "c.jpg"
    }  # fmt: skip


def test_a_photo_with_nothing_to_gain_is_written_all_the_same(
    calm: Calm, found: Suggestions, photos: list[Image.Image], tmp_path: Path
) -> None:
    source = tmp_path / "photo.png"
    photos[0].save(source)
    nothing = replace(found, suggestions=(), composition=(), score=calm.score(source))
    written = write_improved(calm, source, nothing, tmp_path / "out" / "photo.png")
    assert written.edits == ()
    with Image.open(written.path) as copy:
        assert np.array_equal(np.asarray(copy), np.asarray(photos[0]))
    assert written.before_after.is_file()


def test_an_edit_that_does_not_hold_at_full_size_is_left_out(
    calm: Calm, found: Suggestions, photos: list[Image.Image], tmp_path: Path
) -> None:
    source = tmp_path / "photo.png"
    photos[0].save(source)
    ruin = replace(found, composition=(Exposure(-3.0),), score=calm.score(source))
    assert write_improved(calm, source, ruin, tmp_path / "out" / "photo.png").edits == ()


def test_people_read_what_to_do(folder: Path, nano_bundle: Path) -> None:
    done = command("suggest", folder / "cat.JPG", bundle=nano_bundle)
    assert done.return_value == 0
    assert "1. " in done.stdout
    assert "->" in done.stdout


def test_a_remote_engine_is_refused(folder: Path) -> None:
    done = CliRunner().invoke(
        calm_command, ["suggest", str(folder), "--engine", "grpc://localhost:1"], standalone_mode=False
    )
    assert isinstance(done.exception, UsageError)


def test_ask_answers(calm: Calm, folder: Path, nano_bundle: Path) -> None:
    question = "How is the contrast?"
    done = command("ask", folder / "cat.JPG", question, bundle=nano_bundle)
    assert done.return_value == 0
    assert done.stdout.strip()
    record = json.loads(command("ask", folder / "cat.JPG", question, "--json", bundle=nano_bundle).stdout)
    assert list(record) == ["path", "question", "answer"]
    assert record["answer"] == done.stdout.rstrip("\n")
    assert command("ask", folder / "notes.jpg", question, bundle=nano_bundle).return_value == 1
    assert isinstance(command("ask", folder / "cat.JPG", " ", bundle=nano_bundle).exception, UsageError)
