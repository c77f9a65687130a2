"""Toxicity: shares of listed words against plain Python, classifier scores against the package, lines, languages.

    python -m pytest -q tests/data/test_toxicity.py

Lists of made-up words stand in for real ones; the classifier meets mild insults.
"""

from __future__ import annotations

import re

import profanity_check
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config.curation import BUILT_IN_WORD_LISTS, ToxicityConfig
from pretrainer.data.filters import toxic_scores
from pretrainer.data.filters.stage import Verdict, run_stages
from pretrainer.data.filters.toxic_scores import load_classifier, score_texts
from pretrainer.data.filters.toxic_words import listed_share, word_list
from pretrainer.data.filters.toxicity import check_toxicity_config, toxicity_stage
from pretrainer.data.filters.word_lists import WORD_LISTS
from pretrainer.data.resources import Read
from pretrainer.errors import ConfigError, UserError
from pretrainer.schema import DOCUMENTS

FILES = {"any.txt": b"# made up\nzorgle\nbad  frobnik\n\n", "de.txt": "Mürkel\n".encode(), "zh.txt": "坏话".encode()}
INSULT = "You are a stupid idiot and a moron, shut up you loser."
PEACE = "The village pump was repaired last week, and the water is clear again."


def texts_of(values: list[str]) -> pa.Array:
    return pa.array(values, pa.large_string())


def judge(
    config: ToxicityConfig, texts: list[str], languages: list[str] | None = None, read: Read = FILES.__getitem__
) -> Verdict:
    blank = {"large_string": "", "int32": 0, "int64": 0, "list<item: double>": []}
    columns = {field.name: [blank[str(field.type)]] * len(texts) for field in DOCUMENTS}
    columns |= {"text": texts, "language": languages or [""] * len(texts)}
    return run_stages(pa.table(columns, schema=DOCUMENTS), [toxicity_stage(config, read)])


def scores(texts: list[str]) -> toxic_scores.Scores:
    return score_texts(texts_of(texts), pa.array([True] * len(texts)).to_numpy(zero_copy_only=False))


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a zorgle b c", 1 / 4),
        ("Zorgle! zORGLE.", 1),
        ("zorgles azorgle zor gle", 0),
        ("bad frobnik", 1),
        ("So bad\n(frobnik) it", 2 / 4),
        ("bad bad frobnik zorgle", 3 / 4),
        ("frobnik bad", 0),
        ("", 0),
        ("...", 0),
    ],
)
def test_share_counts_whole_words_and_phrases(text: str, share: float) -> None:
    verdict = judge(ToxicityConfig(word_lists=("any.txt",), max_word_share=1), [text])
    assert verdict.measures["toxicity_word_share"].tolist() == [share]


def test_words_of_overlapping_phrases_count_once() -> None:
    listed = word_list(["a b", "b c", "a b c d", "c"])
    everyone = pa.array([True]).to_numpy(zero_copy_only=False)
    for text, share in [("a b c x", 3 / 4), ("a b c d", 1), ("x b c c", 3 / 4)]:
        assert listed_share(texts_of([text]), everyone, listed).tolist() == [share]


def test_letters_of_other_scripts_match_in_either_case_and_han_needs_no_blanks() -> None:
    config = ToxicityConfig(word_lists=("de.txt", "zh.txt"), max_word_share=1)
    shares = judge(config, ["MÜRKEL mürkel x y", "这坏话啊", "坏人话", "x坏话"]).measures["toxicity_word_share"]
    assert shares.tolist() == [2 / 4, 2 / 4, 0, 2 / 3]


def test_document_at_the_limit_is_kept_and_above_it_dropped() -> None:
    config = ToxicityConfig(word_lists=("any.txt",), max_word_share=0.5)
    assert judge(config, ["zorgle x", "zorgle zorgle x"]).reasons == [None, "toxic_words"]


