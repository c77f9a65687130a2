"""The run card for people: a Hugging Face README.md, its front matter in front, made of the card's values alone."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from pretrainer.report.card import not_recorded
from pretrainer.report.facts import Plain

NOT_RECORDED = "not recorded"
MOST_ROWS = 100
TAGS = ["pretrainer", "text-generation"]


def as_markdown(card: Plain) -> str:
    """README.md of the folder of the exported model."""
    front = yaml.safe_dump(front_matter(card), sort_keys=False, allow_unicode=False).rstrip()
    parts = [part for section in SECTIONS for part in section(card)]
    return "\n".join(["---", front, "---", "", *parts, ""])


def front_matter(card: Plain) -> dict[str, Any]:
    """What the hub reads; no licence is named, because the run knows of none."""
    found = results(card)
    index = [{"name": card["run"]["name"], "results": found}] if found else []
    about = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": TAGS}
    return {**about, **({"model-index": index} if index else {})}


def results(card: Plain) -> list[dict[str, Any]]:
    tasks = card["evaluation"]["tasks"] or {}
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": name, "type": name},
            "metrics": [{"type": metric, "value": one["value"]} for metric, one in task["metrics"].items()],
        }
        for name, task in tasks.items()
    ]


# ----------------------------------------------------------------------------------------------------------- pieces


def shown(value: Any) -> str:
    """A value in a sentence or a cell; nothing in it is markup."""
    if value is None:
        return NOT_RECORDED
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(item)}" for name, item in value.items()) or "none"
    text = html.escape(" ".join(str(value).split()), quote=False)
    return "".join(f"\\{sign}" if sign in "|*_`[]" else sign for sign in text)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(shown, row))} |" for row in rows), ""]


def settings(values: Plain, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Rows of those that there are; None is a value here."""
    return [(name, "none" if values[name] is None else values[name]) for name in names if name in values]


def share(value: float | None) -> str | None:
    return None if value is None else f"{value:.2%}"


def when(at_s: float | None) -> str | None:
    return None if at_s is None else f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(at_s))} UTC"


# --------------------------------------------------------------------------------------------------------- sections


def _head(card: Plain) -> Iterable[str]:
    run, training, held = card["run"], card["training"], card["evaluation"]["held_out"]
    yield f"# {shown(run['name'])}"
    yield ""
    yield (
        f"A language model, {_begun(card)}: {shown(card['model']['parameters'])} parameters, "
        f"{shown(training['tokens'])} tokens in {shown(training['steps'])} of {shown(training['of_steps'])} steps. "
        f"The run is {run['status']}. Everything here is generated from the run's own folder; `card.json` beside "
        "this file has the same for programs, and `python -m pipelines.reproduce card.json` derives its digests again."
    )
    yield ""
    yield from table(
        ["held-out loss", "perplexity", "bits per byte", "gzip -9", "unigram tokens"],
        [[held[name] for name in ("val_loss", "perplexity", "val_bits_per_byte", "gzip_bits_per_byte",
                                  "unigram_bits_per_byte")]],
    )  # fmt: skip
    if card["to_look_at"]:
        yield "## What is weak"
        yield ""
        yield from (f"- {shown(words)}" for words in card["to_look_at"].values())
        yield ""


def _begun(card: Plain) -> str:
    init = card["init"]
    return f"trained on from {shown(init['uri'])}" if isinstance(init, Mapping) else "trained from scratch"


def _use(card: Plain) -> Iterable[str]:
    yield "## Use"
    yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield 'tokenizer, model = (kind.from_pretrained(".") for kind in (AutoTokenizer, AutoModelForCausalLM))'
    yield "```"
    yield ""
    yield (
        "It continues text. It was not trained to follow instructions, and nobody has looked into what harm its "
        "answers can do. The licences of its training text are those of the sources below; none is given for the model."
    )
    yield ""


def _model(card: Plain) -> Iterable[str]:
    model = {**card["model"]["settings"], **card["model"]}
    names = ("parameters", "active_parameters", "vocab_size", "context", "preset", "layers", "hidden", "heads",
             "kv_heads", "ffn", "norm", "positions", "tie_embeddings", "causal")  # fmt: skip
    yield "## Model"
    yield ""
    yield from table(["", ""], settings(model, names))
    checkpoint = card["checkpoint"] or {}
    rule, step = shown(checkpoint.get("rule")), shown(checkpoint.get("step"))
    yield f"Exported checkpoint: step {step}, {rule}. SHA-256 of the weights' file: {shown(checkpoint.get('sha256'))}."
    yield ""
    tokenizer = card["tokenizer"] or {}
    yield f"Tokenizer: {shown(tokenizer or None)}."
    yield ""
    yield f"Began with: {shown(card['init'])}."
    yield ""


def _data(card: Plain) -> Iterable[str]:
    yield "## Data"
    yield ""
    mixture = card["data"]["mixture"] or {}
    rows = []
    for name, source in card["data"]["sources"].items():
        dealt, counts, shards = mixture.get(name) or {}, source["documents"] or {}, source["shards"] or {}
        rows.append((name, source["uris"], source["preset"], share(dealt.get("asked")), share(dealt.get("realised")),
                     shards.get("count"), shards.get("bytes"), counts.get("read"), counts.get("kept"),
                     counts.get("tokens")))  # fmt: skip
    yield from table(
        ["source", "from", "preset", "share asked", "realised", "objects", "bytes", "documents read", "kept",
         "tokens kept"], rows,
    )  # fmt: skip
    for name, source in card["data"]["sources"].items():
        yield from _funnel(name, source)
    segments = card["data"]["segments"] or []
    if len(segments) > 1:
        yield "### Curriculum"
        yield ""
        yield from table(list(segments[0]), [list(segment.values()) for segment in segments])
    yield f"Decontamination: {shown(card['data']['decontamination'])}."
    yield ""


