"""Licence headers of source files: known texts, SPDX lines, where the head ends, any text.

python -m pytest -q tests/data/test_licences.py
"""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.filters import licences as module
from pretrainer.data.filters.licences import WORDINGS, licence_stage, licences
from pretrainer.data.filters.stage import run_stages


def licence(text: str) -> str:
    return str(licences(pa.array([text]))[0].as_py())


def comment(text: str, sign: str = " * ", width: int = 8) -> str:
    """A text in lines of so many words, as a comment."""
    words = text.split()
    return "\n".join(sign + " ".join(words[i : i + width]) for i in range(0, len(words), width))


MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
    'documentation files (the "Software"), to deal in the Software without restriction.'
)
BSD_2 = (
    "Redistribution and use in source and binary forms, with or without modification, are permitted provided that the "
    "following conditions are met: 1. Redistributions of source code must retain the above copyright notice. "
    "2. Redistributions in binary form must reproduce the above copyright notice."
)
BSD_3 = f"{BSD_2} 3. Neither the name of the author may be used to endorse or promote products without permission."
BSD_4 = f"{BSD_3} 4. All advertising materials mentioning features or use of this software must display the name."
APACHE = (
    'Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file except in compliance.'
)
GNU = (
    "This program is free software; you can redistribute it and/or modify it under the terms of the GNU {} Public "
    "License as published by the Free Software Foundation; {} This program is distributed in the hope that it will be "
    "useful. See the GNU {} Public License for more details."
)
LATER = "either version {} of the License, or (at your option) any later version."
ISC = (
    "Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby "
    "granted{} THE SOFTWARE IS PROVIDED AS IS."
)
NOTICE = ", provided that the above copyright notice and this permission notice appear in all copies."


def gnu(name: str, versions: str) -> str:
    return GNU.format(name, versions, name)


TEXTS = [
    ("MIT", MIT),
    ("MIT", "Released under the MIT License"),
    ("MIT", '__license__ = "MIT"'),
    ("MIT", "https://opensource.org/licenses/MIT"),
    ("BSD-2-Clause", BSD_2),
    ("BSD-3-Clause", BSD_3),
    ("BSD-4-Clause", BSD_4),
    ("BSD-3-Clause", "Licence: BSD 3-Clause"),
    ("BSD-2-Clause", "under the Simplified BSD License"),
    ("LicenseRef-BSD", "Use of this source code is governed by a BSD-style license found in the LICENSE file."),
    ("Apache-2.0", APACHE),
    ("Apache-2.0", "http://www.apache.org/licenses/LICENSE-2.0"),
    ("GPL-2.0-or-later", gnu("General", LATER.format(2))),
    ("GPL-3.0-or-later", gnu("General", LATER.format(3))),
    ("GPL-2.0-only", gnu("General", "version 2 of the License.")),
    ("GPL-1.0-or-later", gnu("General", "")),
    ("GPL-3.0-or-later", "License: GPLv3+"),
    ("GPL-2.0-only", "under the GNU GPL, version 2"),
    ("LGPL-2.1-or-later", gnu("Lesser General", LATER.format(2.1))),
    ("LGPL-2.0-or-later", gnu("Library General", LATER.format(2))),
    ("LGPL-3.0-only", "GNU Lesser General Public License version 3"),
    ("LGPL-2.1-only", "LGPLv2.1"),
    ("AGPL-3.0-or-later", gnu("Affero General", LATER.format(3))),
    ("AGPL-3.0-only", "AGPLv3"),
    ("MPL-2.0", "subject to the terms of the Mozilla Public License, v. 2.0. http://mozilla.org/MPL/2.0/"),
    ("MPL-1.1", "the Mozilla Public License Version 1.1"),
    ("MPL-1.1 OR GPL-2.0-or-later OR LGPL-2.1-or-later", "Version: MPL 1.1/GPL 2.0/LGPL 2.1"),
    ("PSF-2.0", "Licensed to PSF under a Contributor Agreement."),
    ("ISC", ISC.format(NOTICE)),
    ("ISC", "ISC License"),
    ("0BSD", ISC.format(".")),
    ("Unlicense", "This is free and unencumbered software released into the public domain."),
    ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    ("BSL-1.0", "Distributed under the Boost Software License, Version 1.0."),
    ("EPL-2.0", "Eclipse Public License 2.0"),
    ("EPL-1.0", "Eclipse Public License v1.0"),
    ("Zlib", "In no event will the authors be held liable for any damages arising from the use of this software."),
    ("Apache-2.0 OR MIT", "under the Apache License, Version 2.0 <LICENSE-APACHE> or the MIT license, at your option."),
    ("BSD-3-Clause AND MIT", f"{MIT} {BSD_3}"),
    ("", "All rights reserved."),
    ("", "def permit(license): return license.mitigate"),
    ("", "import bsd, mit, gpl, apache"),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "text"), TEXTS)
