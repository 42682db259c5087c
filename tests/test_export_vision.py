"""Promises of the vision encoder's and aligner's ONNX graphs."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import make_config

from calm_export.aligner import export_aligner
from calm_export.graph import graph_sha256, write_graph
from calm_export.vision import export_vision
from calm_runtime.vision import HIDDEN_STATES, VISION_OUTPUTS
from calm_train.config import CalmConfig
from calm_train.model import CalmForConditionalGeneration

TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3}


def random_model(config: CalmConfig) -> CalmForConditionalGeneration:
    torch.manual_seed(0)
    model = CalmForConditionalGeneration(config).eval()
    model.aligner.cues.features.normal_()
    return model


def both_sides(
    model: CalmForConditionalGeneration, folder: Path, batch: int, dtype: torch.dtype, *, fused: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (torch, ONNX) of every output."""
    vision, aligner = folder / "vision_encoder.onnx", folder / "aligner.onnx"
    size = model.config.vision_config.image_size
    pixels = torch.rand(batch, 3, size, size)
    with torch.inference_mode():
        hidden = model.vision_encoder(pixels)
        aligned = model.aligner(hidden)
        expected = dict(zip(VISION_OUTPUTS, hidden, strict=True))
        expected |= {"image_embeds": aligned.image_embeds, "attribute_logits": model.attribute_logits(aligned)}
    if not vision.exists():
        twin = copy.deepcopy(model)
        write_graph(export_aligner(twin, dtype, fused=fused), aligner)
        write_graph(export_vision(twin, dtype, fused=fused), vision)
    found: dict[str, np.ndarray] = {}
    for path, feeds in ((vision, {"pixel_values": pixels.numpy()}), (aligner, None)):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found |= dict(zip(names, session.run(names, feeds or {k: found[k] for k in HIDDEN_STATES}), strict=True))
    return {name: (expected[name].numpy(), found[name]) for name in expected}


@pytest.mark.parametrize(
    ("vision", "dtype"),
    [("clip", torch.float32), ("siglip", torch.float32), ("clip", torch.float16), ("siglip", torch.float16)],
)
def test_the_graphs_see_what_torch_sees_at_any_batch_size(tmp_path: Path, vision: str, dtype: torch.dtype) -> None:
    model = random_model(make_config(vision))
    for batch in (1, 5):
        for name, (expected, found) in both_sides(model, tmp_path, batch, dtype).items():
            assert found.dtype == np.float32
            assert found.shape == expected.shape, name
            scale = np.abs(expected).max()
            assert np.abs(expected - found).max() <= TOLERANCE[dtype] * scale, name


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_fused_attention_is_one_operator_a_block_and_sees_the_same(tmp_path: Path, vision: str) -> None:
    model = random_model(make_config(vision))
    for batch in (1, 5):
        for name, (expected, found) in both_sides(model, tmp_path, batch, torch.float32, fused=True).items():
            assert np.abs(expected - found).max() <= TOLERANCE[torch.float32] * np.abs(expected).max(), name
    for path, export in (
        (tmp_path / "vision_encoder.onnx", export_vision),
        (tmp_path / "aligner.onnx", export_aligner),
    ):
        fused, plain = ([node.op_type for node in p.graph.node] for p in (onnx.load(path), export(model)))
        assert fused.count("MultiHeadAttention") == plain.count("Softmax") > 0
        assert "Softmax" not in fused and "MultiHeadAttention" not in plain


def test_a_model_still_attends_after_its_attention_was_traced_as_one_operator() -> None:
    model = random_model(make_config())
    pixels = torch.rand(1, 3, model.config.vision_config.image_size, model.config.vision_config.image_size)
    with torch.inference_mode():
        before = model.aligner(model.vision_encoder(pixels)).image_embeds
        export_aligner(model, fused=True)
        export_vision(model, fused=True)
        after = model.aligner(model.vision_encoder(pixels)).image_embeds
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_a_tanh_gelu_is_one_operator_and_no_other_encoder_needs_its_opset() -> None:
    siglip, clip = (export_vision(random_model(make_config(vision))) for vision in ("siglip", "clip"))
    kinds = [node.op_type for node in siglip.graph.node]
    assert kinds.count("Gelu") == kinds.count("Softmax")  # one per layer
    assert "Tanh" not in kinds
    assert [graph.opset_import[0].version for graph in (siglip, clip)] == [20, 18]


def test_equal_taps_still_give_four_outputs(tmp_path: Path) -> None:
    config = make_config()
    config.taps = [3, 3, 3]
    for name, (expected, found) in both_sides(random_model(config), tmp_path, 2, torch.float32).items():
        np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=name)


def test_layers_above_the_highest_tap_are_left_out(tmp_path: Path) -> None:
    config = make_config()
    config.taps, config.thematic_tap = [1, 1, 1], 1
    shallow = export_vision(random_model(config))
    assert len([n for n in shallow.graph.node if n.op_type == "Softmax"]) == 1  # one layer of four
    weights = sum(len(tensor.raw_data) for tensor in shallow.graph.initializer)
    full = export_vision(random_model(make_config()))
    assert weights < sum(len(tensor.raw_data) for tensor in full.graph.initializer)


def test_a_graph_above_the_limit_keeps_its_weights_beside_it(tmp_path: Path) -> None:
    model = random_model(make_config())
    files = write_graph(export_vision(model), tmp_path / "vision_encoder.onnx", inline_limit=1000)
    assert [f.name for f in files] == ["vision_encoder.onnx", "vision_encoder.onnx.data"]
    onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    assert files[0].stat().st_size < files[1].stat().st_size
    digest = graph_sha256(files[0])
    weights = bytearray(files[1].read_bytes())
    weights[-1] ^= 1
    files[1].write_bytes(weights)
    assert graph_sha256(files[0]) != digest
    write_graph(export_vision(model), tmp_path / "vision_encoder.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["vision_encoder.onnx"]  # no weights of the graph before


def test_a_graph_carries_no_trace_of_the_machine_that_made_it(tmp_path: Path) -> None:
    (path,) = write_graph(export_vision(random_model(make_config())), tmp_path / "v.onnx")
    raw = path.read_bytes()
    for trace in (str(Path(torch.__file__).parents[1]), str(Path.home()), "stack_trace", "site-packages"):
        assert trace.encode() not in raw
    onnx.checker.check_model(onnx.load(path), full_check=True)
