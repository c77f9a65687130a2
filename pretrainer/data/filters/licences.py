"""Which licence the header of a source file names, as an SPDX expression (spdx.org/licenses).

`SPDX-License-Identifier:` lines are believed as they stand, several of them joined by AND. Otherwise known wordings
are looked for in the first lines with everything but letters, digits and + as one blank, so that comment signs, line
breaks and punctuation do not count. Several licences by their wordings are joined by AND too, as a file that holds two
texts is under both; the usual words for a choice (Rust's "or the MIT license", Mozilla's tri-licence) give OR.

It is an annotation: no licence in the header does not mean that there is none (a LICENSE file beside it counts, and is
not seen here), a wording may be quoted, and nothing is dropped. "BSD-style" without a number of clauses is
LicenseRef-BSD; GNU licences without a version mean any version, as their texts say. Of several GNU licences one is
named, the lesser before the greater, and exceptions (GCC's) are seen in SPDX lines alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.normalise import as_large_string, utf8_buffers
from pretrainer.data.filters.phrases import automaton
from pretrainer.data.filters.stage import Measured, Stage

HEAD_LINES = 60
"""BSD's three clauses under a copyright notice need some 30."""
HEAD_BYTES = 8192

_ANY_PURPOSE = "for any purpose with or without fee is hereby granted"
_GPL = "general public license"


def _named(gpl: str, version: str) -> list[str]:
    """gpl version 2, gpl v2, gplv2, gplv2+, gpl 2 0, gpl 2 0+."""
    number = version if " " in version else f"{version} 0"
    return [f"{gpl} version {version}", f"{gpl} v{version}", f"{gpl}v{version}", f"{gpl}v{version}+",
            f"{gpl} {number}", f"{gpl} {number}+"]  # fmt: skip


def _short(gpl: str, *versions: str) -> list[str]:
    """How headers name a licence in short, with a version or without."""
    plain = [f"{before}{gpl}" for before in ("license ", "under the ", "under ")]
    plain += [f"{gpl}{behind}" for behind in (" license", " licence", " licensed")]
    return plain + [name for version in versions for name in _named(gpl, version)]


def _versions(version: str) -> list[str]:
    """How the texts of the GNU licences name a version."""
    names = [f"{_GPL} {middle}{version}" for middle in ("version ", "v", "v ")]
    return [*names, f"version {version} of the license", f"version {version} 0 of the license",
            f"version {version} of the gnu", f"version {version} as published by the free",
            *(f"{_GPL} {gpl} version {version}" for gpl in ("gpl", "lgpl", "agpl"))]  # fmt: skip


