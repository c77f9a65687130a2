"""Speed, recall and false alarms of decontamination on one core, on the installed Python's standard library.

    python -m tests.benchmarks.bench_decontamination

Benchmark items are the docstrings of 600 files, the corpus is the other files. For the side-by-side with datatrove's
n-gram filter install its word tokenizer too (pip install "datatrove[processing]==0.10.1" spacy).
"""

from __future__ import annotations

import ast
import importlib.util
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from pretrainer.config import DecontaminationConfig
from pretrainer.data.decontamination.index import Index, Reference, build_index, load_index
from pretrainer.data.decontamination.stage import find_hits, overlaps
from tests.benchmarks.library import library_texts

CONFIG = DecontaminationConfig()
LENGTHS = ((8, 13), (13, 20), (20, 40), (40, 100), (100, 10**6))
CHANGED_WORDS = (0, 1, 2, 3, 5)
DRAWS = random.Random(0)


def array(texts: Sequence[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def docstrings(text: str) -> Iterator[str]:
    warnings.simplefilter("ignore")
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and (found := ast.get_docstring(node)):
            yield found


def edited(text: str, changed: int) -> str:
    """The text with other words in some places, some in upper case, other punctuation and line ends."""
    words = text.split()
    for place in DRAWS.sample(range(len(words)), min(changed, len(words))):
        words[place] = f"zq{DRAWS.randrange(10**6)}"
    words = [word.upper() if DRAWS.random() < 0.2 else word for word in words]
    lines = (" ".join(words[i : i + 7]) for i in range(0, len(words), 7))
    return "\n".join(lines).replace(",", ";").replace('"', "\u201c")


def planted(index: Index, references: Sequence[int], hosts: Sequence[str], changed: int) -> float:
    """Share of references that are found when a copy stands in the middle of another text."""
    texts = []
    for reference in references:
        host = DRAWS.choice(hosts)
        half = len(host) // 2
        texts.append(f"{host[:half]}\n{edited(index.reference(reference).text, changed)}\n{host[half:]}")
    return float((overlaps(array(texts), index, 0.5)["decontamination_overlap"] > 0.5).mean())


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def datatrove_rate(items: Sequence[str], texts: Sequence[str]) -> float:
    """MB/s of datatrove's filter over 13-grams of the same items."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.text import ngrams, simplify_text

    config = NGramsDecontConfig(n_grams=13, hash_config=HashConfig(hash_fc="sha1"))  # its xxhash refuses strings
    step = NGramsDecontFilter(".", config)
    step._index_hashes = {}
    for item in items:
        words = step.tokenizer.word_tokenize(simplify_text(item, step.config.norm_config))
        for gram in ngrams(words, 13):
            step._index_hashes[step.hash_func(" ".join(gram))] = "items"
    documents = [Document(text=text, id=str(i)) for i, text in enumerate(texts)]
    return sum(len(text.encode()) for text in texts) / 1e6 / seconds(lambda: [step.filter(d) for d in documents])


def false_alarms_of_held_out(texts: Sequence[str]) -> None:
    """Files that share a passage with 2 % of the files, held out at random."""
    for common in (True, False):
        shares = []
        for seed in range(3):
            order = list(range(len(texts)))
            random.Random(seed).shuffle(order)
            cut = len(texts) // 50
            held = [Reference("library", str(i), texts[i], held_out=True) for i in order[:cut]]
            rest = [texts[i] for i in order[cut:]]
            sizes = np.cumsum([len(text.encode()) for text in rest])
            background = array(rest[: int(np.searchsorted(sizes, 8 * 2**20))]) if common else None
            index = load_index(build_index(held, CONFIG, background), CONFIG)
            shares.append((overlaps(array(rest), index, 0.5)["decontamination_hits"] > 0).mean())
        print(f"  background {'8 MiB' if common else 'none '}: dropped {', '.join(f'{share:.1%}' for share in shares)}")


def main() -> None:
    texts = library_texts().to_pylist()
    DRAWS.shuffle(texts)
    items = sorted({text for source in texts[:600] for text in docstrings(source)})
    background, hosts = texts[600:900], texts[900:]
    references = [Reference("docstrings", str(i), text) for i, text in enumerate(items)]
    load_index(build_index(references[:9], CONFIG, array(background[:1])), CONFIG)  # compiles
    content = build_index(references, CONFIG, array(background))
    index = load_index(content, CONFIG)
    words = index.tables.words.size
    memory = sum(part.nbytes for part in index.tables) + index.references.nbytes
    print(f"{len(items)} items, {index.references.num_rows} in the index ({dict(index.left_out)}), {words} words")
    print(f"index: {len(content) / words:.1f} bytes per word as a file, {memory / words:.1f} loaded")
    print(f"build {seconds(lambda: build_index(references, CONFIG, array(background))):.2f} s, "
          f"load {seconds(lambda: load_index(content, CONFIG)):.2f} s")

    clean, megabytes = array(hosts), sum(len(text.encode()) for text in hosts) / 1e6
    overlaps(clean[:2], index, 0.5)
    ours = megabytes / seconds(lambda: overlaps(clean, index, 0.5))
    print(f"scan {ours:.0f} MB/s over {megabytes:.1f} MB")
    if importlib.util.find_spec("datatrove") and importlib.util.find_spec("spacy"):
        peer = datatrove_rate(items, hosts[:60])
        print(f"datatrove's n-gram filter {peer:.2f} MB/s: ours is {ours / peer:.0f} x")

    lengths = np.diff(index.tables.starts)
    print(f"recall by words of the item, with {', '.join(map(str, CHANGED_WORDS))} words changed:")
    for least, most in LENGTHS:
        chosen = np.flatnonzero((lengths >= least) & (lengths < most)).tolist()[:400]
        found = [planted(index, chosen, hosts, changed) for changed in CHANGED_WORDS]
        print(f"  {least:>4} to {most:>7}: {', '.join(f'{share:.3f}' for share in found)} ({len(chosen)} items)")

    table = pa.table({"id": array([str(i) for i in range(len(hosts))]), "text": clean})
    hits = list(find_hits(table, index, 0.5))
    print(f"{len({hit.document for hit in hits})} of {len(hosts)} other files have a hit; some to look at:")
    for hit in hits[:: max(1, len(hits) // 8)]:
        print(f"  {hit.share:.2f} {hit.document_text[:70]!r}\n    == {hit.reference_text[:70]!r}")
    print("held-out files:")
    false_alarms_of_held_out(texts)


if __name__ == "__main__":
    main()
