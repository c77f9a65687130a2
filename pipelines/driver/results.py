"""What is left of a run: export, summary.json, MLflow's status, the last table on the terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray

from pipelines.driver.card import CARD
from pipelines.driver.documents import document_counts, document_table
from pipelines.driver.exports import NEWEST, write_card, write_export
from pipelines.driver.forgetting import words
from pipelines.driver.gather import PAGE, gather
from pipelines.driver.progress import Console, decode, goodput_lines, shown_metrics
from pipelines.driver.session import Outcome, Session
from pretrainer.config import Config
from pretrainer.config_load import to_yaml
from pretrainer.data.curriculum import realised_shares
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import Frozen
from pretrainer.errors import TrackingError
from pretrainer.model.hf import why_no_export
from pretrainer.model.presets import parameter_count
from pretrainer.pooled import pooled_bits_per_byte, pooled_loss
from pretrainer.report.page import render
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.train.checkpoints.copies import BEST, Place
from pretrainer.train.initialise import recorded_digest
from pretrainer.train.scoring.selection import read_points
from pretrainer.train.stability.healing import read_heals

log = logging.getLogger(__name__)

EVENTS_PATIENCE_S = 60.0
DEDUP_KINDS = ("exact", "near", "url", "sealed", "lines", "substring")


def finish(session: Session, outcome: Outcome, console: Console, exports: bool = True) -> int:
    """Export, summarise, close the MLflow run with the true status; returns the exit code."""
    session.lease.fence.check()
    committed = committed_checkpoint(session.run)
    exported: dict[str, Any] | None = None
    ended = committed is not None and committed[1] > 0 and outcome.status in ("completed", "stopped")
    no_export = why_no_export(session.config.model)
    if committed is not None and ended and exports and no_export is None:
        checkpoint, rule = to_export(session, committed, console)
        exported = write_export(session.config, session.run, checkpoint, session.run.child("export"), rule)
    elif ended and exports:
        console.say(f"not exported, the checkpoints have the model: {no_export}")
    summary = summarise(session, outcome, committed, session.run.child("export").uri if exported else None)
    summary["goodput"] = session.supervisor.close(summary["tokens"], summary["steps"])
    session.run.write("summary.json", json.dumps(summary, indent=1).encode())
    pages = documents(session, exported, console)
    try:
        ray.get(session.recorder.finish.remote(outcome.status, artifacts(session, outcome, summary) | pages))
    except TrackingError as error:
        console.say(f"warning: {error.args[0]}; summary.json and the checkpoints are complete without it")
    console.say(table(session, summary, outcome, pages))
    if outcome.message:
        print(f"\nerror: {outcome.message}", file=sys.stderr if outcome.exit_code else sys.stdout, flush=True)
    return outcome.exit_code


def to_export(session: Session, committed: tuple[str, int], console: Console) -> tuple[str, str]:
    """(folder of the checkpoint that train.export asks for, the rule in words)."""
    if session.config.train.export == "newest":
        return committed[0], NEWEST
    session.supervisor.drain()
    best = Place(BEST, session.run.child(BEST)).copies()
    if not best:
        console.say("warning: there is no best checkpoint (train.keep_best), so the newest is exported")
        return committed[0], f"{NEWEST}, because there is no best one"
    console.say(f"the best checkpoint is exported, that of step {max(best):,} ({session.config.evaluation.best_by})")
    return f"{BEST}/{best[max(best)]}", f"the best one by {session.config.evaluation.best_by}"


def documents(session: Session, exported: dict[str, Any] | None, console: Console) -> dict[str, str | bytes]:
    """The card beside the model and the report, in the run folder; returns those for MLflow. None of it fails a run."""
    run = session.run
    if not ray.get(session.recorder.keep_events.remote(EVENTS_PATIENCE_S)):
        console.say("warning: the run folder has not got the last events, which the report and the card are made of")
    warning = write_card(run, run.child("export"), exported) if exported else ""
    if warning:
        console.say(warning)
    found: dict[str, str | bytes] = {CARD: run.read(f"export/{CARD}")} if exported and not warning else {}
    try:
        page = render(gather(run))
        run.write(PAGE, page)
    except Exception as error:
        log.debug("the report", exc_info=True)
        console.say(f"warning: no report was written ({type(error).__name__}: {error}): try python -m pipelines.report")
        return found
    return {**found, "report.html": page}


def summarise(
    session: Session, outcome: Outcome, committed: tuple[str, int] | None, exported: str | None
) -> dict[str, Any]:
    """The content of summary.json."""
    config, data = session.config, session.data
    by_source = document_counts(data)
    dropped = sum((Counter(c["dropped"]) for c in by_source.values()), Counter())
    steps = [step for event in outcome.of("steps") for step in event["steps"]]
    totals = ray.get(session.recorder.totals.remote())
    validation = held_out_result(outcome, data)
    digests = outcome.of("checkpoint") + outcome.of("finish")
    done = committed[1] if committed else 0
    first_step_s = steps[0]["time_s"] - session.started_s if steps else None
    saved = outcome.of("checkpoint")
    saving_s = {name: sum(event[name] for event in saved) for name in ("blocking_s", "total_s")}
    return {
        "run": config.run.name,
        "lease": session.lease.claim.number,
        "status": outcome.status,
        "message": outcome.message,
        "steps": done,
        "tokens": done * config.train.global_batch_tokens,
        "train_loss": steps[-1]["loss"] if steps else None,
        **validation,
        "forgetting": session.supervisor.forgetting.report,
        "init": init_summary(session),
        "parameters": parameter_count(config.model, data.vocab_size),
        "active_parameters": parameter_count(config.model, data.vocab_size, active=True),
        "vocab_size": data.vocab_size,
        "world_sizes": sorted({start["world_size"] for start in session.starts}),
        "restarts": len(session.starts) - len({start["segment"] for start in session.starts}),
        "order_digest": digests[-1]["order_digest"] if digests else "",
        "weights_sha256": digests[-1]["weights_sha256"] if digests else None,
        "instabilities": [{**h.to_json(), "message": h.message, "action": h.action} for h in read_heals(session.run)],
        "warnings": [{k: event[k] for k in ("step", "name", "message")} for event in outcome.of("warning")],
        "fingerprint": data.fingerprint,
        "documents": {
            "read": sum(c["read"] for c in by_source.values()),
            "kept": sum(c["kept"] for c in by_source.values()),
            "dropped": dict(sorted(dropped.items())),
            "dead_letters": sum(c["dead_letters"] for c in by_source.values()),
            "quarantined": sum(c["quarantined"] for c in by_source.values()),
        },
        "dedup": {kind: dropped[f"duplicate_{kind}"] for kind in DEDUP_KINDS},
        "sources": by_source,
        "mixture": mixture(session, done),
        "time_to_first_step_s": first_step_s,
        "tokens_per_s": totals["tokens"] / max(1e-9, totals["elapsed_s"]),
        "data_wait_fraction": totals["data_wait_s"] / max(1e-9, totals["elapsed_s"]),
        "wall_s": time.time() - session.started_s,
        "mlflow": {"uri": session.mlflow_uri, "run_id": session.mlflow_run_id},
        "checkpoints": {"saved": len(saved), **saving_s},
        "checkpoint": session.run.child(committed[0]).uri if committed else None,
        "export": exported,
        "early_stop": early_stop(outcome, config),
        "evaluation": newest_scores(session.run),
    }


def early_stop(outcome: Outcome, config: Config) -> dict[str, Any] | None:
    """By which rule the run ended before its last step; None where it did not."""
    finished = outcome.of("finish")
    if not finished or not finished[-1]["early"]:
        return None
    rule = {name: getattr(config.evaluation, name) for name in ("stop_after_validations", "min_improvement")}
    return {"step": finished[-1]["step"], **rule}


def newest_scores(run: Store) -> dict[str, Any]:
    """Task -> its last result while training, with the step."""
    return {
        name: {"step": point["step"], **result} for point in read_points(run) for name, result in point["tasks"].items()
    }


def init_summary(session: Session) -> dict[str, Any] | None:
    """The model that the run began with, and the digest of its weights; None where they were drawn."""
    init = session.config.init
    if init.uri is None:
        return None
    return {"uri": init.uri, "checkpoint": init.checkpoint, "weights_sha256": recorded_digest(session.run)}


def mixture(session: Session, step: int) -> dict[str, dict[str, float]]:
    """By source, its share of the slot blocks: asked, and realised up to a step."""
    shares = realised_shares(session.data.segments, step, session.config.slot_blocks_per_step)
    names = [source.name for source in session.config.data.sources]
    return {name: {"asked": a, "realised": r} for name, (a, r) in zip(names, shares, strict=True)}


def held_out_result(outcome: Outcome, data: Frozen) -> dict[str, Any]:
    """Validation over all sources, weighted by their held-out targets and bytes, and its yardsticks."""
    last = outcome.of("validation")[-1]["sources"] if outcome.of("validation") else {}
    sizes = {name: held.bytes for name, held in data.held_out.items()}
    loss = pooled_loss(last) if last else None

    def by_bytes(values: dict[str, float]) -> float | None:
        return pooled_bits_per_byte({name: values[name] for name in last}, sizes) if last else None

    return {
        "val_loss": loss,
        "val_bits_per_byte": by_bytes({n: values["bits_per_byte"] for n, values in last.items()}),
        "perplexity": 2.718281828459045 ** min(loss, 700.0) if loss is not None else None,
        "gzip_bits_per_byte": by_bytes({n: h.gzip_bits_per_byte for n, h in data.held_out.items()}),
        "unigram_bits_per_byte": by_bytes({n: h.unigram_bits_per_byte for n, h in data.held_out.items()}),
        "validation": last,
    }


def artifacts(session: Session, outcome: Outcome, summary: dict[str, Any]) -> dict[str, str | bytes]:
    """For MLflow: resolved config, summary, data report, samples, tokenizer."""
    tokenizer = load_tokenizer(session.data.plans[0].data_uri)
    samples = [f"step {e['step']}\n{decode(session.data, e['ids'])}\n" for e in outcome.of("sample")]
    return {
        "config.yaml": to_yaml(session.config),
        "summary.json": json.dumps(summary, indent=1),
        "data_report.txt": "\n".join(document_table(summary["sources"])),
        "samples.txt": "\n".join(samples),
        "tokenizer.json" if tokenizer.is_json else "tokenizer.model": tokenizer.data,
    }


def instabilities(summary: dict[str, Any]) -> str:
    """How many of what, and how many steps were left out."""
    found = Counter(heal["reason"].replace("_", " ") for heal in summary["instabilities"])
    left_out = {step for heal in summary["instabilities"] for step in range(heal["first_step"], heal["end_step"])}
    told = [f"{count} x {reason}" for reason, count in found.items()]
    told += [f"{len(left_out)} steps left out"] if left_out else []
    return ", ".join([*told, *(warning["name"].replace("_", " ") for warning in summary["warnings"])])


def early_line(early: dict[str, Any]) -> str:
    count = early["stop_after_validations"]
    return f"after step {early['step']:,}: {count} validations in a row were no better"


def table(session: Session, summary: dict[str, Any], outcome: Outcome, pages: Mapping[str, object]) -> str:
    """The last table on the terminal."""

    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    can_generate, scores = session.config.model.causal, summary["evaluation"]
    rows = [
        ("status", summary["status"]),
        ("steps, tokens", f"{summary['steps']:,}, {summary['tokens']:,}"),
        ("loss", f"train {number(summary['train_loss'], '.4f')}, validation {number(summary['val_loss'], '.4f')}"),
        ("perplexity", f"{number(summary['perplexity'], ',.1f')} (a uniform guess has {summary['vocab_size']:,})"),
        (
            "bits per byte",
            f"{number(summary['val_bits_per_byte'], '.3f')} (gzip -9 {number(summary['gzip_bits_per_byte'], '.3f')}, "
            f"unigram tokens {number(summary['unigram_bits_per_byte'], '.3f')})",
        ),
        *([("forgetting", words(summary["forgetting"]))] if summary["forgetting"] else []),
        ("speed", f"{summary['tokens_per_s']:,.0f} tokens/s, waiting for data {summary['data_wait_fraction']:.1%}"),
        (
            "time",
            f"first step after {number(summary['time_to_first_step_s'], '.1f')} s, all {summary['wall_s']:.0f} s, "
            f"{summary['restarts']} restarts",
        ),
        (
            "goodput",
            f"{summary['goodput']['fraction']:.1%}, {summary['goodput']['tokens_per_worker_s']:,.0f} "
            "useful tokens per worker and second",
        ),
        (
            "checkpoints",
            "{saved:,} saved, training waited {blocking_s:.1f} s of {total_s:.1f} s".format(**summary["checkpoints"]),
        ),
        *([("instabilities", instabilities(summary))] if summary["instabilities"] or summary["warnings"] else []),
        *([("ended early", early_line(summary["early_stop"]))] if summary["early_stop"] else []),
        *([("scores", f"of step {one['step']:,}, {name}: {shown_metrics(one)}") for name, one in scores.items()]),
        ("order digest", summary["order_digest"]),
        *([("weights SHA-256", summary["weights_sha256"])] if summary["weights_sha256"] else []),
        ("checkpoint", summary["checkpoint"]),
        ("export", summary["export"]),
        *([("report", session.run.child(PAGE).uri)] if "report.html" in pages else []),
        ("MLflow", f"mlflow ui --backend-store-uri {summary['mlflow']['uri']}"),
        *([("try it", f'python -m pipelines.generate {session.run.uri} --prompt "def main"')] if can_generate else []),
    ]
    goodput = ["goodput: share of the workers' time", *goodput_lines(summary["goodput"])]
    lines = ["", "documents", *document_table(summary["sources"]), "", *goodput, "", "result"]
    return "\n".join(lines + [f"  {name:<16}{value}" for name, value in rows])
