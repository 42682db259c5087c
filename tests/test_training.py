"""The three training commands in small: they chain, they resume exactly, they explain wrong use."""

import shutil

import pytest
import torch
import yaml
from click.testing import CliRunner

from calm_runtime.errors import DataError
from calm_train.checkpoint import load_checkpoint
from calm_train.cli import train
from calm_train.data import PairCollator, PairDataset, PromptEncoder, find_photos, load_pictures
from calm_train.recipe import load_recipe

STAGE = {"pairs": 2, "learning_rate": 1e-3, "warmup_steps": 2, "bf16": False, "frozen": ["llm"]}
TINY = {
    "name": "tiny",
    "model": {
        "vision": {
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": 64,
            "patch_size": 16,
        },
        "text": {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        "vocabulary": 512,
        "queries": 4,
        "qformer_layers": 1,
        "qformer_heads": 3,
        "taps": [1, 2, 3],
    },
    "language": {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "sentences": 2000},
    "pretrain": {
        **STAGE,
        "steps": 8,
        "weights": {"contrastive": 1, "matching": 1, "generation": 1, "ranking": 1, "patches": 1},
    },
    "tune": {**STAGE, "frozen": [], "steps": 4, "weights": {"contrastive": 1, "score": 1, "generation": 1}},
}


def run(*arguments: object) -> str:
    result = CliRunner().invoke(train, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory, example_folder):
    root = tmp_path_factory.mktemp("training")
    (root / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (root / "photos").mkdir()
    for name in ("cat", "coffee", "rocket"):
        shutil.copy(example_folder / f"{name}.jpg", root / "photos")
    (root / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    run("language", "--recipe", root / "tiny.yaml", "-o", root / "language")
    return root


def pretrain(folder, output, *more):
    common = ("--recipe", folder / "tiny.yaml", "--photos", folder / "photos", "--init", folder / "language")
    return run("pretrain", *common, "-o", folder / output, "--workers", 0, "--save-every", 4, *more)


def test_stages_chain_and_freeze_what_the_recipe_says(folder):
    assert "8 steps" in pretrain(folder, "pretrain")
    before, _, _ = load_checkpoint(folder / "language")
    after, _, info = load_checkpoint(folder / "pretrain")
    assert torch.equal(before.llm.lm_head.weight, after.llm.lm_head.weight)
    changed = (before.vision_encoder.state_dict(), after.vision_encoder.state_dict())
    assert any(not torch.equal(changed[0][k], changed[1][k]) for k in changed[0])
    assert "3 unlabelled photographs" in info.model.data_note  # the broken one was skipped
    common = ("--recipe", folder / "tiny.yaml", "--photos", folder / "photos", "--init", folder / "pretrain")
    run("tune", *common, "-o", folder / "tune", "--workers", 0)
    tuned, _, _ = load_checkpoint(folder / "tune")
    assert not torch.equal(after.llm.lm_head.weight, tuned.llm.lm_head.weight)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(folder):
    if not (folder / "pretrain").is_dir():
        pretrain(folder, "pretrain")
    shutil.copytree(folder / "pretrain" / "steps" / "checkpoint-4", folder / "resumed" / "steps" / "checkpoint-4")
    pretrain(folder, "resumed", "--resume")
    whole, _, _ = load_checkpoint(folder / "pretrain")
    resumed, _, _ = load_checkpoint(folder / "resumed")
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-5), name


def test_an_item_depends_on_its_index_alone(folder):
    pictures = load_pictures(find_photos(folder / "photos"))
    _, tokenizer, info = load_checkpoint(folder / "language")
    first, second = (PairDataset(pictures, info.photo, 50, 3)[17] for _ in range(2))
    assert torch.equal(first["pixel_values"], second["pixel_values"])
    assert first["texts"] == second["texts"]
    batch = PairCollator(PromptEncoder(tokenizer), info.prompts, 3)([first, second])
    assert batch["pixel_values"].shape == (4, 3, 64, 64)
    assert (batch["text_labels"] >= 0).any(dim=1).all()


def test_wrong_use_names_file_and_remedy(tmp_path):
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**TINY, "colour": "red"}))
    with pytest.raises(DataError, match="bad.yaml.*colour"):
        load_recipe(str(tmp_path / "bad.yaml"))
    with pytest.raises(DataError, match="shipped recipes: nano"):
        load_recipe("huge")
    with pytest.raises(DataError, match="no photos"):
        find_photos(tmp_path)
    with pytest.raises(DataError, match="none of the photos"):
        (tmp_path / "a.jpg").write_bytes(b"")
        load_pictures(find_photos(tmp_path))
