import math

import pytest
import torch

from pretrainer.config import ModelConfig
from pretrainer.model.generate import choose, generate, generate_in_lockstep
from pretrainer.model.transformer import Transformer
from tests.model.fill import fill

LOGITS = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))


@pytest.fixture(scope="module")
def model():
    return fill(Transformer(ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, dropout=0.5), 64))


def test_choice_inverts_the_distribution():
    # by falling probability: 3 on [0, .4), 2 on [.4, .7), 1 on [.7, .9), 0 on [.9, 1)
    drawn = [choose(LOGITS, 1.0, None, u) for u in (0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.999999)]
    assert drawn == [3, 3, 2, 2, 1, 1, 0, 0]


def test_choice_frequencies_match_temperature_and_top_k():
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    for temperature in (0.5, 2.0):
        weights = [math.exp(x / temperature) for x in LOGITS.tolist()[1:]]
        drawn = [choose(LOGITS, temperature, 3, u) for u in grid]
        for token, weight in zip((1, 2, 3), weights, strict=True):
            assert drawn.count(token) / 1000 == pytest.approx(weight / sum(weights), abs=0.002)
        assert 0 not in drawn
    assert {choose(LOGITS, 0.0, None, u) for u in grid} == {3}


def test_the_cache_and_the_uncached_path_choose_the_same_tokens(model):
    for temperature in (0.0, 1.0):
        cached = generate(model, [5, 6, 7], 20, temperature, seed=1)
        assert len(cached) == 20
        assert generate_in_lockstep(model, [5, 6, 7], 20, temperature, seed=1) == cached


def test_greedy_text_is_the_argmax_of_the_whole_text(model):
    ids = [5, 6, 7]
    model.eval()
    for _ in range(6):
        logits = model(torch.tensor([ids]), torch.arange(len(ids))[None])
        ids.append(int(logits[0, -1].argmax()))
    model.train()
    assert generate(model, [5, 6, 7], 6, temperature=0.0) == ids[3:]


def test_draws_are_counter_based(model):
    torch.manual_seed(1)
    first = generate(model, [5], 12, 1.0, None, seed=3)
    torch.manual_seed(2)
    assert generate(model, [5], 12, 1.0, None, seed=3) == first
    assert generate(model, [5], 6, 1.0, None, seed=3) == first[:6]
    assert generate(model, [5], 12, 1.0, None, seed=4) != first
    assert model.training


def test_the_stop_id_ends_the_text_and_is_left_out(model):
    for function in (generate, generate_in_lockstep):
        text = function(model, [5], 12, 1.0, None, seed=3)
        stop = text[4]
        assert function(model, [5], 12, 1.0, None, seed=3, stop_id=stop) == text[: text.index(stop)]
