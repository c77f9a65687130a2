"""Train the n-gram model that `data.perplexity.model` names: perplexity under good text, in thirds as in CCNet.

    python -m pipelines.train_perplexity --reference wiki.jsonl.zst --to perplexity.model
    python -m pipelines.train_perplexity --reference s3://bucket/wiki --tokenizer RUN/data/tokenizer.model \\
        --sample s3://bucket/crawl --to s3://bucket/perplexity.model --order 5

URIs are read as a source of a run is (files, folders, globs; JSONL, Parquet, text), without Ray; exact copies count
once. The file holds its tokenizer: the one given, or one that is trained on the reference. The cut-offs between head,
middle and tail are thirds of --sample, a plain sample of what will be filtered, or of held-back reference documents.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.driver.cli import run_main
from pipelines.driver.training import add_sizes, check_sizes, read_argument, read_line, training_parser, write_model
from pretrainer.data.quality.corpus import Corpus
from pretrainer.data.quality.model_file import check_target
from pretrainer.data.quality.perplexity import PerplexityModel
from pretrainer.data.quality.train_ngrams import own_tokenizer, train
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import UserError, require
from pretrainer.storage import Store, redact


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    check(options)
    check_target(options.to)
    given = read_tokenizer(options.tokenizer) if options.tokenizer else None
    reference = read(options, "reference")
    sample = read(options, "sample") if options.sample else None
    tokenizer = given or own_tokenizer(reference, options.vocab_size)
    model = train(reference, tokenizer, options.order, options.min_count, options.held_out, sample)
    written = write_model(options.to, model.to_bytes(), *usage(options.to))
    print("\n".join([*report_lines(model), *written]))
    return 0


def parser() -> argparse.ArgumentParser:
    found = training_parser("train_perplexity", __doc__)
    add = found.add_argument
    add("--reference", metavar="URI", nargs="+", required=True, help="documents whose language is good")
    add("--sample", metavar="URI", nargs="+", help="a plain sample of what will be filtered, for the cut-offs")
    add("--tokenizer", metavar="FILE", help=".model or tokenizer.json; without it one is trained on the reference")
    add("--vocab-size", type=int, default=8192, help="pieces of a tokenizer that is trained (default: %(default)s)")
    add("--order", type=int, default=3, help="pieces per n-gram, 2 to 5 (default: %(default)s)")
    add("--min-count", type=int, default=2, help="rarer n-grams above bigrams are pruned (default: %(default)s)")
    # Counting takes about 30 bytes of memory per byte of text.
    add_sizes(found, 0.1, "the reference that is not counted", 64 * 2**20)
    return found


def check(options: argparse.Namespace) -> None:
    """ConfigError about the argument that is not possible."""
    require(2 <= options.order <= 5, "--order", options.order, "use 2 to 5")
    require(options.min_count >= 1, "--min-count", options.min_count, "use 1 (no pruning) or more")
    check_sizes(options)


def read_tokenizer(uri: str) -> Tokenizer:
    try:
        return Tokenizer.from_bytes(Store(uri).read())
    except FileNotFoundError:
        raise UserError(
            f"--tokenizer {redact(uri)} does not exist: give a sentencepiece .model or a Hugging Face tokenizer.json, "
            "or leave it out"
        ) from None


def read(options: argparse.Namespace, name: str) -> Corpus:
    corpus = read_argument(options, name)
    print(f"  {name:<18}{read_line(corpus)}", flush=True)
    return corpus


def report_lines(model: PerplexityModel) -> list[str]:
    found, (head, middle) = model.report, model.cutoffs
    origin = "held-back reference" if found["cutoffs_of"] == "reference" else "sample"
    return [
        f"  {'counted':<18}{found['pieces']:,} pieces of {found['documents']:,} documents, order {model.ngrams.order}, "
        f"{len(model.ngrams.pieces):,} n-grams kept",
        f"  {'held back':<18}{found['held_out_documents']:,} documents, median perplexity "
        f"{found['held_out_median']:,.1f}",
        f"  {'head':<18}perplexity up to {head:,.1f}",
        f"  {'middle':<18}up to {middle:,.1f}; both are thirds of {found['cutoff_documents']:,} {origin} documents",
    ]


def usage(to: str) -> tuple[str, list[str]]:
    limits = ("keep=[head,middle]", "max_perplexity=500")
    settings = [f"data.perplexity.model={to} data.perplexity.{limit}" for limit in limits]
    return "by thirds or by a limit of your own", settings


if __name__ == "__main__":
    run_main(main)
