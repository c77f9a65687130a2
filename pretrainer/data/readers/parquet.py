"""Reader of Parquet."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pretrainer.data.readers.decompress import CorruptStreamError, Start
from pretrainer.data.readers.reading import Reading, Record, document_id, number, plain_text
from pretrainer.errors import SourceError
from pretrainer.storage import RetryingFile

PARQUET_BATCH_ROWS = 512


def read_parquet(reading: Reading) -> Generator[Record, None, int]:
    """One document per row; rows are row numbers, from 0, and the size of a record is the bytes of its text.

    A page is decompressed whole, so only its writer bounds the memory that it takes.
    """
    row, position = reading.resume.row, reading.resume.offset
    with reading.open() as file:
        try:
            for batch in _parquet_batches(reading, file):
                for cells in batch:
                    record = _parquet_document(reading, position, row, *cells)
                    yield record
                    position, row = position + record.size, row + 1
        except CorruptStreamError as error:
            yield reading.refused(position, 0, row, "corrupt_shard", f"from row {row:,} on: {error}")
    return position


def _parquet_document(
    reading: Reading, start: int, row: int, data: bytes | None, identity: object, url: object, language: object,
    *scores: object,
) -> Record:  # fmt: skip
    if data is None:
        return reading.refused(start, 0, row, "null_text", "the text is null")
    record = reading.document(start, row, data)
    if record.text is None:
        return record
    return record._replace(
        id=document_id(identity, record.id or ""),
        url=plain_text(url),
        language=plain_text(language),
        scores=tuple(map(number, scores)),
    )


def _parquet_batches(reading: Reading, file: RetryingFile) -> Iterator[Iterator[tuple[Any, ...]]]:
    """(text bytes or None, id, url, language, scores …) per row from `resume` on, None where there is no such column.

    Batches begin anew in every row group.

    So what is lost in front of a corrupt page does not depend on where reading began.
    """
    source = reading.source
    parquet = _or_corrupt(lambda: pq.ParquetFile(pa.PythonFile(file, mode="r")))
    wanted = (source.text_column, source.id_column, source.url_column, source.language_column, *source.score_columns)
    columns = list(dict.fromkeys(column for column in wanted if column))
    _check_columns(reading, parquet.schema_arrow, columns)
    row = reading.resume.before
    for group in range(reading.resume.address, parquet.num_row_groups):
        reading.starts.passed.append(Start(row, group))
        batches = parquet.iter_batches(PARQUET_BATCH_ROWS, [group], columns, use_threads=False)
        while (batch := _or_corrupt(partial(next, batches, None))) is not None:
            fresh = batch.slice(max(0, reading.resume.row - row))
            row += len(batch)
            texts = _column_bytes(fresh.column(source.text_column))
            others = [_column_bytes(fresh.column(name)) if name else [None] * len(texts) for name in wanted[1:]]
            yield zip(texts, *(map(_decoded, cells) for cells in others), strict=True)


def _or_corrupt(call: Callable[[], Any]) -> Any:
    """Arrow's errors are about content: those of storage arrive as StorageError."""
    try:
        return call()
    except (pa.ArrowException, OSError) as error:
        raise CorruptStreamError(str(error)) from None


def _check_columns(reading: Reading, schema: pa.Schema, columns: Sequence[str]) -> None:
    where = f"source {reading.source.name}: shard {reading.piece.path}"
    for column in columns:
        if column not in schema.names:
            there = ", ".join(schema.names)
            raise SourceError(f"{where} has no column {column!r}, only {there}: name another in the config")
    kind = schema.field(columns[0]).type
    if not _is_text(kind):
        raise SourceError(f"{where}: column {columns[0]!r} holds {kind}, not text: set text_column to another one")


def _is_text(kind: pa.DataType) -> bool:
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return any(test(plain) for test in (types.is_string, types.is_large_string, types.is_string_view,
                                        types.is_binary, types.is_large_binary, types.is_binary_view))


def _column_bytes(column: pa.Array) -> list[Any]:
    """Python values; text stays bytes, because Parquet does not promise that strings are UTF-8."""
    if not _is_text(column.type):
        return column.to_pylist()
    plain = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    return plain.cast(pa.large_binary()).to_pylist()


def _decoded(value: object) -> object:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