def test_list_of_a_language_counts_in_it_and_where_none_is_known() -> None:
    config = ToxicityConfig(word_lists=("any.txt", "de=de.txt"), max_word_share=1)
    languages = ["de", "deu_Latn", "en", "", "fr"]
    shares = judge(config, ["zorgle mürkel"] * 5, languages).measures["toxicity_word_share"]
    assert shares.tolist() == [1, 1, 0.5, 1, 0.5]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "é", "x_1", "zorgle"]), max_size=30),
    st.sampled_from([" ", "\n", ", ", " - "]),
)
@settings(max_examples=60, deadline=None)
def test_share_equals_a_search_through_the_words(words: list[str], between: str) -> None:
    phrases = [["a"], ["b", "c"], ["é", "a", "b"], ["zorgle", "zorgle"]]
    hits = set()
    for phrase in phrases:
        for i in range(len(words) - len(phrase) + 1):
            if words[i : i + len(phrase)] == phrase:
                hits |= set(range(i, i + len(phrase)))
    everyone = pa.array([True]).to_numpy(zero_copy_only=False)
    share = listed_share(texts_of([between.join(words)]), everyone, word_list(" ".join(phrase) for phrase in phrases))
    assert share.tolist() == [len(hits) / max(len(words), 1)]


def test_built_in_lists_are_those_that_the_config_names_and_have_no_repeats() -> None:
    assert tuple(WORD_LISTS) == BUILT_IN_WORD_LISTS
    for words in WORD_LISTS.values():
        assert len(words) > 100 and len(set(words)) == len(words)
        assert all(word == word.strip().lower() != "" for word in words)
    assert judge(ToxicityConfig(word_lists=("en",)), [f"{WORD_LISTS['en'][0]} x", PEACE]).reasons == [
        "toxic_words",
        None,
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"# only\n\n", "has no words"), (b"...\n", "0 words"), (b"a " * 63, "63 words")],
)
def test_list_that_cannot_be_used_names_its_fault(content: bytes, message: str) -> None:
    config = ToxicityConfig(word_lists=("list.txt",))
    with pytest.raises(UserError, match=message):
        judge(config, ["x"], read=lambda _uri: content)
    with pytest.raises(UserError, match=message):
        check_toxicity_config(config, lambda _uri: content)


# ------------------------------------------------------------------------------------------------------------ scores


def test_scores_are_those_of_the_package() -> None:
    odd = ["don't x_y 12 3 ½ été Pokémon BEYONCÉ \u212aelvin", "ΕΤΗΤΗΣ ΣΑΣ \u0130STUPID ID\u0130OT"]
    texts = [INSULT, PEACE, "", "a b c", *odd, "idiot " * 500, f"{PEACE}\n{INSULT}\n"]
    assert scores(texts).document == pytest.approx(profanity_check.predict_prob(texts), abs=1e-9)


@given(
    st.lists(
        st.text(max_size=20) | st.sampled_from(["stupid", "Idiot", "\u0130", "ΕΤΗΤΗΣ", "\n", "MORON"]), max_size=12
    ).map(" ".join)
)
@settings(max_examples=40, deadline=None)
def test_scores_are_those_of_the_package_for_any_text(text: str) -> None:
    found = scores([text])
    assert found.document == pytest.approx(profanity_check.predict_prob([text]), abs=1e-9)
    lines = [line for line in text.split("\n") if len(package_words(line)) > 0]
    assert found.lines.tolist() == [len(lines)]
    if lines:
        assert found.worst_line.tolist() == pytest.approx([max(profanity_check.predict_prob(lines))], abs=1e-9)


def package_words(line: str) -> list[str]:
    return re.findall(r"(?u)\b\w\w+\b", line.lower())


def test_one_insult_in_a_long_text_costs_its_line_and_a_text_of_insults_goes() -> None:
    long = "\n".join([*(f"{PEACE} {i}" for i in range(20)), INSULT, "", "The end."])
    verdict = judge(
        ToxicityConfig(classifier=True, max_score=0.9, max_line_score=0.9), [long, f"{INSULT}\n{PEACE}", INSULT, PEACE]
    )
    assert verdict.reasons == [None, "toxic_document", "toxic_document", None]
    assert verdict.docs.column("text").to_pylist() == [long.replace(INSULT + "\n", ""), PEACE]
    assert verdict.measures["toxicity_removed_lines"].tolist() == [1 / 22, 1 / 2, 1, 0]
    assert verdict.measures["toxicity_worst_line"][0] > 0.9 > verdict.measures["toxicity_score"][0]


