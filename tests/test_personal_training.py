"""In-context personalised assessment: the sequence says what it should, tastes are consistent, and a model can learn them."""

import torch
from tiny_models import make_config
from torch import nn

from calm_train.personal import (
    EXAMPLES,
    FACTS,
    FEWEST,
    Rated,
    RecentPhotos,
    personal_sequences,
    simulate_raters,
    simulate_ratings,
)


def test_every_rating_is_predicted_from_the_position_before_it():
    photos, count, width = 5, 6, 4
    queries = torch.arange(2 * photos).view(2, photos)[..., None, None].expand(-1, -1, count, width).float()
    ratings = torch.tensor([[1.0, 2, 3, 4, 5], [5.0, 4, 3, 2, 1]])
    bos, after = torch.full((1, width), -1.0), torch.full((2, width), -2.0)
    tokens = 100 + ratings[..., None].expand(-1, -1, width)
    embeds, positions = personal_sequences(Rated(queries, ratings), bos, after, tokens)
    assert embeds.shape == (2, 1 + photos * (count + 2 + 1), width)
    assert torch.equal(embeds[0, positions], after[:1].expand(photos, -1))  # the last token of the text
    assert torch.equal(embeds[:, positions + 1], tokens)
    assert torch.equal(embeds[:, positions - 2, 0], torch.arange(2 * photos).view(2, photos).float())


def test_simulated_people_use_the_scale_and_differ():
    torch.manual_seed(1)
    ratings = simulate_ratings(torch.randn(EXAMPLES, FACTS).expand(40, -1, -1))
    assert ratings.min() >= 1
    assert ratings.max() <= 10
    assert torch.equal(ratings, ratings.round())
    assert (ratings.std(1) > 1.0).all()
    agreement = torch.corrcoef(ratings).fill_diagonal_(0).abs()
    assert agreement.mean() < 0.4  # tastes of different people, not one taste


def test_recent_photos_are_remembered_without_gradient_up_to_their_room():
    config = make_config()
    recent = RecentPhotos(config, room=6)
    shape = (4, 3 * config.queries, config.text_config.hidden_size)
    for number in range(3):
        queries = torch.full(shape, float(number), requires_grad=True)
        joined, facts = recent(queries, torch.full((4, FACTS), float(number)))
        assert len(joined) == len(facts) == min(6, 4 * number) + 4
        joined.sum().backward()
        assert torch.equal(queries.grad, torch.ones(shape))
    assert recent.queries[:, 0, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert recent.facts[:, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert set(recent.state_dict()) == {"queries", "facts", "count"}  # a resumed run goes on with them


def test_a_rater_sees_each_photo_once():
    torch.manual_seed(2)
    queries = torch.arange(EXAMPLES + 20)[:, None, None].expand(-1, 3, 2).float()
    lengths = set()
    for _ in range(20):
        rated = simulate_raters(queries, torch.randn(EXAMPLES + 20, FACTS), 3)
        length = rated.ratings.shape[1]
        lengths.add(length)
        assert rated.queries.shape == (3, length, 3, 2)
        assert all(len(photos.unique()) == length for photos in rated.queries[:, :, 0, 0])
        assert not torch.equal(rated.queries[0], rated.queries[1])
    assert len(lengths) > 5 and min(lengths) >= FEWEST and max(lengths) <= EXAMPLES


def test_what_a_person_likes_can_be_read_from_facts():
    """Ratings follow one linear taste or one ideal: a regression on the facts and their distances finds it."""
    torch.manual_seed(3)
    fits = []
    for _ in range(10):
        facts = torch.randn(400, FACTS)
        ratings = simulate_ratings(facts[None])[0]
        design = torch.cat([facts, facts.abs(), facts**2, torch.ones(400, 1)], dim=1)
        solved = torch.linalg.lstsq(design, ratings[:, None]).solution
        fits.append(float(torch.corrcoef(torch.stack([(design @ solved)[:, 0], ratings]))[0, 1]))
    assert sum(fits) / len(fits) > 0.8
    assert isinstance(RecentPhotos(make_config()), nn.Module)
