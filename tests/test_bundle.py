"""Promises of the bundle: every change is found and named before anything is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calm_runtime import Calm
from calm_runtime.bundle import MANIFEST, Manifest, encode_manifest, open_bundle, sign_manifest
from calm_runtime.errors import BundleCorrupt, BundleNotFound


@pytest.fixture
def copy(nano_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nano_bundle, tmp_path / "bundle"))


def rewrite(bundle: Path, change: Any) -> None:
    """Change the manifest and sign it again: what only the contract's own checks can find."""
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    (bundle / MANIFEST).write_bytes(encode_manifest(sign_manifest(change(manifest))))


def test_the_bundle_is_intact(nano_bundle: Path) -> None:
    bundle = open_bundle(nano_bundle)
    assert list(bundle.damaged()) == []
    assert len(bundle.digest) == 64


def test_one_flipped_bit_names_the_file(copy: Path) -> None:
    for name in sorted(open_bundle(copy).manifest.files):
        path = copy / name
        original = path.read_bytes()
        flipped = bytearray(original)
        flipped[len(flipped) // 2] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(BundleCorrupt, match=f"{name} has changed"):
            open_bundle(copy)
        path.write_bytes(original)
    open_bundle(copy)


def test_every_changed_byte_of_the_manifest_is_found(copy: Path) -> None:
    path = copy / MANIFEST
    original = path.read_bytes()
    for position in range(0, len(original), max(1, len(original) // 200)):
        changed = bytearray(original)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises(BundleCorrupt, match=MANIFEST):
            open_bundle(copy)


def test_missing_shortened_and_added_files_are_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "stranger.bin").write_bytes(b"?")
    with (copy / "aligner.onnx").open("ab") as handle:
        handle.write(b"!")
    with pytest.raises(BundleCorrupt) as caught:
        open_bundle(copy)
    for sentence in ("tokenizer.json is missing", "stranger.bin is not listed", "aligner.onnx has"):
        assert sentence in str(caught.value)


def test_unknown_keys_are_refused(copy: Path) -> None:
    record = json.loads((copy / MANIFEST).read_bytes())
    record["photo"]["sharpen"] = True
    (copy / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(BundleCorrupt, match="sharpen"):
        open_bundle(copy)


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/passwd", "llm/../../outside.onnx"])
def test_no_path_leads_outside(copy: Path, path: str) -> None:
    def change(manifest: Manifest) -> Manifest:
        first = msgspec.structs.replace(manifest.graphs[0], path=path)
        return msgspec.structs.replace(manifest, graphs=(first, *manifest.graphs[1:]))

    rewrite(copy, change)
    with pytest.raises(BundleCorrupt, match="outside"):
        open_bundle(copy)


def test_a_listed_file_may_not_lead_outside(copy: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        entry = next(iter(manifest.files.values()))
        return msgspec.structs.replace(manifest, files={**manifest.files, "../x": entry})

    rewrite(copy, change)
    with pytest.raises(BundleCorrupt, match="outside"):
        open_bundle(copy)


def test_another_format_version_is_refused(copy: Path) -> None:
    rewrite(copy, lambda manifest: msgspec.structs.replace(manifest, format_version=99))
    with pytest.raises(BundleCorrupt, match="format version 99"):
        open_bundle(copy)


def test_an_older_bundle_is_refused_with_the_command_that_makes_it_again(copy: Path) -> None:
    record = json.loads((copy / MANIFEST).read_bytes())
    for key in ("technical", "reference"):
        del record[key]
    (copy / MANIFEST).write_text(json.dumps({**record, "format_version": 1}))
    with pytest.raises(BundleCorrupt, match="format version 1.* calm export CHECKPOINT -o "):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda spec: msgspec.structs.replace(spec, token_ids=spec.token_ids[1:]), "do not cover the scale"),
        (lambda spec: msgspec.structs.replace(spec, low=0, token_ids=(0, *spec.token_ids)), "different scales"),
        (
            lambda spec: msgspec.structs.replace(spec, token_ids=(spec.token_ids[1], *spec.token_ids[1:])),
            "not distinct",
        ),
        (lambda spec: msgspec.structs.replace(spec, token_ids=(10**6, *spec.token_ids[1:])), "vocabulary"),
    ],
)
def test_ratings_are_read_from_tokens_of_their_own(copy: Path, change: Any, cause: str) -> None:
    rewrite(copy, lambda manifest: msgspec.structs.replace(manifest, technical=change(manifest.technical)))
    with pytest.raises(BundleCorrupt, match=cause):
        open_bundle(copy)


def test_both_questions_do_not_share_a_token(copy: Path) -> None:
    rewrite(copy, lambda manifest: msgspec.structs.replace(manifest, technical=manifest.score))
    with pytest.raises(BundleCorrupt, match="not distinct"):
        open_bundle(copy)


@pytest.mark.parametrize("quantiles", [[5.0], [5.0] * 100 + [4.0]], ids=["too few", "falling"])
def test_a_reference_that_is_none(copy: Path, quantiles: list[float]) -> None:
    record = json.loads((copy / MANIFEST).read_bytes())
    record["reference"]["quantiles"] = quantiles
    (copy / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(BundleCorrupt, match="101 ascending quantiles"):
        open_bundle(copy)


def test_a_graph_that_is_not_listed_is_not_run(copy: Path) -> None:
    def change(manifest: Manifest) -> Manifest:
        files = {name: entry for name, entry in manifest.files.items() if name != "aligner.onnx"}
        return msgspec.structs.replace(manifest, files=files)

    rewrite(copy, change)
    (copy / "aligner.onnx").unlink()
    with pytest.raises(BundleCorrupt, match=r"aligner\.onnx"):
        Calm.load(copy)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b"[]"])
def test_a_manifest_that_is_none(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(BundleCorrupt, match=MANIFEST):
        open_bundle(copy)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound, match=r"no manifest\.json"):
        open_bundle(tmp_path / "nowhere")


def test_the_digest_covers_the_manifest(copy: Path) -> None:
    before = open_bundle(copy).digest
    rewrite(copy, lambda manifest: msgspec.structs.replace(manifest, drift_allowed=not manifest.drift_allowed))
    assert open_bundle(copy).digest != before
