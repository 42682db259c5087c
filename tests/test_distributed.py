"""Two processes train like one: same losses from DistributedDataParallel over gloo as from a single process."""

import json
import re
import subprocess
import sys

import pytest
from tiny_recipe import STAGE, write_recipe


def losses(folder, launcher, output, recipe):
    arguments = ["--recipe", recipe, "--photos", folder / "photos", "-o", folder / output, "--save-every", 30]
    command = [*launcher, "-m", "calm_train.cli", "pretrain", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=500)
    state = json.loads((folder / output / "steps" / "checkpoint-30" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.timeout(900)
def test_two_processes_give_the_losses_of_one(tmp_path, example_folder):
    (tmp_path / "photos").symlink_to(example_folder)
    # Losses that are means over photos: contrast over the batch is over fewer photos in each of two processes.
    stage = {**STAGE, "pairs": 4, "steps": 30, "weights": {"edits": 1.0, "impression": 1.0}}
    recipe = write_recipe(tmp_path / "tiny.yaml", pretrain=stage)
    one = losses(tmp_path, [sys.executable], "one", recipe)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = losses(tmp_path, torchrun, "two", recipe)
    assert len(one) == len(two) == 3
    assert two == pytest.approx(one, rel=0.02), re.sub(r"\s+", " ", f"{one} {two}")
