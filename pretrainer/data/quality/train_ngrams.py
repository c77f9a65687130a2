"""Training of the perplexity model: n-grams of a reference corpus, cut-offs from documents that were not counted."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pyarrow as pa

from pretrainer.data.quality.corpus import Corpus
from pretrainer.data.quality.kneser_ney import estimate
from pretrainer.data.quality.model_file import Header
from pretrainer.data.quality.perplexity import BATCH_DOCUMENTS, PerplexityModel, perplexities, terciles
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.data.tokenizer.train import train_tokenizer
from pretrainer.errors import UserError

MIN_DOCUMENTS = 20
TOKENIZER_CHARS = 16 * 2**20
"""A tokenizer of the model's own is trained on so many characters of the reference."""


def train(
    reference: Corpus, tokenizer: Tokenizer, order: int, min_count: int, held_out: float, sample: Corpus | None
) -> PerplexityModel:
    """The same arguments give the same bytes. `held_out` of the reference is not counted.

    The cut-offs are the terciles of those documents, or of `sample` where there is one (CCNet: of the crawl itself).
    """
    held, counted = cut(reference, held_out)
    ids, offsets = encode(tokenizer, counted)
    ngrams = estimate(ids, offsets, tokenizer.vocab_size, order, min_count)
    held_perplexity = perplexities(ngrams, tokenizer, held)
    measured = held_perplexity if sample is None else perplexities(ngrams, tokenizer, sample.texts)
    if np.isnan(measured).all():
        raise UserError("no document that cut-offs could be measured on has any text: check the URIs")
    report: Header = {
        "documents": len(counted),
        "pieces": len(ids),
        "min_count": min_count,
        "held_out_documents": len(held),
        "held_out_median": float(np.nanmedian(held_perplexity)),
        "cutoffs_of": "reference" if sample is None else "sample",
        "cutoff_documents": len(measured),
    }
    return PerplexityModel(ngrams, tokenizer, terciles(measured), report)


def cut(reference: Corpus, held_out: float) -> tuple[pa.Array, pa.Array]:
    """(held back, counted): a corpus is in the order of hashes, so its beginning is a sample."""
    count = len(reference.texts)
    if count < MIN_DOCUMENTS:
        raise UserError(
            f"--reference: {count} different documents are too few: give at least {MIN_DOCUMENTS}, better many thousand"
        )
    held = max(3, round(count * held_out))
    return reference.texts[:held], reference.texts[held:]


def encode(tokenizer: Tokenizer, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(ids [T] uint32, offsets [N + 1] int64) of all texts, a few of them as Python strings at a time."""
    parts = [
        tokenizer.encode_batch(texts[first : first + BATCH_DOCUMENTS].to_pylist())
        for first in range(0, len(texts), BATCH_DOCUMENTS)
    ]
    lengths = np.concatenate([np.diff(offsets) for _ids, offsets in parts])
    return np.concatenate([ids for ids, _offsets in parts]), np.concatenate([[0], np.cumsum(lengths)])


def own_tokenizer(reference: Corpus, vocab_size: int) -> Tokenizer:
    """A sentencepiece model of the reference itself, for models that are trained before the run's tokenizer is."""
    sizes = np.cumsum([len(text) for text in reference.texts.to_pylist()])
    used = int(np.searchsorted(sizes, TOKENIZER_CHARS)) + 1
    return Tokenizer.from_bytes(train_tokenizer(islice(reference.texts.to_pylist(), used), "bpe", vocab_size))
