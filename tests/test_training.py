"""The training commands in small: they chain, they freeze, they resume exactly, they explain wrong use."""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from tiny_recipe import STAGE, TINY, write_recipe

from calm_runtime.errors import DataError, UsageError
from calm_train.checkpoint import load_checkpoint
from calm_train.cli import train
from calm_train.data import BatchCollator, PairDataset, PromptEncoder
from calm_train.library import find_photos, load_pictures
from calm_train.recipe import load_recipe, shipped_recipes


def run(*arguments: object) -> str:
    result = CliRunner().invoke(train, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory, example_folder):
    root = tmp_path_factory.mktemp("training")
    write_recipe(root / "tiny.yaml")
    (root / "photos").mkdir()
    for name in ("cat", "coffee", "rocket"):
        shutil.copy(example_folder / f"{name}.jpg", root / "photos")
    (root / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    rows = [f"photos/{name}.jpg,{rating}" for name, rating in (("cat", 5), ("coffee", 3), ("rocket", 1))]
    (root / "ratings.csv").write_text("\n".join(["path,rating", *rows]))
    return root


def pretrain(folder, output, *more):
    common = ("--recipe", folder / "tiny.yaml", "--photos", folder / "photos")
    return run("pretrain", *common, "-o", folder / output, "--save-every", 4, *more)


@pytest.fixture(scope="module")
def pretrained(folder):
    assert "8 steps" in pretrain(folder, "pretrain")
    return folder / "pretrain"


@pytest.fixture(scope="module")
def tuned(folder, pretrained):
    common = ("--recipe", folder / "tiny.yaml", "--photos", folder / "photos", "--init", pretrained)
    assert "4 steps" in run("tune", *common, "-o", folder / "tune")
    return folder / "tune"


def test_stages_chain_and_freeze_what_the_recipe_says(pretrained, tuned):
    before, _, start = load_checkpoint(pretrained / "language")
    after, _, info = load_checkpoint(pretrained)
    assert (start.stage, info.stage) == ("language", "pretrain")
    assert torch.equal(before.llm.lm_head.weight, after.llm.lm_head.weight)
    changed = (before.vision_encoder.state_dict(), after.vision_encoder.state_dict())
    assert any(not torch.equal(changed[0][k], changed[1][k]) for k in changed[0])
    assert "3 photographs, with no human rating" in info.model.data_note  # the broken one was skipped
    final, _, told = load_checkpoint(tuned)
    assert told.stage == "tune"
    assert not torch.equal(after.llm.lm_head.weight, final.llm.lm_head.weight)


def test_every_stage_leaves_a_report_and_tensorboard_logs(pretrained):
    page = (pretrained / "report.html").read_text()
    assert "contrastive_low" in page
    with Image.open(pretrained / "report.png") as picture:
        assert picture.width > 800
    assert list((pretrained / "tensorboard").glob("events*"))


def test_resuming_gives_the_weights_of_an_uninterrupted_run(folder, pretrained):
    shutil.copytree(pretrained / "steps" / "checkpoint-4", folder / "resumed" / "steps" / "checkpoint-4")
    shutil.copytree(pretrained / "language", folder / "resumed" / "language")
    pretrain(folder, "resumed", "--resume")
    whole, _, _ = load_checkpoint(pretrained)
    resumed, _, _ = load_checkpoint(folder / "resumed")
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-5), name


def command(folder, output, *more) -> list[str]:
    common = ("--recipe", folder / "tiny.yaml", "--photos", folder / "photos", "--save-every", 5, "--max-steps", 20)
    return [sys.executable, "-m", "calm_train.cli", "pretrain", *map(str, (*common, "-o", folder / output, *more))]


def final_loss(output: str) -> float:
    return float(re.search(r"loss ([\d.]+)", output).group(1))


