import math

import pytest
import torch

from pretrainer.config import ModelConfig
from pretrainer.model.transformer import KVCache, Transformer, init_weights
from tests.model.fill import fill
from tests.model.reference import reference_logits

VOCAB = 97
TIED = ModelConfig(layers=2, hidden=32, heads=4, ffn_hidden=48)
GQA = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, tie_embeddings=False)
CONFIGS = pytest.mark.parametrize("config", [TIED, GQA], ids=["tied", "untied-gqa"])
POSITIONS = [0, 1, 2, 0, 1, 2, 3, 0, 1]
DOCUMENTS = [0, 0, 0, 1, 1, 1, 1, 2, 2]


def build(config, vocab=VOCAB):
    """A model in which every part matters."""
    return fill(Transformer(config, vocab))


def initialised(config, vocab=VOCAB, seed=3):
    """A model as training begins."""
    model = Transformer(config, vocab)
    init_weights(model, seed)
    return model


def random_tokens(rows, length, vocab=VOCAB, seed=0):
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def arange(tokens):
    return torch.arange(tokens.shape[1]).expand_as(tokens)


@CONFIGS
@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_gradients_agree_with_the_float64_reference(config, masked):
    model, tokens = build(config), random_tokens(2, 9)
    positions = torch.tensor([POSITIONS] * 2) if masked else arange(tokens)
    logits = model(tokens, positions, torch.tensor([DOCUMENTS] * 2) if masked else None)
    params = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    expected = torch.stack([
        reference_logits(params, config, row, positions[0].tolist(), DOCUMENTS if masked else [0] * 9)
        for row in tokens.tolist()
    ])
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in model.named_parameters():
        scale = params[name].grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), params[name].grad, rtol=0, atol=2e-5 * scale, msg=name)


@CONFIGS
def test_no_token_sees_a_later_one(config):
    model, tokens = build(config), random_tokens(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % VOCAB
    before, after = model(tokens, arange(tokens)), model(changed, arange(tokens))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_no_token_sees_another_document():
    model, tokens = build(GQA), random_tokens(1, 9)
    positions, documents = torch.tensor([POSITIONS]), torch.tensor([DOCUMENTS])
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % VOCAB
    before, after = model(tokens, positions, documents), model(changed, positions, documents)
    assert torch.equal(before[:, 3:], after[:, 3:])
    assert not torch.allclose(model(tokens, positions)[:, 3:], model(changed, positions)[:, 3:])


def test_a_packed_document_has_the_logits_that_it_has_alone():
    model, tokens = build(TIED), random_tokens(1, 9)
    packed = model(tokens, torch.tensor([POSITIONS]), torch.tensor([DOCUMENTS]))
    alone = model(tokens[:, 3:7], torch.arange(4)[None])
    torch.testing.assert_close(packed[:, 3:7], alone, rtol=0, atol=1e-5)


def test_the_cache_gives_the_logits_of_the_whole_text():
    model, tokens = build(GQA), random_tokens(1, 10)
    whole, cache = model(tokens, arange(tokens)), KVCache()
    parts = [model(tokens[:, :4], torch.arange(4)[None], None, cache)]
    parts += [model(tokens[:, i : i + 1], torch.tensor([[i]]), None, cache) for i in range(4, 10)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "vocab"),
    [
        (TIED, 4096),
        (GQA, 512),
        (ModelConfig(layers=4, hidden=256, heads=4), 4096),
        (ModelConfig(layers=12, hidden=192, heads=3), 2048),
        (ModelConfig(layers=1, hidden=1024, heads=8), 8192),
        (ModelConfig(layers=2, hidden=2048, heads=16, kv_heads=4, ffn_hidden=512), 4096),
        (ModelConfig(layers=1, hidden=1024, heads=8, tie_embeddings=False), 8192),
    ],
)
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(config, vocab):
    model, tokens = initialised(config, vocab), random_tokens(4, 33, vocab)
    with torch.no_grad():
        logits = model(tokens[:, :-1], arange(tokens[:, :-1]))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(vocab), rel=0.05)


def test_repeating_a_token_does_not_lower_the_first_loss():
    # A tied output layer scores the input token itself; at first that must not be a guess worth anything.
    model = initialised(ModelConfig(layers=4, hidden=256, heads=4), 4096)
    tokens = random_tokens(4, 32, 4096)
    loss = torch.nn.functional.cross_entropy(model(tokens, arange(tokens)).flatten(0, 1), tokens.flatten()).item()
    assert loss > 0.5 * math.log(4096)


def test_initialisation_depends_on_seed_and_name_alone():
    with torch.device("meta"):
        emptied = Transformer(GQA, VOCAB)
    emptied.to_empty(device="cpu")
    for parameter in emptied.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    init_weights(emptied, 3)
    torch.manual_seed(1)
    built, other = initialised(GQA), initialised(GQA, seed=4)
    for (name, a), (_, b), (_, c) in zip(
        emptied.named_parameters(), built.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert torch.equal(a, c) == ("norm" in name or name.endswith(("attention.o.weight", "ffn.down.weight"))), name
    assert not torch.equal(built.blocks[0].attention.q.weight, built.blocks[1].attention.q.weight)


def test_initial_spread_follows_the_table():
    model = initialised(ModelConfig(layers=8, hidden=400, heads=4, ffn_hidden=512), 1024)
    block, h = model.blocks[5], 400
    expected = {
        model.embed.weight: 4 / h,
        block.attention.q.weight: h**-0.5,
        block.ffn.up.weight: h**-0.5,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.03)
        assert abs(parameter.mean().item()) < 0.03 * std
    assert torch.equal(block.ffn_norm.weight, torch.ones(h))
    assert not block.attention.o.weight.any() and not block.ffn.down.weight.any()


def test_dropout_is_drawn_from_the_seed_and_off_in_evaluation():
    model, tokens = build(ModelConfig(layers=1, hidden=32, heads=4, dropout=0.3)), random_tokens(1, 8)

    def run(seed):
        torch.manual_seed(seed)
        return model(tokens, arange(tokens))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    model.eval()
    assert torch.equal(run(1), run(2))


def test_every_block_begins_as_the_identity():
    model, tokens = initialised(ModelConfig(layers=3, hidden=128, heads=4)), random_tokens(4, 32)
    expected = model.norm(model.embed(tokens)) @ model.embed.weight.T
    torch.testing.assert_close(model(tokens, arange(tokens)), expected)
