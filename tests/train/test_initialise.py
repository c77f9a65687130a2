"""The first weights of a run: drawn, or those of a checkpoint or a Hugging Face folder, in every arrangement of ranks.

    python -m pytest -q tests/train/test_initialise.py
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrainer.config import ModelConfig, TrainConfig
from pretrainer.errors import DamagedError, StorageError
from pretrainer.model.hf import from_hf, to_hf
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.model.vocabulary import grown
from pretrainer.storage import Store
from pretrainer.train import initialise as module
from pretrainer.train.checkpoints.checkpoint import save_sharded
from pretrainer.train.initialise import RECORD, initialise, recorded_digest, refuse_another
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.layout import Layout, Ranks
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.spec import Origin, TrainState
from tests import s3
from tests.model.architectures import experts, tiny
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, MODEL, TRAIN, VOCAB, full_weights, pieces

PIECES = ((7, 8), (9,))
HELD_OUT = [piece for number in range(100, 103) for piece in pieces(number, 0, micro=2)]


def model_of(config: ModelConfig = MODEL, rows: int = VOCAB) -> Transformer:
    return fill(Transformer(config, rows)).eval()  # type: ignore[return-value]


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().clone().numpy() for name, tensor in model.named_parameters()}


def checkpoint(folder: Path, config: ModelConfig = MODEL, rows: int = VOCAB) -> Origin:
    model = model_of(config, rows)
    save_sharded(model, build_optimizer(model, TRAIN), {"step": 3}, folder)
    return Origin(str(folder), True, VOCAB)


def exported(folder: Path, config: ModelConfig = MODEL, rows: int = VOCAB) -> Origin:
    to_hf(model_of(config, rows).state_dict(), config, rows, folder)
    return Origin(str(folder), False, VOCAB)


SAVED = {"checkpoint": checkpoint, "folder": exported}
each = pytest.mark.parametrize("save", SAVED.values(), ids=SAVED.keys())


def begin(origin: Origin | None, run: Path, config: ModelConfig = MODEL, rows: int = VOCAB) -> Transformer:
    model = Transformer(config, rows)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)  # whatever is not filled shows
    initialise(model, 5, origin, Store(str(run)), local_rank=0)
    return model.eval()


# -------------------------------------------------------------------------------------------------------- one process


def test_without_an_origin_weights_are_drawn(tmp_path: Path) -> None:
    drawn = Transformer(MODEL, VOCAB)
    init_weights(drawn, 5)
    model = begin(None, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), drawn.parameters(), strict=True))
    assert recorded_digest(Store(str(tmp_path))) is None


@each
@pytest.mark.parametrize("config", [MODEL, tiny(tie_embeddings=True), experts()], ids=["untied", "tied", "experts"])
def test_a_run_begins_at_the_loss_of_what_it_loads(save: Any, config: ModelConfig, tmp_path: Path) -> None:
    origin, outside = save(tmp_path / "parent", config), model_of(config)
    model = begin(origin, tmp_path / "run", config)
    for name, value in weights(outside).items():
        np.testing.assert_array_equal(weights(model)[name], value, err_msg=name)
    loss, drawn = evaluate(model, HELD_OUT, 1).loss, evaluate(begin(None, tmp_path, config), HELD_OUT, 1).loss
    assert loss == evaluate(outside, HELD_OUT, 1).loss != pytest.approx(drawn, abs=0.1)


@each
@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_leave_the_old_logits_as_they_were(save: Any, tied: bool, tmp_path: Path) -> None:
    config = tiny(tie_embeddings=tied)
    origin, before = replace(save(tmp_path / "parent", config), pieces=PIECES), model_of(config)
    model = begin(origin, tmp_path / "run", config, VOCAB + 2)
    tokens, positions = torch.arange(3, 40)[None], torch.arange(37)[None]
    old, new = before(tokens, positions), model(tokens, positions)
    torch.testing.assert_close(new[..., :VOCAB], old, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(new[..., VOCAB], old.mean(-1), rtol=1e-4, atol=1e-4)
    mine, theirs = model.embed.weight, before.embed.weight
    expected = theirs.mean(0) if tied else theirs[[7, 8]].mean(0)
    torch.testing.assert_close(mine[VOCAB], expected, rtol=1e-5, atol=1e-6)


@each
def test_padding_of_the_loaded_table_is_kept(save: Any, tmp_path: Path) -> None:
    """A table with rows behind the tokenizer's ids gives its softmax over all of them, and so the same loss."""
    origin = save(tmp_path / "parent", MODEL, VOCAB + 8)
    model = begin(origin, tmp_path / "run", MODEL, VOCAB + 8)
    assert evaluate(model, HELD_OUT, 1).loss == evaluate(model_of(MODEL, VOCAB + 8), HELD_OUT, 1).loss


