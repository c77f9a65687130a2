"""Tokenization of a chunk beside sentencepiece's own batch encode, one thread, on the standard library's text.

    python tests/benchmarks/bench_tokenizer.py

Ours escapes what sentencepiece would lose and cuts lines first, so that a document's tokens do not depend on its
length; then it gives one flat array. The peer is `SentencePieceProcessor.encode` with lists of ids and with arrays. The
three take turns, and the ratio is the median over the turns.
"""

from __future__ import annotations

import statistics
import sysconfig
import time
from pathlib import Path

import sentencepiece

from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.data.tokenizer.train import train_tokenizer

ROUNDS = 7


def main() -> None:
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]
    size = sum(len(text.encode()) for text in texts) / 1e6
    model = train_tokenizer(texts[:40], "bpe", 8192)
    ours, peer = Tokenizer.from_bytes(model), sentencepiece.SentencePieceProcessor(model_proto=model, num_threads=1)
    calls = {
        "ours": lambda: ours.encode_batch(texts),
        "sentencepiece, lists": lambda: peer.encode(texts),
        "sentencepiece, arrays": lambda: peer.encode(texts, return_type="numpy"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started_s = time.process_time()
            call()
            seconds[name].append(time.process_time() - started_s)
    for name, taken in seconds.items():
        ratio = statistics.median(other / own for own, other in zip(seconds["ours"], taken, strict=True))
        print(f"{name:<24}{size / statistics.median(taken):6.2f} MB/s per core, ours is {ratio:.0%} of its speed")


if __name__ == "__main__":
    main()
