"""Compare vocabulary sizes on a sample of a config's sources, before a run freezes one of them.

    python -m pipelines.tokenizer --compare 8k,16k,32k
    python -m pipelines.tokenizer --compare 512,1k tokenizer.train_bytes=300000    # the smallest, seconds on a laptop
    python -m pipelines.tokenizer --compare 32k,64k,128k --config configs/1b.yaml tokenizer.kind=unigram

Each size is trained on nine of ten sampled documents; bytes per token and tokens per word are measured on the tenth.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.driver.cli import cluster, config_parser, read_config, run_main, settled
from pretrainer.config import ModelConfig
from pretrainer.data.tokenizer.report import compare, format_rows, parse_sizes
from pretrainer.model.presets import parameter_count, resolve


def count_parameters(config: ModelConfig, vocab_size: int) -> tuple[int, int]:
    """(embedding parameters, all parameters); an untied output layer counts as embedding."""
    model = resolve(config)
    tables = 1 if model.tie_embeddings else 2
    return tables * vocab_size * model.hidden, parameter_count(model, vocab_size)


def main(arguments: Sequence[str]) -> int:
    parser = config_parser("tokenizer", "Compare vocabulary sizes on a sample of the sources.")
    parser.add_argument(
        "--compare", metavar="SIZES", default="8k,16k,32k", help="vocabulary sizes, k = 1024 (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    sizes, config = parse_sizes(options.compare), read_config(options)
    with cluster(config) as there:
        # It reads through Ray, so only behind the checks above.
        from pretrainer.data.tokenizer.freeze import sample_documents

        samples = sample_documents(settled(config, there))
    languages = {source.name: source.preset for source in config.data.sources}
    rows = compare(samples, sizes, config.tokenizer.kind, lambda size: count_parameters(config.model, size), languages)
    sample_bytes = sum(len(text.encode("utf-8")) for texts in samples.values() for text in texts)
    print(f"{config.tokenizer.kind}, sample of {sample_bytes:,} bytes\n")
    print(format_rows(rows))
    return 0


if __name__ == "__main__":
    run_main(main)
