"""Masked language modelling: draws, shares, words, special tokens, leaks, the digest; and both objectives learn.

    python -m pytest -q tests/train/test_objective.py
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrainer.config import ModelConfig
from pretrainer.config_load import parse_config
from pretrainer.errors import ConfigError
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.schema import BOS, EOS, FIRST_TEXT_ID, MASK, PAD, Batch, MaskVocabulary
from pretrainer.train.batch import block_digest, max_blocks, micro_batches, owned_blocks, to_tensor
from pretrainer.train.objective import OBJECTIVES, How, Lesson, how_of, lesson, target_bytes, uniforms, word_starts
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.step import IGNORE, MicroBatch, all_reduce_sum, train_step
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, TRAIN, VOCAB, build, slot_block

ORDINARY = np.arange(VOCAB) >= FIRST_TEXT_ID
BEGINS = ORDINARY & (np.arange(VOCAB) % 3 == 0)
ENDS = ORDINARY & (np.arange(VOCAB) % 10 == 0)
WORDS = MaskVocabulary(MASK, ORDINARY, BEGINS, ENDS)
MLM = How("mlm", seed=7, mask_rate=0.15, vocabulary=WORDS)
LARGE = slot_block(1, sequences=64, seq_len=255)
PINNED = [0.8697047914461641, 0.278974773079232, 0.03549748792428831, 0.15866119446043747, 0.6892199758601109,
          0.42282221973346457]  # fmt: skip
MODEL = ModelConfig(layers=2, hidden=32, heads=4, ffn_hidden=64, causal=False)


def pieces(block: Batch, how: How, number: int = 1, sequences: int = 2) -> list[MicroBatch]:
    return micro_batches(
        to_tensor(block), block, sequences=sequences, document_mask=True, run_seed=7, step=0, slot_block=number,
        learned=lesson(block, number, how),
    )  # fmt: skip


def chosen(found: Lesson) -> np.ndarray:
    return found.has_target


# ----------------------------------------------------------------------------------------------------------- the draws


def test_the_draws_are_a_function_of_seed_slot_block_and_position() -> None:
    draws = uniforms(7, 3, (4, 5))
    assert draws.shape == (4, 5, 3) and np.array_equal(draws, uniforms(7, 3, (4, 5)))
    assert 0 <= draws.min() and draws.max() < 1 and len(np.unique(draws)) == draws.size
    assert not np.array_equal(draws, uniforms(8, 3, (4, 5))) and not np.array_equal(draws, uniforms(7, 4, (4, 5)))
    # longer rows or more of them begin with the same draws
    assert np.array_equal(uniforms(7, 3, (9, 5))[:4], draws)


def test_the_draws_of_a_key_never_change() -> None:
    """Written down once: another numpy or machine must give these too, or a resumed run trains something else."""
    assert uniforms(0, 0, (1, 2)).ravel().tolist() == PINNED


def test_masks_do_not_depend_on_the_micro_batch_size() -> None:
    block = slot_block(1, sequences=8)
    for field in ("inputs", "targets", "positions"):
        by_size = [torch.cat([getattr(m, field) for m in pieces(block, MLM, sequences=n)]) for n in (1, 2, 4, 8)]
        assert all(torch.equal(by_size[0], other) for other in by_size[1:])


def test_another_epoch_of_the_same_text_has_other_masks() -> None:
    assert not np.array_equal(chosen(lesson(LARGE, 1, MLM)), chosen(lesson(LARGE, 2, MLM)))


# ----------------------------------------------------------------------------------------------- what becomes of tokens


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("whole_word", [False, True])
def test_shares_are_80_10_10_of_the_mask_rate(rate: float, whole_word: bool) -> None:
    found = lesson(LARGE, 1, replace(MLM, mask_rate=rate, whole_word=whole_word))
    ids, text = LARGE.tokens[:, :-1].astype(np.int64), ORDINARY[LARGE.tokens[:, :-1]]
    assert found.replaced is not None
    now = np.where(found.replaced >= 0, found.replaced, ids)
    share = found.targets / np.count_nonzero(text)
    assert share == pytest.approx(rate, abs=0.02 if whole_word else 0.01)
    masked, same = now == MASK, now == ids
    there = found.has_target
    got = [np.count_nonzero(there & what) / found.targets for what in (masked, ~masked & ~same, same)]
    one_in = 1 / np.count_nonzero(ORDINARY)  # a random id may be the old one
    assert got == pytest.approx([0.8, 0.1 * (1 - one_in), 0.1 * (1 + one_in)], abs=0.02)
    assert np.array_equal(now[~there], ids[~there])
    assert set(now[there & ~masked & ~same]) == set(np.flatnonzero(ORDINARY))


@pytest.mark.parametrize("whole_word", [False, True])
def test_special_tokens_and_padding_are_never_chosen_and_never_drawn(whole_word: bool) -> None:
    block = slot_block(3, sequences=32, seq_len=63)  # its last row is padding
    tokens = block.tokens.copy()
    tokens[0, 5:9] = (BOS, EOS, MASK, 3)
    found = lesson(replace(block, tokens=tokens), 3, replace(MLM, mask_rate=1.0, whole_word=whole_word))
    inside = np.arange(63) < block.lengths[:, None]
    assert np.array_equal(found.has_target, ORDINARY[tokens[:, :-1]] & inside)
    assert found.replaced is not None and not np.isin(found.replaced, [PAD, BOS, EOS, 3]).any()
    assert not found.has_target[-1].any()
    text_behind_the_end = replace(block, tokens=np.full_like(tokens, FIRST_TEXT_ID))
    assert not lesson(text_behind_the_end, 3, replace(MLM, mask_rate=1.0)).has_target[-1].any()


def test_a_masked_input_does_not_hold_its_target_and_a_target_is_the_id_that_stood_there() -> None:
    (batch,) = pieces(LARGE, MLM, sequences=64)
    ids = torch.from_numpy(LARGE.tokens[:, :-1].astype(np.int64))
    there = batch.targets != IGNORE
    assert torch.equal(batch.targets[there], ids[there]) and torch.equal(batch.inputs[~there], ids[~there])
    hidden = there & (batch.inputs == MASK)
    assert hidden.sum() > 0.75 * there.sum() and (ids[hidden] != MASK).all()


def test_whole_words_are_chosen_as_one() -> None:
    found = lesson(LARGE, 1, replace(MLM, whole_word=True))
    ids, starts, width = LARGE.tokens, set(LARGE.starts.tolist()), LARGE.tokens.shape[1]
    begin, words, expected = 0, {}, np.zeros((64, width - 1), np.int64)
    for row in range(64):
        for column in range(width - 1):
            now = ids[row, column]
            before = ids[row, column - 1] if column and row * width + column not in starts else BOS
            if not ORDINARY[now] or not ORDINARY[before] or BEGINS[now] or ENDS[before]:
                begin = row * (width - 1) + column
            expected[row, column] = begin
            if ORDINARY[now]:
                words.setdefault(begin, []).append(found.has_target[row, column])
            else:
                assert not found.has_target[row, column]
    assert np.array_equal(word_starts(LARGE, WORDS), expected)
    assert all(len(set(word)) == 1 for word in words.values())
    assert np.mean([word[0] for word in words.values()]) == pytest.approx(0.15, abs=0.01)
    assert max(map(len, words.values())) > 5
    single = lesson(LARGE, 1, MLM)
    assert not np.array_equal(single.has_target, found.has_target)


def test_a_word_ends_where_the_rest_of_another_document_begins() -> None:
    tokens = np.full((2, 12), 71, np.uint32)  # a piece that neither begins nor ends a word
    block = Batch(0, 0, 0, tokens, np.array([0, 5, 12], np.int32), np.full(2, 12, np.int32))
    assert word_starts(block, WORDS).tolist() == [[0] * 5 + [5] * 6, [11] * 11]


# ---------------------------------------------------------------------------------------------------- digest and counts


def test_the_digest_is_of_the_text_and_masking_leaves_it_alone() -> None:
    tokens = to_tensor(LARGE)
    before = block_digest(tokens)
    micro = micro_batches(
        tokens, LARGE, sequences=64, document_mask=True, run_seed=7, step=0, slot_block=1,
        learned=lesson(LARGE, 1, MLM),
    )  # fmt: skip
    assert block_digest(tokens) == before
    assert int((micro[0].targets != IGNORE).sum()) == lesson(LARGE, 1, MLM).targets
    tokens[0, 3] += 1  # behind the iterator: the model and the digest both see it
    changed = micro_batches(
        tokens, LARGE, sequences=64, document_mask=True, run_seed=7, step=0, slot_block=1,
        learned=Lesson(np.zeros_like(lesson(LARGE, 1, MLM).has_target), 0, None),
    )  # fmt: skip
    assert block_digest(tokens) != before and changed[0].inputs[0, 3] == tokens[0, 3]


def test_causal_lessons_are_what_they_were() -> None:
    found = lesson(LARGE, 1, How())
    assert np.array_equal(found.has_target, LARGE.has_target()) and found.shift == 1 and found.replaced is None
    (ours,) = pieces(LARGE, How(), sequences=64)
    (default,) = micro_batches(
        to_tensor(LARGE), LARGE, sequences=64, document_mask=True, run_seed=7, step=0, slot_block=1
    )
    assert torch.equal(ours.targets, default.targets) and torch.equal(ours.inputs, default.inputs)


# ---------------------------------------------------------------------------------------------------------------- leaks


def test_a_document_is_read_in_both_directions_and_no_other_document_is() -> None:
    model = fill(Transformer(MODEL, VOCAB)).eval()
    ids = torch.randint(FIRST_TEXT_ID, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(20) >= 8).long()[None]
    positions = torch.cat((torch.arange(8), torch.arange(12)))[None]
    with torch.no_grad():
        before = model(ids, positions, documents)
        changed = ids.clone()
        changed[0, 8:] = FIRST_TEXT_ID + (ids[0, 8:] + 1 - FIRST_TEXT_ID) % (VOCAB - FIRST_TEXT_ID)
        after = model(changed, positions, documents)
        assert torch.equal(before[:, :8], after[:, :8])
        changed = ids.clone()
        changed[0, 19] = MASK
        moved = (model(changed, positions, documents) - before).abs().amax(-1)[0]
        assert not moved[:8].any() and (moved[8:] > 1e-4).all()
        alone = model(ids[:, :8], positions[:, :8])  # one document a row needs no mask
        torch.testing.assert_close(alone, before[:, :8], rtol=1e-5, atol=1e-5)


def test_the_targets_of_a_packed_row_do_not_reach_another_documents_logits() -> None:
    """Through the batch as it is trained: what is masked in one document, and its text, are unseen in the next."""
    model = fill(Transformer(MODEL, VOCAB)).eval()
    block = slot_block(11, seq_len=40)
    first = int(block.starts[block.starts > 0][0])  # where the second document of row 0 begins
    assert 2 < first < 38
    other = block.tokens.copy()
    text = ORDINARY[other[0]] & (np.arange(41) >= first)
    other[0, text] = FIRST_TEXT_ID + (other[0, text] + 1 - FIRST_TEXT_ID) % (VOCAB - FIRST_TEXT_ID)
    with torch.no_grad():
        logits = [
            model(m.inputs, m.positions, m.document_ids)[0]
            for tokens in (block.tokens, other)
            for m in pieces(replace(block, tokens=tokens), MLM)
        ]
    assert torch.equal(logits[0][:first], logits[1][:first]) and not torch.equal(logits[0], logits[1])


def test_padding_is_not_read() -> None:
    """A causal model never sees what stands behind; this one must be kept from it."""
    model = fill(Transformer(MODEL, VOCAB)).eval()
    tokens = np.full((2, 13), PAD, np.uint32)
    tokens[:, :9] = FIRST_TEXT_ID + np.arange(18).reshape(2, 9)
    block = Batch(0, 0, 0, tokens, np.array([0, 13], np.int32), np.full(2, 9, np.int32))
    (batch,) = pieces(block, MLM)
    with torch.no_grad():
        padded = model(batch.inputs, batch.positions, batch.document_ids)[:, :9]
        torch.testing.assert_close(padded, model(batch.inputs[:, :9], batch.positions[:, :9]), rtol=1e-5, atol=1e-5)
    assert pieces(block, How())[0].document_ids is None


# ------------------------------------------------------------------------------------------------------------- training


def steps(rank: int, world: int) -> list[float]:
    """Three steps of MLM as the trainer runs them."""
    model, optimizer = build(replace(MODEL, dropout=0.1), TRAIN)
    losses = []
    for step in range(3):
        own = owned_blocks(step, 7, rank, world)
        taught = {number: lesson(slot_block(number), number, replace(MLM, whole_word=True)) for number in own}
        batches = [m for n in own for m in pieces(slot_block(n), replace(MLM, whole_word=True), n, sequences=1)]
        (targets,) = all_reduce_sum([sum(one.targets for one in taught.values())], CPU)
        dummies = max_blocks(step, 7, world) * 2 - len(batches)
        losses.append(train_step(model, optimizer, batches, dummies, int(targets), 1e-2, 1.0).loss)
    return losses


def test_masked_training_does_not_depend_on_the_world_size() -> None:
    one, two = run_ranks(1, steps)[0], run_ranks(2, steps)
    assert two[0] == two[1] and two[0] == pytest.approx(one, abs=1e-5)


def bracketed(number: int) -> Batch:
    """Rows of words `a b c a b c ...`, each of three random letters repeated: the neighbours tell a masked one."""
    rng = np.random.default_rng(number)
    tokens = np.stack([np.resize(rng.integers(FIRST_TEXT_ID, VOCAB, 3), 13) for _ in range(32)]).astype(np.uint32)
    return Batch(0, number, 0, tokens, np.arange(32, dtype=np.int32) * 13, np.full(32, 13, np.int32))


@pytest.mark.parametrize("how", [MLM, How()], ids=["mlm", "clm"])
def test_both_objectives_learn_far_below_the_unigram_baseline(how: How) -> None:
    """Letters are uniform over 27, so a model of frequencies alone stays at ln 27 = 3.30."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = Transformer(replace(MODEL, causal=how.name == "clm"), VOCAB)
    init_weights(model, 1)
    optimizer = build_optimizer(model, replace(TRAIN, eps=1e-8))
    losses = []
    for step in range(200):
        block = bracketed(step)
        (batch,) = pieces(block, how, step, sequences=32)
        targets = lesson(block, step, how).targets
        losses.append(train_step(model, optimizer, [batch], 0, targets, 1e-2 * min(1, step / 20 + 0.05), 1.0).loss)
    torch.set_num_threads(threads)
    assert losses[0] > math.log(27)
    assert np.mean(losses[-20:]) < 0.7 * math.log(27)


# --------------------------------------------------------------------------------------------------------------- config

TINY = "data: {sources: [{name: a, uris: [/x]}]}\ntrain: {steps: 5}\nrun: {seed: 9}\n"


def test_the_config_chooses_the_objective() -> None:
    config = parse_config(TINY, ["train.objective=mlm", "model.causal=false", "train.mlm_mask_rate=0.3"])
    assert how_of(config, WORDS) == How("mlm", 9, 0.3, False, WORDS)
    assert how_of(parse_config(TINY), None) == How("clm", 9)
    assert target_bytes(config.train, 1000) == 300 and target_bytes(parse_config(TINY).train, 1000) == 1000
    assert set(OBJECTIVES) == {"clm", "mlm"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [(["train.objective=mlm"], r"model\.causal=True.*set model\.causal=false"),
     (["model.causal=false"], r"model\.causal=False.*train\.objective=mlm"),
     (["train.mlm_mask_rate=0"], r"train\.mlm_mask_rate"), (["train.mlm_mask_rate=1.5"], r"train\.mlm_mask_rate"),
     (["train.objective=lm"], r"train\.objective")],
)  # fmt: skip
def test_what_cannot_be_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_config(TINY, overrides)
