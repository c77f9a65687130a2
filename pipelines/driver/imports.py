"""Torch, imported while Ray begins."""

from __future__ import annotations

import importlib
import threading

TORCH = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint")


def import_torch_behind() -> threading.Thread:
    """Import it in a thread; whoever needs it imports it as ever, and waits.

    Nothing else: torch imports nothing that the driver imports meanwhile, so neither can find the other half done.
    """

    def work() -> None:
        for module in TORCH:
            importlib.import_module(module)

    # No daemon: one that is ended in the middle of torch's beginning takes the process with it.
    thread = threading.Thread(target=work, name="imports")
    thread.start()
    return thread
