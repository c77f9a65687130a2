"""Benchmark files that decontamination reads, and the index that is frozen with a run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from pretrainer.config import DataConfig, DecontaminationConfig, SourceConfig
from pretrainer.data.decontamination import index as index_module
from pretrainer.data.decontamination.benchmarks import read_benchmarks
from pretrainer.data.decontamination.freeze import freeze_decontamination, index_digest
from pretrainer.data.decontamination.index import (
    benchmark_digests,
)
from pretrainer.data.decontamination.stage import (
    index_path,
    stages_of_run,
)
from pretrainer.data.filters.stage import run_stages
from pretrainer.errors import ConfigError, StreamError
from pretrainer.storage import Store
from tests.data.decontaminated import CONFIG, LICENCE, QUESTION, array, documents, filler, words

# -------------------------------------------------------------------------------------------------------- benchmarks


def write(path: Path, *lines: object) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def texts_of(*uris: str, fields: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    found = read_benchmarks(DecontaminationConfig(benchmarks=uris, fields=fields)).references
    return [(Path(r.name).name, r.line, r.text) for r in found]


EIGHT = " ".join(words(8))


def test_every_string_of_a_line_is_a_text_and_short_ones_are_joined(tmp_path: Path) -> None:
    uri = write(
        tmp_path / "b.jsonl",
        {"id": 7, "question": EIGHT, "choices": {"text": ["one or two", QUESTION, "three"], "label": ["A", "B"]}},
        [EIGHT, None, True, [["deep words"]]],
    )
    assert texts_of(uri) == [
        ("b.jsonl", "1", EIGHT),
        ("b.jsonl", "1", QUESTION),
        ("b.jsonl", "1", "one or two\nthree\nA\nB"),
        ("b.jsonl", "2", EIGHT),
        ("b.jsonl", "2", "deep words"),
    ]


def test_fields_choose_and_a_line_needs_one_of_them(tmp_path: Path) -> None:
    uri = write(tmp_path / "b.jsonl", {"q": EIGHT, "a": QUESTION}, {"p": [QUESTION], "a": "x"})
    assert texts_of(uri, fields=("p", "q")) == [("b.jsonl", "1", EIGHT), ("b.jsonl", "2", QUESTION)]


def test_globs_folders_and_compressed_files(tmp_path: Path) -> None:
    for name, text in (("b", EIGHT), ("a", QUESTION)):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(text).encode() + b"\n\n"))
    expected = [("a.jsonl.gz", "1", QUESTION), ("b.jsonl.gz", "1", EIGHT)]
    assert texts_of(str(tmp_path / "*.gz")) == texts_of(str(tmp_path)) == expected


def test_lone_surrogate_and_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"q": "' + EIGHT.encode() + b' \\ud800"}')
    assert texts_of(str(path)) == [("b.jsonl", "1", f"{EIGHT} ?")]


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (None, (), "it does not exist"),
        (b"\n \n", (), "is empty"),
        (b'{"q": "a"}\n{"q": \n', (), "line 2 is no JSON"),
        (b'"\xff"', (), "line 1 is no JSON"),
        (b"[" * 100_000, (), "line 1 is no JSON"),
        (json.dumps({"q": QUESTION}).encode(), ("text", "body"), "line 1 has none of them, but 'q'"),
        (json.dumps(QUESTION).encode(), ("text",), "line 1 has none of them, but a JSON str"),
        (b'{"q": "what is 12 times 3"}', (), "none of the 1 lines"),
    ],
)
def test_wrong_benchmark_names_file_and_remedy(
    tmp_path: Path, content: bytes | None, fields: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "b.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data\.decontamination\.(benchmarks|fields).*b\.jsonl") as error:
        texts_of(str(path), fields=fields)
    assert message in str(error.value)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(QUESTION.encode())[:-9])
    with pytest.raises(ConfigError, match=r"b\.jsonl\.gz cannot be decompressed"):
        texts_of(str(tmp_path / "b.jsonl.gz"))


# ------------------------------------------------------------------------------------------------------------ freeze


def data_config(**section: object) -> DataConfig:
    source = SourceConfig(name="s", uris=("x",))
    return DataConfig(sources=(source,), decontamination=DecontaminationConfig(**section))  # type: ignore[arg-type]


def test_index_is_made_once_per_config(tmp_path: Path) -> None:
    data, uri = Store(str(tmp_path / "data")), write(tmp_path / "b.jsonl", QUESTION)
    config, held = data_config(benchmarks=(uri,)), [documents(" ".join(words(60)))]
    freeze_decontamination(config, held, [array([filler(9)])], data)
    digest = index_digest(config.decontamination, data)
    assert list(benchmark_digests(data.read(index_path(config.decontamination)))) == [uri]
    Path(uri).write_text("no JSON")
    freeze_decontamination(config, [], [], data)
    assert index_digest(config.decontamination, data) == digest and list(digest) == ["decontamination"]
    (stage,) = stages_of_run(config.decontamination, data.uri)
    docs = documents(QUESTION, " ".join(words(60)), filler(60))
    assert run_stages(docs, [stage]).reasons == ["contaminated", "contaminated_held_out", None]

    other = data_config()
    freeze_decontamination(other, held, [], data)
    assert len(data.list("decontamination")) == 2
    (stage,) = stages_of_run(other.decontamination, data.uri)
    assert run_stages(docs, [stage]).reasons == [None, "contaminated_held_out", None]


def test_benchmarks_without_held_out(tmp_path: Path) -> None:
    data, uri = Store(str(tmp_path / "data")), write(tmp_path / "b.jsonl", QUESTION)
    config = data_config(benchmarks=(uri,), held_out=False)
    freeze_decontamination(config, [documents(" ".join(words(60)))], [], data)
    (stage,) = stages_of_run(config.decontamination, data.uri)
    assert run_stages(documents(QUESTION, " ".join(words(60))), [stage]).reasons == ["contaminated", None]


def test_background_of_all_sources_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "COMMON_HELD_OUT", (1, 0.0))
    data, config = Store(str(tmp_path)), data_config()
    freeze_decontamination(config, [documents(LICENCE)], [array([LICENCE]), array([]), array([LICENCE])], data)
    (stage,) = stages_of_run(config.decontamination, data.uri)
    assert run_stages(documents(LICENCE), [stage]).reasons == [None]


def test_off_is_no_stage_and_no_file(tmp_path: Path) -> None:
    data, config = Store(str(tmp_path)), data_config(held_out=False)
    freeze_decontamination(config, [documents(QUESTION)], [], data)
    assert data.list() == [] and stages_of_run(config.decontamination, data.uri) == []
    assert index_digest(config.decontamination, data) == {}


def test_lost_index_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match="decontamination.*put it back"):
        stages_of_run(CONFIG, str(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"), [("ngram_words", 4), ("passage_words", 12), ("passage_words", 1001), ("max_overlap", 1.1)]
)
def test_wrong_values_name_their_field(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"data\.decontamination\.{field}"):
        DecontaminationConfig(**{field: value})  # type: ignore[arg-type]
