"""An extraction process whose extractor does what the page says: what a parser may do to its process.

Runs as `python -m tests.data.hostile_extractor`, with the limits and the protocol of the real one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from pretrainer.data.readers import extract_worker

_seen: list[str] = []


def obey(page: str) -> str:
    if page == extract_worker.WARM_UP:
        return page
    word, _, rest = page.partition(" ")
    _seen.append(page)
    if word == "loop":
        while True:
            pass
    if word == "sleep":
        time.sleep(600)
    if word == "eat":
        return str(len(bytearray(2**30)))
    if word == "crash":
        ctypes.string_at(0)
    if word == "exit":
        os._exit(3)
    if word == "raise":
        raise RuntimeError(rest)
    if word == "print":
        print("not an answer", flush=True)
    if word == "killed":  # as often as the file has bytes left
        left = Path(rest).read_bytes()
        Path(rest).write_bytes(left[1:])
        if left:
            os.kill(os.getpid(), signal.SIGKILL)
    if word == "leak" and len(_seen) > 1 and _seen[-2] != page:  # only behind another page
        raise MemoryError
    return {"empty": " \n", "count": str(len(_seen)), "pid": str(os.getpid())}.get(word, page)


extract_worker.METHODS["auto"] = obey

if __name__ == "__main__":
    extract_worker.main()
