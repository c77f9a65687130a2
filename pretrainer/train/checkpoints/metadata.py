"""DCP's `.metadata` is a pickle, and a pickle can call anything. Before DCP opens it, it is read with what it may name.

Digests find damage; whoever can write the files can write digests that match. So this is the line that a checkpoint
from a stranger does not pass, in the way that `torch.load(weights_only=True)` is for tensors (DCP loads those so).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from pretrainer.errors import DamagedError

ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(str(kind).removeprefix("torch.") for kind in vars(torch).values()
                        if isinstance(kind, torch.dtype))},
    "pathlib": {"PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
    "collections": {"OrderedDict"},
}  # fmt: skip


class _Metadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def check_metadata(path: Path) -> None:
    """Raise DamagedError where the file is no pickle of DCP's metadata; nothing that it could name else is called."""
    try:
        with path.open("rb") as file:
            _Metadata(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError, KeyError) as error:
        raise DamagedError(
            f"checkpoint file {path} is not what torch writes ({error}): do not load it; use an older checkpoint"
        ) from error