# Mark -> wordings; a later function makes licences of the marks. Blanks at both ends are added: words are whole.
WORDINGS: dict[str, tuple[str, ...]] = {
    "spdx": ("spdx license identifier",),
    "Apache-2.0": (
        "apache license version 2 0", "apache license 2 0", "apache 2 0 license", "apache license v2 0",
        "apache software license 2 0", "apache org licenses license 2 0", "license apache 2 0",
    ),
    "MIT": (
        "permission is hereby granted free of charge to any person obtaining a copy of this software and associated "
        "documentation files", "mit license", "mit licence", "mit licensed", "license mit", "licenses mit",
    ),
    "or_mit": ("or the mit license",),
    "BSD": (
        "bsd license", "bsd licence", "bsd licensed", "bsd style license", "license bsd", "bsd style licence",
    ),
    "BSD-2-Clause": ("2 clause bsd", "bsd 2 clause", "two clause bsd", "simplified bsd license"),
    "BSD-3-Clause": (
        "3 clause bsd", "bsd 3 clause", "three clause bsd", "new bsd license", "modified bsd license",
        "revised bsd license",
    ),
    "bsd_text": ("redistribution and use in source and binary forms with or without modification are permitted",),
    "bsd_endorse": ("endorse or promote products",),
    "bsd_advertising": ("all advertising materials mentioning features",),
    "GPL": (f"gnu {_GPL}", "gnu general public licence", "gnu gpl", *_short("gpl", "2", "3")),
    "LGPL": (f"lesser {_GPL}", f"library {_GPL}", "gnu lgpl", *_short("lgpl", "2", "2 1", "3")),
    "AGPL": (f"affero {_GPL}", "gnu agpl", *_short("agpl", "3")),
    "gnu_2": (*_versions("2"), *_named("gpl", "2"), *_named("lgpl", "2")),
    "gnu_2.1": (*_versions("2 1"), *_named("lgpl", "2 1")),
    "gnu_3": (*_versions("3"), *_named("gpl", "3"), *_named("lgpl", "3"), *_named("agpl", "3")),
    "or_later": (
        "any later version", "version 2 or later", "version 2 1 or later", "version 3 or later", "v2 or later",
        "v2 1 or later", "v3 or later", "2 0 or later", "2 1 or later", "3 0 or later",
        *(f"{gpl}{v}+" for gpl in ("gpl", "lgpl", "agpl") for v in ("v2", "v2 1", "v3", " 2 0", " 2 1", " 3 0")),
    ),
    "tri_licence": ("mpl 1 1 gpl 2 0 lgpl 2 1",),
    "MPL-1.1": ("mozilla public license version 1 1", "mpl 1 1"),
    "MPL-2.0": (
        "mozilla public license v 2 0", "mozilla public license version 2 0", "mozilla public license 2 0",
        "mozilla org mpl 2 0", "mpl 2 0", "mplv2 0",
    ),
    "PSF-2.0": (
        "licensed to psf under a contributor agreement", "python software foundation license", "psf license",
        "license psf",
    ),
    "isc_text": (
        f"permission to use copy modify and or distribute this software {_ANY_PURPOSE}",
        f"permission to use copy modify and distribute this software {_ANY_PURPOSE}",
    ),
    "isc_notice": (f"{_ANY_PURPOSE} provided that the above copyright notice",),
    "ISC": ("isc license", "isc licence", "license isc"),
    "0BSD": ("0bsd", "zero clause bsd"),
    "Unlicense": (
        "this is free and unencumbered software released into the public domain", "the unlicense", "unlicense org",
        "license unlicense",
    ),
    "CC0-1.0": (
        "cc0 1 0", "creative commons zero", "creativecommons org publicdomain zero 1 0", "cc0 license",
        "cc0 public domain dedication",
    ),
    "BSL-1.0": ("boost software license",),
    "EPL-1.0": ("eclipse public license v1 0", "eclipse public license version 1 0", "epl 1 0"),
    "EPL-2.0": ("eclipse public license 2 0", "eclipse public license v 2 0", "eclipse public license v2 0", "epl 2 0"),
    "Zlib": (
        "in no event will the authors be held liable for any damages arising from the use of this software",
        "zlib license",
    ),
}  # fmt: skip
_MARKS = tuple(WORDINGS)
_AUTOMATON = automaton({bit: [f" {w} " for w in wordings] for bit, wordings in enumerate(WORDINGS.values())})
_NAMED = frozenset(
    "Apache-2.0 MIT MPL-1.1 MPL-2.0 PSF-2.0 ISC 0BSD Unlicense CC0-1.0 BSL-1.0 EPL-1.0 EPL-2.0 Zlib".split()
)
_FIRST_VERSIONS = {"GPL": "1.0", "LGPL": "2.0", "AGPL": "3.0"}

_SPDX_LINE = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]{0,500})", re.IGNORECASE)
_SPDX_TOKEN = re.compile(r"\s*([()/]|(?:DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?\+?)")
_OPERATORS = ("AND", "OR", "WITH")