@each
def test_the_digest_is_kept_and_other_bytes_are_refused(save: Any, tmp_path: Path) -> None:
    origin, run = save(tmp_path / "parent"), Store(str(tmp_path / "run"))
    begin(origin, tmp_path / "run")
    digest = recorded_digest(run)
    assert digest is not None and len(digest) == 64 and json.loads(run.read(RECORD))["uri"].endswith("/parent")
    begin(origin, tmp_path / "run")  # a worker group that died before its checkpoint
    shutil.rmtree(tmp_path / "parent")
    save(tmp_path / "parent", replace(MODEL, qk_norm=True) if save is checkpoint else replace(MODEL, bias="all"))
    with pytest.raises(StorageError, match=f"had {digest}"):
        begin(origin, tmp_path / "run")


def test_a_checkpoint_of_another_line_is_refused() -> None:
    origin = Origin("/p", True, VOCAB, sha256="aa")
    refuse_another(TrainState(init_sha256="aa"), origin)
    refuse_another(TrainState(init_sha256=None), None)
    refuse_another(TrainState(init_sha256="aa"), replace(origin, sha256=None))
    with pytest.raises(StorageError, match="began with the weights bb"):
        refuse_another(TrainState(init_sha256="bb"), origin)


@pytest.mark.parametrize(
    ("config", "rows", "parts"),
    [
        (replace(MODEL, qk_norm=True), VOCAB, ["attention.k_norm.weight is missing"]),
        (replace(MODEL, layers=1), VOCAB, ["blocks.1.", "has no place in this model"]),
        (replace(MODEL, ffn_hidden=40), VOCAB, ["ffn.down.weight is [32, 48] and must be [32, 40]"]),
        (MODEL, VOCAB - 1, [f"embed.weight is [{VOCAB}, 32] and must be [{VOCAB - 1}, 32]"]),
    ],
)
@each
def test_weights_that_do_not_fit_are_named(
    save: Any, config: ModelConfig, rows: int, parts: list[str], tmp_path: Path
) -> None:
    origin = save(tmp_path / "parent")
    with pytest.raises(StorageError, match="does not fit this model") as raised:
        begin(origin, tmp_path / "run", config, rows)
    for part in ["init.uri", *parts]:
        assert part in str(raised.value)
    assert recorded_digest(Store(str(tmp_path / "run"))) is None


def test_damaged_files_are_no_damaged_checkpoint_of_this_run(tmp_path: Path) -> None:
    """DamagedError would send the driver to look for an older checkpoint, which a new run has not."""
    origin = checkpoint(tmp_path / "parent")
    part = next((tmp_path / "parent").glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(StorageError, match="differs from its digest") as raised:
        begin(origin, tmp_path / "run")
    assert type(raised.value) is StorageError


def test_neither_is_a_part_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DamagedError("a part cannot be read")

    origin = checkpoint(tmp_path / "parent")
    monkeypatch.setattr(module, "load_weights", fail)
    with pytest.raises(StorageError, match="init.uri: a part cannot be read") as raised:
        begin(origin, tmp_path / "run")
    assert type(raised.value) is StorageError


def test_buffers_that_the_parent_has_not_are_constants(tmp_path: Path) -> None:
    """A bias on the choice of experts, which the parent was balanced without."""
    origin = checkpoint(tmp_path / "parent", experts())
    model = begin(origin, tmp_path / "run", experts(balance="bias"))
    buffers = dict(model.named_buffers())
    assert buffers and all(bool((tensor == 0).all()) for tensor in buffers.values())


def test_torn_safetensors_are_told(tmp_path: Path) -> None:
    origin = exported(tmp_path / "parent")
    path = tmp_path / "parent" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match="safetensors"):
        begin(origin, tmp_path / "run")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    origin = exported(tmp_path / "parent")
    (tmp_path / "parent" / "model.safetensors").rename(tmp_path / "parent" / "pytorch_model.bin")
    with pytest.raises(StorageError, match="lacks"):
        begin(origin, tmp_path / "run")


