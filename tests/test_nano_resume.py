"""The nano recipe itself, killed in the middle: it resumes to the loss of a run that was never stopped. Minutes long."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from calm_train.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ORIGINALS = ("astronaut", "cameraman", "cat", "coffee", "rocket")
STEPS, SAVED, KILLED_AFTER = 40, 10, 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory, example_folder):
    """Twenty crops of the example photographs."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(7)
    for name in ORIGINALS:
        with Image.open(example_folder / f"{name}.jpg") as opened:
            picture = opened.convert("RGB")
        for version in range(4):
            width, height = (int(side * rng.uniform(0.6, 0.95)) for side in picture.size)
            left, top = int(rng.integers(picture.width - width)), int(rng.integers(picture.height - height))
            picture.crop((left, top, left + width, top + height)).save(folder / f"{name}_{version}.jpg", quality=92)
    return folder


def command(photos, output, *more) -> list[str]:
    run = ("--recipe", "nano", "--photos", photos, "--output", output, "--max-steps", STEPS)
    settings = ("--save-every", SAVED, "--seed", 1)
    return [sys.executable, "-m", "calm_train.cli", "pretrain", *map(str, (*run, *settings, *more))]


def final_loss(output) -> float:
    state = json.loads((output / "steps" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return float([entry["loss"] for entry in state["log_history"] if "loss" in entry][-1])


def test_the_nano_recipe_resumes_after_a_kill_to_the_loss_of_an_uninterrupted_run(photos, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(photos, whole), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command(photos, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    mark = killed / "steps" / f"checkpoint-{KILLED_AFTER}" / "trainer_state.json"
    while not mark.exists():
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "model.safetensors").exists()
    resumed = subprocess.run(command(photos, killed, "--resume"), check=True, capture_output=True, text=True)
    assert f"{STEPS} steps" in resumed.stdout
    assert abs(final_loss(killed) - final_loss(whole)) <= 1e-4
    one, two = (load_checkpoint(output)[0].state_dict() for output in (whole, killed))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-4), name
