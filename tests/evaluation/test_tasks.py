"""Lines become questions and answers, shots are the same every time, metrics are those of a sheet of paper.

    python -m pytest -q tests/evaluation/test_tasks.py
"""

from __future__ import annotations

import bz2
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import TaskConfig
from pretrainer.config_load import parse_evaluation
from pretrainer.errors import ConfigError, UserError
from pretrainer.evaluation.evaluate import evaluate_tasks, prepare
from pretrainer.evaluation.kinds import KINDS, Example
from pretrainer.evaluation.metrics import choice_metrics, cloze_metrics, guess, is_match, mean, ratio, text_metrics
from pretrainer.evaluation.scoring import Score
from pretrainer.evaluation.tasks import choose_shots, make_task, read_lines, read_task
from pretrainer.evaluation.template import fill
from tests.evaluation.cases import MAX_TOKENS, model, tokenizer

ROOT = Path(__file__).parent.parent.parent


def config(kind: str = "cloze", **fields: Any) -> TaskConfig:
    return TaskConfig(name="t", uri="x.jsonl", kind=kind, **fields)  # type: ignore[arg-type]


def example(kind: str, line: dict[str, Any], **fields: Any) -> Example:
    return KINDS[kind].read(line, config(kind, **fields))


def write(folder: Path, lines: list[Any], name: str = "task.jsonl") -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# ----------------------------------------------------------------------------------------------------------- kinds


def test_templates_fill_places_and_leave_other_braces() -> None:
    line = {"a": "x{b}", "b": 3, "c": {"d": ["p", "q"]}}
    assert fill("{a} {b} {c.d.1} {} {no place} {{b}}", line) == "x{b} 3 q {} {no place} {3}"


def test_choices_come_from_a_list_from_places_or_from_the_config() -> None:
    line = {"context": "q", "choices": ["x", "y"], "one": "p", "answer": 1}
    assert example("multiple_choice", line).pairs == (("q", " x"), ("q", " y"))
    assert example("multiple_choice", line, choices=("{one}", "B")).choices == ("p", "B")
    assert example("multiple_choice", line | {"answer": "x"}).right == 0
    assert example("multiple_choice", line | {"answer": "1"}).right == 1
    assert example("multiple_choice", line | {"choices": ["5", "0"], "answer": "0"}).right == 1  # its text, first
    assert example("multiple_choice", line, delimiter="->").shot == "q->y"


