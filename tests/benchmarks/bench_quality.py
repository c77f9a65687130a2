"""Speed of the quality classifier and of the perplexity filter on one core, on the installed Python's standard library.

    python tests/benchmarks/bench_quality.py

Beside them scikit-learn's HashingVectorizer and a linear decision_function, which are what one would write without us.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import SGDClassifier

from pretrainer.data.quality import corpus, train_ngrams
from pretrainer.data.quality.classifier import Classifier, quantiles
from pretrainer.data.quality.features import FeatureScheme, feature_rows
from pretrainer.data.quality.perplexity import MAX_SCORED_CHARS
from tests.benchmarks.library import cpu_seconds, library_texts

SCHEMES = (FeatureScheme(), FeatureScheme(bucket_bits=20), FeatureScheme(char_ngram=4))


def classifier(scheme: FeatureScheme) -> Classifier:
    """One with random weights: speed does not depend on them."""
    weights = np.random.default_rng(0).normal(size=scheme.buckets).astype(np.float32)
    return Classifier(scheme, weights, 1.0, 0.0, quantiles(np.arange(2.0)), quantiles(np.arange(2.0)), {})


def scikit_learn(scheme: FeatureScheme) -> Callable[[list[str]], object]:
    vectorizer = HashingVectorizer(ngram_range=(1, scheme.word_ngrams), n_features=scheme.buckets, alternate_sign=False)
    model = SGDClassifier(loss="log_loss", max_iter=1, tol=None).fit(vectorizer.transform(["a b", "c d"]), [0, 1])
    return lambda texts: model.decision_function(vectorizer.transform(texts))


def line(name: str, seconds: float, texts: pa.Array, more: str = "") -> str:
    return f"{name:<44}{texts.nbytes / 1e6 / seconds:8.1f} MB/s {len(texts) / seconds:9.0f} documents/s{more}"


def main() -> None:
    texts = library_texts()
    print(f"{len(texts)} documents, {texts.nbytes / 1e6:.1f} MB, CPU time of one thread")
    for warm in (classifier(scheme).score for scheme in SCHEMES):
        start = time.process_time()
        warm(texts[:2])
        print(f"compiling, or reading the cache            {time.process_time() - start:8.2f} s")
    sample = texts.take(pa.array(range(0, len(texts), 20)))
    peer = scikit_learn(SCHEMES[0])
    theirs = cpu_seconds(lambda: peer(sample.to_pylist()), 1)
    print(line("scikit-learn, words 1 and 2", theirs, sample))
    for scheme in SCHEMES:
        ours = cpu_seconds(lambda scheme=scheme: classifier(scheme).score(texts))  # type: ignore[misc]
        ratio = theirs / sample.nbytes / (ours / texts.nbytes)
        print(line(f"score {scheme.id[8:30]}", ours, texts, f", {ratio:.0f} x scikit-learn's"))
    rows = cpu_seconds(lambda: feature_rows(sample, SCHEMES[0]))
    print(line("rows to train on", rows, sample))
    perplexity(texts, sample)


def perplexity(texts: pa.Array, sample: pa.Array) -> None:
    reference = corpus.each_once(texts, 0)
    tokenizer = train_ngrams.own_tokenizer(reference._replace(texts=sample), 8192)
    for order in (3, 5):
        start = time.process_time()
        model = train_ngrams.train(reference, tokenizer, order, 2, 0.1, None)
        print(line(f"train order {order}, tokenization included", time.process_time() - start, texts))
        size = len(model.to_bytes()) / 2**20
        whole = cpu_seconds(lambda: model.perplexity(sample))  # noqa: B023  (called at once)
        print(line(f"perplexity order {order}", whole, sample, f", model {size:.0f} MiB"))
        ids, offsets = tokenizer.encode_batch([text[:MAX_SCORED_CHARS] for text in sample.to_pylist()])
        alone = cpu_seconds(lambda: model.ngrams.mean_log_probability(ids, offsets))  # noqa: B023
        print(line(f"perplexity order {order}, without tokenization", alone, sample))
    tokens = cpu_seconds(lambda: tokenizer.encode_batch(sample.to_pylist()))
    print(line("tokenization alone", tokens, sample))


if __name__ == "__main__":
    main()