def test_several_files_are_one_model(tmp_path: Path) -> None:
    origin = exported(tmp_path / "parent")
    path = tmp_path / "parent" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    for number in range(2):
        part = {name: tensor for i, (name, tensor) in enumerate(sorted(tensors.items())) if i % 2 == number}
        save_file(part, tmp_path / "parent" / f"model-{number}.safetensors")
    model = begin(origin, tmp_path / "run")
    whole = from_hf(tmp_path / "parent")[0]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.named_parameters())


# ------------------------------------------------------------------------------------------------------- many of them

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "fsdp-2": (2, {}),
    "tp-2": (2, {"tensor_parallel": 2}),
    "fsdp-3": (3, {}),
    "tp-2-fsdp-2": (4, {"tensor_parallel": 2}),
    "exact-2": (2, {"exact": True}),
}
SLOW = ("fsdp-3", "tp-2-fsdp-2")


def on_ranks(rank: int, world: int, origins: list[Origin], folder: str, changes: dict[str, Any]) -> list[Any]:
    train = replace(TRAIN, num_workers=world, **changes)
    found = []
    for number, origin in enumerate(origins):
        ranks = Ranks(Layout.of(train, world), "cpu")
        model = build_model(MODEL, VOCAB + len(origin.pieces), train, CPU, ranks)
        digest = initialise(model, 5, origin, Store(f"{folder}/run{number}"), rank)
        found.append((digest, full_weights(model)))
    return found


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in LAYOUTS]
)
def test_every_arrangement_loads_the_same_weights(layout: str, tmp_path: Path) -> None:
    origins = [checkpoint(tmp_path / "checkpoint"), exported(tmp_path / "folder")]
    origins += [replace(origin, pieces=PIECES) for origin in origins]
    world, changes = LAYOUTS[layout]
    outside, table = weights(model_of()), torch.from_numpy(weights(model_of())["embed.weight"])
    for result in run_ranks(world, on_ranks, origins, str(tmp_path), changes):
        for origin, (digest, loaded) in zip(origins, result, strict=True):
            assert digest == result[origins.index(origin) % 2][0]
            more = {"embed.weight": grown(table, VOCAB + 2, VOCAB, PIECES).numpy()} if origin.pieces else {}
            for name, value in {**outside, **more}.items():
                rows = loaded[name] if name != "head.weight" else loaded[name][:VOCAB]
                np.testing.assert_array_equal(rows, value, err_msg=name)


def copy_count(rank: int, world: int, uri: str, folder: str) -> list[int]:
    """Objects that this rank read from the store; all ranks are on one node."""
    os.environ.update(s3.credentials())  # ranks are forked from a server that is older than the test
    copied: list[str] = []
    real = module.copy_file
    module.copy_file = lambda store, path, target: (copied.append(path), real(store, path, target))[1]
    model = build_model(MODEL, VOCAB, replace(TRAIN, num_workers=world), CPU)
    initialise(model, 5, Origin(uri, False, VOCAB), Store(folder), rank)
    return [len(copied), int(np.isnan(full_weights(model)["embed.weight"]).sum())]


def test_a_node_reads_object_storage_once(s3_uri: str, tmp_path: Path) -> None:
    exported(tmp_path / "parent")
    (tmp_path / "parent" / "pytorch_model.bin").write_bytes(b"never opened")
    for path in (tmp_path / "parent").iterdir():
        Store(s3_uri).write(path.name, path.read_bytes())
    first, second = run_ranks(2, copy_count, s3_uri, str(tmp_path / "run"))
    assert first == [2, 0] and second == [0, 0]  # config.json and the weights


def one_fails(rank: int, world: int, uri: str, folder: str) -> str:
    model = build_model(MODEL, VOCAB, TrainConfig(steps=1, num_workers=world), CPU)
    try:
        initialise(model, 5, Origin(uri, True, VOCAB), Store(folder), rank)
    except StorageError as error:
        return str(error)
    return "loaded"


def test_all_ranks_leave_together_when_the_first_of_a_node_finds_damage(tmp_path: Path) -> None:
    origin = checkpoint(tmp_path / "parent")
    (tmp_path / "parent" / "state.json").write_text("{}")
    said = run_ranks(2, one_fails, origin.uri, str(tmp_path / "run"))
    assert said[0] == said[1] and "differs from its digest" in said[0]
