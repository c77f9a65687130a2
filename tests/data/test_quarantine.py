"""Content that kills its reader is left out, at the place that a probe found, and nothing else is.

The probe is a process of its own, so what is poison here is planted in it by a sitecustomize.py on its path. In the
process of the test the same content raises, where it could not crash without the test.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest

from pretrainer.config import PiiConfig
from pretrainer.data import held_out, stages
from pretrainer.data import quarantine as quarantine_module
from pretrainer.data.filters import pii
from pretrainer.data.ledger.ledger import ChunkKey
from pretrainer.data.plan import SourcePlan
from pretrainer.data.quarantine import Attempt, Quarantine, find_stop, guarded
from pretrainer.data.readers import jsonl
from pretrainer.data.readers.reading import Stop
from pretrainer.data.replay import fresh_plans, source_blocks
from pretrainer.data.tokenizer.tokenizer import SentencePieceTokenizer
from pretrainer.errors import StorageError
from pretrainer.schema import DOCUMENTS, Batch
from pretrainer.storage import Store
from tests.data.harness import document, make_plan, no_held_out, stream
from tests.e2e.head import REPOSITORY

TEXTS = [document(n) for n in range(40)]
TEXTS[15] = "POISON " + TEXTS[15]
PLANTED = """
import os, signal, time
import pretrainer.data.filters.pii as filters, pretrainer.data.readers.jsonl as jsonl, pretrainer.data.stages as stages
from pretrainer.data.tokenizer.tokenizer import SentencePieceTokenizer
from pretrainer.errors import StorageError
read, curate = jsonl._from_json, stages.run_before_dedup
replace, encode = filters.replace_pii, SentencePieceTokenizer.encode_batch

def poisoned_read(reading, raw, start):
    if "POISON" in raw.text:
        {read}
    return read(reading, raw, start)

def poisoned_curate(plan, docs):
    if any("POISON" in text for text in docs.column("text").to_pylist()):
        {curate}
    return curate(plan, docs)

def poisoned_pii(texts, kinds):
    if any("POISON" in text for text in texts.to_pylist()):
        {pii}
    return replace(texts, kinds)

def poisoned_encode(self, texts):
    if any("POISON" in text for text in texts):
        {encode}
    return encode(self, texts)

jsonl._from_json, stages.run_before_dedup = poisoned_read, poisoned_curate
filters.replace_pii, SentencePieceTokenizer.encode_batch = poisoned_pii, poisoned_encode
"""
SEGFAULT = "os.kill(os.getpid(), signal.SIGSEGV)"
Plant = Callable[..., None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Makes probes do something when they read the poisoned document, curate it, clean it of PII or tokenize it."""

    def plant(read: str = "pass", curate: str = "pass", pii: str = "pass", encode: str = "pass") -> None:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(PLANTED.format(read=read, curate=curate, pii=pii, encode=encode))
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{REPOSITORY}")

    return plant


@pytest.fixture
def plan(tmp_path: Path) -> SourcePlan:
    """Two gzip shards of two chunks each, a unit each; the second half of the first holds the poison."""
    return make_plan(tmp_path, TEXTS, lines_per_file=20, compressed=True, chunk_bytes=3000)


@pytest.fixture
def cleaned(tmp_path: Path) -> SourcePlan:
    """The same with a stage behind dedup and the decision log."""
    kinds = PiiConfig(kinds=("email",))
    return make_plan(tmp_path, TEXTS, lines_per_file=20, compressed=True, chunk_bytes=3000, pii=kinds, decisions=True)


def poisoned_unit(plan: SourcePlan) -> int:
    return 0  # of the manifest


def curated_at(plan: SourcePlan) -> int:
    return next(at for at in range(plan.units) if plan.place(at).unit == poisoned_unit(plan))


def poisoned_chunk(plan: SourcePlan) -> ChunkKey:
    return ChunkKey(curated_at(plan), 1)


def reading(plan: SourcePlan, chunks: int | None = None) -> Attempt:
    return partial(stages.attempt_unit, plan, poisoned_unit(plan), chunks)


SAID = RuntimeError("what the extension says")


def raise_here(monkeypatch: pytest.MonkeyPatch, module: object, name: str, error: Exception = SAID) -> None:
    call = getattr(module, name)

    def poisoned(*arguments: object) -> object:
        if "POISON" in "".join(str(getattr(each, "to_pylist", lambda each=each: each)()) for each in arguments):
            raise error
        return call(*arguments)

    monkeypatch.setattr(module, name, poisoned)


def letters(plan: SourcePlan) -> list[tuple[str, int, str, str]]:
    return [(letter.shard, letter.row, letter.reason, letter.detail) for letter in plan.ledger.dead_letters()]