def _funnel(name: str, source: Plain) -> Iterable[str]:
    counts = source["documents"]
    yield f"### {shown(name)}"
    yield ""
    if counts is None:
        yield f"Documents: {NOT_RECORDED}."
        yield ""
        return
    read = max(1, counts["read"])
    rows = [("kept", counts["kept"]), *sorted(counts["dropped"].items(), key=lambda one: -one[1])]
    rows.append(("unreadable (dead letters)", counts["dead_letters"]))
    yield from table(["documents", "", "of those read"], [(word, n, share(n / read)) for word, n in rows])
    yield f"Held out for validation: {shown(source['held_out'])}."
    yield f"Licences named in kept documents: {shown(source['licences'])}. Languages: {shown(source['languages'])}."
    yield ""


def _training(card: Plain) -> Iterable[str]:
    training, config = card["training"], card["config"].get("train") or {}
    yield "## Training"
    yield ""
    names = ("global_batch_tokens", "learning_rate", "min_lr_ratio", "schedule", "warmup_steps", "optimizer", "beta1",
             "beta2", "eps", "weight_decay", "clip_norm", "z_loss", "precision", "float8", "exact")  # fmt: skip
    yield from table(["", ""], settings(config, names))
    worlds = [(f"{w['first_step']:,} to {w['end_step']:,}", w["workers"]) for w in training["world_sizes"] or []]
    yield from table(["steps", "workers"], worlds)
    yield f"Restarts of the workers: {shown(training['restarts'])}."
    yield ""
    yield f"Warnings: {shown(training['warnings'])}."
    yield ""
    goodput = (training["goodput"] or {}).get("share") or {}
    yield from table(["where the workers' time went", ""], [(name, share(value)) for name, value in goodput.items()])
    what = [(mark["step"], mark["kind"], mark["words"]) for mark in training["what_happened"]]
    if what:
        yield from table(["step", "what happened", ""], what[:MOST_ROWS])
        yield from ([f"{len(what) - MOST_ROWS:,} more are in card.json.", ""] if len(what) > MOST_ROWS else [])


def _instabilities(card: Plain) -> Iterable[str]:
    yield "## Instabilities, and what was done"
    yield ""
    if not card["instabilities"]:
        yield "No instability was seen."
        yield ""
        return
    rows = [
        (heal["message"], heal["policy"], heal["action"], heal["documents_count"]) for heal in card["instabilities"]
    ]
    yield from table(["what", "policy", "done", "documents in its steps"], rows[:MOST_ROWS])
    yield "The documents are named in card.json, those with the most tokens first."
    yield ""


def _evaluation(card: Plain) -> Iterable[str]:
    yield "## Evaluation"
    yield ""
    by_source = card["evaluation"]["by_source"] or {}
    names = ("loss", "perplexity", "bits_per_byte", "targets")
    held = [(source, *(one.get(name) for name in names)) for source, one in by_source.items()]
    yield from table(["held-out source", "loss", "perplexity", "bits per byte", "tokens"], held)
    tasks = card["evaluation"]["tasks"] or {}
    rows = [
        (name, task["step"], task["shots"], task["documents"], metric, one["value"], one.get("stderr"),
         task.get("guess"))
        for name, task in tasks.items()
        for metric, one in task["metrics"].items()
    ]  # fmt: skip
    if rows:
        yield from table(["task", "step", "shots", "lines", "metric", "value", "standard error", "blind guess"], rows)
    else:
        yield "No task was evaluated."
        yield ""


def _machines(card: Plain) -> Iterable[str]:
    hardware, cost, energy, run = card["hardware"], card["cost"], card["energy"], card["run"]
    dollars = "not known" if cost["dollars"] is None else f"{cost['dollars']:,.2f} USD"
    kwh = "not known" if energy["kwh"] is None else f"{energy['kwh']:,.4g} kWh"
    price = {name: value for name, value in cost.items() if name not in ("dollars", "why")}
    yield "## Machines, cost, energy"
    yield ""
    yield from table(["", ""], [
        ("devices", hardware["devices"] or None),
        ("device-hours", hardware["device_hours"]),
        ("clusters", hardware["clusters"]),
        ("from, to", [when(run["began_s"]), when(run["ended_s"])]),
        ("cost", f"{dollars} ({cost['why']})"),
        ("price", price or NOT_RECORDED),
        ("energy", f"{kwh} ({energy['assumption']})"),
    ])  # fmt: skip


def _identity(card: Plain) -> Iterable[str]:
    digests, software = card["digests"], card["software"]
    order = digests.get("order_digest") or {}
    yield "## Identity"
    yield ""
    yield from table(["", ""], [
        ("manifest", digests.get("manifest")),
        ("tokenizer", digests.get("tokenizer")),
        ("stream fingerprint", digests.get("fingerprint")),
        ("order digest", order.get("digest")),
        ("of steps", order.get("steps")),
        ("weights SHA-256 (exact mode)", digests.get("weights_sha256")),
        ("git commit", software["git_commit"]),
        ("uncommitted changes", software["git_changes"]),
        ("packages", software["software"]),
    ])  # fmt: skip
    missing = list(not_recorded(card))
    if missing:
        yield f"Not recorded: {', '.join(f'`{name}`' for name in missing)}."
        yield ""


def _config(card: Plain) -> Iterable[str]:
    yield "## Every setting"
    yield ""
    yield "```yaml"
    yield yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=False, width=120).rstrip()
    yield "```"


Section = Callable[[Plain], Iterable[str]]
SECTIONS: list[Section] = [
    _head, _use, _model, _data, _training, _instabilities, _evaluation, _machines, _identity, _config,
]  # fmt: skip
"""In the order of the file."""
