"""The network behind suggestions: what training optimises is what the runtime does."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors

from calm_runtime.mending import (
    KINDS,
    REACH,
    SIDE,
    WEIGHTS,
    mean_tone,
    mend,
    mending_info,
    tone_features,
    tone_thumbnail,
)
from calm_runtime.retouch import Frame, apply_tones, to_floats
from calm_train.cli import train
from calm_train.library import load_pictures
from calm_train.mending import (
    MendingNetwork,
    apply_mending,
    features_of,
    lab_distance,
    make_examples,
    train_mending,
)
from calm_train.pretext.view import to_tensor


@pytest.fixture(scope="module")
def tones(example_folder):
    pictures = [Image.open(example_folder / f"{name}.jpg").convert("RGB") for name in ("cat", "coffee", "rocket")]
    return np.stack([tone_thumbnail(picture) for picture in pictures])


@pytest.fixture(scope="module")
def net(tones):
    """The shipped weights, as training holds them."""
    loaded = MendingNetwork(torch.from_numpy(tone_features(tones)))
    loaded.load_state_dict(load_tensors(WEIGHTS))
    return loaded.eval()


def test_training_and_runtime_compute_the_same_network(net, tones):
    with torch.inference_mode():
        amounts, kinds = net(torch.from_numpy(tone_features(tones)))
    for row, photo in enumerate(tones):
        found = mend(photo)
        for name in REACH:
            assert getattr(found, name) == pytest.approx(float(amounts[name][row]), abs=1e-4)
        assert list(found.support.values()) == pytest.approx(kinds[row].tolist(), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_training_applies_the_edits_the_runtime_applies(tones, seed):
    rng = np.random.default_rng(seed)
    amounts = {name: torch.tensor(rng.uniform(-0.4, 0.4, len(tones)) * reach).float() for name, reach in REACH.items()}
    made = torch.from_numpy(rng.integers(0, 2, (len(tones), len(KINDS)))).float()
    trained = apply_mending(torch.from_numpy(tones).flatten(1, 2), amounts, made).clamp(0, 1)
    for row, photo in enumerate(tones):
        mending = type(mend(photo))(**{name: float(amounts[name][row]) for name in REACH}, support={})
        edited = photo
        for kind, wanted in zip(KINDS, made[row], strict=True):
            if wanted:
                edited = apply_tones(edited, [mending.edit(kind, mean_tone(edited))], Frame(SIDE, 0.0))
        assert np.abs(trained[row].numpy() - edited.reshape(-1, 3)).max() < 0.02  # the leak beyond black and white
        assert np.abs(trained[row].numpy() - edited.reshape(-1, 3)).mean() < 1e-3


def test_features_do_not_depend_on_the_batch(tones):
    together = tone_features(tones)
    alone = np.concatenate([tone_features(photo[None]) for photo in tones])
    assert np.allclose(together, alone, atol=1e-4)
    assert np.isfinite(tone_features(np.zeros((1, SIDE, SIDE, 3), np.float32))).all()
    assert np.isfinite(tone_features(np.ones((1, SIDE, SIDE, 3), np.float32))).all()


def test_examples_are_seeded_and_know_their_faults(example_folder):
    pictures = load_pictures([example_folder / "cat.jpg", example_folder / "coffee.jpg"])
    one, two = (make_examples(pictures, 12, 5) for _ in range(2))
    assert np.array_equal(one.spoiled, two.spoiled)
    same = (one.spoiled == one.untouched).all(axis=(1, 2, 3))
    assert np.array_equal(same, one.faults.sum(1) == 0)
    assert to_tensor(one.untouched[0]).shape == (3, SIDE, SIDE)


def test_a_few_steps_already_bring_photos_nearer(example_folder):
    pictures = load_pictures([example_folder / f"{name}.jpg" for name in ("cat", "coffee", "rocket", "astronaut")])
    examples = make_examples(pictures, 120, 1)
    fitted = train_mending(examples, 150, 1)
    untouched, spoiled = (torch.from_numpy(to_floats(p)).flatten(1, 2) for p in (examples.untouched, examples.spoiled))
    with torch.inference_mode():
        amounts, _ = fitted(features_of(examples.spoiled))
        mended = apply_mending(spoiled, amounts, torch.ones(len(spoiled), len(KINDS)))
    assert lab_distance(mended, untouched).mean() < 0.8 * lab_distance(spoiled, untouched).mean()


def test_the_command_writes_what_the_runtime_reads(example_folder, tmp_path):
    output = tmp_path / "mending.safetensors"
    arguments = ["mending", "--photos", example_folder, "--source", "examples", "-o", output, "--examples", 8]
    done = CliRunner().invoke(train, [str(a) for a in (*arguments, "--steps", 4)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    shipped = load_file(WEIGHTS)
    assert {name: value.shape for name, value in load_file(output).items()} == {n: v.shape for n, v in shipped.items()}
    assert mending_info().photos > 1000
    assert mending_info().noisy > 0 < mending_info().soft