def test_document_without_another_line_is_dropped() -> None:
    verdict = judge(
        ToxicityConfig(classifier=True, max_score=1, max_line_score=0.9),
        [INSULT, f"\n{INSULT}\n\n", f"{INSULT}\nFine day"],
    )
    assert verdict.reasons == ["toxic_lines", "toxic_lines", None]
    assert verdict.docs.column("text").to_pylist() == ["Fine day"]


def test_blank_lines_at_both_ends_outlive_a_removed_line() -> None:
    verdict = judge(ToxicityConfig(classifier=True, max_score=1, max_line_score=0.9), [f"\n\nFine day\n{INSULT}\n\n"])
    assert verdict.docs.column("text").to_pylist() == ["\n\nFine day\n\n"]


def test_without_a_line_limit_texts_stay_as_they_are() -> None:
    verdict = judge(ToxicityConfig(classifier=True, max_score=1), [INSULT, "\n\nx\n"])
    assert verdict.docs.column("text").to_pylist() == [INSULT, "\n\nx\n"]
    assert set(verdict.measures) == {"toxicity_score", "toxicity_worst_line"}


def test_documents_in_another_language_are_not_scored_and_keep_their_lines() -> None:
    config = ToxicityConfig(classifier=True, max_score=0.9, max_line_score=0.5)
    verdict = judge(config, [INSULT] * 5, ["en", "eng_Latn", "", "de", "fra"])
    assert verdict.reasons == ["toxic_document"] * 3 + [None] * 2
    assert verdict.measures["toxicity_score"].tolist()[3:] == pytest.approx([float("nan")] * 2, nan_ok=True)
    assert verdict.docs.column("text").to_pylist() == [INSULT] * 2


def test_files_that_are_not_those_of_the_pinned_version_are_not_opened() -> None:
    with pytest.raises(UserError, match=rf"not that of version {toxic_scores.VERSION}.*pip install"):
        toxic_scores._checked("model.joblib", b"cos\nsystem\n(S'true'\ntR.")


def test_every_word_of_the_vocabulary_has_its_place() -> None:
    classifier = load_classifier()
    assert (classifier.hashes != 0).sum() == len(classifier.idf) == 15_442
    assert sorted(classifier.numbers[classifier.hashes != 0].tolist()) == list(range(15_442))


def test_both_parts_measure_what_came_in_before_lines_are_removed() -> None:
    config = ToxicityConfig(word_lists=("any.txt",), max_word_share=1, classifier=True, max_score=1, max_line_score=0.9)
    verdict = judge(config, [f"zorgle {INSULT}\nFine day"])
    assert verdict.measures["toxicity_word_share"].tolist() == [1 / 15]
    assert verdict.docs.column("text").to_pylist() == ["Fine day"]


@given(st.lists(st.text(max_size=40), max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_passes_alone_as_in_company(texts: list[str]) -> None:
    config = ToxicityConfig(word_lists=("any.txt", "en"), classifier=True, max_line_score=0.3)
    together = judge(config, texts)
    alone = [judge(config, [text]) for text in texts]
    assert together.reasons == [one.reasons[0] for one in alone]
    assert together.docs.column("text").to_pylist() == [t for one in alone for t in one.docs.column("text").to_pylist()]


def test_a_line_of_ten_megabytes_passes() -> None:
    text = "mild words of a long day " * 400_000
    config = ToxicityConfig(word_lists=("en",), classifier=True, max_line_score=0.9)
    assert judge(config, [text]).docs.column("text").to_pylist() == [text]


# ------------------------------------------------------------------------------------------------------------ config


def test_config_refuses_unknown_lists_and_line_limits_without_the_classifier() -> None:
    with pytest.raises(ConfigError, match="built-in lists are en: give a file, for example fr=URI"):
        ToxicityConfig(word_lists=("en", "fr"))
    with pytest.raises(ConfigError, match="data.toxicity.classifier"):
        ToxicityConfig(max_line_score=0.5)
    config = ToxicityConfig(word_lists=("en", "s3://b/list.txt", "de=lists/de.txt"))
    assert config.files == ("s3://b/list.txt", "lists/de.txt") and config.is_on
    assert not ToxicityConfig().is_on
