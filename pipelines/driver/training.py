"""What `train_quality` and `train_perplexity` share: the arguments of a training on corpora, and reading one."""

from __future__ import annotations

import argparse

from pretrainer.data.quality.corpus import Corpus, read_corpus
from pretrainer.errors import require
from pretrainer.storage import Store


def training_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with --to, --seed and --text-column; `description` is the module's docstring."""
    summary = (description or "").split("\n\n")[0]
    found = argparse.ArgumentParser(prog=f"python -m pipelines.{name}", description=summary)
    add = found.add_argument
    add("--to", metavar="FILE", required=True, help="model file (path or URI) to write")
    add("--seed", type=int, default=0, help="seed of sampling, of the split and of training (default: %(default)s)")
    add("--text-column", default="text", help="column or JSON key of the text (default: %(default)s)")
    return found


def add_sizes(parser: argparse.ArgumentParser, held_out: float, held_out_of: str, max_bytes: int) -> None:
    add = parser.add_argument
    add("--held-out", type=float, default=held_out, help=f"share of {held_out_of} (default: %(default)s)")
    add("--max-bytes", type=int, default=max_bytes, help="text read of each corpus (default: %(default)s)")


def check_sizes(options: argparse.Namespace) -> None:
    """ConfigError about --held-out or --max-bytes that is not possible."""
    require(0 < options.held_out <= 0.5, "--held-out", options.held_out, "use a number above 0 and up to 0.5")
    require(options.max_bytes > 0, "--max-bytes", options.max_bytes, "use a positive number of bytes")


def read_argument(options: argparse.Namespace, name: str) -> Corpus:
    """The corpus that the URIs of this argument name."""
    return read_corpus(name, getattr(options, name), options.text_column, options.max_bytes, options.seed)


def read_line(corpus: Corpus) -> str:
    """How many documents of a corpus were read."""
    return f"{corpus.read:,} documents read, {corpus.unreadable:,} unreadable, {len(corpus.texts):,} different"


def write_model(to: str, content: bytes, use: str, settings: list[str]) -> list[str]:
    """Write a model file; returns the lines that say how a config names it."""
    Store(to).write("", content)
    return ["", f"wrote {to}, {len(content) / 2**20:.1f} MiB. In a config, {use}:", *(f"  {one}" for one in settings)]
