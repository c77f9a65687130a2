"""Derive the digests of a run's card again, from the card and the inputs alone, without training.

    python -m pipelines.reproduce CARD [--steps N] [--to FOLDER] [section.field=value …]

CARD is a card.json, a folder with one, or a run folder (path or URI). Its sources are listed, filtered, tokenized,
packed and mixed by the stream that trains, on this machine's Ray cluster and into a folder that is thrown away (or
--to, which goes on where it was interrupted); the tokenizer is trained again too. Inputs that have moved are named by
their field: data.sources.0.uris=s3://new/place. Exit code 0 when the order digest comes out again, 8 when it does not.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import yaml
from ray.util.annotations import RayDeprecationWarning

from pipelines.driver.card import CARD, shards
from pipelines.driver.cli import Cluster, cluster, run_main
from pipelines.driver.parent import adopt
from pipelines.driver.preflight import check
from pretrainer.config import ClusterConfig, Config
from pretrainer.config_load import parse_config
from pretrainer.data.curriculum import Segment
from pretrainer.data.identity import FINGERPRINT
from pretrainer.data.ledger.lines import open_line
from pretrainer.data.pipeline import build_stream, data_cpus
from pretrainer.data.plan import load_manifest, load_tokenizer
from pretrainer.data.prologue import Frozen, accept, freeze
from pretrainer.errors import StreamError, UserError
from pretrainer.report.compare import Row, as_text, compare
from pretrainer.schema import Batch
from pretrainer.storage import Store, resolve_run
from pretrainer.train.batch import block_digest, chain, step_digest, to_tensor
from pretrainer.train.blocks import PREFETCH_BLOCKS, SlotBlockCollate

DIFFERS = 8
SAY_EVERY_STEPS = 20
PLACES = (CARD, f"export/{CARD}")
FREE_CPUS = 0.9  # of the cluster's, that the stream may ask for


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its advice about memory is for another way to use it
    warnings.simplefilter("ignore", RayDeprecationWarning)  # data/pipeline.py knows of it
    card = read_card(Store(options.card))
    steps = wanted_steps(card, options.steps)
    with tempfile.TemporaryDirectory(prefix="pretrainer-reproduce-") as folder:
        config = config_of(card, options.overrides, options.to or folder)
        with cluster(config) as there:
            rows = derive(card, fit_readers(config, there), there, steps)
    print("\n".join(["", *as_text(rows)]))
    return conclude(rows, steps)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.reproduce", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("card", metavar="CARD", help="card.json, a folder with one, or a run folder (path or URI)")
    parser.add_argument("--steps", type=int, help="only the first N steps; all that the card has by default")
    parser.add_argument("--to", metavar="FOLDER", help="keep what is derived in this folder (path or URI)")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="where the inputs are now, say")
    return parser.parse_intermixed_args(arguments)


def read_card(place: Store) -> dict[str, Any]:
    """The card at a place: itself, in this folder, or in the export of this run. Raises UserError."""
    found = place if place.uri.endswith(".json") else None
    found = found or next((place.child(name) for name in PLACES if place.exists(name)), None)
    try:
        if found is None:
            raise FileNotFoundError(place.uri)
        content = json.loads(found.read())
        if not {"digests", "config", "data", "software"} <= content.keys() or not content["digests"]:
            raise ValueError("it is no run card with digests")
    except FileNotFoundError:
        raise UserError(f"there is no {CARD} at {place.uri}: `python -m pipelines.export RUN` writes one") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{place.uri} cannot be read as a run card: {error}") from None
    return dict(content)


def wanted_steps(card: dict[str, Any], asked: int | None) -> int:
    """Steps to derive: up to a point of the chain that the card has. Raises UserError."""
    points = sorted({*map(int, card["digests"]["order_digests"]), int(card["digests"]["order_digest"]["steps"])})
    points = [point for point in points if point > 0 and (asked is None or point <= asked)]
    if not points:
        has = min(map(int, card["digests"]["order_digests"]), default=None)
        raise UserError(f"--steps {asked} is not possible: the first digest in the card is of step {has}")
    return points[-1]


def config_of(card: dict[str, Any], overrides: Sequence[str], folder: str) -> Config:
    """The run's config, on this cluster and into this folder."""
    config = parse_config(yaml.safe_dump(card["config"]), overrides, "the card's config")
    asked = any(override.startswith("cluster.") for override in overrides)
    parent = config.init.uri and resolve_run(config.init.uri, config.run.storage).uri  # which may be a name there
    run = replace(config.run, name="reproduce", storage=folder, copy_to=None)
    init = replace(config.init, uri=parent)
    return replace(config, run=run, init=init, cluster=config.cluster if asked else ClusterConfig())


