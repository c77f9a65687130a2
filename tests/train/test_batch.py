import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.schema import BOS, EOS, PAD, Batch
from pretrainer.train.batch import (
    block_digest,
    chain,
    document_table,
    max_blocks,
    micro_batches,
    owned_blocks,
    step_digest,
    to_tensor,
    valid_targets,
)
from pretrainer.train.step import IGNORE
from tests.train.samples import slot_block

WORLDS, STEPS, PER_STEP = st.integers(1, 8), st.integers(0, 1000), st.integers(1, 40)
KEYS = dict(document_mask=True, run_seed=1, step=2, slot_block=3)


@given(STEPS, PER_STEP, WORLDS)
def test_the_ranks_split_a_step_exactly(step, g, world):
    owned = [owned_blocks(step, g, rank, world) for rank in range(world)]
    assert sorted(n for blocks in owned for n in blocks) == list(range(step * g, (step + 1) * g))
    assert all(n % world == rank for rank, blocks in enumerate(owned) for n in blocks)
    assert max_blocks(step, g, world) == max(len(blocks) for blocks in owned)


@given(PER_STEP, WORLDS, st.data())
def test_a_rank_holds_its_blocks_in_the_order_of_the_stream(g, world, data):
    rank = data.draw(st.integers(0, world - 1))
    held = [n for step in range(5) for n in owned_blocks(step, g, rank, world)]
    assert held == list(range(rank, 5 * g, world))


@given(st.integers(1, 5), st.integers(2, 20), st.data())
def test_documents_are_numbered_and_counted_within_rows(rows, width, data):
    starts = sorted(data.draw(st.sets(st.integers(0, rows * width - 1))))
    positions, documents = document_table(np.array(starts, dtype=np.int32), rows, width)
    for row in range(rows):
        position, document = -1, -1
        for column in range(width):
            begins = column == 0 or row * width + column in starts
            position, document = (0, document + 1) if begins else (position + 1, document)
            assert (positions[row, column], documents[row, column]) == (position, document)


def test_targets_are_the_next_tokens_but_for_padding_and_document_starts():
    a, b, c = 70, 71, 72
    tokens = np.array([[BOS, a, b, EOS, BOS, c], [a, EOS, PAD, PAD, PAD, PAD], [PAD] * 6], dtype=np.uint32)
    starts, lengths = np.array([0, 4, 6], dtype=np.int32), np.array([6, 2, 0], dtype=np.int32)
    block = Batch(0, 0, 0, tokens, starts, lengths)
    (whole,) = micro_batches(to_tensor(block), block, sequences=3, **KEYS)
    x = IGNORE
    assert whole.targets.tolist() == [[a, b, EOS, x, c], [EOS, x, x, x, x], [x] * 5]
    assert whole.inputs.tolist() == tokens[:, :-1].tolist()
    assert whole.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert whole.document_ids.tolist() == [[0, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert valid_targets(block) == 5


@given(st.integers(0, 50))
@settings(max_examples=20)
def test_valid_targets_count_what_the_model_is_given(number):
    block = slot_block(number)
    batches = micro_batches(to_tensor(block), block, sequences=1, **KEYS)
    assert valid_targets(block) == sum(int((b.targets != IGNORE).sum()) for b in batches)


def test_micro_batches_are_the_rows_of_the_block_in_order():
    block = slot_block(5, sequences=6)
    whole = micro_batches(to_tensor(block), block, sequences=6, **KEYS)[0]
    split = micro_batches(to_tensor(block), block, sequences=2, **KEYS)
    assert len(split) == 3 and len({b.seed for b in split}) == 3
    for name in ("inputs", "targets", "positions"):
        assert torch.equal(torch.cat([getattr(b, name) for b in split]), getattr(whole, name))
    for part, ids in zip(split, whole.document_ids.split(2), strict=True):
        assert torch.equal(part.document_ids, ids) if part.document_ids is not None else not ids.any()


def test_without_a_document_mask_a_row_is_one_text():
    block = slot_block(5)
    (batch,) = micro_batches(to_tensor(block), block, sequences=2, **(KEYS | {"document_mask": False}))
    assert batch.document_ids is None
    assert batch.positions.tolist() == [list(range(12))] * 2


def test_the_block_digest_is_that_of_the_ids_as_little_endian_uint32():
    block = slot_block(2)
    ids = block.tokens.ravel().tolist()
    assert block_digest(to_tensor(block)) == hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()


@pytest.mark.parametrize("where", [(0, 0), (0, 12), (1, 5)])
def test_a_token_corrupted_after_the_iterator_changes_the_order_digest(where):
    tokens = to_tensor(slot_block(2))
    clean = chain("", step_digest([block_digest(tokens)]))
    batch = micro_batches(tokens, slot_block(2), sequences=2, **KEYS)[0]
    seen_by_model = batch.inputs if where[1] < 12 else tokens
    seen_by_model[where] += 1
    assert chain("", step_digest([block_digest(tokens)])) != clean


def test_step_digest_and_chain_hash_raw_digests_in_order():
    a, b = block_digest(to_tensor(slot_block(1))), block_digest(to_tensor(slot_block(2)))
    step = hashlib.sha256(bytes.fromhex(a) + bytes.fromhex(b)).hexdigest()
    assert step_digest([a, b]) == step != step_digest([b, a])
    assert chain(a, b) == step
    assert chain("", a) == hashlib.sha256(bytes.fromhex(a)).hexdigest()


def test_special_ids_inside_the_text_of_a_loaded_tokenizer_are_learned_like_any_other():
    # Where documents begin and padding starts is said by `starts` and `lengths`, never by the ids.
    tokens, starts, lengths = np.array([[9, PAD, BOS, EOS]], np.uint32), np.zeros(1, np.int32), np.array([4], np.int32)
    block = Batch(0, 0, 0, tokens, starts, lengths)
    (batch,) = micro_batches(to_tensor(block), block, sequences=1, **KEYS)
    assert batch.targets.tolist() == [[PAD, BOS, EOS]]
