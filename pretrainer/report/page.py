"""The report: one HTML file that loads nothing and runs no script, for a person who was not there."""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from pretrainer.pooled import pooled_loss
from pretrainer.report import charts
from pretrainer.report.evaluation import evaluation
from pretrainer.report.facts import Facts, Plain
from pretrainer.report.story import KINDS, Mark, Points, Story, tell
from pretrainer.report.weak import findings

MOST_ROWS = 200
MOST_SAMPLES = 12
NOT_RECORDED = "not recorded"
BRIEF = 40  # characters that stay on one line


def render(facts: Facts) -> bytes:
    """The file."""
    style = files("pretrainer.report").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title, story = html.escape(f"Run {facts.run}"), tell(facts)
    parts = [part for section in SECTIONS for part in section(facts, story)]
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{style}</style>\n</head>'
    )
    return "\n".join([head, "<body>", *parts, "</body>", "</html>", ""]).encode("utf-8", "backslashreplace")


# ----------------------------------------------------------------------------------------------------------- pieces


class Picture(str):
    """SVG of our own, which is not escaped."""


def section(title: str, *parts: str | None, note: str = "") -> str:
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{said}{''.join(part for part in parts if part)}</section>"


def figure(picture: str | None, caption: str = "") -> str:
    if picture is None:
        return ""
    return f"<figure>{picture}{f'<figcaption>{html.escape(caption)}</figcaption>' if caption else ''}</figure>"


def curves(
    title: str, lines: Mapping[str, Points], story: Story, words: Callable[[float], str], from_zero: bool = True
) -> str:
    """A small picture under its title, with a legend where there are several curves; nothing where there is none."""
    picture = charts.curves(title, lines, story, words, from_zero)
    if picture is None:
        return ""
    known = charts.names(lines)
    keys = "".join(f'<span class="key {color}"></span>{html.escape(name)}' for name, color in known)
    legend = f'<p class="legend">{keys}</p>' if len(known) > 1 else ""
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{picture}{legend}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], words: int = 1) -> str:
    """Cells are escaped, but for pictures; from column `words` on they are numbers."""

    def cell(tag: str, column: int, value: Any) -> str:
        text = value if isinstance(value, Picture) else html.escape(str(value))
        kind = "number" if column >= words else "brief" if len(text) <= BRIEF or text is value else ""
        return f'<{tag} class="{kind}">{text}</{tag}>'

    def line(tag: str, row: Sequence[Any]) -> str:
        return f"<tr>{''.join(cell(tag, column, value) for column, value in enumerate(row))}</tr>"

    body = "".join(line("td", row) for row in rows)
    top = f"<thead>{line('th', head)}</thead>" if head else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def shown(value: Any, form: str = "", unit: str = "") -> str:
    return NOT_RECORDED if value is None else format(value, form) + unit


def clock(at_s: float | None) -> str:
    return "" if at_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))


# --------------------------------------------------------------------------------------------------------- sections