def fit_readers(config: Config, there: Cluster) -> Config:
    """No trainer takes part, and the machine may be smaller than the run's: what a reader asks for decides no token."""
    asks = data_cpus(config.data)
    has = FREE_CPUS * (there.cpus if there.data_cpus is None else there.data_cpus)
    if asks <= has:
        return config
    cpus = max(0.02, int(100 * config.data.read_cpus * has / asks) / 100)
    return replace(config, data=replace(config.data, read_cpus=cpus))


def derive(card: dict[str, Any], config: Config, there: Cluster, steps: int) -> list[Row]:
    """The comparison, after everything has been derived; what could not be ends the chain of steps early."""
    run = Store(config.run.storage).child(config.run.name)
    check(config, run, there, training=False)
    say(f"listing, filtering and tokenizing the inputs of {card['run']['name']} again, {steps:,} steps")
    frozen = freeze(config, run.child("data"), adopt(config, run))
    accept(frozen, run.child("data"))
    digests: dict[int, str] = {}
    try:
        for step, digest in enumerate(order_digests(config, frozen, steps), 1):
            digests[step] = digest
            if step % SAY_EVERY_STEPS == 0 or step == steps:
                say(f"  step {step:,} of {steps:,}")
    except StreamError as error:
        say(f"  the stream ends behind step {len(digests):,}: {error}")
    return compare(card, digests_of(frozen, digests), shards(frozen))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def digests_of(frozen: Frozen, order: dict[int, str]) -> dict[str, Any]:
    data = frozen.plans[0].data_uri
    return {
        "manifest": load_manifest(data).order_digest(),
        "tokenizer": load_tokenizer(data).digest,
        "fingerprint": frozen.fingerprint,
        "fingerprint_parts": json.loads(Store(data).read(FINGERPRINT)),
        "order_digests": order,
    }


def order_digests(config: Config, frozen: Frozen, steps: int) -> Iterator[str]:
    """The order digest behind each step, by the arithmetic of the audit; StreamError where a source ends."""
    digest, per_step = "", config.slot_blocks_per_step
    for segment in frozen.segments:
        if segment.first_step >= steps:
            return
        blocks = segment_blocks(config, frozen, segment)
        for _step in range(segment.first_step, min(segment.end_step, steps)):
            found = [block_digest(to_tensor(next(blocks))) for _ in range(per_step)]
            digest = chain(digest, step_digest(found))
            yield digest


def segment_blocks(config: Config, frozen: Frozen, segment: Segment) -> Iterator[Batch]:
    """Slot blocks of a segment from its first on, as one trainer would get them, each one's stamp checked."""
    per_step, data = config.slot_blocks_per_step, Store(frozen.plans[0].data_uri)
    plans = open_line(data, frozen.plans, frozen.segments, segment.line, per_step)
    first = segment.first_step * per_step
    stream = build_stream(plans, segment.order, first, max(64, 8 * per_step))
    how: dict[str, Any] = {"batch_size": 1, "prefetch_batches": PREFETCH_BLOCKS, "device": "cpu"}
    batches = cast(Any, stream.iter_torch_batches(collate_fn=SlotBlockCollate(segment.seq_len), **how))
    for number, batch in enumerate(batches, first):
        if (batch.source, batch.block) != segment.order.expected(number):
            raise StreamError(f"the stream dealt block {batch.block} of source {batch.source} as slot block {number}")
        yield batch
    raise StreamError("a source ends there; raise its max_epochs")


def conclude(rows: list[Row], steps: int) -> int:
    order = next(row for row in rows if row.name == "order digest")
    others = [row.name for row in rows if not row.is_same and row is not order]
    if order.is_same and order.card.endswith(f"after step {steps:,}"):
        but = f", although these differ: {', '.join(others)}" if others else ""
        print(f"\nreproduced: the first {steps:,} steps have the tokens of the card, in its order{but}")
        return 0
    print(f"\nnot reproduced: the tokens or their order differ ({order.why or 'see above'})", file=sys.stderr)
    return DIFFERS


if __name__ == "__main__":
    run_main(main)
