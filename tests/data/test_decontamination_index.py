"""Index of decontamination: its bytes, what the corpus repeats, templates, a labelled set made of the library."""

from __future__ import annotations

import ast
import random
import sysconfig
from pathlib import Path

import pytest

from pretrainer.data.decontamination.index import (
    COMMON_LINES,
    Reference,
    benchmark_digests,
    build_index,
    load_index,
)
from pretrainer.data.decontamination.seeds import MAX_CHAIN
from pretrainer.data.decontamination.stage import (
    find_hits,
    overlaps,
)
from tests.data.decontaminated import (
    CONFIG,
    LICENCE,
    QUESTION,
    array,
    documents,
    filler,
    loaded,
    overlap,
    with_changes,
    words,
)

# --------------------------------------------------------------------------------------------------------- the index


def test_index_is_the_same_bytes_and_keeps_the_digests_of_its_files() -> None:
    references = [Reference("b", str(i), " ".join(words(30, i % 7))) for i in range(20)]
    background, files = array([QUESTION, filler(40)]), {"b": "12"}
    content = build_index(references, CONFIG, background, files)
    assert content == build_index(references, CONFIG, background, files)
    assert benchmark_digests(content) == files
    assert load_index(content, CONFIG).left_out == {"repeated": 13}


def test_text_of_several_benchmarks_is_one_reference_of_the_first() -> None:
    copy, held = Reference("b", "9", QUESTION.upper()), Reference("s", "d", QUESTION, held_out=True)
    index = loaded(Reference("a", "3", QUESTION), copy, held)
    assert [hit.reference.name for hit in find_hits(documents(QUESTION), index, 0.5)] == ["a"]
    assert index.left_out == {"repeated": 2}


def test_question_that_fits_any_passage_is_left_out() -> None:
    stem, passage = "Which of these is the best title for the passage above?", " ".join(words(120))

    def left_out(times: int) -> dict[str, int]:
        lines = [Reference("b", str(i), text) for i in range(times) for text in (stem, passage)]
        return dict(loaded(QUESTION, *lines).left_out)

    assert left_out(COMMON_LINES) == {"repeated": 2 * COMMON_LINES - 2}
    assert left_out(COMMON_LINES + 1) == {"fits_any_passage": COMMON_LINES + 1, "repeated": COMMON_LINES}


@pytest.mark.parametrize(
    ("held_out", "copies", "found"),
    [(True, 0, True), (True, 3, True), (True, 4, False), (False, 4, True), (False, 10, True), (False, 11, False)],
)
def test_passage_that_the_corpus_repeats_is_no_evidence(held_out: bool, copies: int, found: bool) -> None:
    own = " ".join(words(200))
    background = [f"{LICENCE} {' '.join(words(50, 20 + i))}" for i in range(copies)] + [filler(30)] * 5
    index = loaded(Reference("s", "d", f"{LICENCE} {own}", held_out), background=background)
    shares = overlaps(array([f"{LICENCE} {filler(100)}", own]), index, 0.5)
    share = shares["decontamination_held_out_overlap" if held_out else "decontamination_overlap"]
    assert (share > 0.5).tolist() == [found, True]


def test_common_words_beside_a_seed_are_no_evidence() -> None:
    """The end of the licence with the first words behind it is a seed; the licence before that counts for nothing."""
    own = words(200)
    background = [f"{LICENCE} {' '.join(words(50, 20 + i))}" for i in range(4)]
    index = loaded(Reference("s", "d", f"{LICENCE} {' '.join(own)}", held_out=True), background=background)
    shares = [overlap(index, f"{LICENCE} {' '.join(own[:n])} x", "decontamination_held_out_overlap") for n in (3, 9)]
    assert shares == [0, 0.13]  # 9 words and the 4 before them that a seed covers


def test_common_passage_of_several_references_is_no_evidence_for_any() -> None:
    references = [Reference("s", str(i), f"{LICENCE} {' '.join(words(200, i))}", held_out=True) for i in range(3)]
    assert overlap(loaded(*references, background=[LICENCE] * 4), LICENCE, "decontamination_held_out_overlap") == 0


def test_common_is_a_share_of_a_large_background() -> None:
    background = [LICENCE] * 12 + [f"word{i}" for i in range(1300)]
    assert overlap(loaded(LICENCE, background=background), LICENCE) == 1  # 12 of 1312 are less than 1 %
    assert loaded(LICENCE, background=background[:1000]).left_out == {"too_common": 1}


def test_seed_counts_once_per_text_of_the_background() -> None:
    assert overlap(loaded(LICENCE, background=[f"{LICENCE}\n" * 50] * 2), LICENCE) == 1


def test_text_without_words_of_its_own_is_left_out() -> None:
    """A repetition has fewer different words than it seems."""
    texts = ("tick tack " * 40, "\u6f22\u5b57" * 3, "", "one two three")
    assert loaded(*texts).left_out == {"too_common": 1, "too_short": 3}


def test_template_leads_to_the_first_references_alone() -> None:
    template = " ".join(words(30))
    index = loaded(*(f"{template} {' '.join(words(20, 100 + i))}" for i in range(MAX_CHAIN + 10)))
    assert overlap(index, template, "decontamination_hits") == MAX_CHAIN
    assert overlap(index, " ".join(words(20, 100 + MAX_CHAIN + 5)), "decontamination_hits") == 1


def test_no_references() -> None:
    assert overlap(loaded(), QUESTION) == 0
    assert overlap(loaded("too short"), QUESTION) == 0


def test_generated_contamination_of_the_library_is_found_and_nothing_else() -> None:
    """Docstrings of some modules planted in others, with three words changed, other case and other line ends."""
    draws, library = random.Random(0), Path(sysconfig.get_paths()["stdlib"])
    owners = ["argparse", "subprocess", "threading", "typing", "tempfile", "datetime"]
    others = ["ast", "codecs", "csv", "difflib", "doctest", "enum", "gettext", "inspect", "pydoc", "random", "tarfile"]
    items = [
        text
        for name in owners
        for node in ast.walk(ast.parse((library / f"{name}.py").read_text()))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node))
        and len(text.split()) >= 25
    ]
    assert len(items) > 100
    hosts = [(library / f"{name}.py").read_text() for name in others]
    index = loaded(*items)
    planted = []
    for item in items:
        changed = with_changes(item, *draws.sample(range(len(item.split())), 3)).swapcase().split(" ")
        copy = "\n".join(" ".join(changed[i : i + 9]) for i in range(0, len(changed), 9))
        host = draws.choice(hosts)
        planted.append(f"{host[:3000]}\n{copy}\n{host[3000:6000]}")
    found = overlaps(array(planted), index, 0.5)["decontamination_hits"] > 0
    assert found.mean() >= 0.98
    assert overlaps(array(hosts), index, 0.5)["decontamination_hits"].sum() == 0
