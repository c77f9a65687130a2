"""Every arrangement of ranks trains as one process does: FSDP2, HSDP, tensor and context parallelism, and together.

    python -m pytest -q tests/train/sharding/test_parallel.py
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrainer.config import Config, DataConfig, ModelConfig, SourceConfig, TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model.ring import Ring
from pretrainer.model.transformer import Transformer
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.sharding.recompute import prepare_blocks
from tests.model.architectures import ARCHITECTURES, experts, tiny
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import SEQUENCES, TRAIN, VOCAB, build, pieces, run_steps

STEPS = 2
# name -> (world, what is told to the config)
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp-2": (2, {}),
    "fsdp-4": (4, {}),
    "fsdp-3": (3, {}),
    "hsdp-2x2": (4, {"shard_workers": 2}),
    "tp-2": (2, {"tensor_parallel": 2}),
    "cp-2": (2, {"context_parallel": 2}),
    "tp-2-fsdp-2": (4, {"tensor_parallel": 2}),
    "cp-2-fsdp-2": (4, {"context_parallel": 2}),
    "tp-2-cp-2": (4, {"tensor_parallel": 2, "context_parallel": 2}),
    "tp-2-hsdp-2": (4, {"tensor_parallel": 2, "shard_workers": 2}),
}
MODELS: dict[str, ModelConfig] = {
    "llama": tiny(tie_embeddings=False),
    "gpt2": ARCHITECTURES["gpt2"],
    "post-norm": ARCHITECTURES["post-norm"],
    "qk-norm": tiny(qk_norm=True, bias="qkv"),
    "window-alibi-global": ARCHITECTURES["window-alibi-global"],
    "encoder": tiny(causal=False),
    "experts": experts(shared_experts=1),
    "experts-sequence": experts(balance="sequence"),
    "experts-bias": experts(balance="bias", experts=5, top_k=3),
    "dropout": tiny(dropout=0.2),
}
RECOMPUTED = {"full": {"activation_checkpointing": "full"}, "selective": {"activation_checkpointing": "selective"}}


def whole_weights(model: Transformer) -> dict[str, np.ndarray]:
    named = (*model.named_parameters(), *model.named_buffers())
    tensors = {n: t.detach().full_tensor() if hasattr(t, "full_tensor") else t.detach() for n, t in named}
    return {n: t.clone().numpy() for n, t in tensors.items()}


def outcome(model: Transformer, optimizer: Any, stream: int, streams: int, ring: Ring | None, micro: int) -> Any:
    """What a test compares: losses and norms of the steps, held-out loss, and the weights."""
    results = run_steps(model, optimizer, stream, streams, 0, STEPS, ring, micro)
    held_out = evaluate(model, [p for n in range(3) for p in pieces(n, 0, micro, ring)], 100, stream, streams)
    numbers = [(r.loss, r.grad_norm, r.applied, r.expert_tokens) for r in results]
    return numbers, held_out, whole_weights(model)


def on_ranks(rank: int, world: int, train: TrainConfig, models: dict[str, ModelConfig]) -> dict[str, Any]:
    ranks, found = Ranks(Layout.of(train, world), "cpu"), {}
    layout = ranks.layout
    for name, config in models.items():
        model, optimizer = build(config, train, ranks)
        stream, ring = layout.stream_rank(rank), Ring.of(ranks.ring)
        found[name] = outcome(model, optimizer, stream, layout.streams, ring, 1)
    return found


def alone(config: ModelConfig, micro: int = 1) -> Any:
    """The same on a plain model in this process."""
    torch.set_num_threads(1)
    model = fill(Transformer(config, VOCAB))
    return outcome(model, build_optimizer(model, TRAIN), 0, 1, None, micro)


@pytest.fixture(scope="module")
def one_process() -> dict[str, Any]:
    return {name: alone(config) for name, config in MODELS.items()}


def assert_alike(found: Any, wanted: Any) -> None:
    numbers, held_out, weights = found
    for mine, reference in zip(numbers, wanted[0], strict=True):
        assert mine[0] == pytest.approx(reference[0], rel=0, abs=1e-5)
        assert mine[1] == pytest.approx(reference[1], rel=2e-5)
        assert mine[2:] == reference[2:]
    assert held_out.loss == pytest.approx(wanted[1].loss, abs=1e-5)
    assert held_out.targets == wanted[1].targets
    assert weights.keys() == wanted[2].keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, wanted[2][name], rtol=0, atol=3e-5, err_msg=name)


def assert_arranged_is_alike(layout: str, one_process: dict[str, Any], names: list[str]) -> None:
    """On all ranks the numbers, on the first one the weights too."""
    world, options = LAYOUTS[layout]
    by_rank = run_ranks(world, on_ranks, replace(TRAIN, num_workers=world, **options), {n: MODELS[n] for n in names})
    for name in names:
        try:
            assert_alike(by_rank[0][name], one_process[name])
            assert all(other[name][:2] == by_rank[0][name][:2] for other in by_rank[1:])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


# The smallest true form: each kind of splitting once, with what is hardest for it.
SHORT = {
    "fsdp-3": ["gpt2", "experts-bias"],
    "hsdp-2x2": ["llama", "dropout"],
    "tp-2": ["qk-norm", "experts", "window-alibi-global"],
    "cp-2": ["window-alibi-global", "experts-sequence", "encoder"],
}


@pytest.mark.parametrize("layout", SHORT)
def test_a_model_that_is_split_trains_as_in_one_process(layout: str, one_process: dict[str, Any]) -> None:
    assert_arranged_is_alike(layout, one_process, SHORT[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_model_in_every_arrangement_trains_as_in_one_process(layout: str, one_process: dict[str, Any]) -> None:
    """But dropout with a ring, which draws it for each part of a row: its masks are others."""
    ring = "context_parallel" in LAYOUTS[layout][1]
    assert_arranged_is_alike(layout, one_process, [name for name in MODELS if not (ring and name == "dropout")])


@pytest.mark.parametrize("kind", RECOMPUTED)
def test_recomputed_blocks_train_alike(kind: str, one_process: dict[str, Any]) -> None:
    train = replace(TRAIN, **RECOMPUTED[kind])
    models = {name: MODELS[name] for name in ("llama", "experts", "dropout")}
    for name, found in run_ranks(1, on_ranks, train, models)[0].items():
        assert_alike(found, one_process[name])


def test_experts_do_not_depend_on_the_micro_batch(one_process: dict[str, Any]) -> None:
    for name in ("experts", "experts-sequence", "experts-bias"):
        assert_alike(alone(MODELS[name], SEQUENCES), one_process[name])


def test_weights_moved(one_process: dict[str, Any]) -> None:
    """What the comparisons above would not see if nothing were trained."""
    for name, config in MODELS.items():
        before = whole_weights(fill(Transformer(config, VOCAB)))
        after = one_process[name][2]
        assert all(np.abs(after[n] - before[n]).max() > 1e-4 for n in before if not n.endswith("bias")), name


def test_layout_is_arithmetic() -> None:
    layout = Layout.of(replace(TRAIN, num_workers=16, tensor_parallel=2, context_parallel=2, shard_workers=8), 16)
    assert (layout.replicas, layout.team, layout.streams) == (2, 4, 4)
    assert [layout.stream_rank(rank) for rank in range(16)] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert [rank for rank in range(16) if layout.reads(rank)] == [0, 4, 8, 12]


MUON = replace(TRAIN, optimizer="muon")


def muon_alone() -> Any:
    torch.set_num_threads(1)
    model = fill(Transformer(MODELS["experts"], VOCAB))
    return outcome(model, build_optimizer(model, MUON), 0, 1, None, 1)


@pytest.mark.parametrize("layout", ["tp-2", pytest.param("hsdp-2x2", marks=pytest.mark.slow)])
def test_muon_makes_whole_matrices_orthogonal(layout: str) -> None:
    world, options = LAYOUTS[layout]
    train = replace(MUON, num_workers=world, **options)
    found = run_ranks(world, on_ranks, train, {"experts": MODELS["experts"]})[0]["experts"]
    assert_alike(found, muon_alone())


def save_after_steps(rank: int, world: int, train: TrainConfig, folder: str) -> Any:
    ranks = Ranks(Layout.of(train, world), "cpu")
    model, optimizer = build(MODELS["experts"], train, ranks)
    stream, streams, ring = ranks.layout.stream_rank(rank), ranks.layout.streams, Ring.of(ranks.ring)
    run_steps(model, optimizer, stream, streams, 0, STEPS, ring)
    save_sharded(model, optimizer, {"step": STEPS}, Path(folder) / f"rank{rank}")
    dist.barrier()
    if rank == 0:
        for other in range(world):  # as the union of what ranks upload
            for file in (Path(folder) / f"rank{other}").iterdir():
                file.rename(Path(folder) / "whole" / file.name)
    return whole_weights(model)


def load_and_go_on(rank: int, world: int, train: TrainConfig, folder: str) -> Any:
    ranks = Ranks(Layout.of(train, world), "cpu")
    model, optimizer = build(MODELS["experts"], train, ranks)
    assert load_sharded(model, optimizer, Path(folder) / "whole") == {"step": STEPS}
    loaded, ring = whole_weights(model), Ring.of(ranks.ring)
    stream, streams = ranks.layout.stream_rank(rank), ranks.layout.streams
    losses = [r.loss for r in run_steps(model, optimizer, stream, streams, STEPS, 2 * STEPS, ring)]
    return loaded, losses


def test_a_checkpoint_goes_on_in_any_other_arrangement(tmp_path: Path) -> None:
    """Saved by 2 x 2 ranks with split matrices; the losses that follow are those of one process that never stopped."""
    (tmp_path / "whole").mkdir()
    options = {name: replace(TRAIN, num_workers=world, **given) for name, (world, given) in LAYOUTS.items()}
    saved = run_ranks(4, save_after_steps, options["tp-2-fsdp-2"], str(tmp_path))[0]
    torch.set_num_threads(1)
    model = fill(Transformer(MODELS["experts"], VOCAB))
    unbroken = [r.loss for r in run_steps(model, build_optimizer(model, TRAIN), 0, 1, 0, 2 * STEPS)][STEPS:]
    for name in ("fsdp-3", "hsdp-2x2", "cp-2"):
        loaded, losses = run_ranks(LAYOUTS[name][0], load_and_go_on, options[name], str(tmp_path))[0]
        assert all(np.array_equal(loaded[key], value) for key, value in saved.items()), name
        assert losses == pytest.approx(unbroken, rel=0, abs=1e-5), name


def test_offloaded_parameters_train_alike(one_process: dict[str, Any]) -> None:
    models = {name: MODELS[name] for name in ("llama", "experts-bias")}
    for name, found in run_ranks(2, on_ranks, replace(TRAIN, cpu_offload=True), models)[0].items():
        assert_alike(found, one_process[name])


@pytest.mark.parametrize(
    "recompute", ["none", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("selective", "full"))]
)
def test_compiled_blocks_train_alike(
    recompute: str, one_process: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, without the C++ compiler that Inductor needs on a CPU."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    train = replace(TRAIN, compile=True, activation_checkpointing=recompute)  # type: ignore[arg-type]
    for name in ("llama", "window-alibi-global"):
        model = fill(Transformer(MODELS[name], VOCAB))
        prepare_blocks(model, train)
        assert_alike(outcome(model, build_optimizer(model, TRAIN), 0, 1, None, 1), one_process[name])


WRONG: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ({"tensor_parallel": 3, "num_workers": 3}, {}, {}, "tensor_parallel=3 is not possible: must divide model.heads"),
    ({"tensor_parallel": 4, "num_workers": 4}, {}, {}, "tensor_parallel=4 is not possible: must divide model.kv_heads"),
    ({"tensor_parallel": 2}, {}, {}, "train.num_workers=1 is not possible: must be a multiple of 2"),
    ({"context_parallel": 2, "num_workers": 2}, {"seq_len": 130}, {}, "130 is no multiple of 4"),
    ({"shard_workers": 2, "num_workers": (2, 5)}, {}, {}, "must be a multiple of 2"),
    ({"shard_workers": 3, "tensor_parallel": 2, "num_workers": 6}, {}, {}, "shard_workers=3 is not possible: must be"),
    ({"tensor_parallel": 2, "num_workers": 2, "exact": True}, {}, {}, "has the whole model on every worker"),
    ({"num_workers": 5}, {}, {}, "a step has 4 slot blocks and cannot feed more workers than that:"),
    ({"num_workers": 10, "tensor_parallel": 2}, {}, {}, "cannot feed more workers than that x 2:"),
]


@pytest.mark.parametrize(("train", "data", "model", "said"), WRONG)
def test_impossible_arrangements_are_one_message(
    train: dict[str, Any], data: dict[str, Any], model: dict[str, Any], said: str
) -> None:
    source = SourceConfig(name="text", uris="*.txt", preset="none")
    length = data.get("seq_len", 128)
    with pytest.raises(ConfigError, match=re.escape(said)):
        Config(
            data=DataConfig(sources=(source,), seq_len=length, slot_sequences=2),
            model=tiny(**model),
            train=TrainConfig(**{"steps": 1, "global_batch_tokens": 8 * length, "num_workers": 1} | train),
        )
