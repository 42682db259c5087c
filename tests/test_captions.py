"""Comments are compared with people's by COCO's own code, through the bundle and through PyTorch."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from dataset_miniatures import make_ava_captions

from calm_train.cli import train
from calm_train.datasets import CaptionedPhoto
from calm_train.evaluation.captions import evaluate_captions

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "calm-nano"
TEXTS = ("the colours are warm and soft", "a sharp subject stands before a soft ground", "the horizon is tilted")


def photos(tmp_path):
    return [CaptionedPhoto(tmp_path / f"{n}.jpg", (text, "something else entirely")) for n, text in enumerate(TEXTS)]


def test_the_same_words_score_highest_and_no_shared_word_lowest(tmp_path):
    texts = {f"{n}.jpg": text for n, text in enumerate(TEXTS)}
    same = evaluate_captions(lambda source: texts[source.name], photos(tmp_path))
    other = evaluate_captions(lambda source: "nobody wrote those", photos(tmp_path))
    partly = evaluate_captions(lambda source: "the colours are soft", photos(tmp_path))
    assert same.bleu[0] == pytest.approx(1, abs=1e-6)
    assert same.cider > partly.cider > other.cider
    assert same.rouge_l == pytest.approx(1)
    assert other.bleu[0] < 1e-6
    if same.meteor is not None:
        assert same.meteor > partly.meteor > other.meteor
    assert same.spice is not None or "spice" in same.missing


def test_bundle_and_checkpoint_write_the_same_comments(tmp_path):
    make_ava_captions(tmp_path)
    results = []
    for source in ([], ["--checkpoint", str(CHECKPOINT)]):
        arguments = ["evaluate", "--dataset", "ava-captions", "--root", str(tmp_path), "--json", *source]
        result = CliRunner().invoke(train, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        results.append(json.loads(result.stdout))
    assert results[0]["photos"] == results[1]["photos"] == 2  # AVA's test photo is left out
    assert results[0]["cider"] == pytest.approx(results[1]["cider"], abs=0.5)
    assert len(results[0]["bleu"]) == 4