def test_known_texts(expected: str, text: str) -> None:
    code = "\n\nint main() { return 0; }\n"
    for header in (
        text,
        comment(text),
        comment(text.upper(), "# ", 5),
        comment(text, "\t// ", 3).replace("\n", "\r\n"),
    ):
        assert licence(f"/* Copyright (c) 2020 The Authors\n{header}\n */{code}") == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("// SPDX-License-Identifier: MIT", "MIT"),
        ("/* SPDX-License-Identifier: GPL-2.0-only */", "GPL-2.0-only"),
        ("<!-- spdx-license-identifier:Apache-2.0-->", "Apache-2.0"),
        (
            "# SPDX-License-Identifier: (GPL-2.0+ WITH Linux-syscall-note) or MIT",
            "(GPL-2.0+ WITH Linux-syscall-note) OR MIT",
        ),
        ("// SPDX-License-Identifier: MIT/Apache-2.0", "MIT OR Apache-2.0"),
        ("# SPDX-License-Identifier: MIT AND", "MIT"),
        ("# SPDX-License-Identifier: (MIT OR ISC", ""),
        ("# SPDX-License-Identifier: MIT) OR ISC", "MIT"),
        ("# SPDX-License-Identifier: LicenseRef-Own or later", "LicenseRef-Own OR later"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: MIT OR ISC", "MIT AND (MIT OR ISC)"),
        ("# SPDX-License-Identifier: MIT\n# SPDX-License-Identifier: MIT", "MIT"),
        ('print("SPDX-License-Identifier: " + name)', ""),
        ("# SPDX-License-Identifier:\n# under the MIT license", "MIT"),
        ("# SPDX-License-Identifier: MIT\n# not under the Apache License, Version 2.0", "MIT"),
    ],
)
def test_spdx_lines(line: str, expected: str) -> None:
    assert licence(f"#!/bin/sh\n{line}\nexit 0\n") == expected


def test_only_the_head_is_looked_at() -> None:
    lines, size = module.HEAD_LINES, module.HEAD_BYTES
    for header in ("# MIT License", "# SPDX-License-Identifier: MIT"):
        assert licence("x\n" * (lines - 1) + header + "\n") == "MIT"
        assert licence("x\n" * lines + header + "\n") == ""
        assert licence("x" * (size - len(header) - 1) + "\n" + header) == "MIT"
        assert licence("x" * size + "\n" + header) == ""
    # A word that the head cuts is none, and of an SPDX line that begins in the head nothing is cut.
    assert licence("x" * (size - 14) + " GPL version 21") == ""
    assert licence("x" * (size - 30) + "\n# SPDX-License-Identifier: Apache-2.0") == "Apache-2.0"


def found_by_search(text: str) -> int:
    """Bits of the marks, with regular expressions and str.find."""
    head = "\n".join(text.split("\n")[: module.HEAD_LINES]).encode()
    assert len(head) <= module.HEAD_BYTES
    folded = " " + re.sub(rb"[^a-z0-9+]+", b" ", head.lower()).decode().strip() + " "
    return sum(1 << i for i, some in enumerate(WORDINGS.values()) if any(f" {wording} " in folded for wording in some))


WORDS = sorted({wording for some in WORDINGS.values() for wording in some})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(WORDS), st.sampled_from(["\n", " ", "-", "é", "v2", "gnu", "\0"]), st.text(max_size=3)
        )
    )
)
def test_marks_are_what_a_search_finds(pieces: list[str]) -> None:
    for text in ("".join(pieces), " ".join(pieces)):
        text = text.encode("utf-8", "ignore").decode()
        assert module._marks(pa.array([text], pa.large_string())).tolist() == [found_by_search(text)]
        licence(text)


def test_whole_columns() -> None:
    texts = [text for _expected, text in TEXTS]
    array = pa.array(["", *texts, "x"], pa.large_string())
    assert licences(array[1:-1]).to_pylist() == [expected for expected, _text in TEXTS]
    assert licences(array[:0]).to_pylist() == [] and licences(array).type == pa.large_string()


def test_stage_measures_and_drops_nothing() -> None:
    docs = pa.table({"text": pa.array([MIT, "x = 1\n", "y" * 10_000_000], pa.large_string())})
    verdict = run_stages(docs, [licence_stage()])
    assert verdict.measures["code_has_licence"].tolist() == [1, 0, 0]
    assert verdict.docs.equals(docs) and verdict.reasons == [None, None, None]
