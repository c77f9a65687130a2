"""What flows between data and training: chunks, documents, slot blocks, batches. numpy and pyarrow only.

Shapes in this file: K sequences per slot block, S = seq_len, so a packed row has S + 1 token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

# Special tokens stand at fixed ids, before every other piece, and are never produced from text.
PAD, BOS, EOS, UNK, MASK = 0, 1, 2, 3, 4
NUM_RESERVED = 64
FIRST_TEXT_ID = 5 + NUM_RESERVED
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>", *(f"<reserved_{i}>" for i in range(NUM_RESERVED)))


@dataclass(frozen=True)
class Specials:
    """Ids that packing adds; a loaded tokenizer may have others than a trained one."""

    bos: int = BOS
    eos: int = EOS
    pad: int = PAD


@dataclass(frozen=True)
class MaskVocabulary:
    """What masked language modelling needs to know of a tokenizer's V ids; arrays are [V] bool."""

    mask_id: int
    ordinary: np.ndarray  # the id comes from text: no special token
    begins: np.ndarray  # a word begins at this piece
    ends: np.ndarray  # a word begins behind this piece


# Documents of one chunk, as a reader gives them and filters keep them.
DOCUMENTS = pa.schema(
    [
        ("id", pa.large_string()),  # the id column, or <shard path>#<row>
        ("shard", pa.int32()),  # number of the shard in the manifest of its source
        ("row", pa.int64()),  # number of the record in its shard; for byte-range reads the byte offset
        ("text", pa.large_string()),
        ("url", pa.large_string()),  # "" where it has none
        ("language", pa.large_string()),  # as the source says or as it was identified, "" where neither
        ("licence", pa.large_string()),  # SPDX id that the head of a code file names, ""
        ("scores", pa.list_(pa.float64())),  # of the columns that the source's limits name, NaN where there is none
    ]
)

# Documents of one chunk after tokenization: what a token shard holds. No bos, no eos: packing adds them.
TOKENIZED = pa.schema(
    [
        ("id", pa.large_string()),
        ("shard", pa.int32()),
        ("row", pa.int64()),
        ("bytes", pa.int32()),  # UTF-8 length of the text
        ("tokens", pa.large_list(pa.uint32())),
    ]
)

# One slot block is one row, so Ray can neither tear nor merge it.
SLOT_BLOCK = pa.schema(
    [
        ("source", pa.int32()),  # index in config.data.sources
        ("block", pa.int64()),  # n-th slot block of its source, counted over all epochs
        ("epoch", pa.int32()),  # epoch of its first sequence
        ("tokens", pa.large_binary()),  # K * (S + 1) uint32, row-major
        (
            "starts",
            pa.large_binary(),
        ),  # int32 offsets into the K * (S + 1) ids where a document or a rest of one begins
        ("lengths", pa.large_binary()),  # K int32: ids before the padding of each row
    ]
)


class SlotOrder(Protocol):
    """Which source fills which slot block; `pretrainer.data.curriculum.SegmentOrder` is the one there is."""

    def expected(self, block: int) -> tuple[int, int]:
        """(source, n): global slot block `block` must be the n-th block of that source."""

    def restart(self, block: int) -> tuple[int, list[int]]:
        """(first global block that the restarted stream deals, first block of each source)."""


class RunOrder(SlotOrder, Protocol):
    """The same over all segments of a run; `pretrainer.data.curriculum.Curriculum` is the one there is."""

    def line_of(self, block: int) -> int:
        """Which packing of the sources a global slot block is of: their sequences count from 0 in each."""

    def slot_sequences_of(self, block: int) -> int:
        """Sequences in a global slot block."""


QUARANTINED = "quarantined"
"""Reason of a dead letter whose content killed its reader."""


@dataclass(frozen=True)
class DeadLetter:
    """One record that could not be read: where it stood and why it was refused."""

    source: str
    shard: str
    row: int
    reason: str
    detail: str


@dataclass
class ChunkReport:
    """What happened to the records of one chunk; part of its ledger record, so it must be deterministic."""

    read: int = 0
    bytes_read: int = 0
    kept: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    next: dict[str, int] | None = None  # where reading goes on behind the chunk; None behind the last one of its unit

    def drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count


@dataclass(frozen=True)
class Batch:
    """One slot block as the trainer sees it."""

    source: int
    block: int
    epoch: int
    tokens: np.ndarray  # [K, S + 1] uint32
    starts: np.ndarray  # [n] int32, sorted offsets into tokens.ravel() where a document (or the rest of one) begins
    lengths: np.ndarray  # [K] int32, ids before the padding of each row

    def has_target(self) -> np.ndarray:
        """[K, S] bool: whether the id after each position is learned; not where a document begins, not the padding.

        A document's first token is not predicted from the document before it.
        """
        rows, width = self.tokens.shape
        valid = np.arange(width) < self.lengths[:, None]
        valid.ravel()[self.starts] = False
        return valid[:, 1:]

    @classmethod
    def from_row(cls, row: dict, seq_len: int) -> Batch:
        """Read one SLOT_BLOCK row (a dict of Python values)."""
        tokens = np.frombuffer(row["tokens"], dtype=np.uint32).reshape(-1, seq_len + 1)
        return cls(
            int(row["source"]),
            int(row["block"]),
            int(row["epoch"]),
            tokens,
            np.frombuffer(row["starts"], dtype=np.int32),
            np.frombuffer(row["lengths"], dtype=np.int32),
        )


def to_ipc(table: pa.Table) -> bytes:
    """Arrow IPC stream of a table as one record batch; the same table gives the same bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def from_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """Inverse of `to_ipc`, without copying."""
    with pa.ipc.open_stream(data) as reader:
        return reader.read_all()