def headline(facts: Facts, story: Story) -> Iterable[str]:
    summary, total = facts.summary, facts.total_steps
    steps = max(facts.steps, story.last_step)
    speed = summary.get("tokens_per_s") or next((v for _s, v in reversed(story.curve("tokens_per_s"))), None)
    tokens = steps * facts.batch_tokens if facts.batch_tokens else None
    tiles = [
        ("steps", f"{steps:,}" + (f" of {total:,}" if total else "")),
        ("tokens", shown(tokens, ",")),
        ("held-out loss", shown(_held_out_loss(facts, story), ".4f")),
        (f"bits per byte (gzip -9 {shown(summary.get('gzip_bits_per_byte'), '.3f')})",
         shown(summary.get("val_bits_per_byte"), ".3f")),
        ("parameters", shown(summary.get("parameters"), ",")),
        ("goodput", shown(facts.goodput.get("fraction"), ".1%")),
        ("tokens per second", shown(speed, ",.0f")),
        ("waiting for data", shown(summary.get("data_wait_fraction"), ".1%")),
    ]  # fmt: skip
    inner = "".join(f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>" for name, value in tiles)
    yield f'<h1>{html.escape(f"Run {facts.run}")} <span class="status {facts.status}">{facts.status}</span></h1>'
    yield f'<p class="note">{html.escape(facts.uri)} · {html.escape(_when(facts))}</p>'
    if facts.message:
        yield f'<p class="message">{html.escape(facts.message)}</p>'
    yield f'<div class="tiles">{inner}</div>'


def _held_out_loss(facts: Facts, story: Story) -> float | None:
    if facts.summary.get("val_loss") is not None:
        return float(facts.summary["val_loss"])
    return pooled_loss(story.validations[max(story.validations)]) if story.validations else None


def _when(facts: Facts) -> str:
    times = [event["at_s"] for event in facts.events if event.get("at_s")]
    return f"{clock(times[0])} to {clock(times[-1])} UTC" if times else f"times {NOT_RECORDED}"


def weak(facts: Facts, story: Story) -> Iterable[str]:
    found = findings(facts, story)
    items = "".join(f"<li>{html.escape(words)}</li>" for words in found.values())
    nothing = '<p class="note">No rule of this page found anything to say.</p>'
    yield section("What to look at", f'<ul class="weak">{items}</ul>' if found else nothing)


def losses(facts: Facts, story: Story) -> Iterable[str]:
    marks = Counter(mark.kind for mark in story.marks)
    legend = "".join(
        f'<span class="key {kind}"></span>{html.escape(words)} ({marks[kind]:,})' for kind, words in KINDS.items()
        if marks[kind]
    )  # fmt: skip
    legend += f'<span class="key checkpoint"></span>checkpoint ({len(story.checkpoints):,})'
    legend += '<span class="key strip-key"></span>workers, above'
    picture = charts.loss(facts, story)
    yield section("Loss", figure(picture) or _nothing(), f'<p class="legend">{legend}</p>' if picture else "")


def _nothing() -> str:
    return f'<p class="note">{NOT_RECORDED}</p>'


def happened(facts: Facts, story: Story) -> Iterable[str]:
    if not story.marks:
        return
    rows = [(f"{mark.step:,}", clock(mark.at_s), KINDS[mark.kind], mark.words) for mark in _most(story.marks)]
    more = len(story.marks) - len(rows)
    note = f"{more:,} more are left out here." if more > 0 else ""
    yield section("What happened", table(["step", "UTC", "what", ""], rows, words=4), note=note)


def _most(marks: Sequence[Mark]) -> Sequence[Mark]:
    return marks if len(marks) <= MOST_ROWS else [*marks[: MOST_ROWS // 2], *marks[-MOST_ROWS // 2 :]]


def decisions(facts: Facts, story: Story) -> Iterable[str]:
    """Every decision about a spike, with the documents that its steps hold."""
    if not facts.heals:
        return
    blocks = []
    for heal in facts.heals[:MOST_ROWS]:
        words = f"{heal['message']}; {heal['action']}"
        rows = [
            (one["source"], one["shard"], one["row"], one["document"], f"{one['tokens']:,}")
            for one in heal.get("documents") or ()
        ]
        count = heal.get("documents_count")
        said = f"{count:,} documents, those with the most tokens first" if count else f"documents {NOT_RECORDED}"
        inner = table(["source", "shard", "row", "document", "tokens"], rows, words=4) if rows else ""
        blocks.append(
            f"<details><summary>{html.escape(words)} <span>{heal['policy']}</span></summary>"
            f'<p class="note">{html.escape(said)}</p>{inner}</details>'
        )
    note = "A step that is left out keeps its number; the audit log says applied: false and why."
    yield section("Stability decisions", *blocks, note=note)


def by_source(facts: Facts, story: Story) -> Iterable[str]:
    trained = curves("training loss by source", story.source_losses(), story, "{:.3g}".format, False)
    held = curves("held-out loss by source", story.held_out("loss"), story, "{:.3g}".format, False)
    rows = [
        (name, shown(points[-1][1], ".4f"), shown(_last(story, "bits_per_byte", name), ".3f"),
         shown(one.get("gzip_bits_per_byte"), ".3f"), shown(one.get("unigram_bits_per_byte"), ".3f"),
         shown(one.get("documents"), ","))
        for name, points in story.held_out("loss").items() for one in [facts.held_out.get(name) or {}]
    ]  # fmt: skip
    head = ["source", "held-out loss", "bits per byte", "gzip -9", "unigram tokens", "documents"]
    pictures = f'<div class="two">{trained}{held}</div>' if trained or held else ""
    yield section("By source", pictures or _nothing(), table(head, rows) if rows else "")


def _last(story: Story, metric: str, name: str) -> float | None:
    points = story.held_out(metric).get(name)
    return points[-1][1] if points else None


def speed(facts: Facts, story: Story) -> Iterable[str]:
    lead = [(one["step"], one["steps_ahead"]) for one in story.leads]
    talk = [(one["step"], one["communication_share"]) for one in story.profiles]
    memory = [(one["step"], one.get("device_peak_bytes", one.get("host_peak_bytes", 0)) / 2**30) for one in story.looks]
    pictures = [
        curves("learning rate", {"": story.curve("learning_rate")}, story, "{:.3g}".format),
        curves("tokens per second", {"": story.curve("tokens_per_s")}, story, "{:,.0f}".format),
        curves("share of time waiting for data", {"": story.curve("data_wait_fraction")}, story, "{:.1%}".format),
        curves("steps that curation is ahead of training", {"": lead}, story, "{:,.0f}".format),
        curves("MFU", {"": story.curve("mfu")}, story, "{:.1%}".format),
        curves("share of a step that was communication", {"": talk}, story, "{:.0%}".format),
        curves("gradient norm", {"": story.curve("grad_norm")}, story, "{:.3g}".format),
        curves("peak memory of rank 0, GiB", {"": memory}, story, "{:.3g}".format),
    ]
    drawn = "".join(pictures)
    last = story.leads[-1]["curated"] if story.leads else {}
    note = ", ".join(f"{name} {share:.0%}" for name, share in last.items())
    note = f"Curated when it was last looked at: {note}." if note else ""
    yield section("Speed and schedule", f'<div class="two">{drawn}</div>' if drawn else _nothing(), note=note)


def goodput(facts: Facts, story: Story) -> Iterable[str]:
    share = facts.goodput.get("share")
    if not share or not sum(share.values()):
        return
    lost = [(name.replace("_", " "), value) for name, value in share.items() if name != "useful"]
    hours = facts.goodput["worker_s"] / 3600
    note = f"Of {hours:,.2f} worker-hours in which a driver lived; each second counts once."
    parts = sorted(lost, key=lambda one: -one[1])
    yield section("Where the workers' time went", figure(charts.waterfall("all", parts, "new steps")), note=note)


def funnel(facts: Facts, story: Story) -> Iterable[str]:
    blocks = []
    for name, counts in facts.sources.items():
        read = max(1, counts["read"])
        rows = [("read", counts["read"], "whole"), ("kept", counts["kept"], "kept")]
        rows += [(reason, n, "lost") for reason, n in sorted(counts["dropped"].items(), key=lambda one: -one[1])]
        rows += [("unreadable (dead letters)", counts["dead_letters"], "lost")] if counts["dead_letters"] else []
        cells = [
            (word, Picture(charts.share_bar(n / read, kind)), f"{n:,}", f"{n / read:.1%}") for word, n, kind in rows
        ]
        about = f"{counts['bytes_read']:,} bytes read, {counts['bytes_kept']:,} kept, {counts['tokens']:,} tokens"
        bars = table(["", "", "documents", ""], cells, words=2)
        blocks.append(f'<h3>{html.escape(name)}</h3><p class="note">{about}</p>{bars}')
    mixture = [(name, f"{one['asked']:.2%}", f"{one['realised']:.2%}") for name, one in facts.mixture.items()]
    shares = table(["share of the slot blocks", "asked", "realised"], mixture) if mixture else ""
    yield section("Documents", f'<div class="two">{"".join(f"<div>{block}</div>" for block in blocks)}</div>', shares)


def samples(facts: Facts, story: Story) -> Iterable[str]:
    if not facts.samples:
        return
    kept = facts.samples if len(facts.samples) <= MOST_SAMPLES else _spread(facts.samples)
    blocks = [f"<h3>step {step:,}</h3><pre>{html.escape(text)}</pre>" for step, text in kept]
    note = "The beginning of a held-out document, continued by the model."
    yield section("Samples over time", *blocks, note=note)


def _spread(found: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    last = len(found) - 1
    return [found[round(number * last / (MOST_SAMPLES - 1))] for number in range(MOST_SAMPLES)]


def identity(facts: Facts, story: Story) -> Iterable[str]:
    summary, driver = facts.summary, (facts.of("driver") or [{}])[-1]
    cluster: Plain = driver.get("cluster") or {}
    kinds = ", ".join(cluster.get("accelerators") or ()) or "none"
    parts = "nodes {nodes}, CPUs {cpus:g}, GPUs {gpus:g}".format(**cluster) if cluster else None
    hardware = parts and f"{parts} ({kinds})"
    rows = [
        ("order digest", shown(facts.order_digest)),
        ("stream fingerprint", shown(facts.fingerprint)),
        ("weights SHA-256 (exact mode)", shown(summary.get("weights_sha256"))),
        ("checkpoint", shown(summary.get("checkpoint"))),
        ("export", shown(summary.get("export"))),
        ("git commit", shown(driver.get("git_commit"))),
        ("cluster at the last start", shown(hardware)),
        ("software", ", ".join(f"{n} {v}" for n, v in (driver.get("software") or {}).items()) or NOT_RECORDED),
    ]
    fields = [(name, value) for name, value in _flat(facts.config)]
    config = f"<details><summary>every field of the config</summary>{table([], fields, 2)}</details>" if fields else ""
    yield section("What it was", table([], rows, words=2), config)


def _flat(values: Plain, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


Section = Callable[[Facts, Story], Iterable[str]]
SECTIONS: list[Section] = [
    headline, weak, losses, happened, decisions, by_source, lambda facts, story: evaluation(facts.evaluation), samples,
    speed, goodput, funnel, identity,
]  # fmt: skip
"""In the order of the page."""
