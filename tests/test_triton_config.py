"""The model repository agrees with the bundle it was built from, before any server reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime
import pytest

from calm_runtime.bundle import (
    MANIFEST,
    Bundle,
    FileEntry,
    Graph,
    encode_manifest,
    file_sha256,
    open_bundle,
    sign_manifest,
)
from calm_runtime.errors import BundleCorrupt, UsageError
from calm_runtime.triton_config import TritonOptions, render
from calm_runtime.triton_repository import build, read_info, sources

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install calm-edge[triton]")
text_format = pytest.importorskip("google.protobuf.text_format")

PUBLIC = {"calm_score", "calm_text"}
MODELS = PUBLIC | {"calm_preprocess", "calm_vision_encoder", "calm_aligner", "calm_llm"}


def parse(repository: Path, model: str) -> Any:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def dims(tensors: Any) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in tensors}


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path) -> Bundle:
    return open_bundle(nano_bundle)


@pytest.fixture(scope="module")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "repo"
    build(bundle.path, output)
    return output


@pytest.fixture
def plan_bundle(bundle: Bundle, tmp_path: Path) -> Path:
    """The bundle with a vision encoder plan of at most four photos added; its bytes are no engine."""
    path = tmp_path / "plan-bundle"
    shutil.copytree(bundle.path, path)
    (path / "vision_encoder.plan").write_bytes(b"plan")
    size = bundle.manifest.photo.size
    shapes = tuple((rows, 3, size, size) for rows in (1, 2, 4))
    profile = {"pixel_values": (shapes[0], shapes[1], shapes[2])}
    plan = Graph("vision_encoder", "tensorrt", "vision_encoder.plan", "fp16", "0" * 64, "9.0", "test", profile)
    entry = FileEntry(file_sha256(path / "vision_encoder.plan"), 4)
    manifest = msgspec.structs.replace(
        bundle.manifest,
        graphs=(*bundle.manifest.graphs, plan),
        files=bundle.manifest.files | {"vision_encoder.plan": entry},
    )
    (path / MANIFEST).write_bytes(encode_manifest(sign_manifest(manifest)))
    return path


def test_every_model_is_there_and_named_after_its_folder(repository: Path) -> None:
    assert {path.name for path in repository.iterdir() if path.is_dir()} == MODELS
    for model in MODELS:
        assert parse(repository, model).name == model
        assert (repository / model / "1").is_dir()


@pytest.mark.parametrize("model", sorted(MODELS))
def test_configs_survive_a_round_trip(repository: Path, model: str) -> None:
    config = parse(repository, model)
    again = text_format.Parse(text_format.MessageToString(config), model_config_pb2.ModelConfig())
    assert again == config


def test_shapes_are_those_of_the_manifest(repository: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    size, tokens = manifest.photo.size, manifest.visual_tokens
    attributes = (len(manifest.attributes), 3)
    assert dims(parse(repository, "calm_preprocess").output) == {"pixel_values": (3, size, size), "frame": (4,)}
    encoder = onnxruntime.InferenceSession(bundle.file("vision_encoder.onnx"), providers=["CPUExecutionProvider"])
    rows = {output.name: tuple(output.shape[1:]) for output in encoder.get_outputs()}
    assert dims(parse(repository, "calm_vision_encoder").output) == rows
    assert "photo_embeds" in rows
    assert dims(parse(repository, "calm_aligner").output) == {
        "image_embeds": (tokens.total, tokens.width),
        "attribute_logits": attributes,
    }
    assert dims(parse(repository, "calm_score").input) == {"photo": (1,)}
    assert dims(parse(repository, "calm_score").output) == {
        "score": (1,),
        "technical": (1,),
        "percentile": (1,),
        "std": (1,),
        "histogram": (manifest.score.high - manifest.score.low + 1,),
        "frame": (4,),
        "attributes": attributes,
        "model": (1,),
        "bundle": (1,),
    }


def test_the_ensemble_connects_equal_shapes(repository: Path) -> None:
    score = parse(repository, "calm_score")
    known = {t.name: (tuple(t.dims), t.data_type) for t in score.input}
    for step in score.ensemble_scheduling.step:
        config = parse(repository, step.model_name)
        inputs = {t.name: (tuple(t.dims), t.data_type) for t in config.input}
        outputs = {t.name: (tuple(t.dims), t.data_type) for t in config.output}
        assert dict(step.input_map).keys() == inputs.keys()
        for name, tensor in step.input_map.items():
            assert known[tensor] == inputs[name]
        known |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
        assert config.max_batch_size == score.max_batch_size
    assert all(known[t.name] == (tuple(t.dims), t.data_type) for t in score.output)


@pytest.mark.parametrize("model", sorted(MODELS - {"calm_score"}))
def test_every_queue_is_bounded_and_has_two_priorities(repository: Path, model: str) -> None:
    batching = parse(repository, model).dynamic_batching
    policy = batching.default_queue_policy
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds > 0
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert (batching.priority_levels, batching.default_priority_level) == (2, 1)


@pytest.mark.parametrize("model", sorted(MODELS - PUBLIC))
def test_inner_models_warm_up_at_one_and_at_full_batch(repository: Path, model: str) -> None:
    config = parse(repository, model)
    assert [sample.batch_size for sample in config.model_warmup] == [1, config.max_batch_size]


@pytest.mark.parametrize("model", sorted(MODELS))
def test_versions_are_pinned(repository: Path, model: str) -> None:
    assert list(parse(repository, model).version_policy.specific.versions) == [1]


def test_only_the_score_is_cached(repository: Path) -> None:
    assert {model for model in MODELS if parse(repository, model).response_cache.enable} == {"calm_score"}


def test_on_cpu_graphs_are_onnx_files_of_the_bundle(repository: Path, bundle: Bundle) -> None:
    for model, stage in (("calm_vision_encoder", "vision_encoder.onnx"), ("calm_aligner", "aligner.onnx")):
        assert parse(repository, model).backend == "onnxruntime"
        assert file_sha256(repository / model / "1" / "model.onnx") == bundle.manifest.files[stage].sha256


def test_a_tensorrt_repository_holds_plans_and_keeps_to_their_profile(plan_bundle: Path, tmp_path: Path) -> None:
    info = build(plan_bundle, tmp_path / "repo", "tensorrt")
    vision = parse(tmp_path / "repo", "calm_vision_encoder")
    assert (vision.platform, vision.backend) == ("tensorrt_plan", "")
    assert (tmp_path / "repo" / "calm_vision_encoder" / "1" / "model.plan").read_bytes() == b"plan"
    assert not (tmp_path / "repo" / "calm_vision_encoder" / "1" / "model.onnx").exists()
    assert vision.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert parse(tmp_path / "repo", "calm_aligner").backend == "onnxruntime"  # the bundle has no plan of it
    assert info.max_batch == 4
    assert {parse(tmp_path / "repo", m).max_batch_size for m in MODELS - {"calm_text"}} == {4}


def test_tensorrt_needs_a_plan(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no TensorRT plan"):
        build(bundle.path, tmp_path / "repo", "tensorrt")
    assert not (tmp_path / "repo").exists()


def test_options_reach_the_configs(bundle: Bundle, tmp_path: Path) -> None:
    build(bundle.path, tmp_path / "repo", options=TritonOptions(max_batch=3, queue_size=7, threads=2))
    config = parse(tmp_path / "repo", "calm_vision_encoder")
    assert config.max_batch_size == 3
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert config.parameters["intra_op_thread_count"].string_value == "2"


def test_building_again_replaces_the_repository(bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "repo"
    build(bundle.path, output, options=TritonOptions(max_batch=2))
    (output / "calm_score" / "left-over").touch()
    build(bundle.path, output, options=TritonOptions(max_batch=4))
    assert read_info(output).max_batch == 4
    assert not (output / "calm_score" / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["repo"]


def test_a_folder_with_other_content_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a model repository of ours"):
        build(bundle.path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_bundle_leaves_the_old_repository_in_place(bundle: Bundle, tmp_path: Path) -> None:
    build(bundle.path, tmp_path / "repo")
    before = read_info(tmp_path / "repo")
    shutil.copytree(bundle.path, tmp_path / "bundle")
    (tmp_path / "bundle" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"tokenizer\.json"):
        build(tmp_path / "bundle", tmp_path / "repo")
    assert read_info(tmp_path / "repo") == before
    assert (tmp_path / "repo" / "calm_llm" / "1" / "model.py").is_file()


def test_a_placeholder_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        render((sources() / "calm_score" / "config.pbtxt").read_text(), {"max_batch": "8"})
