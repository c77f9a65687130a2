"""What the memory plan says of activations, against what autograd keeps on the CPU.

    python -m pytest -q tests/model/test_activations.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.model.activations import Pass, activation_bytes, backward_bytes, kept_bytes
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.sharding.parallel import Replica
from pretrainer.train.sharding.recompute import prepare_blocks
from tests.live_memory import LiveMemory
from tests.model.architectures import ARCHITECTURES, tiny

VOCAB, ROWS, SEQ_LEN = 96, 3, 64
SIZES: dict[str, Any] = {"hidden": 64, "head_width": 16, "ffn_hidden": 96}  # large against ids and counters


def sized(name: str, **options: Any) -> ModelConfig:
    config = ARCHITECTURES[name]
    context = SEQ_LEN if config.positions == "learned" else config.context
    return replace(config, **SIZES, context=context, **options)


def built(config: ModelConfig, run: Pass) -> Transformer:
    model = (Replica if run.autocast else Transformer)(config, VOCAB)
    init_weights(model, 0)
    if run.autocast:
        model.precision = torch.bfloat16
    elif run.half:
        model.to(torch.bfloat16)
    return model


def inputs(run: Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Seeded: which of the experts' products checkpointing keeps depends on how tokens are routed (up to 5 %)."""
    tokens = torch.randint(0, VOCAB, (run.rows, run.seq_len), generator=torch.Generator().manual_seed(1))
    columns = torch.arange(run.seq_len)
    documents = (columns > run.seq_len // 3).long().repeat(run.rows, 1) if run.documents else None
    return tokens, columns.repeat(run.rows, 1), documents


def cast_weights(model: Transformer) -> int:
    """Bytes of the matrices that autocast keeps in bfloat16; the plan counts them as gathered parameters."""
    named = model.named_parameters()
    return sum(2 * p.numel() for n, p in named if p.ndim >= 2 and "embed_positions" not in n and "router" not in n)


def saved_bytes(config: ModelConfig, run: Pass) -> int:
    """Of the distinct storages that autograd saves in a forward pass, parameters and logits left out."""
    model = built(config, run)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*inputs(run))
    return sum(storage.nbytes() for storage in saved.values()) - (cast_weights(model) if run.autocast else 0)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # a float32 norm of bfloat16 heads, under autocast
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_activations_are_those_that_autograd_saves(name: str, kind: str) -> None:
    for documents, dropout in ((False, 0.0), (True, 0.0), (True, 0.1)):
        config = sized(name, dropout=dropout)
        run = Pass(
            rows=ROWS, seq_len=SEQ_LEN, half=kind != "float32", autocast=kind == "autocast", device="cpu",
            documents=documents,
        )  # fmt: skip
        assert activation_bytes(config, run) == pytest.approx(saved_bytes(config, run), rel=0.04), (documents, dropout)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize("name", ["llama3", "gpt2", "experts-sigmoid-shared"])
def test_checkpointing_keeps_what_the_plan_says(name: str, kind: str, half: bool) -> None:
    config = sized(name)
    run = Pass(rows=ROWS, seq_len=SEQ_LEN, half=half, device="cpu", documents=False, checkpointing=kind)  # type: ignore[arg-type]
    model, given = built(config, run), inputs(run)
    prepare_blocks(model, TrainConfig(steps=1, activation_checkpointing=kind))  # type: ignore[arg-type]
    with LiveMemory([*model.parameters(), *given[:2]]) as memory:
        before = memory.now()
        logits = model(*given)
        kept = memory.now() - before - logits.untyped_storage().nbytes()
    assert activation_bytes(config, run) == pytest.approx(kept, rel=0.04)


def test_more_checkpointing_keeps_less_and_makes_more_again() -> None:
    config = sized("llama3", layers=8)
    kinds = [Pass(rows=4, seq_len=1024, checkpointing=kind) for kind in ("none", "selective", "full")]
    kept = [kept_bytes(config, run, 0) for run in kinds]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    again = [backward_bytes(config, run) - activation_bytes(config, run) for run in kinds]
    assert again == sorted(again) and len(set(again)) == 3


def test_a_block_of_llama_on_a_gpu_by_hand() -> None:
    """Llama 3 8B in bfloat16: H 4096, F 14336, 32 heads of 128 and 8 of keys and values."""
    config = ModelConfig(layers=1, hidden=4096, heads=32, kv_heads=8, ffn_hidden=14_336)
    stream, attention, ffn = 4 * 4096, 2 * 4096 + 2 * 1024, 4 * 14_336
    by_hand = 2 * (stream + attention + ffn) + 2 * 4 + 32 * 4  # two norms and the softmax keep a float32 each
    assert kept_bytes(config, Pass(rows=1, seq_len=8192), 0) == by_hand


def test_tensor_parallel_ranks_share_what_is_inside_sub_layers() -> None:
    config = ModelConfig(layers=4, hidden=256, heads=8, kv_heads=4, ffn_hidden=512)
    whole, split = Pass(rows=2, seq_len=512), Pass(rows=2, seq_len=512, tensor_parallel=4)
    inside = 2 * (2 * 256 + 2 * 128 + 4 * 512) + 4 * 8
    assert kept_bytes(config, whole, 0) - kept_bytes(config, split, 0) == inside - inside // 4


def test_a_ring_keeps_every_round_unless_blocks_are_made_again() -> None:
    config = ModelConfig(layers=4, hidden=256, heads=8, kv_heads=4, ffn_hidden=512)
    kept = [
        activation_bytes(config, Pass(rows=2, seq_len=4096, context_parallel=ranks, checkpointing=kind))  # type: ignore[arg-type]
        for kind in ("none", "full")
        for ranks in (1, 2, 4)
    ]
    assert kept[0] / 2 < kept[1] < kept[0] and kept[1] / 2 < kept[2] < kept[1]
    assert kept[3] == 2 * kept[4] == 4 * kept[5]


def test_a_dense_mask_is_counted_where_there_is_one() -> None:
    narrow, wide = tiny(hidden=32, heads=4), tiny(hidden=64, heads=4)  # heads of 8 have no kernel of FlexAttention
    for config, device, masked in ((wide, "cpu", True), (wide, "cuda", False), (narrow, "cuda", True)):
        with_documents, without = (
            kept_bytes(config, Pass(rows=2, seq_len=128, device=device, documents=documents), 0)  # type: ignore[arg-type]
            for documents in (True, False)
        )
        assert with_documents - without == (2 * 128 if masked else 0)
