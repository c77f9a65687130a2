"""The digests of a card beside those that were derived again: what is the same, what is not, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pretrainer.report.facts import Plain

MOST_NAMED = 5
MISSING = "nothing"


class Row(NamedTuple):
    """One line of the comparison."""

    name: str
    card: str
    here: str
    why: str = ""  # only where they differ

    @property
    def is_same(self) -> bool:
        return self.card == self.here


def compare(card: Plain, here: Plain, shards: Plain) -> list[Row]:
    """Rows for the digests of a card (`digests`) and of the derivation, in the order in which one follows from the
    other; `shards` has path and size of each object by source, as the derivation found them."""
    then, now = card["digests"], here
    parts = then.get("fingerprint_parts") or {}, now["fingerprint_parts"]
    rows = [Row("manifest", *_pair(then, now, "manifest"))]
    rows += [Row(name, *_group(parts, belongs)) for name, belongs in GROUPS.items()]
    rows += [Row("tokenizer", *_pair(then, now, "tokenizer")), Row("fingerprint", *_pair(then, now, "fingerprint"))]
    rows.append(first_difference(then, now))
    explained = _why(rows, card, parts, shards)
    return [row if row.is_same else row._replace(why=explained.get(row.name, "")) for row in rows]


def _pair(then: Plain, now: Plain, name: str) -> tuple[str, str]:
    return str(then.get(name) or MISSING), str(now.get(name) or MISSING)


GROUPS: dict[str, Callable[[str], bool]] = {
    "held-out documents": lambda key: key.endswith(".held_out"),
    "files": lambda key: key.endswith(".files"),
    "settings": lambda key: not key.endswith((".held_out", ".files", ".code", ".manifest", ".tokenizer"))
    and ".libraries." not in key,
    "packages": lambda key: ".libraries." in key,
    "code": lambda key: key.endswith(".code"),
}
"""Kinds of parts of the fingerprint, by the ends of their names."""


def _group(parts: tuple[Plain, Plain], belongs: Callable[[str], bool]) -> tuple[str, str]:
    """How many parts of a kind there are; where some differ, how many do."""
    keys = [key for key in {**parts[0], **parts[1]} if belongs(key)]
    differ = changed(parts, belongs)
    return f"{len(keys)} parts", f"{len(differ)} of {len(keys)} differ" if differ else f"{len(keys)} parts"


def changed(parts: tuple[Plain, Plain], belongs: Callable[[str], bool]) -> list[str]:
    return sorted(k for k in {**parts[0], **parts[1]} if belongs(k) and parts[0].get(k) != parts[1].get(k))


def first_difference(then: Plain, now: Plain) -> Row:
    """The order digest of the last step that both have; where they differ, the row of the first point that does."""
    mine = {int(steps): digest for steps, digest in (then.get("order_digests") or {}).items()}
    last = then.get("order_digest") or {}
    if last.get("digest"):
        mine[int(last["steps"])] = last["digest"]
    chain: Mapping[int, str] = now["order_digests"]
    both = sorted(steps for steps in mine if steps in chain)
    if not both:
        return Row("order digest", MISSING, MISSING + " at the same step", "")
    at = next((steps for steps in both if mine[steps] != chain[steps]), both[-1])
    return Row("order digest", f"{mine[at]} after step {at:,}", f"{chain[at]} after step {at:,}")


def _why(rows: Sequence[Row], card: Plain, parts: tuple[Plain, Plain], shards: Plain) -> dict[str, str]:
    """Reasons by row; what follows from something else names that."""
    differ = [row.name for row in rows if not row.is_same]
    told = {name: _named(parts, belongs) for name, belongs in GROUPS.items()}
    told["manifest"] = changed_objects(card, shards)
    told["code"] = f"{told['code']}; the run's code is git commit {card['software'].get('git_commit')}"
    causes = [name for name in ("manifest", "settings", "packages", "code", "files") if name in differ]
    told["held-out documents"] = _after(causes, "objects with the same path and size hold other bytes")
    told["tokenizer"] = _after([*causes, *(["held-out documents"] if "held-out documents" in differ else [])],
                               "objects with the same path and size hold other bytes")  # fmt: skip
    told["fingerprint"] = "it is made of the rows above"
    told["order digest"] = _order(card, differ)
    return told


def _after(causes: Sequence[str], otherwise: str) -> str:
    return f"because of {', '.join(causes)}" if causes else otherwise


def _order(card: Plain, differ: list[str]) -> str:
    causes = [name for name in differ if name not in ("order digest", "fingerprint")]
    documents = [source.get("documents") or {} for source in card["data"]["sources"].values()]
    left_out = sum(counts.get("quarantined") or 0 for counts in documents)
    words = _after(causes, "the inputs hold other bytes than they did, or a clock decided about a page")
    return words + (f"; the run left {left_out:,} documents out that killed their reader there" if left_out else "")


def _named(parts: tuple[Plain, Plain], belongs: Callable[[str], bool]) -> str:
    keys = changed(parts, belongs)
    told = [f"{key}: {_short(parts[0].get(key))} -> {_short(parts[1].get(key))}" for key in keys[:MOST_NAMED]]
    return ", ".join([*told, *([f"and {len(keys) - MOST_NAMED} more"] if len(keys) > MOST_NAMED else [])])


def _short(value: Any) -> str:
    text = MISSING if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def changed_objects(card: Plain, shards: Plain) -> str:
    """The objects that came, went or have another size, by name where the card lists them."""
    told = []
    for name, source in card["data"]["sources"].items():
        then, now = source.get("shards") or {}, shards.get(name) or {}
        if "objects" not in then:
            told.append(f"{name}: {then.get('count')} objects with {then.get('bytes')} bytes, here {now.get('count')} "
                        f"with {now.get('bytes')}")  # fmt: skip
            continue
        before, here = dict(map(tuple, then["objects"])), dict(map(tuple, now.get("objects") or ()))
        told += [f"{name}: {path} {before.get(path, 'new')} -> {here.get(path, 'gone')}"
                 for path in sorted({*before, *here}) if before.get(path) != here.get(path)]  # fmt: skip
    more = [f"and {len(told) - MOST_NAMED} more"] if len(told) > MOST_NAMED else []
    return ", ".join([*told[:MOST_NAMED], *more])


def as_text(rows: Sequence[Row]) -> list[str]:
    """A line for each row, and below it what differs and why."""
    lines = []
    for row in rows:
        value = row.card if row.is_same else "DIFFERS"
        lines.append(f"  {row.name:<20}{'same' if row.is_same else '':<6}{value}")
        if not row.is_same:
            lines += [f"      card  {row.card}", f"      here  {row.here}"]
            lines += [f"      why   {row.why}"] if row.why else []
    return lines
