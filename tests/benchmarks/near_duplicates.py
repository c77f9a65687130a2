"""Documents and near-duplicates of them for dedup's benchmarks and tests: the text of the installed Python library, cut
into documents, and the ways in which copies of a page differ. No web pages are needed."""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

FOOTER = "Copyright notice and terms of use. Read our privacy policy. Subscribe to the newsletter for updates. "


def library_documents(count: int, mean_bytes: int = 7600, seed: int = 0) -> list[str]:
    """Up to `count` pieces of library files (site-packages too, where the standard library is too small), cut at line
    ends, exponentially distributed around the mean length with a minimum of a tenth of it, in random order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = Path(sysconfig.get_paths()["purelib"])
    generator = random.Random(seed)
    pieces: list[str] = []
    for root in (library, packages):
        for path in sorted(root.rglob("*.py")):
            if root is library and "site-packages" in path.parts:
                continue
            pieces += _cut(path.read_bytes().decode("utf-8", "replace"), mean_bytes, generator)
            if len(pieces) >= 2 * count:
                break
        if len(pieces) >= 2 * count:
            break
    generator.shuffle(pieces)
    return pieces[:count]


def _cut(text: str, mean_bytes: int, generator: random.Random) -> list[str]:
    pieces, start = [], 0
    while len(text) - start > mean_bytes // 10:
        size = mean_bytes // 10 + int(generator.expovariate(1 / (0.9 * mean_bytes)))
        end = text.find("\n", start + size) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def substitute(text: str, strength: float, generator: random.Random) -> str:
    """Single words replaced: an update of figures and names. `strength` is about 1 - J."""
    share = strength / 9
    return re.sub("[A-Za-z0-9]+", lambda m: f"n{generator.randrange(10**6)}" if generator.random() < share else m[0],
                  text)


def delete_lines(text: str, strength: float, generator: random.Random) -> str:
    """Some lines left out, as by another extractor."""
    return "".join(line for line in text.splitlines(True) if generator.random() > 0.6 * strength)


def cut_end(text: str, strength: float, generator: random.Random) -> str:
    """An excerpt: the end is missing."""
    return text[: int(len(text) * (1 - strength * generator.uniform(0.8, 1.2)))]


def reorder(text: str, strength: float, generator: random.Random) -> str:
    """Paragraphs in another order, a few of them changed."""
    paragraphs = text.split("\n\n")
    for _ in range(max(1, int(strength * len(paragraphs)))):
        i, j = generator.randrange(len(paragraphs)), generator.randrange(len(paragraphs))
        paragraphs[i], paragraphs[j] = paragraphs[j], paragraphs[i]
    return substitute("\n\n".join(paragraphs), strength / 2, generator)


def add_boilerplate(text: str, strength: float, generator: random.Random) -> str:
    """Navigation before and a list of links after the same article."""
    words = strength * len(text.split())
    links = " ".join(f"link{generator.randrange(10**5)} item" for _ in range(int(words / 2)))
    return FOOTER + links[: len(links) // 2] + "\n" + text + "\n" + links[len(links) // 2 :]


def extract_otherwise(text: str, strength: float, generator: random.Random) -> str:
    """Another extractor: joined lines, lost indentation, changed punctuation and case, some blocks missing."""
    kept = delete_lines(text, strength, generator)
    return re.sub(r"[ \t]+", " ", kept).replace("\n", " \n").replace('"', "\u201d").replace("_", " ")


EDITS: Sequence[Callable[[str, float, random.Random], str]] = (
    substitute, delete_lines, cut_end, reorder, add_boilerplate, extract_otherwise,
)


def near_duplicate_stream(originals: Sequence[str], copies: int, seed: int = 0) -> list[str]:
    """Originals and edited copies of each, in random order; how much is edited spreads J over about 0.4 to 1."""
    generator = random.Random(seed)
    texts = list(originals)
    for text in originals:
        texts += [generator.choice(EDITS)(text, generator.uniform(0.0, 0.45), generator) for _ in range(copies)]
    generator.shuffle(texts)
    return texts
