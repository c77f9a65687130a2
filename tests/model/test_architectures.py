"""Every option against the float64 reference, with and without the documents of a packed row."""

from itertools import combinations

import pytest
import torch

from pretrainer.model.generate import generate, generate_in_lockstep
from pretrainer.model.transformer import KVCache, Transformer, init_weights
from tests.model.architectures import ARCHITECTURES, tiny
from tests.model.fill import fill
from tests.model.reference import reference_logits

VOCAB = 23
POSITIONS = [0, 1, 2, 0, 1, 2, 3, 4, 0]
DOCUMENTS = [0, 0, 0, 1, 1, 1, 1, 1, 2]
EVERY = pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
CAUSAL = {name: config for name, config in ARCHITECTURES.items() if config.causal}
EVERY_CAUSAL = pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)


def build(config):
    return fill(Transformer(config, VOCAB))


def random_tokens(length=9, seed=0):
    return torch.randint(0, VOCAB, (1, length), generator=torch.Generator().manual_seed(seed))


def arange(tokens):
    return torch.arange(tokens.shape[1]).expand_as(tokens)


def doubles(model):
    """Parameters with gradients and buffers, by name, in float64."""
    parameters = {n: p.detach().double().requires_grad_() for n, p in model.named_parameters()}
    return parameters | {n: b.double() for n, b in model.named_buffers()}


@EVERY
@pytest.mark.parametrize("masked", [False, True], ids=["one-text", "packed"])
def test_logits_and_gradients_agree_with_the_float64_reference(config, masked):
    model, tokens = build(config), random_tokens()
    positions = torch.tensor([POSITIONS]) if masked else arange(tokens)
    logits = model(tokens, positions, torch.tensor([DOCUMENTS]) if masked else None)
    params = doubles(model)
    documents = DOCUMENTS if masked else [0] * 9
    expected = reference_logits(params, config, tokens[0].tolist(), positions[0].tolist(), documents)[None]
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    largest = max(params[name].grad.abs().max().item() for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        wanted = params[name].grad
        scale = max(0.1 * largest, wanted.abs().max().item())  # without positions a bias on keys has no gradient
        torch.testing.assert_close(parameter.grad.double(), wanted, rtol=0, atol=3e-5 * scale, msg=name)


def test_every_option_changes_the_logits():
    # Else the test above would pass for an option that both sides ignore.
    tokens = random_tokens()
    with torch.no_grad():
        outputs = [build(config)(tokens, arange(tokens)) for config in ARCHITECTURES.values()]
    for a, b in combinations(outputs, 2):
        assert not torch.allclose(a, b, atol=1e-3)


@EVERY
def test_a_packed_document_has_the_logits_that_it_has_alone(config):
    model, tokens = build(config), random_tokens()
    packed = model(tokens, torch.tensor([POSITIONS]), torch.tensor([DOCUMENTS]))
    alone = model(tokens[:, 3:8], torch.arange(5)[None])
    torch.testing.assert_close(packed[:, 3:8], alone, rtol=0, atol=1e-5)


@EVERY_CAUSAL
def test_the_cache_gives_the_logits_of_the_whole_text(config):
    model, tokens = build(config), random_tokens()
    whole, cache = model(tokens, arange(tokens)), KVCache()
    parts = [model(tokens[:, :4], torch.arange(4)[None], None, cache)]
    parts += [model(tokens[:, i : i + 1], torch.tensor([[i]]), None, cache) for i in range(4, 9)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@EVERY_CAUSAL
def test_no_token_sees_a_later_one(config):
    model, tokens = build(config), random_tokens()
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % VOCAB
    before, after = model(tokens, arange(tokens)), model(changed, arange(tokens))
    torch.testing.assert_close(before[:, :6], after[:, :6], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_an_encoder_sees_both_sides_of_its_document_and_no_other():
    model, tokens, positions = build(tiny(causal=False)), random_tokens(), torch.tensor([POSITIONS])
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % VOCAB
    before, after = (model(t, positions, torch.tensor([DOCUMENTS])) for t in (tokens, changed))
    differs = (before - after).abs().amax(-1)[0] > 1e-4
    assert differs.tolist() == [document == 1 for document in DOCUMENTS]


def test_a_window_ends_where_it_says():
    model, tokens = build(tiny(layers=1, sliding_window=3)), random_tokens()
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % VOCAB
    before, after = model(tokens, arange(tokens)), model(changed, arange(tokens))
    assert ((before - after).abs().amax(-1)[0] > 1e-4).tolist() == [2 <= i < 5 for i in range(9)]


@EVERY
def test_every_parameter_and_buffer_is_initialised_by_seed_and_name(config):
    with torch.device("meta"):
        emptied = Transformer(config, VOCAB)
    emptied.to_empty(device="cpu")
    for tensor in emptied.state_dict().values():
        tensor.fill_(float("nan"))
    init_weights(emptied, 3)
    built = Transformer(config, VOCAB)
    init_weights(built, 3)
    for (name, a), b in zip(emptied.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        if name.endswith("bias"):
            assert not a.any(), name
        elif "norm" in name:
            assert torch.equal(a, torch.ones_like(a)), name
        elif name.endswith(("attention.o.weight", "down.weight", "experts.down")):
            assert not a.any(), name
        else:
            assert a.std() > 1e-3, name


@EVERY
def test_hidden_states_times_the_output_weight_are_the_logits(config):
    model, tokens = build(config), random_tokens()
    hidden = model.hidden(tokens, arange(tokens))
    assert hidden.shape == (1, 9, config.hidden) and model.output_weight.shape == (VOCAB, config.hidden)
    assert torch.equal(torch.nn.functional.linear(hidden, model.output_weight), model(tokens, arange(tokens)))
    given = model(tokens, arange(tokens), output=lambda states, weight: states)
    assert torch.equal(given, hidden)


def test_a_text_beyond_learned_positions_is_continued_from_its_end():
    model = build(tiny(positions="learned", context=8))
    cached = generate(model, [5, 6, 7], 12, temperature=0.0)
    assert generate_in_lockstep(model, [5, 6, 7], 12, temperature=0.0) == cached
    text = [5, 6, 7, *cached[:-1]]
    assert int(model(torch.tensor([text[-8:]]), torch.arange(8)[None])[0, -1].argmax()) == cached[-1]
    assert len(generate(model, list(range(12)), 2)) == 2
