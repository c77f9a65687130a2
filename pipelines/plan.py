"""From a budget to a run: model size, tokens, batch, learning rate, GPUs, days, dollars, and a config that trains it.

    python -m pipelines.plan --dollars 500 --gpu H100
    python -m pipelines.plan --flops 1e19
    python -m pipelines.plan --gpu-hours 2000 --gpu A100 --tokens-per-parameter 200
    python -m pipelines.plan --parameters 70B --tokens 1.4T --gpu A100 --gpus 1024 --tflops 150
    python -m pipelines.plan --run first --preset 1b          tokens as prepared by `python -m pipelines.prepare`
    python -m pipelines.plan --fit ladder                     a scaling law from a ladder of `python -m pipelines.tune`

It prints tables, and writes a picture (plan.html) and a config (plan.yaml) that `python -m pipelines.pretrain --config`
takes as it is. It needs no cluster and no GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from pipelines.driver.checkpoints import run_config
from pipelines.driver.cli import run_main
from pretrainer.config import RunConfig
from pretrainer.config_load import load_config
from pretrainer.data.mixture import mixing_weights
from pretrainer.data.plan import SourcePlan, load_tokenizer
from pretrainer.data.prologue import data_folder, thaw
from pretrainer.errors import UserError
from pretrainer.plan.budget import BEST, Ask
from pretrainer.plan.config_file import config_text
from pretrainer.plan.hardware import load_prices
from pretrainer.plan.laws import FRONTIERS
from pretrainer.plan.page import render
from pretrainer.plan.planner import make_plan
from pretrainer.plan.report import as_text, tables
from pretrainer.plan.request import Available, Base, Request, mixture_shares
from pretrainer.plan.units import number
from pretrainer.storage import Store, resolve_run


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.fit is not None:
        return fit_ladder(options)
    page, config = _checked("--picture", options.picture), _checked("--to", options.to)
    plan = make_plan(_request(options))
    text, picture = config_text(plan, options.to), render(plan)
    config.write_text(text, encoding="utf-8")
    page.write_bytes(picture)
    print(as_text(tables(plan)))
    print(f"\npicture: {page.resolve()}\nconfig:  {config.resolve()}")
    return 0


def fit_ladder(options: argparse.Namespace) -> int:
    """The law of a finished ladder, as tables, a picture and fit.json in its folder."""
    # Its minimiser takes a second to import, which a plan does not wait for.
    from pretrainer.tuning.ladder import climb, fit_tables, render_fit
    from pretrainer.tuning.records import Records

    page = _checked("--picture", options.picture)
    run = resolve_run(options.fit, options.storage)
    config = run_config(run)
    ladder = climb(config, Records(run).trials(), load_tokenizer(data_folder(config, run).uri).vocab_size)
    page.write_bytes(render_fit(ladder))
    law, held = ladder.whole.law, ladder.held
    found = {
        "law": {name: getattr(law, name) for name in ("e", "a", "b", "alpha", "beta")},
        "held_back": {**held.run._asdict(), "predicted": held.predicted, "error": held.error},
        "runs": [one._asdict() for one in ladder.runs],
    }
    run.write("fit.json", json.dumps(found, indent=1).encode())
    print(as_text(fit_tables(ladder)))
    print(f"\npicture: {page.resolve()}\nnumbers: {run.child('fit.json').uri}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.plan", description=__doc__.split("\n\n")[0])
    budget = parser.add_argument_group("budget", "one of these, or two that leave the third to follow; 70B, 1.4T, 5e18")
    budget.add_argument("--flops", type=number, metavar="C", help="training FLOPs")
    budget.add_argument("--gpu-hours", type=number, metavar="H", help="hours of one GPU of the kind of --gpu")
    budget.add_argument("--dollars", type=number, metavar="USD", help="at the price of that GPU")
    budget.add_argument("--parameters", type=number, metavar="N", help="of the model")
    budget.add_argument("--tokens", type=number, metavar="D", help="of training")
    budget.add_argument("--preset", help="a model of pretrainer/model/presets.py, in place of --parameters")
    budget.add_argument(
        "--tokens-per-parameter", dest="ratio", type=number, metavar="R", help="in place of the law, 20 to 2,000 say"
    )
    budget.add_argument(
        "--law", default=BEST, help=f"what decides otherwise: {', '.join(FRONTIERS)} (default: %(default)s)"
    )
    parser.add_argument("--fit", metavar="RUN", help="no plan: fit a scaling law to the trials of this sweep")
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument("--gpu", default="H100", help="kind of GPU (default: %(default)s)")
    cluster.add_argument("--gpus", type=int, metavar="W", help="how many; by default the fewest that are done in time")
    cluster.add_argument("--days", type=number, help="how long the run may take; 30 without --gpus")
    cluster.add_argument("--tflops", type=number, help="reached on one GPU, in place of its peak and usual MFU")
    cluster.add_argument("--prices", metavar="FILE", help="a price table, over that of pretrainer/plan/prices.yaml")
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group()
    source.add_argument("--config", metavar="FILE", help="its sources, tokenizer, context and architecture are kept")
    source.add_argument("--run", help="a run that was prepared, folder or name; its tokens are counted too")
    data.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--to", metavar="FILE", default="plan.yaml", help="the config (default: %(default)s)")
    parser.add_argument("--picture", metavar="FILE", default="plan.html", help="the picture (default: %(default)s)")
    return parser


def _request(options: argparse.Namespace) -> Request:
    return Request(
        ask=Ask(**{field.name: getattr(options, field.name) for field in fields(Ask)}),
        base=_base(options),
        prices=load_prices(options.prices),
        gpu=options.gpu,
        gpus=options.gpus,
        days=options.days,
        tflops=options.tflops,
    )


def _base(options: argparse.Namespace) -> Base:
    if options.run is None:
        return Base(config=load_config(options.config, []), is_example=options.config is None)
    run = resolve_run(options.run, options.storage)
    config = run_config(run)
    frozen = thaw(config, data_folder(config, run), run.child("data"))
    shares = mixture_shares(config, mixing_weights(config.data.sources, frozen.sizes))
    available = tuple(_available(plan, share) for plan, share in zip(frozen.plans, shares, strict=True))
    return Base(config=config, vocab_size=frozen.vocab_size, available=available)


def _available(plan: SourcePlan, share: float) -> Available:
    """What the ledger of a source holds; of one that is prepared in part, what all of it is likely to."""
    done = plan.ledger.committed_units()
    tokens = sum(record.tokens for record in plan.ledger.records() if record.unit < done)
    if tokens == 0:
        raise UserError(
            f"nothing of source {plan.source.name} is in {Store(plan.data_uri).uri} yet: prepare some of it first "
            "(python -m pipelines.prepare)"
        )
    prepared = done / plan.units
    return Available(plan.source.name, tokens / prepared, share, prepared)


def _checked(option: str, to: str) -> Path:
    """The path of an output, before anything is done for it."""
    path = Path(to).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{option}={to!r} is not possible: name a file in a folder that exists")
    return path


if __name__ == "__main__":
    run_main(main)
