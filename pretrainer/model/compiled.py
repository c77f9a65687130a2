"""What is compiled on GPUs whatever train.compile says: eager, it would make tensors that must not exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def for_device(function: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    """The function compiled on CUDA, itself elsewhere, where the tests alone run it."""
    return torch.compile(function, dynamic=False) if device_type == "cuda" else function
