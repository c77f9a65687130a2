"""A step's freed memory stays with the process.

    python -m pytest -q tests/train/test_memory.py
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from pretrainer.train.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults() for _ in range(3)]
assert keep_freed_memory()
after = [faults() for _ in range(3)]
print(min(before), max(after[1:]))
"""


def test_a_freed_block_is_not_faulted_in_again() -> None:
    """40 MB are 9,766 pages; in a process of its own, because the setting is for good."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 1000 and after < 100