def trained(plan: SourcePlan) -> Counter[str]:
    keys = [record.key for record in plan.ledger.records()]
    return Counter(name for key in keys for name in plan.ledger.read_tokens(key)[0].column("id").to_pylist())


@pytest.mark.slow
def test_the_rest_of_a_shard_whose_reading_kills_is_left_out(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(read=SEGFAULT)
    raise_here(monkeypatch, jsonl, "_from_json")
    blocks = stream(plan)
    cause = "its reader was killed by SIGSEGV"
    assert letters(plan) == [("00000.jsonl.gz", 15, "quarantined", f"the rest of the shard: {cause}")]
    names = {f"00000.jsonl.gz#{row}" for row in range(15)} | {f"00020.jsonl.gz#{row}" for row in range(20)}
    assert trained(plan) == Counter(names)
    assert [record.dead_letters for record in plan.ledger.records()].count(1) == 1
    (stop,) = Quarantine(plan.ledger.root, curated_at(plan)).stops
    assert stop == Stop(0, 14, True, "its reader was killed by SIGSEGV")
    assert not [path for path, *_ in plan.ledger.root.list("quarantine") if "try-" in path]
    Store(plan.data_uri).create("held_out/synthetic.sketches.arrow", no_held_out(plan))
    again = fresh_plans([plan], Store(str(tmp_path / "again")))[0]
    monkeypatch.setattr(quarantine_module, "find_stop", None)  # the verdict is input now
    replayed = list(source_blocks(again, 0))
    assert [batch.tokens.tolist() for batch in replayed] == [Batch.from_row(b, 16).tokens.tolist() for b in blocks]


def test_a_document_whose_curation_kills_is_left_out_alone(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(curate=SEGFAULT)
    raise_here(monkeypatch, stages, "run_before_dedup")
    stream(plan)
    assert letters(plan) == [("00000.jsonl.gz", 15, "quarantined", "its reader was killed by SIGSEGV")]
    assert len(trained(plan)) == 39 and max(trained(plan).values()) == 1


@pytest.mark.slow
def test_a_unit_begun_too_often_is_probed_before_it_is_touched(plan: SourcePlan, plant: Plant) -> None:
    """What killed this process, three times, has no chance to do so again."""
    plant(read=SEGFAULT)
    for _ in range(plan.config.max_shard_failures):
        Quarantine(plan.ledger.root, curated_at(plan)).begin()
    stream(plan)  # in this process nothing is planted, and yet
    assert [letter[1:3] for letter in letters(plan)] == [(15, "quarantined")]


def test_a_unit_whose_readers_died_of_something_else_is_read(plan: SourcePlan, plant: Plant) -> None:
    plant()
    for _ in range(plan.config.max_shard_failures):
        Quarantine(plan.ledger.root, curated_at(plan)).begin()
    stream(plan)
    assert letters(plan) == [] and len(trained(plan)) == 40
    assert Quarantine(plan.ledger.root, curated_at(plan)).stops == ()


def test_fewer_tries_are_no_suspicion(plan: SourcePlan) -> None:
    root, limit = plan.ledger.root, 3
    for _ in range(limit - 1):
        Quarantine(root, 5).begin()
    assert not Quarantine(root, 5).is_suspect(limit)
    Quarantine(root, 5).begin()
    assert Quarantine(root, 5).is_suspect(limit) and not Quarantine(root, 6).is_suspect(limit)
    Quarantine(root, 5).add_if(Stop(0, 3, True, "x"))
    Quarantine(root, 6).add_if(Stop(0, 3, False, "more than 30 s", "extraction_timeout"))
    for _ in range(limit):
        Quarantine(root, 6).begin()
    assert Quarantine(root, 6).is_suspect(limit), "a slow page is no killer"
    assert not Quarantine(root, 5).is_suspect(limit), "each verdict needs as many tries of its own"


@pytest.mark.parametrize(
    ("read", "cause"),
    [
        ("raise StorageError('503 for a while')", None),
        ("raise ValueError('not  a\\nnumber')", "ValueError: not a number"),
    ],
)
def test_what_a_probe_finds(plan: SourcePlan, plant: Plant, read: str, cause: str | None) -> None:
    plant(read=read)
    assert find_stop(reading(plan), ()) == (Stop(0, 14, True, cause) if cause else None)


def test_a_probe_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attempt does nothing else, so that a busy machine is not taken for content that hangs."""
    hanging = "import time\n\ndef hang(stops, tell):\n    tell(0, 14, True)\n    time.sleep(600)\n"
    (tmp_path / "hanging_attempt.py").write_text(hanging)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(quarantine_module, "PROBE_SILENCE_S", 1.0)
    monkeypatch.setattr(quarantine_module, "START_TIMES", 300)
    attempt = importlib.import_module("hanging_attempt").hang
    assert find_stop(attempt, ()) == Stop(0, 14, True, "no further record was read in 1 s")


@pytest.mark.slow
def test_a_probe_that_dies_only_once_is_no_verdict(plan: SourcePlan, plant: Plant, tmp_path: Path) -> None:
    flag = tmp_path / "died"
    plant(read=f"if not os.path.exists({str(flag)!r}): open({str(flag)!r}, 'w').close(); {SEGFAULT}")
    assert find_stop(reading(plan), ()) is None
    assert flag.exists()


def test_what_kills_although_it_is_left_out_is_raised_and_not_tried_for_ever(
    plan: SourcePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Stop(0, 15, False, f"death {n}") for n in range(2)]
    monkeypatch.setattr(quarantine_module, "find_stop", lambda *_: found.pop(0))
    quarantine = Quarantine(plan.ledger.root, 0)

    def work(_stops: object) -> list[None]:
        raise RuntimeError("as ever")

    with pytest.raises(RuntimeError, match="as ever"):
        list(guarded(quarantine, 3, reading(plan), work))
    assert quarantine.stops == (Stop(0, 15, False, "death 0"),) and found == []


def test_a_failure_that_no_probe_confirms_is_raised(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant()
    raise_here(monkeypatch, jsonl, "_from_json")
    with pytest.raises(RuntimeError, match="what the extension says"):
        stream(plan)


# Behind dedup ---------------------------------------------------------------------------------------------------------

BEHIND = {"pii": (pii, "replace_pii"), "encode": (SentencePieceTokenizer, "encode_batch")}


@pytest.mark.parametrize("where", BEHIND)
def test_a_document_that_kills_behind_dedup_is_left_out_alone(
    cleaned: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    plant(**{where: SEGFAULT})
    raise_here(monkeypatch, *BEHIND[where])
    blocks = stream(cleaned)
    cause = "its reader was killed by SIGSEGV"
    assert letters(cleaned) == [("00000.jsonl.gz", 15, "quarantined", cause)]
    assert len(trained(cleaned)) == 39 and "00000.jsonl.gz#15" not in trained(cleaned)
    records = list(cleaned.ledger.records())
    assert [(r.key, r.quarantined) for r in records if r.dead_letters] == [(poisoned_chunk(cleaned), 1)]
    assert all(r.read == r.kept + r.dead_letters + sum(r.dropped.values()) for r in records)
    assert Quarantine(cleaned.ledger.root, poisoned_chunk(cleaned).name).stops == (Stop(0, 15, False, cause),)
    assert not [path for path, *_ in cleaned.ledger.root.list("quarantine") if "try-" in path]
    tables = [log for log in pa.dataset.dataset(f"{cleaned.ledger.root.uri}/decisions").get_fragments()]
    assert len({tuple(log.physical_schema.names) for log in tables}) == 1, "every chunk has the same columns"
    rows = [row for log in tables for row in log.to_table().to_pylist()]
    (left_out,) = [row for row in rows if not row["kept"]]
    assert [left_out[name] for name in ("id", "stage", "reason")] == ["00000.jsonl.gz#15", "quarantine", "quarantined"]
    Store(cleaned.data_uri).create("held_out/synthetic.sketches.arrow", no_held_out(cleaned))
    again = fresh_plans([cleaned], Store(str(tmp_path / "again")))[0]
    monkeypatch.setattr(quarantine_module, "find_stop", None)  # the verdict is input now
    replayed = list(source_blocks(again, 0))
    assert [batch.tokens.tolist() for batch in replayed] == [Batch.from_row(b, 16).tokens.tolist() for b in blocks]


@pytest.mark.slow
def test_a_chunk_begun_too_often_is_probed_before_it_is_touched(cleaned: SourcePlan, plant: Plant) -> None:
    """What killed this process, three times, has no chance to do so again; nor is the unit read apart for it."""
    plant(encode=SEGFAULT)
    for _ in range(cleaned.config.max_shard_failures):
        Quarantine(cleaned.ledger.root, poisoned_chunk(cleaned).name).begin()
    stream(cleaned)  # in this process nothing is planted, and yet
    assert [letter[1:3] for letter in letters(cleaned)] == [(15, "quarantined")]
    assert Quarantine(cleaned.ledger.root, curated_at(cleaned)).stops == ()


def test_errors_of_storage_behind_dedup_ask_no_probe(cleaned: SourcePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_here(monkeypatch, pii, "replace_pii", StorageError("503 for a while"))
    monkeypatch.setattr(quarantine_module, "find_stop", None)
    with pytest.raises(StorageError, match="503"):
        stream(cleaned)
    assert not [path for path, *_ in cleaned.ledger.root.list("quarantine") if "stop-" in path]


@pytest.mark.parametrize("decisions", [True, False])
def test_what_came_through_once_gets_no_verdict(
    cleaned: SourcePlan, monkeypatch: pytest.MonkeyPatch, decisions: bool
) -> None:
    """The process died behind the first object of the chunk; other bytes for it would stop the run for ever."""
    plan = replace(cleaned, config=replace(cleaned.config, decisions=decisions))
    key = poisoned_chunk(plan)
    path = f"decisions/{key.name}.parquet" if decisions else f"tokens/{key.name}.arrow"
    plan.ledger.root.create(path, b"of the first try")
    monkeypatch.setattr(quarantine_module, "find_stop", lambda *_: Stop(0, 15, False, "a node with less memory"))
    raise_here(monkeypatch, pii, "replace_pii")
    with pytest.raises(RuntimeError, match="what the extension says"):
        stream(plan)
    assert Quarantine(plan.ledger.root, key.name).stops == ()


# Before the stream ----------------------------------------------------------------------------------------------------


def test_a_pilot_leaves_out_what_kills_it_and_remembers(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(curate=SEGFAULT)
    raise_here(monkeypatch, stages, "run_before_dedup")
    plan = replace(plan, config=replace(plan.config, chunk_bytes=10**6))  # one unit of both shards, one chunk
    docs, _sketches, report = held_out.read_first_chunk(plan, poisoned_unit(plan))
    assert docs.num_rows == 39 and "00000.jsonl.gz#15" not in docs.column("id").to_pylist()
    (letter,) = report.dead_letters
    assert (letter.row, letter.reason, letter.detail) == (15, "quarantined", "its reader was killed by SIGSEGV")
    assert not [path for path, *_ in held_out.pilot_store(plan).list() if "try-" in path]
    monkeypatch.setattr(quarantine_module, "find_stop", None)  # the next start
    assert held_out.read_first_chunk(plan, poisoned_unit(plan))[0] == docs


@pytest.mark.slow
def test_a_pilot_that_killed_too_often_is_probed_and_only_its_chunk_is(
    plan: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(curate=SEGFAULT)
    assert find_stop(reading(plan, chunks=1), ()) is None, "the poison is in the second chunk"
    assert find_stop(reading(plan), ()) == Stop(0, 15, False, "its reader was killed by SIGSEGV")
    for _ in range(plan.config.max_shard_failures):
        Quarantine(held_out.pilot_store(plan), 0).begin()
    asked: list[Attempt] = []
    monkeypatch.setattr(quarantine_module, "find_stop", lambda attempt, _stops: asked.append(attempt))
    assert held_out.read_first_chunk(plan, 0)[0].num_rows < 15
    assert len(asked) == 1 and asked[0].args[-1] == 1  # type: ignore[attr-defined]


def test_held_out_documents_that_kill_what_they_are_made_ready_with_are_left_out(
    cleaned: SourcePlan, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(pii=SEGFAULT, encode=SEGFAULT)
    docs = pa.concat_tables([docs for docs, *_ in stages.raw_chunks(cleaned, poisoned_unit(cleaned))])
    raise_here(monkeypatch, pii, "replace_pii")
    raise_here(monkeypatch, SentencePieceTokenizer, "encode_batch")
    edited = held_out.edit_guarded(cleaned, docs)
    left, tokenized = held_out.tokenize_guarded(cleaned, docs)
    rows = [row for row in range(20) if row != 15]
    assert edited.column("row").to_pylist() == left.column("row").to_pylist() == rows
    assert tokenized.column("row").to_pylist() == rows and edited.schema == DOCUMENTS
    cause = "its reader was killed by SIGSEGV"
    for root in (held_out.pilot_store(cleaned), cleaned.ledger.root):
        assert Quarantine(root, "held_out").stops == (Stop(0, 15, False, cause),)


def test_other_chunks_have_other_verdicts_of_their_pilots(plan: SourcePlan) -> None:
    smaller = replace(plan, config=replace(plan.config, chunk_bytes=2000))
    assert held_out.pilot_store(smaller) != held_out.pilot_store(plan)
    other = replace(plan, config=replace(plan.config, look_ahead_chunks=7))
    assert held_out.pilot_store(other) == held_out.pilot_store(plan)
