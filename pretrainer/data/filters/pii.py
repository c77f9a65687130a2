"""Personal data and secrets: found by shape, checked, and replaced by a placeholder that names the kind.

    email, phone, ip (public), credit_card (Luhn), iban (modulo 97), us_ssn, secret (keys, tokens, passwords)

Names and postal addresses are not handled: patterns cannot tell a person from a character, a street or a company, and
a model that can costs thousands of times what the rest of curation does. Kept is what stands for nobody: addresses at
example.com and the other reserved domains, noreply@ and git@, private and documentation IP addresses, 555-01xx numbers,
test cards, example IBANs and numbers that every form prints, keys that say EXAMPLE or changeme (see `pii_checks`,
`pii_secrets`).

Where finds overlap the longest is replaced, of two equally long ones that whose kind stands first in SPECIFIC. A text
that changed is gone over again, for what a find had hidden, until nothing is found, so that a second run changes
nothing. Each pass is linear in the text, and after MAX_PASSES none follows: patterns are made so that one find does not
hide the next of a row, and only a text made for it could ask for more than three.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config.curation import PiiConfig
from pretrainer.data.filters import pii_patterns, pii_secrets
from pretrainer.data.filters.normalise import as_large_string
from pretrainer.data.filters.pii_patterns import PLACEHOLDERS, Detect
from pretrainer.data.filters.pii_scan import FIRST_PHRASE, Phrase, Scanner, find_triggers, scanner
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage, with_texts

SPECIFIC = ("secret", "iban", "credit_card", "us_ssn", "email", "ip", "phone")
"""Kinds, the most specific first: a checksum says more than the grouping of digits."""


MAX_PASSES = 16


class Find(NamedTuple):
    """Bytes start to end of a document's UTF-8."""

    start: int
    end: int
    kind: str


def pii_stage(config: PiiConfig) -> Stage:
    """Measures `pii_<kind>` for each kind of the config and `pii_found`, their sum; edits texts."""
    rules = () if config.max_found is None else (Rule("pii_too_much", "pii_found", most=config.max_found),)

    def measure(docs: pa.Table) -> Measured:
        texts, counts = replace_pii(docs.column("text").combine_chunks(), config.kinds)
        measures = {f"pii_{kind}": counts[kind] for kind in config.kinds}
        measures["pii_found"] = sum(counts.values(), start=np.zeros(docs.num_rows))
        return measures, with_texts(docs, texts)

    return Stage("pii", measure, rules)


def replace_pii(texts: pa.Array, kinds: Sequence[str]) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """(texts with placeholders, kind -> finds per document [N] float64)."""
    array = as_large_string(texts)
    counts = {kind: np.zeros(len(array)) for kind in kinds}
    edited: dict[int, str] = {}
    rows: Sequence[int] = range(len(array))
    part = array
    for _ in range(MAX_PASSES):
        found = find_pii(part, kinds)
        if not found:
            break
        changed = [rows[i] for i in found]
        for row, (i, finds) in zip(changed, found.items(), strict=True):
            edited[row] = _replaced(part[i].as_buffer(), finds)
            for find in finds:
                counts[find.kind][row] += 1
        rows, part = changed, pa.array([edited[row] for row in changed], pa.large_string())
    return _with_edits(array, edited), counts


def find_pii(texts: pa.Array, kinds: Sequence[str]) -> dict[int, list[Find]]:
    """Document -> its finds in order, none overlapping; documents without finds are left out."""
    tables, detectors = _machinery(tuple(kinds))
    array = as_large_string(texts)
    out: dict[int, list[Find]] = {}
    columns = [column.tolist() for column in find_triggers(array, tables).T]
    for document, rows in groupby(zip(*columns, strict=True), key=itemgetter(0)):
        found = list(_detect(array[document].as_buffer().to_pybytes(), rows, detectors))
        if found:
            out[document] = without_overlaps(found)
    return out


def without_overlaps(finds: Collection[Find]) -> list[Find]:
    """From left to right; of two that overlap the longer one stays, of two equally long ones the more specific."""
    kept: list[Find] = []
    for find in sorted(finds):
        if not kept or find.start >= kept[-1].end:
            kept.append(find)
        elif _rank(find) > _rank(kept[-1]):
            kept[-1] = find
    return kept


def _rank(find: Find) -> tuple[int, int]:
    return find.end - find.start, -SPECIFIC.index(find.kind)


Detectors = dict[int, tuple[tuple[str, Detect], ...]]


def _detect(doc: bytes, triggers: Iterable[tuple[int, int, int]], detectors: Detectors) -> Iterator[Find]:
    for _document, at, trigger in triggers:
        for kind, detect in detectors[trigger]:
            span = detect(doc, at)
            if span:
                yield Find(*span, kind)


@lru_cache(maxsize=8)
def _machinery(kinds: tuple[str, ...]) -> tuple[Scanner, Detectors]:
    """What finds triggers of these kinds, and the detectors to call at each."""
    chosen = [one for one in (*pii_patterns.DETECTORS, *pii_secrets.DETECTORS) if one.kind in kinds]
    detectors: Detectors = {}
    phrases: list[Phrase] = []
    for one in chosen:
        ids = [] if one.shape is None else [one.shape]
        ids += range(FIRST_PHRASE + len(phrases), FIRST_PHRASE + len(phrases) + len(one.phrases))
        phrases += one.phrases
        for trigger in ids:
            detectors[trigger] = (*detectors.get(trigger, ()), (one.kind, one.detect))
    return scanner([trigger for trigger in detectors if trigger < FIRST_PHRASE], phrases), detectors


def _replaced(text: pa.Buffer, finds: Sequence[Find]) -> str:
    source, at = text.to_pybytes(), 0
    pieces: list[bytes] = []
    for find in finds:
        pieces += [source[at : find.start], PLACEHOLDERS[find.kind].encode()]
        at = find.end
    return b"".join([*pieces, source[at:]]).decode()


def _with_edits(texts: pa.LargeStringArray, edited: dict[int, str]) -> pa.LargeStringArray:
    if not edited:
        return texts
    mask = np.zeros(len(texts), bool)
    mask[list(edited)] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array([edited[i] for i in sorted(edited)], pa.large_string()))
