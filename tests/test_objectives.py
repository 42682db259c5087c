"""Objectives prefer the right answer, and only the right one."""

import torch

from calm_train.objectives import (
    ContrastiveObjective,
    GenerationObjective,
    MatchingObjective,
    RankingObjective,
    ScoreObjective,
    expected_score,
)

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
    assert objective(better, worse, torch.tensor([False, True])) < 0.01
    assert objective(better, worse, torch.tensor([True, True])) > 1
    assert objective(better, worse, torch.tensor([False, False])) == 0


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