def licences(texts: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """SPDX expression of each text's header, "" where it names no licence that is known here."""
    array = as_large_string(texts)
    bits = _marks(array)
    found = np.full(len(array), "", object)
    for i in np.flatnonzero(bits):
        named = _spdx(array[i].as_py()) if bits[i] & 1 else ""
        found[i] = named or _expression(int(bits[i]))
    return pa.array(found.tolist(), pa.large_string())


def licence_stage() -> Stage:
    """Measures code_has_licence, 1 or 0, and drops nothing."""

    def measure(docs: pa.Table) -> Measured:
        named = licences(docs.column("text")).to_numpy(zero_copy_only=False) != ""
        return {"code_has_licence": named.astype(np.float64)}, docs

    return Stage("rules", measure, ())


def _marks(texts: pa.LargeStringArray) -> np.ndarray:
    """[N] int64: bit i is set where the head holds a wording of the i-th mark."""
    data, offsets = utf8_buffers(texts)
    bits = np.zeros(len(texts), np.int64)
    _find(data, offsets, *_AUTOMATON, HEAD_LINES, HEAD_BYTES, bits)
    return bits


@lru_cache(maxsize=4096)
def _expression(bits: int) -> str:
    """What the wordings in a head say together."""
    marks = {mark for bit, mark in enumerate(_MARKS) if bits >> bit & 1}
    if "tri_licence" in marks:
        return "MPL-1.1 OR GPL-2.0-or-later OR LGPL-2.1-or-later"
    if {"or_mit", "Apache-2.0"} <= marks:
        return "Apache-2.0 OR MIT"
    return " AND ".join(sorted({*(marks & _NAMED), *_bsd(marks), *_gnu(marks), *_isc(marks)}))


def _bsd(marks: set[str]) -> Iterator[str]:
    if "bsd_text" in marks and "bsd_advertising" in marks:
        yield "BSD-4-Clause"
    elif "BSD-3-Clause" in marks or {"bsd_text", "bsd_endorse"} <= marks:
        yield "BSD-3-Clause"
    elif "BSD-2-Clause" in marks or "bsd_text" in marks:
        yield "BSD-2-Clause"
    elif "BSD" in marks and "0BSD" not in marks:
        yield "LicenseRef-BSD"


def _gnu(marks: set[str]) -> Iterator[str]:
    """One licence: the header of a lesser one names the greater one too."""
    family = next((name for name in ("AGPL", "LGPL", "GPL") if name in marks), None)
    if family is not None:
        versions = ("2.1", "2", "3") if family == "LGPL" else ("2", "3")
        version = next((v for v in versions if f"gnu_{v}" in marks), None)
        later = version is None or "or_later" in marks
        number = _FIRST_VERSIONS[family] if version is None else version if "." in version else f"{version}.0"
        yield f"{family}-{number}-{'or-later' if later else 'only'}"


def _isc(marks: set[str]) -> Iterator[str]:
    if "isc_text" in marks:
        yield "ISC" if "isc_notice" in marks else "0BSD"


def _spdx(text: str) -> str:
    """The expressions of the lines that begin in a head; "" where none of them has one."""
    head = "\n".join(text.split("\n", HEAD_LINES)[:HEAD_LINES])
    lines = [line[1] for line in _SPDX_LINE.finditer(head) if line.start() < HEAD_BYTES]
    found = dict.fromkeys(filter(None, map(_spdx_expression, lines)))
    return " AND ".join(f"({one})" if len(found) > 1 and " OR " in one else one for one in found)


def _spdx_expression(line: str) -> str:
    """The longest beginning of a line that is an expression: what ends a comment stands behind it."""
    tokens: list[str] = []
    whole, depth, at = 0, 0, 0
    while found := _SPDX_TOKEN.match(line, at):
        token, at = "OR" if found[1] == "/" else found[1], found.end()
        token = token.upper() if token.upper() in _OPERATORS else token
        wants_operand = not tokens or tokens[-1] in (*_OPERATORS, "(")
        if wants_operand == (token in (*_OPERATORS, ")")):
            break
        depth += (token == "(") - (token == ")")
        tokens.append(token)
        whole = len(tokens) if depth == 0 and token not in _OPERATORS else whole
        if depth < 0:
            break
    return " ".join(tokens[:whole]).replace("( ", "(").replace(" )", ")")


@kernel()
def _find(
    data: np.ndarray, offsets: np.ndarray, moves: np.ndarray, found: np.ndarray, max_lines: int, max_bytes: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    """out [N]: bits of the wordings in the heads; what is neither letter, digit nor + is one blank."""
    for document in range(offsets.size - 1):
        state, lines, blank = moves[0, 0x20], 0, True
        end = min(offsets[document + 1], offsets[document] + max_bytes)
        for i in range(offsets[document], end):
            byte = data[i]
            if 0x30 <= byte <= 0x39 or 0x61 <= (byte | 0x20) <= 0x7A or byte == 0x2B:
                state, blank = moves[state, byte], False
            elif not blank:
                state, blank = moves[state, 0x20], True
            out[document] |= found[state]
            lines += byte == 10
            if lines == max_lines:
                break
        if end == offsets[document + 1]:  # else the last word may be cut
            out[document] |= found[moves[state, 0x20]]
