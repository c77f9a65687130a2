"""The packing stage: chunks -> pack windows -> slot blocks, in order, one process per source.

Like the dedup stage it may be called again with chunks it has seen, or start with empty state in the middle of a
window. What a chunk yields is therefore a function of its place in the stream and of durable records: closed windows
are in the window log before any of their blocks leave, chunks that this process has not seen are read from their token
shards, and a chunk inside a closed window yields again exactly what it yielded before.

It also sees all committed chunks in order, so it is the one that writes the pages of their records.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pretrainer.data.ledger.pages import ChunkKey
from pretrainer.data.ledger.records import RecordPager
from pretrainer.data.ledger.windows import At, Window
from pretrainer.data.packing.packing import PackedRow, Rows, empty_row, pack_window, slot_block, window_permutation
from pretrainer.data.packing.shuffle_quality import ShuffleQuality, shuffle_quality
from pretrainer.data.plan import SourcePlan
from pretrainer.data.stages import one_chunk
from pretrainer.schema import SLOT_BLOCK, from_ipc


class PackWindows:
    """Packs one source from slot block `first_block` on."""

    def __init__(self, plan: SourcePlan, first_block: int) -> None:
        self.plan = plan
        self.first_block = first_block
        self.windows = plan.windows
        self.windows.write_pages()
        self.newest = self.windows.newest()  # the window closed last
        self.here: Window | None = None  # the closed window that held the last replayed chunk
        self.record_pager = RecordPager(plan.ledger.record_log)
        self.chunks: dict[
            At, tuple[pa.Table, bool]
        ] = {}  # (tokens, last in its unit) of chunks whose window is not done
        self.rows: dict[int, list[PackedRow]] = {}  # rows of windows that a coming block still needs

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        row = one_chunk(table)
        if row.position < self.plan.units:  # epoch 0, in which chunks are committed
            self.record_pager.passed(row.key, row.last)
        chunks: Iterator[tuple[int, pa.Table, bool]]
        if row.kind == "unit":
            chunks = ((key.chunk, tokens, last) for key, tokens, last in self.plan.ledger.read_unit(row.unit))
        else:
            chunks = iter([(row.chunk, from_ipc(row.docs), row.last)])
        blocks = [block for chunk, tokens, last in chunks for block in self._chunk((row.position, chunk), tokens, last)]
        yield from blocks or [SLOT_BLOCK.empty_table()]

    @property
    def open_at(self) -> At:
        """First chunk that no closed window holds."""
        return self.newest.after if self.newest else self.plan.begin

    def _chunk(self, at: At, tokens: pa.Table, last: bool) -> Iterator[pa.Table]:
        if at < self.plan.begin:
            return
        self.chunks[at] = tokens, last
        after = next_chunk(at, last)
        if at < self.open_at:
            window = self._closed_around(at)
            if window.after == after:
                yield from self._blocks(window)
        elif self._closes(at, after):
            yield from self._blocks(self._close(after))

    def _closed_around(self, at: At) -> Window:
        """The closed window that holds a chunk before `open_at`."""
        if self.here is None or not self.here.first <= at < self.here.after:
            self.here = self.windows.of_chunk(at)
        assert self.here is not None
        return self.here

    def _closes(self, at: At, after: At) -> bool:
        """Whether the open window ends with this chunk: it has its tokens, or the epoch ends."""
        held = sum(
            count_tokens(tokens)
            for tokens, _last in self._tokens_between(self.open_at, next_chunk(at, self.chunks[at][1]))
        )
        return held >= self.plan.config.pack_window_tokens or ends_epoch(self.plan, after)

    def _tokens_between(self, first: At, after: At) -> Iterator[tuple[pa.Table, bool]]:
        """Token shards of the chunks first, … up to but not with `after`; unseen ones come from the ledger."""
        at = first
        while at < after:
            if at not in self.chunks:
                self.chunks[at] = self.plan.ledger.read_tokens(ChunkKey(self.plan.place(at[0]).curated_at, at[1]))
            yield self.chunks[at]
            at = next_chunk(at, self.chunks[at][1])

    def _close(self, after: At) -> Window:
        number, first = self.newest.window + 1 if self.newest else 0, self.open_at
        first_sequence = self.newest.end_sequence if self.newest else 0
        tables = [tokens for tokens, _last in self._tokens_between(first, after)]
        rows, packed = pack_tables(self.plan, number, tables)
        rows = pad_epoch_end(self.plan, rows, first_sequence, after)
        window = Window(
            window=number,
            epoch=first[0] // self.plan.units,
            first=first,
            after=after,
            first_sequence=first_sequence,
            sequences=len(rows),
            tokens=sum(map(count_tokens, tables)),
            padded=packed.padded + (len(rows) - len(packed)) * (self.plan.config.seq_len + 1),
            discarded=packed.discarded,
            split=packed.split,
            documents=packed.documents,
            shuffle=self._shuffle(number, packed, tables),
        )
        self.windows.write(window)
        self.newest = window
        self.rows[number] = rows
        return window

    def _shuffle(self, number: int, packed: Rows, tables: list[pa.Table]) -> ShuffleQuality:
        """How the sequences of a window lie in training order; each counts for its main document."""
        order = window_permutation(len(packed), *window_key(self.plan, number))
        documents = packed.main_documents()[order]
        shards = pa.concat_tables(tables).column("shard").to_numpy()
        return shuffle_quality(documents, shards[documents])

    def _window_rows(self, number: int) -> list[PackedRow]:
        """Rows of a closed window: from memory, or packed again."""
        if number not in self.rows:
            window = self.windows.get(number)
            tables = [tokens for tokens, _last in self._tokens_between(window.first, window.after)]
            rows, _packed = pack_tables(self.plan, number, tables)
            self.rows[number] = pad_epoch_end(self.plan, rows, window.first_sequence, window.after)
        return self.rows[number]

    def _blocks(self, window: Window) -> Iterator[pa.Table]:
        """Slot blocks that are complete with this window, from `first_block` on; one row each."""
        size = self.plan.config.slot_sequences
        end = window.end_sequence
        for block in range(max(self.first_block, window.first_sequence // size), end // size):
            yield self._block(block, window.window)
        self._forget(window.after, end // size * size)

    def _block(self, block: int, number: int) -> pa.Table:
        """The SLOT_BLOCK row of a block whose last sequence is in window `number`."""
        size = self.plan.config.slot_sequences
        rows = []
        for sequence in reversed(range(block * size, (block + 1) * size)):
            while sequence < self.windows.get(number).first_sequence:
                number -= 1
            rows.append(self._window_rows(number)[sequence - self.windows.get(number).first_sequence])
        return slot_block(rows[::-1], self.plan.index, block, self.windows.get(number).epoch)

    def _forget(self, after: At, next_sequence: int) -> None:
        """Drop what no later block needs: chunks before `after`, rows before sequence `next_sequence`."""
        self.chunks = {at: held for at, held in self.chunks.items() if at >= after}
        self.rows = {n: r for n, r in self.rows.items() if self.windows.get(n).end_sequence > next_sequence}


class CloseChunks:
    """The packer's place when a source is curated without being packed: says how far it has come."""

    def __init__(self, plan: SourcePlan) -> None:
        self.record_pager = RecordPager(plan.ledger.record_log)

    def __call__(self, table: pa.Table) -> pa.Table:
        row = one_chunk(table)
        self.record_pager.passed(row.key, row.last)
        return pa.table({"units": pa.array([row.unit + row.last], pa.int64())})


