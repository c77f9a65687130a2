"""The stateless stages of the stream as plain functions over one-row tables; `pipeline.py` chains them with Ray.

Between stages one row is one chunk, so no stage can see half a chunk or two. A row is `fresh` (documents on their way
through curation), `tokens` (a committed chunk read back) or `unit` (a unit of a later epoch, to be read by the packer).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.data.curation import run_after_dedup, run_before_dedup
from pretrainer.data.decisions import record_decisions, record_read
from pretrainer.data.dedup.dedup import Sketches, signatures
from pretrainer.data.filters.stage import Verdict
from pretrainer.data.ledger.pages import ChunkKey
from pretrainer.data.plan import Place, SourcePlan, load_manifest
from pretrainer.data.quarantine import Quarantine, Tell, guarded, is_left_out
from pretrainer.data.readers.extract import BY_CLOCK
from pretrainer.data.readers.formats import Watch, read_unit, unwatched
from pretrainer.data.readers.reading import BEGINNING, Resume, Stop
from pretrainer.errors import StreamError
from pretrainer.schema import QUARANTINED, TOKENIZED, ChunkReport, DeadLetter, from_ipc, to_ipc

CHUNK_ROW = pa.schema(
    [
        ("position", pa.int64()),  # stream position of the unit, over all epochs
        ("unit", pa.int64()),  # curation position of the unit
        ("chunk", pa.int32()),
        ("last", pa.bool_()),
        ("kind", pa.string()),  # fresh, tokens, unit
        ("report", pa.string()),  # JSON of a ChunkReport, for fresh rows
        ("docs", pa.large_binary()),  # IPC of DOCUMENTS (fresh) or TOKENIZED (tokens)
        ("sketches", pa.large_binary()),
    ]
)


@dataclass(frozen=True)
class ChunkRow:
    """One CHUNK_ROW, its binary cells still in Arrow memory."""

    position: int
    unit: int
    chunk: int
    last: bool
    kind: str
    report: ChunkReport | None
    docs: pa.Buffer | None
    sketches: pa.Buffer | None

    @property
    def key(self) -> ChunkKey:
        return ChunkKey(self.unit, self.chunk)


def chunk_row(
    position: int,
    key: ChunkKey,
    last: bool,
    kind: str,
    report: ChunkReport | None = None,
    docs: pa.Table | None = None,
    sketches: Sketches | None = None,
) -> pa.Table:
    """A CHUNK_ROW table of one row."""
    values = (
        position,
        key.unit,
        key.chunk,
        last,
        kind,
        json.dumps(asdict(report)) if report else "",
        to_ipc(docs) if docs is not None else b"",
        to_ipc(sketches.to_table()) if sketches is not None else b"",
    )
    return pa.table([pa.array([v], f.type) for v, f in zip(values, CHUNK_ROW, strict=True)], schema=CHUNK_ROW)


def one_chunk(table: pa.Table) -> ChunkRow:
    """The row of a CHUNK_ROW table; stops the run where Ray gave anything but one whole chunk."""
    if table.num_rows != 1:
        raise StreamError(f"a stage was called with {table.num_rows} chunks instead of 1: Ray's batching changed")
    cells = {name: table.column(name)[0] for name in CHUNK_ROW.names}
    report = cells["report"].as_py()
    return ChunkRow(
        **{name: cells[name].as_py() for name in ("position", "unit", "chunk", "last", "kind")},
        report=parse_report(report) if report else None,
        docs=cells["docs"].as_buffer(),
        sketches=cells["sketches"].as_buffer(),
    )


def parse_report(text: str) -> ChunkReport:
    raw = json.loads(text)
    return ChunkReport(**{**raw, "dead_letters": [DeadLetter(**d) for d in raw["dead_letters"]]})


def expand_positions(table: pa.Table) -> Iterator[pa.Table]:
    """Descriptor rows: the stream positions first, first + 1, … end - 1, one row each."""
    for position in range(table.column("first")[0].as_py(), table.column("end")[0].as_py()):
        yield pa.table({"position": pa.array([position], pa.int64())})


def read_chunks(
    table: pa.Table, plan: SourcePlan, committed_units: int, committed_chunks: int = 0
) -> Iterator[pa.Table]:
    """Position -> its chunks: read, normalised, filtered and sketched, or read back where they are committed.

    Committed are the first `committed_units` units and the first `committed_chunks` chunks of the one behind them.
    """
    position = table.column("position")[0].as_py()
    place = plan.place(position)
    if place.curated_at < committed_units:
        for key, tokens, last in plan.ledger.read_unit(place.curated_at):
            yield chunk_row(position, key, last, "tokens", docs=tokens)
    elif place.epoch > 0:
        yield chunk_row(position, ChunkKey(place.curated_at, 0), True, "unit")
    else:
        first = committed_chunks if place.curated_at == committed_units else 0
        for key in (ChunkKey(place.curated_at, chunk) for chunk in range(first)):
            yield chunk_row(position, key, False, "tokens", docs=plan.ledger.read_tokens(key)[0])
        for key, last, report, kept, sketches in _fresh_chunks(plan, place, first):
            yield chunk_row(position, key, last, "fresh", report, kept, sketches)


T = TypeVar("T")
Curated = tuple[ChunkKey, bool, ChunkReport, pa.Table, Sketches]


def _fresh_chunks(plan: SourcePlan, place: Place, chunk: int) -> Iterator[Curated]:
    """The chunks of a unit from number `chunk` on, read and curated; what kills its reader is left out."""
    resume = _resume(plan, place, chunk)

    def read(stops: Sequence[Stop]) -> Iterator[Curated]:
        nonlocal chunk, resume
        for docs, report, last in raw_chunks(plan, place.unit, chunk, resume, stops):
            record_by_clock(plan, place.unit, quarantine, report)
            key = ChunkKey(place.curated_at, chunk)
            yield key, last, report, *curate_chunk(plan, docs, report, key)
            chunk, resume = chunk + 1, Resume(**report.next) if report.next else resume

    quarantine, attempt = Quarantine(plan.ledger.root, place.curated_at), partial(attempt_unit, plan, place.unit, None)
    yield from guarded(quarantine, plan.config.max_shard_failures, attempt, read)


def record_by_clock(plan: SourcePlan, unit: int, quarantine: Quarantine, report: ChunkReport) -> None:
    """Pages that a limit of this machine refused are verdicts from now on, before dedup sees their neighbours."""
    for letter in report.dead_letters:
        if letter.reason in BY_CLOCK:
            piece = [piece.path for piece in plan.unit_plan.pieces(unit)].index(letter.shard)
            quarantine.add_if(Stop(piece, letter.row, False, letter.detail, letter.reason))


def attempt_unit(plan: SourcePlan, unit: int, chunks: int | None, stops: Sequence[Stop], tell: Tell) -> None:
    """`quarantine.Attempt`: read the first chunks of a unit (None: all) by record and curate them by document."""
    pieces = {piece.shard: number for number, piece in enumerate(plan.unit_plan.pieces(unit))}
    found = raw_chunks(plan, unit, stops=stops, watch=lambda piece, row: tell(piece, row, True))
    for docs, report, _last in islice(found, chunks):
        curate = partial(curate_chunk, plan, report=report)
        attempt_documents(curate, docs, (), lambda shard, row, is_rest: tell(pieces[shard], row, is_rest))


def attempt_documents(work: Callable[[pa.Table], object], docs: pa.Table, stops: Sequence[Stop], tell: Tell) -> None:
    """`quarantine.Attempt`: do something with documents, one by one; tells their shards as pieces."""
    docs = docs.filter(pa.array(~is_left_out(docs, stops)))
    places = zip(docs.column("shard").to_pylist(), docs.column("row").to_pylist(), strict=True)
    for number, (shard, row) in enumerate(places):
        tell(shard, row, False)
        work(docs.slice(number, 1))


def _resume(plan: SourcePlan, place: Place, chunk: int) -> Resume:
    """Where to read on behind the committed chunks of a unit: their last record says it."""
    if chunk == 0:
        return BEGINNING
    record = plan.ledger.record(ChunkKey(place.curated_at, chunk - 1))
    assert record is not None and record.next is not None
    return Resume(**record.next)


def raw_chunks(
    plan: SourcePlan,
    unit: int,
    first_chunk: int = 0,
    resume: Resume = BEGINNING,
    stops: Sequence[Stop] = (),
    watch: Watch = unwatched,
) -> Iterator[tuple[pa.Table, ChunkReport, bool]]:
    """(documents, report, last) of the chunks of a unit, as the reader gives them; see `readers.formats.read_unit`."""
    config = plan.config
    return read_unit(
        plan.unit_plan.pieces(unit), plan.source, config.chunk_bytes, config.max_document_bytes,
        first_chunk=first_chunk, resume=resume, extract=config.extract, stops=stops, watch=watch,
    )  # fmt: skip


def curate_chunk(
    plan: SourcePlan, docs: pa.Table, report: ChunkReport, key: ChunkKey | None = None
) -> tuple[pa.Table, Sketches]:
    """The stages before dedup (their drops are counted in `report`), and what dedup needs of the rest.

    With a key, and where the config asks for it, the decision log is begun.
    """
    verdict = run_before_dedup(plan, docs)
    if key is not None and plan.config.decisions:
        record_read(plan, key, docs, verdict, report.dead_letters)
    count_drops(verdict, report)
    docs = verdict.docs
    return docs, signatures(docs.column("text"), plan.config.dedup, docs.column("url"))


def finish_chunk(plan: SourcePlan, docs: pa.Table, report: ChunkReport, key: ChunkKey) -> pa.Table:
    """The stages behind dedup and the tokenizer, over what dedup kept: schema.TOKENIZED; what kills them is left out.

    `report` gets their drops, the quarantined as dead letters, and how many documents are left. Dead letters of here
    come too late for `data.max_dead_letter_share`.
    """
    done = f"decisions/{key.name}.parquet" if plan.config.decisions else f"tokens/{key.name}.arrow"
    quarantine = Quarantine(plan.ledger.root, key.name, done)
    verdict, tokenized = do_guarded(plan, quarantine, partial(finish_documents, plan), docs)
    if plan.config.decisions:
        record_decisions(plan, key, verdict)
    count_drops(verdict, report)
    report.dead_letters += [_letter(plan, stop) for stop in quarantine.stops]
    report.kept = verdict.docs.num_rows
    return tokenized


def finish_documents(plan: SourcePlan, docs: pa.Table, stops: Sequence[Stop] = ()) -> tuple[Verdict, pa.Table]:
    """(what the stages behind dedup say, schema.TOKENIZED of what they keep)."""
    verdict = run_after_dedup(plan, docs, stops)
    return verdict, tokenize_documents(plan, verdict.docs)


def do_guarded(plan: SourcePlan, quarantine: Quarantine, work: Callable[..., T], docs: pa.Table) -> T:
    """work(docs, stops): what kills it of these documents is left out. `work` must pickle."""
    attempt = partial(attempt_documents, work, docs)
    (done,) = guarded(quarantine, plan.config.max_shard_failures, attempt, lambda stops: [work(docs, stops)])
    return done


def _letter(plan: SourcePlan, stop: Stop) -> DeadLetter:
    path = load_manifest(plan.data_uri).shard(plan.index, stop.piece).path
    return DeadLetter(plan.source.name, path, stop.row, stop.reason, stop.cause)


def count_drops(verdict: Verdict, report: ChunkReport) -> None:
    """A quarantined document is a dead letter and no drop."""
    for reason, kept in zip(verdict.reasons, verdict.kept, strict=True):
        if reason not in (None, QUARANTINED) and not kept:
            report.drop(reason)


def tokenize_chunk(table: pa.Table, plan: SourcePlan) -> pa.Table:
    """Kept documents -> token ids; writes the token shard and then the ledger record."""
    row = one_chunk(table)
    if row.kind != "fresh":
        return table
    assert row.report is not None
    tokenized = finish_chunk(plan, from_ipc(row.docs), row.report, row.key)
    plan.ledger.commit(row.key, row.last, tokenized, row.report)
    return chunk_row(row.position, row.key, row.last, "tokens", docs=tokenized)


def tokenize_documents(plan: SourcePlan, docs: pa.Table) -> pa.Table:
    """schema.DOCUMENTS -> schema.TOKENIZED."""
    texts = docs.column("text").combine_chunks()
    flat, offsets = plan.tokenizer.encode_batch(texts.to_pylist())
    tokens = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat, pa.uint32()))
    lengths = pc.binary_length(texts).cast(pa.int32())
    return pa.table([docs.column("id"), docs.column("shard"), docs.column("row"), lengths, tokens], schema=TOKENIZED)