@pytest.mark.timeout(600)
def test_a_killed_run_resumes_to_the_same_loss(folder):
    whole = subprocess.run(command(folder, "whole"), capture_output=True, text=True, check=True).stdout
    killed = subprocess.Popen(command(folder, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = folder / "killed" / "steps" / "checkpoint-10" / "trainer_state.json"
    while not mark.exists():
        assert killed.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    if not (folder / "killed" / "model.safetensors").exists():
        resumed = subprocess.run(command(folder, "killed", "--resume"), capture_output=True, text=True, check=True)
        assert abs(final_loss(resumed.stdout) - final_loss(whole)) <= 1e-4
    one, _, _ = load_checkpoint(folder / "whole")
    two, _, _ = load_checkpoint(folder / "killed")
    for name, value in one.state_dict().items():
        assert torch.allclose(value, two.state_dict()[name], atol=1e-5), name


def test_ratings_adapt_a_finished_model(folder, tuned):
    common = ("--recipe", folder / "tiny.yaml", "--init", tuned, "--ratings", folder / "ratings.csv")
    with pytest.raises(DataError, match="--rating-scale"):  # 1..10 is the default, 0 is not on it
        (folder / "zero.csv").write_text("path,rating\nphotos/cat.jpg,0\n")
        run("tune", *common[:-1], folder / "zero.csv", "-o", folder / "never")
    assert "6 steps" in run("tune", *common, "--rating-scale", 1, 5, "-o", folder / "taste")
    before, _, _ = load_checkpoint(tuned)
    after, _, info = load_checkpoint(folder / "taste")
    assert (info.model.name, info.stage) == ("tiny adapted", "tune")
    assert "3 labels of ratings" in info.model.data_note
    assert not torch.equal(before.llm.lm_head.weight, after.llm.lm_head.weight)


def test_adapters_train_and_are_merged(folder, tuned):
    lora = {"rank": 2, "alpha": 4}
    write_recipe(folder / "lora.yaml", adapt={**TINY["adapt"], "tune": {**TINY["adapt"]["tune"], "lora": lora}})
    common = ("--recipe", folder / "lora.yaml", "--init", tuned, "--ratings", folder / "ratings.csv")
    run("tune", *common, "-o", folder / "merged", "--save-every", 3)
    before, _, _ = load_checkpoint(tuned)
    after, _, _ = load_checkpoint(folder / "merged")
    assert before.state_dict().keys() == after.state_dict().keys()
    layer = "llm.model.layers.0.self_attn.q_proj.weight"
    difference = after.state_dict()[layer] - before.state_dict()[layer]
    assert 0 < torch.linalg.matrix_rank(difference) <= 2
    mlp = "llm.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after.state_dict()[mlp], before.state_dict()[mlp])


def test_accumulated_micro_batches_equal_one_batch(folder, pretrained):
    """Per-photo losses only: contrast over the photos of a batch sees fewer of them in a micro-batch."""
    plain = {**STAGE, "pairs": 4, "steps": 2, "weights": {"patches": 1.0, "edits": 1.0}}
    weights = {}
    for name, accumulate in (("once", 1), ("twice", 2)):
        tune = {**plain, "accumulate": accumulate, "weights": {"edits": 1.0}}
        write_recipe(folder / f"{name}.yaml", tune=tune)
        common = ("--recipe", folder / f"{name}.yaml", "--photos", folder / "photos", "--init", pretrained)
        run("tune", *common, "-o", folder / name)
        weights[name] = load_checkpoint(folder / name)[0].vision_encoder.state_dict()
    for key, value in weights["once"].items():
        assert torch.allclose(value, weights["twice"][key], atol=2e-4), key


def test_an_item_depends_on_its_index_alone(folder, pretrained):
    pictures = load_pictures(find_photos(folder / "photos"))
    model, tokenizer, info = load_checkpoint(pretrained)
    first, second = (PairDataset(pictures, info.photo, 50, 3)[17] for _ in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert first["texts"] == second["texts"]
    encoder = PromptEncoder(tokenizer, model.config.text_config)
    batch = BatchCollator(encoder, info.prompts, 3)([first, second])
    assert batch["pixel_values"].shape == (4, 3, 64, 64)
    assert (batch["text_labels"] >= 0).any(dim=1).all()
    assert ((batch["severities"] > 0).sum(1) <= 4).all()


@pytest.mark.parametrize("name", ["nano", "edge", "full"])
def test_a_dry_run_tells_parameters_memory_and_steps_without_weights(folder, name):
    plan = yaml.safe_load(run("pretrain", "--recipe", name, "--photos", folder / "photos", "--dry-run"))
    total = sum(part["total"] for part in plan["parameters"].values())
    low, high = {"nano": (8e6, 20e6), "edge": (6e8, 9e8), "full": (6.8e9, 7.6e9)}[name]
    assert low < total < high
    assert plan["parameters"]["llm"]["trainable"] == 0
    assert plan["data"]["photos"] == 4
    assert plan["memory_gb"]["weights_and_optimiser"] > 4 * total / 1e9 * 0.99


def test_wrong_use_names_file_and_remedy(folder, tmp_path):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**TINY, "colour": "red"}))
    with pytest.raises(DataError, match="bad.yaml.*colour"):
        load_recipe(str(tmp_path / "bad.yaml"))
    assert shipped_recipes() == ["edge", "full", "nano"]
    with pytest.raises(DataError, match="shipped recipes: edge, full, nano"):
        load_recipe("huge")
    with pytest.raises(DataError, match="no photos"):
        find_photos(tmp_path)
    with pytest.raises(DataError, match="none of the photos"):
        (tmp_path / "a.jpg").write_bytes(b"")
        load_pictures(find_photos(tmp_path))
    with pytest.raises(DataError, match=r"no such checkpoint folder.*calm-nano"):
        run("tune", "--photos", folder / "photos", "--init", "no-such-model")
    with pytest.raises(UsageError, match="--photos"):
        run("tune", "-o", tmp_path / "out")
    with pytest.raises(DataError, match="nothing to resume"):
        pretrain(folder, "fresh", "--resume")