def test_a_question_may_be_empty_and_an_answer_not() -> None:
    assert example("cloze", {"context": "", "answer": "a"}).pairs == (("", " a"),)
    with pytest.raises(Exception, match="empty answer"):
        example("cloze", {"context": "q", "answer": ""})


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("multiple_choice", {"context": "q", "choices": ["x", "y"]}, "has no 'answer': at 'answer' there is 'context'"),
    ("multiple_choice", {"context": "q", "choices": ["x", "y"], "answer": 2}, "a right one among them, has 2"),
    ("multiple_choice", {"context": "q", "choices": ["x", "y"], "answer": -1}, "a right one among them, has -1"),
    ("multiple_choice", {"context": "q", "choices": ["x", "y"], "answer": True}, "the answer True, which is neither"),
    ("multiple_choice", {"context": "q", "choices": ["x", "y"], "answer": "z"}, "the answer 'z', which is neither"),
    ("multiple_choice", {"context": "q", "choices": ["x"], "answer": 0}, "two or more choices"),
    ("multiple_choice", {"context": "q", "choices": ["x", ""], "answer": 0}, "two or more choices with text"),
    ("multiple_choice", {"context": {"a": 1}, "choices": ["x", "y"], "answer": 0}, "which is no text"),
    ("arc", {"question": "q", "choices": {"text": ["x"], "label": ["A"]}, "answerKey": "B"}, "answerKey 'B'"),
    ("winogrande", {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}, "a sentence with _"),
    ("winogrande", {"sentence": "a _ b", "option1": "a", "option2": "b", "answer": "3"}, "the answer 1 or 2"),
    ("lambada", {"text": "ends with a space "}, "without a last word"),
    ("text", {"text": ""}, "an empty text"),
    ("generate", {"context": "q", "answer": []}, "no answer"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line", "words"), WRONG)
def test_a_line_that_cannot_be_used_is_named(kind: str, line: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = {"context": "q", "choices": ["x", "y"], "answer": 0, "text": "a b", "question": "q", "answerKey": "A"}
    uri = write(tmp_path, [good, line] if kind in ("multiple_choice", "generate", "text", "lambada") else [line])
    number = 2 if kind in ("multiple_choice", "generate", "text", "lambada") else 1
    with pytest.raises(UserError, match=f"task t .kind {kind}.: object {number} of .*task.jsonl .*{words}"):
        read_task(replace(config(kind), uri=uri))


# ----------------------------------------------------------------------------------------------------------- files


def test_files_are_opened_by_their_ending(tmp_path: Path) -> None:
    plain = b'{"text": "\xc3\xa9"}\n\n  \n{"text": "b"}'
    packed = {"": plain, ".gz": gzip.compress(plain), ".bz2": bz2.compress(plain)}
    packed |= {f".{end}": pa.compress(plain, codec, asbytes=True) for end, codec in (("zst", "zstd"), ("lz4", "lz4"))}
    for ending, content in packed.items():
        (tmp_path / f"f.jsonl{ending}").write_bytes(content)
        assert read_lines(str(tmp_path / f"f.jsonl{ending}")) == [{"text": "é"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("absent", None, "does not exist"),
        ("empty", b" \n\n", "is empty"),
        ("list", b'{}\n[1]', "line 2 is a JSON list"),
        ("torn", b'{}\n{"a": ', "line 2 is no JSON"),
        ("torn.gz", gzip.compress(b"{}" * 99, mtime=0)[:-20], "cannot be decompressed"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_message(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_lines(str(tmp_path / name))


# ----------------------------------------------------------------------------------------------------------- shots


LINES = [{"context": f"q{number}", "answer": f"a{number}"} for number in range(9)]


@settings(max_examples=100)
@given(st.integers(0, 8), st.integers(0, 5), st.booleans(), st.lists(st.integers(0, 8), max_size=4))
def test_no_line_is_its_own_shot_and_none_is_shown_twice(
    shots: int, seed: int, first: bool, repeated: list[int]
) -> None:
    lines = LINES + [LINES[number] for number in repeated]
    asked = config(shots=shots, seed=seed, sampler="first" if first else "seeded")
    drawn = choose_shots(asked, lines, lines, own=True)
    assert drawn == choose_shots(asked, lines, lines, own=True)
    for line, chosen in zip(lines, drawn, strict=True):
        assert len(chosen) == len(set(chosen)) == shots
        assert line not in [lines[place] for place in chosen]


def test_shots_depend_on_the_seed_and_first_ones_on_the_file_alone() -> None:
    def drawn(**fields: Any) -> list[list[int]]:
        return choose_shots(config(shots=2, **fields), LINES, LINES, own=True)

    assert drawn(seed=1) != drawn(seed=2)
    assert drawn(sampler="first")[:3] == [[1, 2], [0, 2], [0, 1]]
    assert len({tuple(chosen) for chosen in drawn()}) > 3


def test_shots_of_another_file_may_be_equal_to_the_line(tmp_path: Path) -> None:
    uri = write(tmp_path, LINES)
    other = write(tmp_path, LINES[:1], "shots.jsonl")
    asked = config(shots=1, shots_uri=other, description="D\n", shot_delimiter="|")
    task = read_task(replace(asked, uri=uri))
    assert set(task.before) == {"D\nq0 a0|"}


@pytest.mark.parametrize("sampler", ["seeded", "first"])
@pytest.mark.parametrize("lines", [LINES[:3], [LINES[0]] * 9])
def test_more_shots_than_there_are_is_one_clear_message(sampler: Any, lines: list[Any], tmp_path: Path) -> None:
    uri = write(tmp_path, lines)
    with pytest.raises(UserError, match=r"use fewer evaluation.tasks\[\].shots than 3"):
        read_task(replace(config(shots=3, sampler=sampler), uri=uri))


def test_max_documents_cuts_what_is_scored_and_not_the_shots(tmp_path: Path) -> None:
    uri = write(tmp_path, LINES)
    whole = read_task(replace(config(shots=3), uri=uri))
    cut = read_task(replace(config(shots=3, max_documents=2), uri=uri))
    assert (cut.examples, cut.before) == (whole.examples[:2], whole.before[:2])


# --------------------------------------------------------------------------------------------------------- metrics


def scores(*nats: float, top1: bool = False) -> tuple[Score, ...]:
    return tuple(Score(one, 4, 4 if top1 else 3) for one in nats)


def test_lengths_are_characters_or_bytes_and_the_first_of_equals_wins() -> None:
    #                        nats      per character     per byte
    #  "aaaa"                -4.0          -1.0            -1.0
    #  "éé"     4 bytes      -2.2          -1.1            -0.55
    #  "b"                   -1.0          -1.0            -1.0
    one = Example((), choices=("aaaa", "éé", "b"), right=0)
    found = choice_metrics([one], [scores(-4.0, -2.2, -1.0)])
    assert {name: metric.value for name, metric in found.items()} == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 0.0}
    found = choice_metrics([replace(one, right=1)], [scores(-4.0, -2.2, -1.0)])
    assert {name: metric.value for name, metric in found.items()} == {"acc": 0.0, "acc_norm": 0.0, "acc_bytes": 1.0}
    found = choice_metrics([replace(one, right=2)], [scores(-4.0, -2.2, -1.0)])
    assert {name: metric.value for name, metric in found.items()} == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 0.0}


def test_standard_errors() -> None:
    assert mean([1.0, 0.0, 0.0, 1.0]) == (0.5, pytest.approx(math.sqrt(1 / 3 / 4)))
    assert mean([1.0]) == (1.0, None)
    # Texts of one size: the error of a ratio is that of a mean.
    assert ratio([1.0, 3.0, 2.0], [10.0, 10.0, 10.0]) == (0.2, pytest.approx(mean([0.1, 0.3, 0.2]).stderr))
    found = cloze_metrics([], [scores(-1.0), scores(-3.0, top1=True)])
    assert found["acc"].value == 0.5
    assert found["perplexity"] == (pytest.approx(math.exp(2)), pytest.approx(math.exp(2) * 1.0))


def test_text_counts_bytes_and_words_over_all_windows() -> None:
    texts = [Example((("", "é b"),)), Example((("", "cc"),))]  # 4 and 2 bytes, 2 words and 1
    found = text_metrics(texts, [scores(-1.0, -2.0), scores(-3.0)])
    assert found["bits_per_byte"].value == pytest.approx(6 / 6 / math.log(2))
    assert found["byte_perplexity"].value == pytest.approx(math.e)
    assert found["word_perplexity"].value == pytest.approx(math.exp(2))
    assert found["top1"].value == pytest.approx(9 / 12)


@pytest.mark.parametrize(
    ("answer", "ignore", "matches"),
    [
        (" Paris ", ("whitespace",), True),
        (" Paris", (), False),
        ("paris", ("whitespace",), False),
        ("paris", ("case",), True),
        ("Pa-ris!", ("punctuation",), True),
        ("the City of Light", ("case",), True),
        ("Par is", ("whitespace",), False),
    ],
)
def test_what_matches_exactly(answer: str, ignore: tuple[str, ...], matches: bool) -> None:
    assert is_match(answer, ["Paris", "The city of light"], ignore) == matches


def test_a_guess_knows_each_line_s_choices() -> None:
    assert guess("choice", [Example((), choices=("a", "b")), Example((), choices=("a",) * 4)]) == 0.375
    assert guess("cloze", []) is None


# --------------------------------------------------------------------------------------------------------- refusals


def test_an_answer_longer_than_the_model_reads_is_named() -> None:
    task = make_task(config(), [example("cloze", {"context": "q", "answer": "word " * 200})])
    with pytest.raises(UserError, match="an answer of example 1 has .* tokens, and the model reads 96"):
        evaluate_tasks(model(), tokenizer(), [task], "cpu", MAX_TOKENS)


def test_an_answer_that_leaves_no_room_for_its_question_is_refused() -> None:
    task = make_task(config("generate", max_new_tokens=96), [example("generate", {"context": "q", "answer": "a"})])
    with pytest.raises(UserError, match="max_new_tokens=96 leaves no room"):
        prepare(task, tokenizer(), MAX_TOKENS)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("{name: a, uri: x, kind: arx}", "kind=.arx. is not possible: give one of multiple_choice, cloze"),
        ("{name: a, uri: x, kind: arc, answer: '{b}'}", r"tasks\[a\].answer='{b}' is not possible: kind arc knows"),
        ("{name: a, uri: x, kind: text, shots: 1}", "a text has no question"),
        ("{name: a, uri: x, kind: cloze, stop: ['']}", "an empty text would end every answer"),
        ("{name: a, uri: x, kind: cloze}, {name: a, uri: y, kind: cloze}", "give every task its own name"),
    ],
)
def test_impossible_tasks_are_refused(task: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_evaluation("", [f"evaluation.tasks=[{task}]"])


def test_a_section_is_read_alone_and_nothing_else_can_be_set() -> None:
    text = "model: {preset: no such}\nevaluation: {tasks: [{name: a, uri: x, kind: arc}]}"
    found = parse_evaluation(text, ["evaluation.tasks.0.shots=3", "evaluation.batch_tokens=7"])
    assert (found.tasks[0].shots, found.batch_tokens) == (3, 7)
    assert parse_evaluation("") == parse_evaluation("evaluation:")
    with pytest.raises(ConfigError, match="'train.steps=3' is not possible here"):
        parse_evaluation(text, ["train.steps=3"])


def test_the_example_of_the_readme_is_possible() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [part for part in readme.split("```")[1::2] if part.startswith("yaml\nevaluation:")]
    block, while_training = (part.removeprefix("yaml\n") for part in blocks)
    both = parse_evaluation(block + while_training.removeprefix("evaluation:\n"))
    assert both.is_periodic and both.best_by == "arc/acc_norm" and both.due(5000, False) == "full"
    tasks = both.tasks
    assert [task.kind for task in tasks] == ["hellaswag", "arc", "multiple_choice", "generate"]
    piqa = KINDS["multiple_choice"].read({"goal": "g", "sol1": "x", "sol2": "y", "label": 1}, tasks[2])
    assert piqa.pairs[1] == ("Question: g\nAnswer:", " y") and piqa.right == 1
