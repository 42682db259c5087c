"""Objectives prefer the right answer, and only the right one."""

import torch
from tiny_models import make_config

from calm_runtime.attributes import SCALES
from calm_train.objectives import (
    ContrastiveObjective,
    EditObjective,
    GenerationObjective,
    MatchingObjective,
    PatchObjective,
    QuantityObjective,
    RankingObjective,
    ScoreObjective,
    expected_score,
)
from calm_train.pretext.edits import EDITS
from calm_train.pretext.measures import QUANTITIES
from calm_train.vision import HiddenStates

LEVELS = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1]])


def phrase_logits(right: float) -> torch.Tensor:
    logits = torch.zeros(4, 2, 3, 4)
    logits.scatter_(2, LEVELS[:, :, None, None].expand(-1, -1, -1, 4), right)
    return logits


def test_contrast_and_matching_fall_as_the_right_cues_win():
    for objective in (ContrastiveObjective(), MatchingObjective()):
        losses = [float(objective(phrase_logits(right), LEVELS)) for right in (-3.0, 0.0, 3.0, 20.0)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 1e-3


def test_several_positives_share_the_contrast():
    spread = phrase_logits(0.0)
    spread[..., 0] += 30 * torch.nn.functional.one_hot(LEVELS, 3)  # only one paraphrase is found: enough
    assert ContrastiveObjective()(spread, LEVELS) < 1.5
    assert torch.isfinite(ContrastiveObjective()(torch.randn(4, 2, 3, 4), torch.zeros(4, 2, dtype=torch.long)))


def test_matching_looks_at_the_hardest_negative():
    logits = torch.zeros(1, 1, 3, 4)
    logits[0, 0, 0], logits[0, 0, 1], logits[0, 0, 2] = 2.0, 1.9, -50.0
    assert MatchingObjective()(logits, torch.tensor([[0]])) > 0.6


def test_ranking_ignores_pairs_without_a_difference():
    objective = RankingObjective(0.5)
    better, worse = torch.tensor([1.0, 5.0]), torch.tensor([5.0, 1.0])
    assert objective(better, worse, torch.tensor([0.0, 1.0])) < 0.01
    assert objective(better, worse, torch.tensor([1.0, 1.0])) > 1
    assert objective(better, worse, torch.tensor([1.0, 1.0])) > objective(better, worse, torch.tensor([0.2, 1.0]))
    assert objective(better, worse, torch.tensor([0.0, 0.0])) == 0


def test_score_objective_is_least_at_the_target_and_reads_back_its_mean():
    objective = ScoreObjective(0.9)
    target = objective.target(torch.tensor([6.5]))
    best = objective(target.log(), target)
    assert abs(float(expected_score(target.log())) - 6.5) < 0.02
    assert objective(objective.target(torch.tensor([5.5])).log(), target) > best
    near = objective(objective.target(torch.tensor([5.5])).log(), target)
    far = objective(objective.target(torch.tensor([2.5])).log(), target)
    assert far > near


def test_generation_skips_what_is_not_an_answer():
    logits = torch.zeros(1, 3, 5)
    logits[0, 2, 4] = 30.0
    assert GenerationObjective()(logits, torch.tensor([[-100, -100, 4]])) < 1e-6


def test_a_rare_level_weighs_more_than_a_common_one():
    levels = torch.tensor([[2]] * 15 + [[0]])
    right = torch.zeros(16, 1, 3, 4).scatter(2, levels[:, :, None, None].expand(-1, -1, -1, 4), 4.0)
    common_wrong, rare_wrong = right.clone(), right.clone()
    common_wrong[0] = right[0].flip(1)
    rare_wrong[15] = right[15].flip(1)
    objective = ContrastiveObjective()
    assert objective(rare_wrong, levels) > objective(common_wrong, levels) > objective(right, levels)


def test_the_dense_objectives_can_be_learnt_from_what_they_ask_for():
    torch.manual_seed(0)
    config = make_config()
    patches = config.tap_shapes.sides[0] ** 2
    hidden = torch.randn(8, 1 + patches, config.vision_config.hidden_size)
    severities = torch.zeros(8, len(EDITS))
    severities[::2, 3] = 0.8
    hidden[::2, :, 5] += 2.0  # the trace an edit leaves in the encoder
    quantities = torch.zeros(8, len(QUANTITIES))
    quantities[::2, 1] = 1.5
    states = HiddenStates(hidden, hidden, hidden, hidden, photo_embeds=hidden[:, 0])
    queries = dict.fromkeys(SCALES, hidden[:, : config.queries])
    pixels = torch.randn(8, 3, config.vision_config.image_size, config.vision_config.image_size)
    for objective, arguments in (
        (EditObjective(config), (states, queries, severities)),
        (QuantityObjective(config), (states, queries, quantities)),
        (PatchObjective(config), (hidden[:1].expand(8, -1, -1), pixels[:1].expand(8, -1, -1, -1))),
    ):
        optimizer = torch.optim.Adam(objective.parameters(), 3e-2)
        losses = []
        for _ in range(60):
            losses.append(objective(*arguments))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < 0.7 * losses[0], type(objective).__name__
