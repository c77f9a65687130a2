"""Perplexity of a document under an n-gram model of good text, its bucket, and the stage that drops by it.

CCNet (Wenzek et al. 2020, arXiv:1911.00359, section 3.4) scores pages with a 5-gram model of Wikipedia over
sentencepiece pieces and cuts each language into thirds: head, middle, tail. Departures: order 3 by default, a document
is one sequence and not the mean of its lines, and the text is not normalised (case, digits and accents stay), because
the tokenizer of a model comes with it in its file and knows them.

Perplexity: exp(mean of -log p over the pieces), so it compares between documents of one model only. A text without a
piece has none (NaN), passes, and is left to the rule `empty`. A document is represented by its first MAX_SCORED_CHARS
characters. It is rounded to 1e-6, so that exp's last bit decides nothing on other CPUs.

Bucket: 0 head, up to the first cut-off; 1 middle, up to the second; 2 tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config.curation import PerplexityConfig
from pretrainer.data.filters.normalise import as_large_string
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.data.quality.kneser_ney import Ngrams
from pretrainer.data.quality.model_file import Header, pack, unpack
from pretrainer.data.resources import Read
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import UserError

KIND, VERSION = "perplexity model", 1
FIELD = "data.perplexity.model"
SCHEME = "trie1-mkn-document"
"""What the numbers mean besides the order and the tokenizer."""
MAX_SCORED_CHARS = 200_000
BUCKETS = ("head", "middle", "tail")
BATCH_DOCUMENTS = 256
"""Documents tokenized at a time, so that their ids do not all stand in memory."""


@dataclass(frozen=True)
class PerplexityModel:
    """A trained model with the tokenizer that its pieces are of."""

    ngrams: Ngrams
    tokenizer: Tokenizer
    cutoffs: tuple[float, float]
    report: Header  # how it was trained, plain JSON values

    def perplexity(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[N] float64, NaN where there is no piece; of each document whatever the others are."""
        return perplexities(self.ngrams, self.tokenizer, texts)

    def bucket(self, perplexity: np.ndarray) -> np.ndarray:
        """[N] float64: 0, 1, 2, or NaN."""
        found = np.searchsorted(self.cutoffs, perplexity, side="left").astype(np.float64)
        return np.where(np.isnan(perplexity), np.nan, found)

    def to_bytes(self) -> bytes:
        header = {
            "scheme": SCHEME,
            "order": self.ngrams.order,
            "vocab_size": self.ngrams.vocab_size,
            "cutoffs": list(self.cutoffs),
            "tokenizer": self.tokenizer.digest,
            "max_scored_chars": MAX_SCORED_CHARS,
            "report": self.report,
        }
        tables = dict(zip(Ngrams._fields[2:], self.ngrams[2:], strict=True))
        return pack(KIND, VERSION, header, {**tables, "tokenizer": np.frombuffer(self.tokenizer.data, np.uint8)})

    @classmethod
    def from_bytes(cls, data: bytes) -> PerplexityModel:
        """Inverse of `to_bytes`; UserError if the bytes are no such model or one of another scheme."""
        header, arrays = unpack(data, KIND, VERSION, FIELD)
        if (header["scheme"], header["max_scored_chars"]) != (SCHEME, MAX_SCORED_CHARS):
            raise UserError(
                f"{FIELD}: the model has the scheme {header['scheme']!r} over {header['max_scored_chars']} characters, "
                f"this code has {SCHEME!r} over {MAX_SCORED_CHARS}: use the code that trained it, or train it again"
            )
        tokenizer = Tokenizer.from_bytes(arrays.pop("tokenizer").tobytes())
        ngrams = Ngrams(header["order"], header["vocab_size"], **arrays)
        head, middle = header["cutoffs"]
        return cls(ngrams, tokenizer, (head, middle), header["report"])


def perplexities(ngrams: Ngrams, tokenizer: Tokenizer, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """exp(mean of -log p) of the pieces of each text, [N] float64."""
    cut = pc.utf8_slice_codeunits(as_large_string(texts), 0, MAX_SCORED_CHARS)
    means = [np.zeros(0)]
    for first in range(0, len(cut), BATCH_DOCUMENTS):
        ids, offsets = tokenizer.encode_batch(cut[first : first + BATCH_DOCUMENTS].to_pylist())
        means.append(ngrams.mean_log_probability(ids, offsets))
    return np.round(np.exp(-np.concatenate(means)), 6)


def terciles(perplexity: np.ndarray) -> tuple[float, float]:
    """The cut-offs of documents: a third of them is at or below the first, two thirds at or below the second."""
    head, middle = np.quantile(perplexity[~np.isnan(perplexity)], (1 / 3, 2 / 3))
    return float(head), float(middle)


def rules(config: PerplexityConfig, cutoffs: tuple[float, float]) -> tuple[Rule, ...]:
    """What the kept buckets are as limits: high_perplexity, and low_perplexity where the head is not kept."""
    if config.max_perplexity is not None:
        return (Rule("high_perplexity", "perplexity", most=config.max_perplexity),)
    kept = sorted(BUCKETS.index(name) for name in config.keep)
    borders = (-math.inf, *cutoffs, math.inf)
    least, most = borders[kept[0]], borders[kept[-1] + 1]
    # A cut-off belongs to the bucket below it.
    low = [Rule("low_perplexity", "perplexity", least=math.nextafter(least, math.inf))] if kept[0] else []
    high = [Rule("high_perplexity", "perplexity", most=most)] if kept[-1] < len(BUCKETS) - 1 else []
    return (*low, *high)


def perplexity_stage(config: PerplexityConfig, read: Read) -> Stage:
    """Measure `perplexity` and `perplexity_bucket`, drop what is above `max_perplexity` or in no kept bucket."""
    assert config.model is not None
    model = PerplexityModel.from_bytes(read(config.model))

    def measure(docs: pa.Table) -> Measured:
        found = model.perplexity(docs.column("text"))
        return {"perplexity": found, "perplexity_bucket": model.bucket(found)}, docs

    return Stage("perplexity", measure, rules(config, model.cutoffs))
