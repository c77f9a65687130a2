"""What a step costs: floating-point operations, the peak of the device, bytes of state; memory_plan.py has the rest."""

from __future__ import annotations

from typing import Literal

from pretrainer.config import ModelConfig
from pretrainer.errors import ConfigError
from pretrainer.model.presets import block_parameters, parameter_count, table_parameters

GIB = 2**30

# Dense bfloat16 FLOP/s without sparsity, from NVIDIA's data sheets; the first name found in the device's name counts,
# so longer names stand before the shorter ones that they contain.
PEAK_FLOPS: dict[str, float] = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 150e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
}


def keys_per_query(config: ModelConfig, layer: int, seq_len: int) -> int:
    """Tokens that a token of this block attends to on average, before what lies behind it is masked.

    The whole sequence, or with a window w twice what a causal one lets through: w (2 S - w) / S, which is S at w = S.
    """
    window = config.window(layer)
    return seq_len if window is None or window >= seq_len else window * (2 * seq_len - window) // seq_len


def flops_per_token(config: ModelConfig, vocab_size: int, seq_len: int) -> int:
    """Training FLOPs per token, forward and backward: 6 N + 12 A sum over blocks of S.

    PaLM, appendix B (Chowdhery et al. 2022, arXiv:2204.02311): attention counts in full although half of it is masked,
    recomputation does not count. A is the width of all query heads, H by default. N counts what a token passes through:
    the experts that it chooses, and no table that is only looked up in, which multiplies nothing.
    """
    active = parameter_count(config, vocab_size, active=True) - table_parameters(config, vocab_size)
    attended = sum(keys_per_query(config, layer, seq_len) for layer in range(config.layers))
    return 6 * active + 12 * config.heads * config.width_per_head * attended


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device by its name (torch.cuda.get_device_name()); None where it is not known."""
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device_name), None)


def model_flops_utilization(
    tokens_per_s: float, flops_per_token: int, workers: int, device_name: str, peak_tflops: float | None = None
) -> float | None:
    """MFU from 0 to 1 over all workers; None where the peak of the device is neither given nor known."""
    peak = peak_flops(device_name) if peak_tflops is None else peak_tflops * 1e12
    return None if peak is None else tokens_per_s * flops_per_token / (workers * peak)


def optimizer_state_bytes(
    config: ModelConfig, vocab_size: int, optimizer: str = "adamw", moments: Literal["float32", "bfloat16"] = "float32"
) -> int:
    """Bytes of all moments of the optimizer: AdamW has two of every parameter, Muon one of those inside the blocks.

    The norms and biases in there, which have two, are less than a thousandth.
    """
    of_muon = config.layers * block_parameters(config) if optimizer == "muon" else 0
    return (4 if moments == "float32" else 2) * (2 * parameter_count(config, vocab_size) - of_muon)


def exact_memory_estimate_bytes(
    config: ModelConfig, vocab_size: int, precision: Literal["float32", "bfloat16"], state_bytes: int | None = None
) -> int:
    """Bytes per worker in exact mode, at any number of workers; activations and fragmentation come on top.

    Whole on every worker: float32 parameters and gradients and the int64 sum over slot blocks (16 bytes per parameter),
    the optimizer's moments (8 for AdamW in float32, the default), with bfloat16 also the cast matrices (2). The largest
    table is converted as a whole: 16 more bytes for each of its elements.
    """
    each = 18 if precision == "bfloat16" else 16
    states = optimizer_state_bytes(config, vocab_size) if state_bytes is None else state_bytes
    rows = max(vocab_size, max(1, config.moe.experts) * config.ffn_width)
    return each * parameter_count(config, vocab_size) + states + 16 * rows * config.hidden


def check_exact_memory(config: ModelConfig, vocab_size: int, half: bool, there: float, where: str) -> None:
    """Raise ConfigError when a replica and what belongs to it need more bytes than there are."""
    needs = exact_memory_estimate_bytes(config, vocab_size, "bfloat16" if half else "float32")
    if needs > there:
        raise ConfigError(
            f"train.exact=true keeps the whole model on every worker: about {needs / GIB:.2f} GiB each for parameters, "
            f"gradients, optimizer and the fixed-point sum, and {where} has {there / GIB:.2f} GiB: use a smaller "
            "model, more memory, or train.exact=false"
        )
