"""Slot blocks for the trainer: who holds which, what the model is given, and the digest of it.

Shapes: K sequences per slot block, S = seq_len, so a block holds K * (S + 1) token ids; G slot blocks per step, W
ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pretrainer.model.ring import Ring
from pretrainer.schema import Batch
from pretrainer.train.objective import Lesson
from pretrainer.train.readback import HostCopy
from pretrainer.train.step import IGNORE, MicroBatch, dropout_seed


def owned_blocks(step: int, blocks_per_step: int, rank: int, world: int, dealt_from: int = 0) -> range:
    """Global numbers n of this step's slot blocks that the rank holds: step G <= n < (step + 1) G, n mod W = rank.

    After a restart the stream is dealt from slot block `dealt_from` on, which goes to rank 0.
    """
    start, end = step * blocks_per_step, (step + 1) * blocks_per_step
    return range(start + (rank + dealt_from - start) % world, end, world)


def max_blocks(step: int, blocks_per_step: int, world: int) -> int:
    """Slot blocks of this step's busiest rank, the one that holds its first block; the others run dummies up to it."""
    return len(owned_blocks(step, blocks_per_step, step * blocks_per_step % world, world))


def valid_targets(batch: Batch) -> int:
    """Targets that carry causal loss in a slot block; from numpy alone, before anything is on the device."""
    return int(np.count_nonzero(batch.has_target()))


def on_device(values: np.ndarray, device: torch.device | str) -> Tensor:
    """The array on the device; to a GPU from pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(values)
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_tensor(batch: Batch, device: torch.device | str = "cpu") -> Tensor:
    """The block's token ids [K, S + 1] int64 on the device: the tensor that the micro-batches are views of."""
    return on_device(batch.tokens.astype(np.int64), device)


def document_table(starts: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, document ids), each [rows, width] int64, of a block with documents starting at these offsets.

    Positions count from the start of each document or of the rest of one; ids count documents within a row from 0.
    Every row starts one, whether or not its offset is listed.
    """
    is_start = np.zeros((rows, width), dtype=bool)
    is_start.ravel()[starts] = True
    is_start[:, 0] = True
    columns = np.broadcast_to(np.arange(width, dtype=np.int64), (rows, width))
    begin = np.maximum.accumulate(np.where(is_start, columns, 0), axis=1)
    return columns - begin, np.cumsum(is_start, axis=1, dtype=np.int64) - 1


def micro_batches(
    tokens: Tensor,
    batch: Batch,
    *,
    sequences: int,
    document_mask: bool,
    run_seed: int,
    step: int,
    slot_block: int,
    learned: Lesson | None = None,
    ring: Ring | None = None,
) -> list[MicroBatch]:
    """Split a slot block into forward passes of `sequences` rows each; tokens [K, S + 1] are its ids (see `to_tensor`).

    document_mask keeps attention inside documents and restarts positions there; without it a row is one text.
    slot_block is the block's global number in the run. learned says what its targets are, the next ids by default; a
    masked input changes a copy, never tokens, whose digest stays that of the text. A micro-batch whose rows hold one
    document each needs no mask and gets None. With a ring a micro-batch holds this rank's part of each row.
    """
    rows, width = tokens.shape
    positions, documents = document_table(batch.starts if document_mask else batch.starts[:0], rows, width)
    learned = learned or Lesson(batch.has_target(), 1)
    inputs = tokens[:, :-1]
    has_target = on_device(learned.has_target, tokens.device)
    targets = tokens[:, learned.shift : learned.shift + width - 1].masked_fill(~has_target, IGNORE)
    if learned.replaced is not None:
        # Who reads in both directions would read the padding behind a document too: it becomes a document of its own.
        documents = documents + (np.arange(width) >= batch.lengths[:, None])
        replaced = on_device(learned.replaced, tokens.device)
        inputs = torch.where(replaced >= 0, replaced, inputs)
    places = slice(None) if ring is None else ring.places(width - 1, device=tokens.device)
    in_document = torch.from_numpy(positions[:, :-1].copy()).to(tokens.device)[:, places]
    inputs, targets = inputs[:, places], targets[:, places]
    result = []
    for index, first in enumerate(range(0, rows, sequences)):
        cut = slice(first, first + sequences)
        ids = documents[cut, :-1]
        result.append(MicroBatch(
            inputs=inputs[cut],
            targets=targets[cut],
            positions=in_document[cut],
            document_ids=on_device(ids.copy(), tokens.device) if ids.any() else None,
            seed=dropout_seed(run_seed, step, slot_block, index) + (0 if ring is None else ring.rank),
            slot_block=slot_block,
            ring=ring,
        ))
    return result


class ReadBack:
    """A step's blocks on their way back from the device; on a GPU the copy runs while the host goes on.

    The copy is ordered behind the step that used the tensors, in their own stream, into pinned memory; `digests` waits
    for it. Holding a step's ids costs 4 bytes per token.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """tensors: [K, S + 1] int64 of every block, on one device; they are copied, later changes do not count."""
        self.ids = HostCopy(torch.stack(list(tensors)).to(torch.int32))  # [blocks, K, S + 1]

    def digests(self) -> list[str]:
        """`block_digest` of every block."""
        blocks = self.ids.read().flatten(1).numpy().astype("<i4", copy=False)
        return [hashlib.sha256(block).hexdigest() for block in blocks]


def block_digest(tokens: Tensor) -> str:
    """SHA-256, hex, of all K * (S + 1) ids as uint32 little-endian, read back from the tensor that the model gets."""
    return ReadBack([tokens]).digests()[0]


def step_digest(block_digests: Sequence[str]) -> str:
    """SHA-256, hex, over the raw digests of a step's blocks in slot order."""
    return hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in block_digests)).hexdigest()


def chain(previous_order_digest: str, step_digest: str) -> str:
    """The run's order digest after one more step: SHA-256, hex, over both raw digests; the first `previous` is ''."""
    return hashlib.sha256(bytes.fromhex(previous_order_digest) + bytes.fromhex(step_digest)).hexdigest()
