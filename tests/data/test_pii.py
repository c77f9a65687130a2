"""Personal data and secrets: precision and recall on labelled text, boundary cases per kind, what is kept, linear time.

python -m pytest -q tests/data/test_pii.py
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config.curation import PII_KINDS, PiiConfig
from pretrainer.data.filters import pii, pii_patterns, pii_scan, pii_secrets
from pretrainer.data.filters.pii import Find, find_pii, pii_stage, replace_pii, without_overlaps
from pretrainer.data.filters.pii_checks import is_card, is_iban, is_public_ip, luhn_sum
from pretrainer.data.filters.stage import run_stages
from pretrainer.errors import ConfigError
from pretrainer.schema import DOCUMENTS
from tests.data.pii_corpus import NEGATIVES, corpus
from tests.work import CountedBytes, CountedPattern, CountedSlices, Work, count_patterns, interpret_kernels

# (least precision, least recall). Phones: 3 % of the labelled ones stand in national form and without a word like "tel"
# before them, which is not looked for. Cards: one of 40 random numbers of 16 digits is a valid card by chance.
PEM = f"-----BEGIN PRIVATE KEY-----#{'MIIEvQIBADANBgkqhkiG9w0BAQ9k' * 2}#Zm9vYmFyYmF6#-----END PRIVATE KEY-----"
BARS = dict.fromkeys(PII_KINDS, (0.99, 0.99)) | {"phone": (0.99, 0.95), "credit_card": (0.98, 0.99)}


def replaced(text: str, kinds: tuple[str, ...] = PII_KINDS) -> str:
    return str(replace_pii(pa.array([text], pa.large_string()), kinds)[0][0].as_py())


def documents(texts: list[str]) -> pa.Table:
    count = len(texts)
    blank = {"large_string": "", "int32": 0, "int64": 0, "list<item: double>": []}
    columns = {field.name: [blank[str(field.type)]] * count for field in DOCUMENTS} | {"text": texts}
    return pa.table(columns, schema=DOCUMENTS)


@pytest.mark.parametrize("seed", [1, 2])
def test_precision_and_recall_on_labelled_text(seed: int) -> None:
    """Spans must be exact: a find of the wrong length is wrong and a miss."""
    labelled = corpus(seed, 250, PII_KINDS)
    found = find_pii(pa.array([one.text for one in labelled], pa.large_string()), PII_KINDS)
    right, given_, wanted = Counter(), Counter(), Counter()
    for i, one in enumerate(labelled):
        finds = {tuple(find) for find in found.get(i, [])}
        right += Counter(kind for *_span, kind in finds & set(one.labels))
        given_ += Counter(kind for *_span, kind in finds)
        wanted += Counter(kind for *_span, kind in one.labels)
    assert min(wanted.values()) >= 250 and len(NEGATIVES) >= 40
    measured = {kind: (right[kind] / given_[kind], right[kind] / wanted[kind]) for kind in PII_KINDS}
    bad = {kind: both for kind, both in measured.items() if both[0] < BARS[kind][0] or both[1] < BARS[kind][1]}
    assert not bad, bad


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail anna.k+x@acme.co.uk.", "mail <EMAIL>."),
        ("Contact a@acme.com.Please write", "Contact <EMAIL>.Please write"),
        ("see...bob@acme.de, jürgen@müller.de", "see...<EMAIL>, <EMAIL>"),
        ("bob@acme.com:hunter2", "<EMAIL>:hunter2"),
        ("(212) 867-5309", "<PHONE>"),
        ("+44 (0)20 7946 0958 or +4420 79460958", "<PHONE> or <PHONE>"),
        ("+1 415 867 5309 94107", "<PHONE> 94107"),
        ("Tel. 030/1239876", "Tel. <PHONE>"),
        ("93.184.216.34:80, [2a02:2f0::1f]", "<IP>:80, [<IP>]"),
        ("93.184.216.34 93.184.216.35 93.184.216.36", "<IP> <IP> <IP>"),
        ("4539 1488 0343 6467 12/27", "<CREDIT_CARD> 12/27"),
        ("5425233430109903", "<CREDIT_CARD>"),
        ("DE44 5001 0517 5407 3249 31 BANK", "<IBAN> BANK"),
        ("SSN 536 22 8712, 536-22-8712", "SSN <US_SSN>, <US_SSN>"),
        ("API_KEY=aB3dE5fG7hI9jK1lQ2w. Then", "API_KEY=<SECRET>. Then"),
        ("postgres://bob:s3cr3tX9@db/x", "postgres://bob:<SECRET>@db/x"),
        ("93.184.216.34-93.184.216.40", "<IP>-<IP>"),
        (PEM.replace("#", "\\n") + "\\n'", "<SECRET>\\n'"),
        (PEM.replace("#", "\n").partition("Zm9")[0] + "and more text", "<SECRET>\nand more text"),
        (f"A {PEM[:27]} and long prose of many words", f"A {PEM[:27]} and long prose of many words"),
    ],
)
def test_find_is_replaced_by_its_kind_and_nothing_beside_it(text: str, expected: str) -> None:
    assert replaced(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "bob@example.com a@sub.example.org noreply@acme.com x@host.test git@github.com:acme/repo.git",
        "ssh://git@acme.com/x sftp://deploy@acme.com/x @property @a/core react@18.2.0 icon@2x.png a@b.T q@k.id(1)",
        "127.0.0.1 0.0.0.0 10.1.2.3 192.0.2.44 198.51.100.9 203.0.113.5 ::1 fe80::1 2001:db8::5 8.8.8.8",
        "v1.20.30.40 Chrome/119.2.3.44 tool==1.2.3.44 lib-1.20.30.40.zip 1.2.3.4.55 256.100.20.30 version 1.2.3.44",
        "(212) 555-0123 is of a film; 800 - 867 - 5309; +35236450.6; x+14158675309; mobile 2019-2020; +33 012 345 678",
        "M8 8.75a.75.75 0 1 0 0-1.5.75.75 0 0 0 0 1.5 M1 1.54 12.4.84.32 2.79",
        "secret: 'projects/alpha1/keys/beta2024' API_KEY=config.keys.alpha1.beta2 api_key: production-server-key-2024",
        "4539 1488 0343 6468 and 4111 1111 1111 1111 and 0.4539148803436467",
        "DE45 5001 0517 5407 3249 31, DE89 3704 0044 0532 0130 00, DE44 5001 0517 5407 3249 3",
        "000-22-8712 666-22-8712 936-22-8712 536-00-8712 536-22-0000 078-05-1120 A-536-22-8712",
        "AKIAIOSFODNN7EXAMPLE api_key='your_api_key_1234' password='changeme' token=${TOKEN_1} passwd: xxxxxxxx11",
        "postgres://user:password@localhost/db sk-folding-cube-wrapper-1",
        "eyJabcdefghij.eyJdefghijkl.abcdefghijklmnopqrst eyJhYmMiOiJkZWYifQ.eyJhYmMiOiJkZWYifQ.abcdefghijklmnopqrst",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "<EMAIL> <PHONE> <SECRET> <IP> <US_SSN> <IBAN> <CREDIT_CARD>",
    ],
)
def test_what_stands_for_nobody_is_kept(text: str) -> None:
    assert replaced(text) == text


def test_only_the_chosen_kinds_are_replaced() -> None:
    text = "bob@acme.com 93.184.216.34"
    assert replaced(text, ("email",)) == "<EMAIL> 93.184.216.34"
    assert replaced(text, ("ip",)) == "bob@acme.com <IP>"


def test_of_overlapping_finds_the_longest_stays_then_the_most_specific() -> None:
    assert without_overlaps([Find(0, 5, "ip"), Find(3, 9, "phone")]) == [Find(3, 9, "phone")]
    assert without_overlaps([Find(0, 5, "phone"), Find(0, 5, "iban")]) == [Find(0, 5, "iban")]
    assert without_overlaps([Find(4, 9, "ip"), Find(0, 4, "ip")]) == [Find(0, 4, "ip"), Find(4, 9, "ip")]


def test_what_a_find_had_hidden_is_found_in_the_next_pass() -> None:
    """A + behind a letter begins no number; behind a placeholder it does."""
    assert replaced("bob@acme.de+49 30 9018201") == "<EMAIL><PHONE>"
    assert replace_pii(pa.array(["bob@acme.de+49 30 9018201"]), PII_KINDS)[1]["phone"].tolist() == [1]


def test_stage_measures_counts_and_drops_above_the_limit() -> None:
    docs = documents(["a@acme.com b@acme.com", "none", "a@acme.com 93.184.216.34 c@acme.com"])
    verdict = run_stages(docs, [pii_stage(PiiConfig(kinds=("email", "ip"), max_found=2))])
    assert verdict.docs.column("text").to_pylist() == ["<EMAIL> <EMAIL>", "none"]
    assert verdict.reasons == [None, None, "pii_too_much"]
    assert {name: values.tolist() for name, values in verdict.measures.items()} == {
        "pii_email": [2, 0, 2],
        "pii_ip": [0, 0, 1],
        "pii_found": [2, 0, 3],
    }
    assert pii_stage(PiiConfig(kinds=("email",))).rules == ()


def test_finds_do_not_depend_on_the_other_documents_of_the_column() -> None:
    texts = [one.text for one in corpus(3, 20, PII_KINDS)] + ["tel", "030 1234567", "93.184.216.3", "4 "]
    together = replace_pii(pa.array(texts, pa.large_string())[1:], PII_KINDS)[0].to_pylist()
    assert together == [replaced(text) for text in texts[1:]]


@given(
    st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            ["a@acme.com", "@", "+44 20 7946 0958", "212 867 5309", "(212) 867-5309", "4539148803436467", " ", ".", "-",
             "(", "+", "1", "é", "93.184.216.34", "DE44500105175407324931", "536-22-8712", "SSN ", "tel ", "token=",
             '"', "aB3dE5fG7hI9jK1lQ2w", "//u:", "2a02:2f0::1f", "eyJ", "-----BEGIN ", "sk-", ":", "\n", "<PHONE>"]
        ),
        max_size=14,
    ).map("".join)
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_text_passes_and_a_second_run_changes_nothing(text: str) -> None:
    once = replaced(text)
    assert replaced(once) == once


@pytest.mark.parametrize(
    "unit", ["a@a.aa@", "1.1.1.1 ", "93.184.216.34 ", "+49 30 901820 1", "token=", "//u:p4ssw0rd@h ", "4111 ", "tel 1",
             "-----BEGIN PRIVATE KEY-----A", ".eyJabcdefgh", "4539148803436467 ", "(212) 867-5309", "1", "a@"]
)  # fmt: skip
def test_work_is_linear_in_a_line_made_to_be_slow(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the text takes about four times the bytes read by the scan and by the patterns at each trigger.

    Up to eight times, as the scan begins anew where triggers outnumber its room; quadratic would be sixteen.
    """
    work = Work()
    count_pii(monkeypatch, work)

    def work_on(size: int) -> int:
        texts = pa.array([unit * (size // len(unit))], pa.large_string())
        return work.of(lambda: replace_pii(texts, PII_KINDS))

    assert work_on(8000) < 9 * work_on(2000)


def count_pii(monkeypatch: pytest.MonkeyPatch, work: Work) -> None:
    """Until the test ends the scan for triggers and the patterns behind them count what they read."""
    interpret_kernels(monkeypatch, pii_scan)
    buffers = pii_scan.utf8_buffers
    monkeypatch.setattr(pii_scan, "utf8_buffers", lambda texts: counted_buffers(*buffers(texts), work))
    detect = pii._detect
    monkeypatch.setattr(pii, "_detect", lambda doc, *rest: detect(CountedSlices.of(doc, work), *rest))
    for module in (pii_patterns, pii_secrets):
        count_patterns(monkeypatch, module, work)
        for detector in module.DETECTORS:
            for cell in detector.detect.__closure__ or ():
                if isinstance(cell.cell_contents, re.Pattern):
                    monkeypatch.setattr(cell, "cell_contents", CountedPattern(cell.cell_contents, work))


def counted_buffers(data: np.ndarray, offsets: np.ndarray, work: Work) -> tuple[CountedBytes, np.ndarray]:
    return CountedBytes(data.tobytes(), work), offsets


def test_a_line_of_ten_megabytes_passes() -> None:
    text = "word 12.5 " * 1_000_000
    assert replaced(text + "a@acme.com") == text + "<EMAIL>"


def test_checksums_against_published_numbers() -> None:
    """Luhn's example is of ISO/IEC 7812, the IBAN of ISO 13616's registry for Norway."""
    assert luhn_sum("79927398713") % 10 == 0 and luhn_sum("79927398710") % 10 != 0
    assert is_iban("NO9386011117947") and not is_iban("NO9486011117947") and not is_iban("ZZ9386011117947")
    assert is_card("4539148803436467") and not is_card("9539148803436462")
    assert is_public_ip("93.184.216.34") and not is_public_ip("100.64.0.1") and not is_public_ip("224.0.0.251")


def test_no_phrase_belongs_to_two_detectors() -> None:
    """The automaton knows each phrase once, so the second detector would never be called."""
    phrases = [p.text for one in (*pii_patterns.DETECTORS, *pii_secrets.DETECTORS) for p in one.phrases]
    assert len(set(phrases)) == len(phrases)


def test_empty_columns_and_texts() -> None:
    texts, counts = replace_pii(pa.array([], pa.large_string()), PII_KINDS)
    assert len(texts) == 0 and all(np.array_equal(column, []) for column in counts.values())
    assert replaced("") == ""


@pytest.mark.parametrize(
    "values", [{"kinds": ("email", "email")}, {"max_found": 3}, {"kinds": ("ip",), "max_found": -1}]
)
def test_a_config_that_cannot_be_meant_is_refused(values: dict) -> None:
    with pytest.raises(ConfigError, match="data.pii"):
        PiiConfig(**values)
