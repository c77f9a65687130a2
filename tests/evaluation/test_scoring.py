"""A score is a property of its request, not of batches, order, padding, neighbours or ranks; the left end is cut.

    python -m pytest -q tests/evaluation/test_scoring.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoTokenizer

from pretrainer.config import ModelConfig, MoeConfig, TrainConfig
from pretrainer.data.tokenizer.hf import export_hf
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import UserError
from pretrainer.evaluation.encoding import Request, encode, encode_pair, encode_windows
from pretrainer.evaluation.evaluate import evaluate_tasks
from pretrainer.evaluation.lanes import Lanes, batches_of
from pretrainer.evaluation.scoring import Score, answer, score
from pretrainer.evaluation.tasks import read_task
from pretrainer.model.transformer import Transformer
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.sharding.parallel import build_model
from tests.evaluation.cases import CONFIG, MAX_TOKENS, TASKS, model, tokenizer
from tests.model.fill import fill
from tests.train.ranks import run_ranks

VOCAB = 50
SMALL = ModelConfig(layers=2, hidden=32, heads=4)
MODELS = {
    "llama": SMALL,
    "learned": replace(SMALL, positions="learned", context=12, norm="layernorm", bias="all", ffn="gelu_tanh"),
    "window-alibi": replace(SMALL, positions="alibi", sliding_window=4),
    "experts": replace(SMALL, moe=MoeConfig(experts=4, top_k=2)),
}
FILLED = {name: fill(Transformer(config, VOCAB).eval()) for name, config in MODELS.items()}
each_model = pytest.mark.parametrize("name", MODELS)

ids = st.integers(0, VOCAB - 1)
# Few tokens, so that requests often let the model read the same.
pieces = st.lists(st.integers(0, 2), min_size=1, max_size=5) | st.lists(ids, min_size=1, max_size=9)
requests = st.builds(lambda context, continuation: Request(tuple(context), tuple(continuation)), pieces, pieces)


def plainly(model: Any, request: Request, max_tokens: int) -> Score:
    """One request, one forward pass, one token at a time."""
    whole = [*request.context, *request.continuation]
    seen = whole[:-1][-max_tokens:]
    logits = model(torch.tensor([seen]), torch.arange(len(seen))[None])[0].double()
    behind = range(len(seen) - len(request.continuation), len(seen))
    nats = [float(logits[at].log_softmax(-1)[token]) for at, token in zip(behind, request.continuation, strict=True)]
    top1 = [int(logits[at].argmax()) == token for at, token in zip(behind, request.continuation, strict=True)]
    return Score(sum(nats), len(nats), sum(top1))


@each_model
@settings(max_examples=25)
@given(st.lists(requests, min_size=1, max_size=9), st.integers(9, 12), st.integers(1, 60), st.randoms())
@torch.no_grad()
def test_batches_order_and_neighbours_change_nothing(
    name: str, asked: list[Request], max_tokens: int, batch_tokens: int, random: Any
) -> None:
    shuffled = random.sample(range(len(asked)), len(asked))
    found = score(FILLED[name], [asked[i] for i in shuffled], "cpu", max_tokens, batch_tokens)
    for at, one in zip(shuffled, found, strict=True):
        expected = plainly(FILLED[name], asked[at], max_tokens)
        assert one.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-4)
        assert one[1:] == expected[1:]


def test_what_is_cut_is_the_beginning_and_never_the_answer() -> None:
    small, continuation = FILLED["llama"], (7, 8)
    (whole,) = score(small, [Request((1, 2, 3, 4, 5), continuation)], "cpu", 100, 100)
    (cut,) = score(small, [Request((1, 2, 3, 4, 5), continuation)], "cpu", 4, 100)
    (short,) = score(small, [Request((3, 4, 5), continuation)], "cpu", 100, 100)
    assert cut.log_likelihood == pytest.approx(short.log_likelihood, abs=1e-5) and cut.tokens == 2
    assert abs(cut.log_likelihood - whole.log_likelihood) > 0.01


def test_choices_of_one_token_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    real = FILLED["llama"].forward

    def counted(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(tokens))
        return real(tokens, *rest)

    monkeypatch.setattr(FILLED["llama"], "forward", counted)
    score(FILLED["llama"], [Request((5, 6, 7), (choice,)) for choice in range(4)], "cpu", 20, 1000)
    assert rows == [1]


def test_logits_of_a_long_text_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Request((1,), tuple(range(2, 30)))]
    (whole,) = score(FILLED["llama"], asked, "cpu", 40, 1000)
    monkeypatch.setattr("pretrainer.evaluation.scoring.LOGIT_BYTES", 4 * VOCAB * 3)
    (parts,) = score(FILLED["llama"], asked, "cpu", 40, 1000)
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-5) and parts[1:] == whole[1:]


def test_the_model_is_left_in_the_mode_it_was_in() -> None:
    small = fill(Transformer(replace(SMALL, dropout=0.5), VOCAB)).train()
    asked = [Request((1, 2), (3, 4))]
    assert score(small, asked, "cpu", 9, 99) == score(small, asked, "cpu", 9, 99) and small.training
    answer(small, [(1, 2)], 2, lambda new: False, "cpu", 99)
    assert small.training


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100))
def test_batches_hold_every_row_once_and_no_more_than_asked(lengths: list[int], batch_tokens: int) -> None:
    batches = batches_of(lengths, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths, reverse=True)


# -------------------------------------------------------------------------------------------------------- encoding


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [" ", "\n\n", "a ", " a", "é", "e\u0301", "\u3000", "<bos>", "\u2581", "don't  stop\t"]
)


@settings(max_examples=200)
@given(TEXTS, TEXTS.filter(bool))
@example("l", "a0")
def test_a_pair_is_the_text_and_its_spaces_are_the_answers(context: str, continuation: str) -> None:
    request, whole = encode_pair(tokenizer(), context, continuation), encode(tokenizer(), context + continuation)
    assert request.context[0] == tokenizer().bos_id and request.continuation
    assert not tokenizer().decode(request.context)[-1:].isspace()
    behind = whole[len(request.context) :]
    if behind:  # where a token reaches over the border, the harness's answer lacks that token's part of it
        assert list(request.continuation) == behind
    if whole[: len(request.context)] == list(request.context):
        assert tokenizer().decode([*request.context, *request.continuation]) == context + continuation


@settings(max_examples=100)
@given(TEXTS.filter(bool), st.integers(1, 9))
def test_windows_predict_every_token_once_with_as_much_before_as_fits(text: str, max_tokens: int) -> None:
    whole = tokenizer().encode(text).tolist()
    windows = list(encode_windows(tokenizer(), text, max_tokens))
    assert [token for one in windows for token in one.continuation] == whole
    behind = 0
    for one in windows:
        behind += len(one.continuation)
        expected = [tokenizer().bos_id, *whole][: behind + 1][-(max_tokens + 1) :]
        assert [*one.context, *one.continuation] == expected


def byte_level(adds_bos: bool) -> Tokenizer:
    """A tokenizer.json as GPT-2's, or as Llama 3's, which adds bos."""
    found = tokenizers.Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(["a b c"], trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=names))
    if adds_bos:
        found.post_processor = processors.TemplateProcessing(single=f"{names[0]} $A", special_tokens=[(names[0], 0)])
    return Tokenizer.from_bytes(found.to_str().encode())


@pytest.mark.parametrize("made", [tokenizer, partial(byte_level, True), partial(byte_level, False)])
def test_texts_are_encoded_as_transformers_encodes_them_by_default(made: Any, tmp_path: Path) -> None:
    ours = made()
    export_hf(ours, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "a b", " Grüße,\n世界 <|begin_of_text|> <bos>"):
        assert encode(ours, text) == theirs(text)["input_ids"]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


class Joining:
    """A tokenizer without bos that joins "ab" to one token wherever it stands."""

    bos_id = eos_id = 0
    prefix_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text.replace("ab", "X")]

    def decode(self, new: Sequence[int]) -> str:
        return "".join(map(chr, new))


def test_a_continuation_that_the_tokenizer_joins_with_its_context_is_encoded_alone() -> None:
    z, a, b, c, space = map(ord, "zabc ")
    tokenizer: Any = Joining()
    assert encode_pair(tokenizer, "za", "b") == Request((z, a), (b,))
    assert encode_pair(tokenizer, "za", "bc") == Request((z, a), (c,))  # as the harness cuts
    assert encode_pair(tokenizer, "", "b") == Request((0,), (b,))
    assert encode_pair(tokenizer, " ", "b") == Request((0,), (space, b))


# --------------------------------------------------------------------------------------------------------- answers


@torch.no_grad()
def plain_answer(prompt: Sequence[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(FILLED["llama"](torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1].argmax()))
    return ids[len(prompt) :]


@settings(max_examples=25)
@given(st.lists(st.lists(ids, min_size=1, max_size=7), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 60))
def test_answers_are_greedy_whatever_the_batch(prompts: list[list[int]], tokens: int, batch_tokens: int) -> None:
    found = answer(FILLED["llama"], [tuple(one) for one in prompts], tokens, lambda new: False, "cpu", batch_tokens)
    assert found == [plain_answer(one, tokens) for one in prompts]


def test_an_answer_ends_where_it_is_done_and_the_others_go_on() -> None:
    prompts = [(1, 2, 3), (4, 5), (6,)]
    whole = [plain_answer(one, 6) for one in prompts]
    found = answer(FILLED["llama"], prompts, 6, lambda new: list(new) == whole[1][:2], "cpu", 1000)
    assert found == [whole[0], whole[1][:2], whole[2]]


# ----------------------------------------------------------------------------------------------------------- ranks


RANKS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp-2": (2, {}),
    "tp-2-fsdp-2": (4, {"tensor_parallel": 2}),
    "cp-2": (2, {"context_parallel": 2}),
    "exact-2": (2, {"exact": True}),
}
IN_RANKS = [one for one in TASKS if one.name in ("hellaswag", "letters", "cloze", "generate", "text")]


@torch.no_grad()
def filled_like(sharded: Transformer, whole: Transformer) -> Transformer:
    for name, parameter in sharded.named_parameters():
        value = whole.get_parameter(name)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            parameter.to_local().copy_(distribute_tensor(value, mesh, placements, src_data_rank=None).to_local())
        else:
            parameter.copy_(value)
    return sharded


def in_ranks(rank: int, world: int, options: dict[str, Any]) -> Any:
    """Results on every rank of an arrangement, and whether its parameters are still its shards."""
    train = TrainConfig(steps=1, num_workers=world, **options)
    ranks = None if train.exact else Ranks(Layout.of(train, world), "cpu")
    arranged = build_model(CONFIG, tokenizer().vocab_size, train, torch.device("cpu"), ranks)
    filled_like(arranged, model())
    before = [(type(one), one.shape) for one in arranged.parameters()]
    tasks = [read_task(one) for one in IN_RANKS]
    results = evaluate_tasks(arranged, tokenizer(), tasks, "cpu", MAX_TOKENS, batch_tokens=300)
    assert [(type(one), one.shape) for one in arranged.parameters()] == before
    return results


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.startswith(("tp", "exact")) else name for name in RANKS]
)
def test_ranks_in_lockstep_all_get_what_one_process_gets(name: str) -> None:
    world, options = RANKS[name]
    alone = evaluate_tasks(model(), tokenizer(), [read_task(one) for one in IN_RANKS], "cpu", MAX_TOKENS)
    first, *others = run_ranks(world, in_ranks, options)
    assert all(other == first for other in others)
    for mine, reference in zip(first, alone, strict=True):
        assert mine.answers == reference.answers
        for one, other in zip(mine.scores, reference.scores, strict=True):
            assert [score[1:] for score in one] == [score[1:] for score in other]
            assert [score[0] for score in one] == pytest.approx([score[0] for score in other], abs=1e-3)


def test_lanes_without_ranks() -> None:
    assert Lanes.of(model()) == Lanes(0, 1, None)
    assert list(Lanes(1, 3).deal("abcd")) == [("b", True), ("d", False)]


def test_a_model_that_fills_masks_is_refused() -> None:
    encoder = Transformer(replace(SMALL, causal=False), VOCAB)
    with pytest.raises(UserError, match="causal=false"):
        evaluate_tasks(encoder, tokenizer(), [], "cpu", 9)
