"""What the C library does with memory that a training step frees: it keeps it for the next one."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_TOP_PAD_BYTES = 64 * 2**20


def keep_freed_memory() -> bool:
    """Let malloc serve large blocks from memory that it keeps; returns whether this C library can (glibc).

    By default glibc gives a block of over 32 MB back to the kernel when it is freed and takes new pages for the next
    one: a step on CPU faults them all in again (measured: 125,000 faults and 13 % of a step of a 5 M model with logits
    of 33 MB, see the log of 2026-11-21). The process then stays at its peak size, so this is for trainers on CPU, whose
    steps are all alike, and for no process that holds something large once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, _TOP_PAD_BYTES))
    return all([mallopt(name, value) == 1 for name, value in settings])
