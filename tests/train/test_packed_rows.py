"""Packed rows in the model: every document is trained as if it stood alone, whatever the packing mode."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from pretrainer.config import ModelConfig
from pretrainer.data.packing.packing import PACKERS, empty_row, pack_window, slot_block
from pretrainer.model.transformer import Transformer
from pretrainer.schema import BOS, EOS, TOKENIZED, Batch, Specials
from pretrainer.train.batch import document_table, micro_batches, to_tensor, valid_targets
from pretrainer.train.step import IGNORE, nll_sum
from tests.model.fill import fill

VOCAB, SEQ_LEN, SEQUENCES = 96, 15, 14
CONFIG = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn_hidden=48, tie_embeddings=False)
# With bos and eos: three rows of 16 ids, one id more than a row, one that fills it, short ones, an empty one.
LENGTHS = (45, 15, 14, 9, 8, 5, 3, 2, 1, 0)


def texts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(70, VOCAB, length).tolist() for length in LENGTHS]


@cache
def block_of(mode: str) -> tuple[Batch, list]:
    """(slot block of all documents, its packed rows)."""
    n = len(LENGTHS)
    table = pa.table([[str(i) for i in range(n)], [0] * n, list(range(n)), [1] * n, texts()], schema=TOKENIZED)
    rows, _counts = pack_window([table], SEQ_LEN, mode, Specials(), ("key",))
    rows += [empty_row(SEQ_LEN, Specials())] * (SEQUENCES - len(rows))
    return Batch.from_row(slot_block(rows, 0, 0, 0).to_pylist()[0], SEQ_LEN), rows


@cache
def pieces(mode: str) -> list[tuple[int, int, int, np.ndarray]]:
    """(row, column, document, ids) of every piece in the slot block."""
    found = []
    for number, row in enumerate(block_of(mode)[1]):
        ends = [*row.starts[1:], row.length][: len(row.starts)]  # a fully masked row has none
        for begin, end, document in zip(row.starts, ends, row.documents, strict=True):
            found.append((number, int(begin), int(document), row.tokens[begin:end].astype(np.int64)))
    return found


def micro(mode: str, sequences: int = SEQUENCES) -> list:
    block = block_of(mode)[0]
    return micro_batches(
        to_tensor(block), block, sequences=sequences, document_mask=True, run_seed=0, step=0, slot_block=0
    )


@pytest.fixture(scope="module")
def model() -> Iterator[Transformer]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many tiny products
    yield fill(Transformer(CONFIG, VOCAB)).eval()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("mode", PACKERS)
def test_the_sample_has_every_kind_of_row(mode: str) -> None:
    found = pieces(mode)
    assert {document for _row, _column, document, _ids in found} == set(range(len(LENGTHS)))
    assert sum(len(ids) for *_rest, ids in found) == sum(LENGTHS) + 2 * len(LENGTHS)
    shared = len(found) - len({row for row, *_rest in found})
    assert shared == 0 if mode == "pad" else shared >= 4


@pytest.mark.parametrize("mode", PACKERS)
@torch.no_grad()
def test_logits_of_a_packed_document_are_those_of_the_document_alone(mode: str, model: Transformer) -> None:
    (batch,) = micro(mode)
    logits = model(batch.inputs, batch.positions, batch.document_ids)
    for row, column, _document, ids in pieces(mode):
        seen = ids[: SEQ_LEN - column]  # the last id of a row is only ever a target
        if len(seen):
            alone = model(torch.from_numpy(seen)[None], torch.arange(len(seen))[None])[0]
            torch.testing.assert_close(logits[row, column : column + len(seen)], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", PACKERS)
def test_positions_restart_and_documents_change_at_every_piece(mode: str) -> None:
    block = block_of(mode)[0]
    positions, documents = document_table(block.starts, SEQUENCES, SEQ_LEN + 1)
    for row, column, _document, ids in pieces(mode):
        own = slice(column, column + len(ids))
        assert positions[row, own].tolist() == list(range(len(ids)))
        assert len(set(documents[row, own])) == 1
        assert (documents[row, :column] != documents[row, column]).all()


@pytest.mark.parametrize("mode", PACKERS)
def test_targets_are_the_next_ids_of_the_same_piece_and_nothing_else(mode: str) -> None:
    want = np.full((SEQUENCES, SEQ_LEN), IGNORE)
    for row, column, _document, ids in pieces(mode):
        want[row, column : column + len(ids) - 1] = ids[1:]
    (batch,) = micro(mode)
    assert batch.targets.tolist() == want.tolist()
    found = pieces(mode)
    assert valid_targets(block_of(mode)[0]) == sum(len(ids) - 1 for *_rest, ids in found)


@pytest.mark.parametrize("mode", ["best_fit", "pad"])
def test_the_eos_of_every_document_is_learned(mode: str) -> None:
    """Of the ids of a document only the first of each piece is no target, and that is never eos."""
    assert all(ids[0] != EOS for *_rest, ids in pieces(mode))
    (batch,) = micro(mode)
    assert int((batch.targets == EOS).sum()) == len(LENGTHS)
    assert int((batch.targets == BOS).sum()) == 0


@pytest.mark.parametrize("mode", PACKERS)
@torch.no_grad()
def test_loss_is_the_sum_over_documents_alone(mode: str, model: Transformer) -> None:
    alone = 0.0
    for *_rest, ids in pieces(mode):
        if len(ids) > 1:
            logits = model(torch.from_numpy(ids[:-1])[None], torch.arange(len(ids) - 1)[None])[0]
            alone += float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="sum"))
    packed = sum(float(nll_sum(model, batch)) for batch in micro(mode, sequences=2))
    assert packed == pytest.approx(alone, rel=1e-5)
