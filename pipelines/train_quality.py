"""Train the quality classifier that `data.quality.model` names: good documents against a sample of what is filtered.

    python -m pipelines.train_quality --positive good.jsonl --negative crawl/*.parquet --to quality.model
    python -m pipelines.train_quality --positive https://host/wiki.jsonl.zst books/ --negative s3://bucket/crawl \\
        --to s3://bucket/quality.model --buckets 1048576 --char-ngram 4 --max-bytes 500000000

URIs are read as a source of a run is (files, folders, globs; JSONL, Parquet, text), without Ray. Exact copies count
once, and a text that is in both sets in neither. Part of both sets is held back: AUC, calibration error and the
keep-rate curve are measured on documents that the weights were not fitted to.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.driver.cli import run_main
from pipelines.driver.training import add_sizes, check_sizes, read_argument, read_line, training_parser, write_model
from pretrainer.data.quality.classifier import Classifier
from pretrainer.data.quality.corpus import Corpus, without_common
from pretrainer.data.quality.evaluation import share_kept
from pretrainer.data.quality.features import FeatureScheme
from pretrainer.data.quality.model_file import check_target
from pretrainer.errors import require

SHARES = (0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    scheme = checked_scheme(options)
    check_target(options.to)
    sets = [read_argument(options, name) for name in ("positive", "negative")]
    positive, negative, common = without_common(*sets)
    print("\n".join(set_lines(sets, (positive, negative), common)), flush=True)
    # It imports scikit-learn, so only behind what can fail at once.
    from pretrainer.data.quality.train_classifier import train

    model = train(positive, negative, scheme, options.held_out, options.seed)
    written = write_model(options.to, model.to_bytes(), *usage(options.to))
    print("\n".join([*report_lines(model), *curve_lines(model), *written]))
    return 0


def parser() -> argparse.ArgumentParser:
    found = training_parser("train_quality", __doc__)
    add = found.add_argument
    add("--positive", metavar="URI", nargs="+", required=True, help="documents such as the filter should keep")
    add("--negative", metavar="URI", nargs="+", required=True, help="a plain sample of what will be filtered")
    add("--buckets", type=int, default=2**18, help="hash buckets, a power of two (default: %(default)s)")
    add("--word-ngrams", type=int, default=2, help="longest word n-gram (default: %(default)s)")
    add("--char-ngram", type=int, default=0, help="length of character n-grams, 0 for none (default: %(default)s)")
    add_sizes(found, 0.2, "both sets that is not fitted to", 128 * 2**20)
    return found


def checked_scheme(options: argparse.Namespace) -> FeatureScheme:
    """The features; ConfigError about the argument that is not possible."""
    check_sizes(options)
    is_power = options.buckets > 0 and options.buckets & (options.buckets - 1) == 0
    require(is_power, "--buckets", options.buckets, "use a power of two, for example 262144 or 1048576")
    return FeatureScheme(options.word_ngrams, options.char_ngram, options.buckets.bit_length() - 1)


def set_lines(sets: Sequence[Corpus], used: Sequence[Corpus], common: int) -> list[str]:
    lines = [
        f"  {name:<20}{read_line(corpus)}, {len(rest.texts):,} used"
        for name, corpus, rest in zip(("positive", "negative"), sets, used, strict=True)
    ]
    return [*lines, f"  {'in both, left out':<20}{common:,}"]


def report_lines(model: Classifier) -> list[str]:
    found = model.report
    held = found["positive_test"] + found["negative_test"]
    return [
        f"  {'trained on':<20}{found['positive_train']:,} positive, {found['negative_train']:,} negative documents",
        f"  {'features':<20}{model.scheme.id}",
        f"  {'AUC':<20}{found['auc']:.4f} (95 % interval {found['auc_low']:.4f} to {found['auc_high']:.4f}) on "
        f"{held:,} documents that took no part",
        f"  {'calibration error':<20}{found['calibration_error']:.4f} on the same",
    ]


def curve_lines(model: Classifier) -> list[str]:
    """The keep-rate curve over documents that the weights were not fitted to."""
    held = model.report["negative_calibration"] + model.report["negative_test"]
    rows = [(share, model.threshold(share)) for share in SHARES if share * held >= 1]
    kept = share_kept(model.positive_quantiles, [threshold for _share, threshold in rows])
    head = ["", "  kept of negatives   threshold   kept of positives"]
    return [*head, *(f"  {a:>17.1%}{t:>12.4f}{b:>20.1%}" for (a, t), b in zip(rows, kept, strict=True))]


def usage(to: str) -> tuple[str, list[str]]:
    settings = [f"data.quality.model={to} data.quality.{limit}" for limit in ("keep_share=0.1", "min_score=0.5")]
    return "by the share of negatives to keep or by a threshold", settings


if __name__ == "__main__":
    run_main(main)