def pack_tables(plan: SourcePlan, number: int, tables: list[pa.Table]) -> tuple[list[PackedRow], Rows]:
    """The rows of pack window `number` from its token shards, in training order and in packing order."""
    config = plan.config
    return pack_window(tables, config.seq_len, config.packing, plan.specials, window_key(plan, number))


def window_key(plan: SourcePlan, number: int) -> tuple[object, ...]:
    """Key of the permutation of a window's rows."""
    return plan.config.order_seed, plan.source.name, "window", number


def ends_epoch(plan: SourcePlan, after: At) -> bool:
    """Whether an epoch ends before chunk `after` of the stream."""
    return after[1] == 0 and after[0] % plan.units == 0


def pad_epoch_end(plan: SourcePlan, rows: list[PackedRow], first_sequence: int, after: At) -> list[PackedRow]:
    """At the end of each epoch: fully masked rows up to a whole slot block.

    Of each, and not of the last one only, so that nothing of an epoch depends on how many will follow.
    """
    if not ends_epoch(plan, after):
        return rows
    missing = -(first_sequence + len(rows)) % plan.config.slot_sequences
    return rows + [empty_row(plan.config.seq_len, plan.specials)] * missing


def next_chunk(at: At, last: bool) -> At:
    """The chunk after `at` in the stream."""
    return (at[0] + 1, 0) if last else (at[0], at[1] + 1)


def count_tokens(tokenized: pa.Table) -> int:
    """Token ids in a schema.TOKENIZED table."""
    return sum(
        len(chunk.values) if not chunk.offset else len(chunk.flatten()) for chunk in tokenized.column("tokens").chunks
    )
