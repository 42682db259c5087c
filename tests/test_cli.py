"""Promises of the command line: what goes to stdout, which exit code, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from calm_runtime.bundle import MANIFEST, Golden, encode_manifest, file_sha256, open_bundle, sign_manifest

CALM = [sys.executable, "-c", "from calm_runtime.cli import main; main()"]
RECORD = ["path", "score", "technical", "percentile", "std", "histogram", "scale", "frame", "attributes", "model",
          "bundle", "ms"]  # fmt: skip


def run(*arguments: str | Path | int, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CALM, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "80", **(env or {})},
    )


@pytest.fixture
def folder(example_photos: list[Path], tmp_path: Path) -> Path:
    """Three good photos in two levels, a hidden one, a note, and a photo in name only."""
    for photo, place in zip(example_photos, ("b.jpg", "a/c.JPG", "a/b/d.jpeg", ".hidden/e.jpg"), strict=False):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / place)
    (tmp_path / "notes.txt").write_text("not a photo")
    (tmp_path / "z.png").write_text("not a photo either")
    return tmp_path


def test_json_is_one_record_per_photo_in_input_order(nano_bundle: Path, example_photos: list[Path]) -> None:
    photos = [str(photo) for photo in example_photos[:3][::-1]]
    done = run("score", *photos, "--json", "--bundle", nano_bundle)
    assert done.returncode == 0
    assert done.stderr == ""
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["path"] for record in records] == photos
    for record in records:
        assert list(record) == RECORD
        assert len(record["histogram"]) == 10
        assert record["scale"] == [1, 10]
        assert 1 <= record["score"] <= 10
        assert 1 <= record["technical"] <= 10
        assert 0 <= record["percentile"] <= 100
        assert record["frame"] is None
        assert record["ms"]["total"] > 0


def test_good_and_bad_photos_mix(nano_bundle: Path, folder: Path) -> None:
    missing = folder / "missing.jpg"
    done = run("score", missing, folder, folder / "notes.txt", "--json", "--batch-size", 2, "--bundle", nano_bundle)
    assert done.returncode == 1
    records = [json.loads(line) for line in done.stdout.splitlines()]
    paths = [os.path.relpath(record["path"], folder) for record in records]
    assert paths == ["missing.jpg", "b.jpg", "z.png", "a/c.JPG", "a/b/d.jpeg", "notes.txt"]
    assert [record["error"]["type"] if "error" in record else None for record in records] == [
        "PhotoNotFound", None, "PhotoUnreadable", None, None, "PhotoUnreadable"
    ]  # fmt: skip
    assert str(missing) in records[0]["error"]["message"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_people_see_a_block_per_photo_within_their_columns(nano_bundle: Path, folder: Path, columns: int) -> None:
    shown = {"COLUMNS": str(columns)}
    done = run("score", folder, folder / "no\nsuch [red]photo.jpg", "--bundle", nano_bundle, env=shown)
    assert done.returncode == 1
    assert max(len(line) for line in done.stdout.splitlines()) <= columns
    assert len(re.findall(r"better than \d+ of 100; technical \d+\.\d", done.stdout)) == 3  # each on one line
    for word in ("Score", "Spread", "Ratings", "Light & colour", "Composition", "Impression", "not scored", "[red]"):
        assert word in done.stdout
    assert "3 scored" in done.stdout
    assert "2 failed" in done.stdout


@pytest.mark.parametrize("columns", ["40", "80"])
def test_details_show_every_attribute(nano_bundle: Path, example_photos: list[Path], columns: str) -> None:
    done = run("score", example_photos[0], "--details", "--bundle", nano_bundle, env={"COLUMNS": columns})
    record = json.loads(run("score", example_photos[0], "--json", "--bundle", nano_bundle).stdout)
    for name, reading in record["attributes"].items():
        assert name in done.stdout
        assert reading["level"] in done.stdout


def test_sort_by_score_puts_the_best_first_and_failures_last(nano_bundle: Path, folder: Path) -> None:
    done = run("score", folder / "nope.jpg", folder, "--sort", "score", "--json", "--bundle", nano_bundle)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    scores = [record["score"] for record in records if "score" in record]
    assert scores == sorted(scores, reverse=True)
    assert ["error" in record for record in records] == [False] * 3 + [True] * 2


def test_comment_writes_words(nano_bundle: Path, example_photos: list[Path]) -> None:
    done = run("comment", example_photos[0], "/no/such.jpg", "--json", "--bundle", nano_bundle)
    good, bad = (json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 1
    assert good["comment"].strip()
    assert bad["error"]["type"] == "PhotoNotFound"
    streamed = run("comment", example_photos[0], "--bundle", nano_bundle)
    assert streamed.returncode == 0
    assert streamed.stdout.strip() == good["comment"].strip()


def test_words_are_shortened_stopped_and_varied_as_asked(nano_bundle: Path, example_photos: list[Path]) -> None:
    def words(*options: str) -> str:
        done = run("comment", example_photos[0], *options, "--json", "--bundle", nano_bundle)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["comment"])

    whole = words()
    assert whole.startswith(short := words("--max-tokens", "4"))
    assert len(short) < len(whole)
    first, stop, _ = whole.partition(" ")
    assert stop
    assert words("--stop", " ") == first
    varied = ("--temperature", "1.5", "--top-p", "0.95", "--seed")
    assert words(*varied, "3") == words(*varied, "3")
    assert len({whole, words(*varied, "3"), words(*varied, "4")}) == 3
    refused = run("comment", example_photos[0], "--temperature", "1", "--engine", "grpc://127.0.0.1:1")
    assert refused.returncode in (1, 2)
    assert "Traceback" not in refused.stderr


def test_check_passes_and_finds_damage(nano_bundle: Path, tmp_path: Path) -> None:
    done = run("check", "--json", "--bundle", nano_bundle)
    assert done.returncode == 0, done.stdout
    assert all(json.loads(line)["passed"] for line in done.stdout.splitlines())
    broken = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    with (broken / "aligner.onnx").open("ab") as handle:
        handle.write(b"x")
    done = run("check", "--bundle", broken)
    assert done.returncode == 1
    assert "aligner.onnx" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("shift", "code"), [((0, 0, 0), 0), ((0.5, 0, 0), 1), ((0, 0.5, 0), 1), ((0, 0, 0.5), 1)])
def test_check_compares_known_scores(
    nano_bundle: Path, example_photos: list[Path], tmp_path: Path, shift: tuple[float, float, float], code: int
) -> None:
    bundle = Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))
    photo = example_photos[0]
    record = json.loads(run("score", photo, "--json", "--bundle", bundle).stdout)
    known = (record[key] + off for key, off in zip(("score", "std", "technical"), shift, strict=True))
    golden = Golden(photo.name, file_sha256(photo), *known)
    manifest = msgspec.structs.replace(open_bundle(bundle).manifest, golden=(golden,))
    (bundle / MANIFEST).write_bytes(encode_manifest(sign_manifest(manifest)))
    done = run("check", "--bundle", bundle)
    assert done.returncode == code, done.stdout + done.stderr
    assert f"{'FAIL' if code else 'ok  '}  {photo.name}: score" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("score",),
        ("score", "x.jpg", "--engine", "abacus"),
        ("score", "x.jpg", "--batch-size", "0"),
        ("score", "x.jpg", "--sorted"),
        ("paint", "x.jpg"),
        ("score", "x.jpg", "--bundle", "y", "--engine", "grpc://localhost:1"),
    ],
)
def test_wrong_use_is_exit_code_two(nano_bundle: Path, arguments: tuple[str, ...]) -> None:
    bundle = () if "--bundle" in arguments or "score" not in arguments[:1] else ("--bundle", str(nano_bundle))
    done = run(*arguments, *bundle)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_folder_without_photos_is_wrong_use(nano_bundle: Path, tmp_path: Path) -> None:
    done = run("score", tmp_path, "--bundle", nano_bundle)
    assert done.returncode == 2
    assert "no photos" in done.stderr


def test_a_bad_bundle_is_one_clear_line(tmp_path: Path, example_photos: list[Path]) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "nowhere"):
        done = run("score", example_photos[0], "--bundle", folder)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert str(folder) in done.stderr


def test_help_teaches() -> None:
    for arguments in (("--help",), ("score", "--help"), ("comment", "-h"), ("check", "--help")):
        done = run(*arguments)
        assert done.returncode == 0
        assert "calm score" in done.stdout or "calm c" in done.stdout


def test_help_and_imports_stay_light() -> None:
    code = (
        "import sys, calm_runtime, calm_runtime.cli.app as app\n"
        "app.calm.main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'tokenizers', 'rich', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_scoring_never_imports_torch(nano_bundle: Path, example_photos: list[Path]) -> None:
    code = (
        "import sys\nfrom calm_runtime import Calm\n"
        f"Calm.load({str(nano_bundle)!r}).score({str(example_photos[0])!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals and pipes")
def test_ctrl_c_and_a_closed_pipe_end_cleanly(nano_bundle: Path, example_photos: list[Path]) -> None:
    # A shell's background job is started with Ctrl-C ignored, and so would be all that it starts.
    heard = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {CALM[2]}"
    photos = map(str, example_photos * 200)
    arguments = [*CALM[:2], heard, "score", *photos, "--json", "--bundle", str(nano_bundle)]
    for end in ("interrupt", "close"):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
            process.stdout.read()  # a full pipe would hold the process up
        else:
            process.stdout.close()
        message = process.stderr.read().decode()
        code = process.wait(timeout=120)
        assert code == (130 if end == "interrupt" else 1)
        assert message.strip() == ("Stopped." if end == "interrupt" else "")
        process.stderr.close()
        process.stdout.close()


def test_a_file_name_of_any_bytes_can_be_shown(nano_bundle: Path, example_photos: list[Path], tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        shutil.copy(os.fsencode(example_photos[0]), path)
    except OSError:
        pytest.skip("this file system only takes UTF-8")
    for extra in ([], ["--json"]):
        done = subprocess.run(
            [*CALM, "score", path, *extra, "--bundle", str(nano_bundle)], capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
