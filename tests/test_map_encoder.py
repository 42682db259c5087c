"""Encoders of feature maps: one, two side by side, backbones; frozen, saved, exported without batch norms."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_maps import SIZE, backbone, map_config, map_model, save_encoder

from calm_export.aligner import export_aligner
from calm_export.graph import write_graph
from calm_export.vision import export_vision
from calm_runtime.errors import DataError
from calm_runtime.vision import HIDDEN_STATES, VISION_OUTPUTS
from calm_train.build import build_model, photo_spec
from calm_train.model import CalmForConditionalGeneration
from calm_train.recipe import load_recipe
from calm_train.vision import MapEncoder


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1


def test_two_encoders_are_joined_at_four_taps_of_falling_resolution():
    model = map_model()
    shapes = model.config.tap_shapes
    assert shapes.sides == (4, 4, 2, 2)  # 8, 4 and 2, the first pooled by 2
    hidden = model.vision_encoder(pixels())
    tokens = [2 + side**2 for side in shapes.sides]
    assert [tuple(state.shape) for state in hidden[:4]] == [(2, n, 24) for n in tokens]
    assert hidden.photo_embeds.shape == (2, shapes.channels[3])
    assert model.look(pixels()).image_embeds.shape == (2, model.config.image_tokens, 64)


def test_each_map_reaches_its_own_branch():
    model = map_model()
    encoder = model.vision_encoder
    assert isinstance(encoder, MapEncoder)
    summaries = encoder.summaries(pixels())
    before = encoder.project(summaries)
    summaries[1] = summaries[1]._replace(grid=summaries[1].grid + 1)
    after = encoder.project(summaries)
    assert torch.equal(before.low, after.low) and torch.equal(before.high, after.high)
    assert not torch.allclose(before.middle, after.middle)


def test_the_round_trip_keeps_every_output(tmp_path: Path):
    model = map_model()
    model.save_pretrained(tmp_path)
    again = CalmForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again.look(pixels()).image_embeds, model.look(pixels()).image_embeds)


def test_a_backbone_of_transformers_serves_as_encoder():
    config = map_config(
        vision_config=backbone(), taps=(0, 1, 2), thematic_tap=2, second_vision_config=None, second_taps=None,
        second_thematic_tap=None,
    )  # fmt: skip
    assert config.tap_shapes.sides == (8, 8, 4, 4) and config.tap_shapes.channels == (8, 12, 16, 16)
    assert torch.isfinite(map_model(config).look(pixels()).image_embeds).all()


def test_encoders_whose_maps_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="differ in size at the taps"):
        _ = map_config(second_taps=(2, 5, 8)).tap_shapes
    with pytest.raises(ValueError, match="gives 26 maps"):
        _ = map_config(taps=(9, 21, 40)).tap_shapes
    with pytest.raises(ValueError, match="neck_pools"):
        _ = map_config(neck_pools=(3, 1, 1, 1)).tap_shapes


def test_encoders_keep_their_statistics_in_training():
    model = map_model().train()
    encoder = model.vision_encoder
    assert isinstance(encoder, MapEncoder)
    before = {k: v.clone() for k, v in encoder.backbones.state_dict().items()}
    necks = encoder.necks[0].standardise.running_mean.clone()
    encoder(pixels())
    assert all(torch.equal(v, before[k]) for k, v in encoder.backbones.state_dict().items())
    assert not torch.equal(encoder.necks[0].standardise.running_mean, necks)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_graphs_without_batch_norms_see_what_torch_sees(tmp_path: Path, batch: int):
    model = map_model()
    with torch.inference_mode():
        hidden = model.vision_encoder(pixels(batch))
        aligned = model.aligner(hidden)
    vision, aligner = export_vision(model), export_aligner(model)
    kinds = collections.Counter(node.op_type for node in vision.graph.node)
    assert kinds["Conv"] > 50 and not kinds["BatchNormalization"]
    write_graph(vision, tmp_path / "vision.onnx")
    write_graph(aligner, tmp_path / "aligner.onnx")
    sessions = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        for name in ("vision.onnx", "aligner.onnx")
    ]
    found = dict(
        zip(VISION_OUTPUTS, sessions[0].run(VISION_OUTPUTS, {"pixel_values": pixels(batch).numpy()}), strict=True)
    )
    for name, expected in zip(VISION_OUTPUTS, hidden, strict=True):
        assert np.abs(found[name] - expected.numpy()).max() < 1e-4 * max(1.0, float(expected.abs().max())), name
    (embeds,) = sessions[1].run(["image_embeds"], {name: found[name] for name in HIDDEN_STATES})
    assert np.abs(embeds - aligned.image_embeds.numpy()).max() < 1e-4 * float(aligned.image_embeds.abs().max())
    # Folding happens on a copy: the model that was exported still computes the same
    assert torch.equal(model.vision_encoder(pixels(batch)).high, hidden.high)


def test_a_recipe_takes_two_pretrained_encoders(tmp_path: Path):
    from tiny_maps import efficientnet, mobilenet
    from tiny_recipe import TINY, write_recipe

    first, second = save_encoder(tmp_path / "a", mobilenet()), save_encoder(tmp_path / "b", efficientnet())
    parts = {
        **TINY["model"], "vision": {"pretrained": str(first)}, "second_vision": {"pretrained": str(second)},
        "taps": [9, 21, 25], "thematic_tap": 25, "second_taps": [3, 5, 8], "second_thematic_tap": 8, "neck_width": 24,
        "fit": "stretch",
    }  # fmt: skip
    recipe = load_recipe(str(write_recipe(tmp_path / "r.yaml", model=parts)))
    model, _ = build_model(recipe, 1)
    from transformers import AutoModel

    for index, folder in enumerate((first, second)):
        loaded = AutoModel.from_pretrained(folder).state_dict()
        own = model.vision_encoder.backbones[index].state_dict()
        assert all(torch.equal(own[name], value) for name, value in loaded.items())
    assert photo_spec(recipe).fit == "stretch"
    broken = load_recipe(str(write_recipe(tmp_path / "r.yaml", model={**parts, "taps": [9, 21, 99]})))
    with pytest.raises(DataError, match="gives 26 maps"):
        build_model(broken, 1)
