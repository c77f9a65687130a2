"""The page: what was found as compact JSON inside one HTML file that loads nothing and runs no script but its own.

Texts of strangers are data in it: JSON whose <, > and & are escaped, put on the page as text nodes. The page's
Content-Security-Policy names the hashes of its script and its style, so that nothing else could run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from pretrainer.config import Config, DataConfig, SourceConfig
from pretrainer.data.dedup.dedup import DUPLICATE_NEAR
from pretrainer.data.inspect.chain import DEDUP, Chain, Dedup, Edits, Step
from pretrainer.data.inspect.funnel import BANDS, LEFT, all_stages, decide, is_raw_crawl
from pretrainer.data.inspect.sample import Sample
from pretrainer.data.inspect.samples import as_plain, clusters, excerpts
from pretrainer.data.inspect.settings import Setting, setting_of

Settings = Callable[[str, str], Setting]
SCRIPTS = ("model.js", "charts.js", "funnel.js", "measures.js", "documents.js", "page.js")
"""In this order: the last one begins to draw."""
MAX_DEAD_LETTERS, MAX_DETAIL_CHARS = 200, 300
DTYPES = ("<u1", "<u2", "<u4", "<f4", "<f8")


class Looked(NamedTuple):
    """One source, looked at."""

    source: SourceConfig
    sample: Sample
    chain: Chain


def model(config: Config, looked: Sequence[Looked]) -> dict[str, Any]:
    """All that the page knows, as plain values; only `timings` differs between two calls."""
    return {
        "name": config.run.name,
        "stages": all_stages([look.chain for look in looked]),
        "bands": [band._asdict() for band in BANDS],
        "left": LEFT,
        "sources": [_source(look, config.data) for look in looked],
        "timings": [[[*_row] for _row in map(_timing, look.chain.timings)] for look in looked],
    }


def _timing(timing: Any) -> tuple[str, float, int]:
    return timing.stage, round(timing.seconds, 6), timing.bytes


def _source(look: Looked, data: DataConfig) -> dict[str, Any]:
    source, sample, chain = look

    def setting(stage: str, reason: str) -> Setting:
        return setting_of(stage, reason, data, source)

    decided, dead = decide(chain), sample.dead_letters
    return {
        "name": source.name,
        "preset": source.preset,
        "rules": list(source.rules),
        "raw_crawl": is_raw_crawl(source),
        "documents": len(chain.ids),
        "records": sample.records,
        "bytes_read": sample.bytes_read,
        "size": column(chain.size),
        "chars": column(chain.chars),
        "words": column(chain.words),
        "labels": {name: _coded(words) for name, words in chain.labels.items() if any(words) or name == "language"},
        "ids": chain.ids,
        "before": [_step(step, setting) for step in chain.before],
        "dedup": _dedup(chain.dedup, setting),
        "after": [_step(step, setting) for step in chain.after],
        "excerpts": [as_plain(excerpt) for excerpt in excerpts(chain, decided)],
        "clusters": [as_plain(cluster) for cluster in clusters(chain, decided)],
        "dead_letters": {
            "reasons": dict(sorted(Counter(letter.reason for letter in dead).items())),
            "first": [[d.shard, d.row, d.reason, d.detail[:MAX_DETAIL_CHARS]] for d in dead[:MAX_DEAD_LETTERS]],
        },
    }


def _step(step: Step, setting: Settings) -> dict[str, Any]:
    """`size_out` is left out where the step edits nothing."""
    rules = [
        {
            "reason": rule.reason,
            "measure": rule.measure,
            "side": "least" if rule.least > -math.inf else "most",
            "limit": rule.limit if math.isfinite(rule.limit) else None,
            "setting": setting(step.stage, rule.reason),
        }
        for rule in step.rules
    ]
    plain = {
        "stage": step.stage,
        "annotates": step.annotates,
        "rules": rules,
        "measures": {name: column(values) for name, values in step.measures.items()},
            }
    return plain | _sizes(step.edits)


def _sizes(edits: Edits) -> dict[str, Any]:
    plain = {"size_in": column(edits.size_in)}
    same = np.array_equal(edits.size_in, edits.size_out)
    return plain if same else plain | {"size_out": column(edits.size_out)}


def _dedup(dedup: Dedup, setting: Settings) -> dict[str, Any]:
    pairs = dedup.pairs
    plain = {
        "on": dedup.is_on,
        "threshold": dedup.threshold,
        # + 1 because columns hold no negative number: 0 is a document without such a key.
        "equal": [[reason, column(group + 1)] for reason, group in dedup.equal.items()],
        "fixed": [[doc, reason] for doc, reason in enumerate(dedup.fixed) if reason is not None],
        "starts": column(pairs.starts),
        "earlier": column(pairs.earlier),
        "similarity": column(pairs.similarity),
        "settings": {reason: setting(DEDUP, reason) for reason in (*dedup.equal, DUPLICATE_NEAR)},
    }
    return plain | _sizes(dedup.edits)


def column(values: np.ndarray) -> dict[str, str]:
    """Numbers in the smallest type that holds each of them exactly, little-endian, as base64."""
    with np.errstate(invalid="ignore", over="ignore"):
        fitting = next(d for d in DTYPES if np.array_equal(values.astype(d).astype(np.float64), values, equal_nan=True))
    return {"type": fitting[1:], "data": base64.b64encode(values.astype(fitting).tobytes()).decode()}


def _coded(names: Sequence[str]) -> dict[str, Any]:
    """Words as numbers, the most frequent first."""
    counts = Counter(names)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    codes = {name: number for number, name in enumerate(order)}
    return {"names": order, "codes": column(np.array([codes[name] for name in names], np.int64))}


def render(found: dict[str, Any]) -> bytes:
    """The HTML file."""
    style, script = _asset("page.css"), "\n".join(_asset(name) for name in SCRIPTS)
    parts = {
        "title": html.escape(f"Curation of {found['name']}"),
        "policy": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "data": to_json(found),
        "script": script,
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))
    return text.encode("utf-8", "backslashreplace")


def to_json(value: object) -> str:
    """JSON that can stand in a <script> element whatever its strings hold; a lone surrogate ends up as its escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _asset(name: str) -> str:
    return files("pretrainer.data.inspect").joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
