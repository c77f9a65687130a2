"""Near-dup against exact Jaccard on edited documents; the adversarial set: nothing distinct lost, work linear."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.config import DedupConfig
from pretrainer.data.dedup.dedup import Decisions, DedupIndex, signatures
from tests.benchmarks.near_duplicates import library_documents, near_duplicate_stream

CONFIG = DedupConfig()


def shingle_set(text: str, n: int = 5) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    common = len(left & right)
    return common / max(1, len(left) + len(right) - common)


def decide(texts: Sequence[str], config: DedupConfig = CONFIG) -> tuple[Decisions, DedupIndex]:
    index = DedupIndex(config)
    return index.decide(np.arange(len(texts)), signatures(pa.array(texts, pa.large_string()), config)), index


def best_earlier(texts: Sequence[str], kept: np.ndarray) -> np.ndarray:
    """[N]: highest exact J of each text with those kept before it."""
    sets, earlier, best = [shingle_set(text) for text in texts], [], np.zeros(len(texts))
    for i, shingles in enumerate(sets):
        best[i] = max((jaccard(shingles, sets[j]) for j in earlier), default=0.0)
        earlier += [i] * bool(kept[i])
    return best


def test_recall_and_precision_on_edited_documents() -> None:
    """Words replaced, lines left out, ends cut, paragraphs reordered, boilerplate added, another extractor: J in 0.4-1.

    A drop is right when a document kept earlier has J >= 0.8; recall is over the documents that have such a one.
    """
    texts = near_duplicate_stream(library_documents(90, mean_bytes=4000), copies=4)
    decisions, _index = decide(texts)
    best, dropped = best_earlier(texts, decisions.kept), ~decisions.kept
    assert np.sum(best >= 0.8) > 100 and np.sum((best > 0.72) & (best < 0.88)) > 60
    assert np.mean(dropped[best >= 0.8]) >= 0.97
    assert np.mean(best[dropped] >= 0.8) >= 0.95
    assert np.mean(best[dropped] >= 0.7) >= 0.995


def words(count: int, seed: str) -> list[str]:
    generator = random.Random(seed)
    return [f"{seed}{generator.randrange(10**7)}" for _ in range(count)]


@pytest.mark.parametrize(("facts", "lost"), [(4, True), (40, False)])
def test_templated_documents_go_where_their_facts_are_few(facts: int, lost: bool) -> None:
    """800 shared words with facts spread over them. 4 facts change 20 of about 800 shingles: J = 0.95, and they go, as
    the definition says; 40 change 200: J = 0.6, and every document stays."""
    template, texts = words(800, "t"), []
    for i in range(50):
        filled = list(template)
        for fact in range(facts):
            filled[(2 * fact + 1) * 800 // (2 * facts)] = f"fact{i}x{fact}"
        texts.append(" ".join(filled))
    similarity = jaccard(shingle_set(texts[0]), shingle_set(texts[1]))
    assert (similarity > 0.9) == lost and (similarity < 0.7) != lost
    assert decide(texts)[0].kept.tolist() == [True] + [not lost] * 49


def test_one_long_document_and_the_short_ones_in_it_stay() -> None:
    parts = [" ".join(words(60, f"p{i}")) for i in range(200)]
    for texts in ([" ".join(parts), *parts], [*parts, " ".join(parts)]):
        assert decide(texts)[0].kept.all()


def test_a_cluster_of_ten_thousand_costs_a_comparison_each() -> None:
    """Counted, not timed: all but the first are dropped after at most two comparisons."""
    base = words(200, "c")
    texts = [" ".join([*base[: i % 200], f"x{i}", *base[i % 200 + 1 :]]) for i in range(10_000)]
    decisions, index = decide(texts)
    assert decisions.kept.sum() == 1 and (decisions.duplicate_of[1:] == 0).all()
    assert index.comparisons <= 2 * len(texts) and len(index) == 1


def test_comparisons_are_linear_in_a_cluster_that_is_not_one() -> None:
    """Documents that share every band and are not similar: at most MAX_CHAIN comparisons per band."""
    from tests.data.test_dedup import made, same_bands

    config = DedupConfig(bands=2, rows_per_band=6)
    counts = []
    for count in (1000, 2000):
        index = DedupIndex(config)
        sets = [np.arange(20) + 100 * i for i in range(count)]
        index.decide(np.arange(count), made(same_bands(count, 2), sets, config))
        counts.append(index.comparisons)
    assert counts[1] - counts[0] == 1000 * 2 * 256


def test_pages_with_much_boilerplate_stay() -> None:
    """60 % navigation and 40 % article: J about 0.43; nothing is lost, and with line dedup only the navigation goes."""
    menu = [" ".join(words(12, f"menu{i}")) for i in range(20)]
    articles = [[" ".join(words(16, f"a{i}n{n}")) for n in range(10)] for i in range(60)]
    pages = ["\n".join([*menu[:10], *article, *menu[10:]]) + "\n" for article in articles]
    assert decide(pages)[0].kept.all()
    from pretrainer.config.dedup import LineDedupConfig
    from pretrainer.data.dedup.removal import remove_ranges

    config = DedupConfig(lines=LineDedupConfig(max_documents=3, min_share_left=0.2))
    decisions, _index = decide(pages, config)
    assert decisions.kept.all() and decisions.removed is not None
    left = remove_ranges(pa.array(pages, pa.large_string()), decisions.removed).to_pylist()
    assert left[:3] == pages[:3]
    assert left[3:] == ["\n".join(article) + "\n" for article in articles[3:]]
