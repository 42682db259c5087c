"""Two processes train like one: copied (DistributedDataParallel) or sharded (FSDP2), over gloo, with the same losses."""

import json
import os
import re
import shutil
import subprocess
import sys

import msgspec
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from tiny_recipe import STAGE, write_recipe

from calm_runtime.errors import DataError
from calm_train.checkpoint import load_checkpoint
from calm_train.cli import train
from calm_train.plan import plan
from calm_train.recipe import load_recipe

STEPS = 30
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Losses that are means over photos: contrast over the batch is over fewer photos in each of two processes.
PRETRAIN = {**STAGE, "pairs": 4, "steps": STEPS, "weights": {"edits": 1.0, "impression": 1.0}}
TUNE = {
    **STAGE,
    "pairs": 4,
    "steps": 2,
    "accumulate": 2,
    "gradient_checkpointing": True,
    "weights": {"technical": 1.0, "generation": 1.0},
}
LORA = {"rank": 2, "alpha": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, example_folder):
    root = tmp_path_factory.mktemp("distributed")
    (root / "photos").symlink_to(example_folder)
    write_recipe(root / "copied.yaml", pretrain=PRETRAIN)
    sharded = {**PRETRAIN, "sharding": "full"}
    write_recipe(root / "sharded.yaml", pretrain=sharded, tune={**TUNE, "sharding": "full", "lora": LORA})
    return root


def launch(folder, launcher, output, recipe, *more, stage="pretrain"):
    arguments = ["--recipe", folder / recipe, "--photos", folder / "photos", "-o", folder / output, *more]
    command = [*launcher, "-m", "calm_train.cli", stage, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / output


def losses(output) -> list[float]:
    state = json.loads((output / "steps" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.fixture(scope="module")
def one(folder):
    return launch(folder, [sys.executable], "one", "copied.yaml", "--save-every", STEPS)


@pytest.fixture(scope="module")
def sharded(folder):
    return launch(folder, TORCHRUN, "sharded", "sharded.yaml", "--save-every", 10)


@pytest.mark.timeout(1800)
def test_two_processes_give_the_losses_of_one(folder, one):
    two = losses(launch(folder, TORCHRUN, "two", "copied.yaml", "--save-every", STEPS))
    assert len(two) == len(losses(one)) == 3
    assert two == pytest.approx(losses(one), rel=0.02), re.sub(r"\s+", " ", f"{losses(one)} {two}")


@pytest.mark.timeout(1800)
def test_a_sharded_model_gives_the_losses_of_one_process_and_a_whole_checkpoint(one, sharded):
    assert losses(sharded) == pytest.approx(losses(one), rel=0.02), f"{losses(one)} {losses(sharded)}"
    names = []
    for output in (one, sharded):
        with safe_open(output / "steps" / f"checkpoint-{STEPS}" / "stage.safetensors", "pt") as state:
            names.append({key: state.get_slice(key).get_shape() for key in state.keys()})  # noqa: SIM118
    scalar = "model.aligner.cues.logit_scale"  # FSDP2 wants a dimension; the checkpoint below has none
    assert names[1].pop(scalar) == [1] and names[0].pop(scalar) == []
    assert names[0] == names[1]
    whole, before = (load_checkpoint(output)[0].state_dict() for output in (sharded, sharded / "language"))
    assert {name: value.shape for name, value in whole.items()} == {n: v.shape for n, v in before.items()}
    learnt = "vision_encoder.model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(whole[learnt], before[learnt])


@pytest.mark.timeout(1800)
def test_a_sharded_run_resumes_to_the_same_weights(folder, sharded):
    shutil.copytree(sharded / "language", folder / "again" / "language")
    kept = f"steps/checkpoint-{STEPS - 10}"
    shutil.copytree(sharded / kept, folder / "again" / kept)
    again = launch(folder, TORCHRUN, "again", "sharded.yaml", "--save-every", 10, "--resume")
    assert losses(again) == pytest.approx(losses(sharded), abs=1e-4)
    expected = load_checkpoint(sharded)[0].state_dict()
    for name, value in load_checkpoint(again)[0].state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5), name
    # One process cannot take up what two have sharded, and says so.
    arguments = ["--recipe", folder / "sharded.yaml", "--photos", folder / "photos", "-o", folder / "again", "--resume"]
    with pytest.raises(DataError, match="sharded its model.*more than one process"):
        CliRunner().invoke(train, ["pretrain", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.timeout(1800)
def test_adapters_of_a_sharded_model_are_merged(folder, sharded):
    merged = launch(folder, TORCHRUN, "merged", "sharded.yaml", "--init", sharded, stage="tune")
    before, after = (load_checkpoint(output)[0].state_dict() for output in (sharded, merged))
    assert before.keys() == after.keys()
    layer = "llm.model.layers.0.self_attn.q_proj.weight"
    assert 0 < torch.linalg.matrix_rank(after[layer] - before[layer]) <= LORA["rank"]
    mlp = "llm.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(after[mlp], before[mlp])


def test_the_plan_shares_the_memory_of_a_sharded_model():
    recipe = load_recipe("full")
    settings = msgspec.structs.replace(recipe.tune, sharding="full")
    one, four = (plan(recipe, settings, {"photos": 4}, processes)["memory_gb"] for processes in (1, 4))
    assert four["weights_and_optimiser"] == pytest.approx(one["weights_and_optimiser"] / 4, abs=0.01)
