"""The run's tokenizer, frozen before the stream starts: read back, loaded by URI, or trained on a fixed byte budget."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
import ray

from pretrainer.config import Config, TokenizerConfig
from pretrainer.data.curation import resource_uris
from pretrainer.data.held_out import first_chunk, hold_out
from pretrainer.data.mixture import mixing_weights
from pretrainer.data.plan import SourcePlan, draft_plans
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import permute
from pretrainer.data.resources import freeze_resources
from pretrainer.data.tokenizer.extend import extend
from pretrainer.data.tokenizer.tokenizer import SentencePieceTokenizer, Tokenizer
from pretrainer.data.tokenizer.train import TokenizerKind, train_tokenizer
from pretrainer.errors import UserError
from pretrainer.storage import Store


def freeze_tokenizer(
    config: TokenizerConfig,
    plans: Sequence[SourcePlan],
    weights: Sequence[float],
    held: Sequence[pa.Table],
    data: Store,
    added: Sequence[str] = (),
) -> Tokenizer:
    """The run's tokenizer: read back, loaded from `tokenizer.uri` (with tokens `added` to it, `init.add_tokens`), or
    trained on a fixed byte budget."""
    for name in ("tokenizer.model", "tokenizer.json"):
        if data.exists(name):
            return Tokenizer.from_bytes(data.read(name))
    if config.uri is not None:
        content = _read_tokenizer(config.uri)
    else:
        texts = [t for texts in sample_texts(plans, weights, held, config.train_bytes).values() for t in texts]
        train = _train_tokenizer.options(label_selector=plans[0].labels)
        content = ray.get(train.remote(texts, config.kind, config.vocab_size))
    tokenizer = extend(Tokenizer.from_bytes(content), added)
    name = "tokenizer.model" if isinstance(tokenizer, SentencePieceTokenizer) else "tokenizer.json"
    data.create(name, tokenizer.data)
    return tokenizer


def _read_tokenizer(uri: str) -> bytes:
    try:
        return Store(uri).read()
    except FileNotFoundError:
        raise UserError(
            f"tokenizer.uri={uri!r} does not exist: give a sentencepiece .model or a Hugging Face tokenizer.json"
        ) from None


@ray.remote(num_cpus=1)
def _train_tokenizer(texts: list[str], kind: TokenizerKind, vocab_size: int) -> bytes:
    return train_tokenizer(texts, kind, vocab_size)


def sample_texts(
    plans: Sequence[SourcePlan], weights: Sequence[float], held: Sequence[pa.Table], budget_bytes: int
) -> dict[str, list[str]]:
    """Filtered texts by source, from units in an order chosen by hash, in the proportions of the mixture."""
    return {
        plan.source.name: list(_take_bytes(_sampled_documents(plan, held_out), int(budget_bytes * weight)))
        for plan, weight, held_out in zip(plans, weights, held, strict=True)
    }


def _sampled_documents(plan: SourcePlan, held: pa.Table, parallel: int = 2) -> Iterator[str]:
    excluded = set(held.column("id").to_pylist())
    order = permute(plan.units, f"tokenizer/{plan.config.order_seed}/{plan.source.name}".encode()[:64])
    read = first_chunk.options(label_selector=plan.labels)
    for start in range(0, plan.units, parallel):
        refs = [read.remote(plan, order(i)) for i in range(start, min(start + parallel, plan.units))]
        for docs, _sketches, _report in ray.get(refs):
            rows = zip(docs.column("id").to_pylist(), docs.column("text").to_pylist(), strict=True)
            yield from (text for doc, text in rows if doc not in excluded)


def _take_bytes(texts: Iterator[str], budget: int) -> Iterator[str]:
    left = budget
    for text in texts:
        yield text[: max(0, left)]
        left -= len(text.encode())
        if left <= 0:
            return


def sample_documents(config: Config, budget_bytes: int | None = None) -> dict[str, list[str]]:
    """Texts by source for a look at the data, the same ones the tokenizer would be trained on; nothing is written."""
    manifest = Manifest.build(config.data.sources)
    weights = mixing_weights(config.data.sources, manifest.source_bytes())
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.create("manifest.arrow", manifest.to_bytes())
        freeze_resources(resource_uris(config.data), store)
        plans = draft_plans(config.data, manifest, store, config.cluster.data_subcluster)
        held = [hold_out(plan)[0] for plan in plans]
        return sample_texts(plans, weights, held, budget_bytes or config.tokenizer.train_bytes)
