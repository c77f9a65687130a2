"""Run a function on several gloo processes of this machine and collect what each returns."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a server that has imported torch once; each spawned one pays 2 s of CPU for that.
PRELOADED = ["pretrainer.train.checkpoints.checkpoint", "pretrainer.train.sharding.parallel", "tests.train.samples"]
mp.set_forkserver_preload(PRELOADED)


def _main(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    result = function(rank, world, *args)
    (Path(folder) / f"result{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()
    # The result is out; tearing gloo's threads down was seen to abort the process once in some 50 runs.
    os._exit(0)


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """[function(rank, world, *args) for each rank], each in its own process with an initialised process group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_main, (world, folder, function, args), nprocs=world, start_method="forkserver")
        return [pickle.loads((Path(folder) / f"result{rank}").read_bytes()) for rank in range(world)]
