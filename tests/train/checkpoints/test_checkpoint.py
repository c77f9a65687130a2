import io
import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrainer.errors import DamagedError, StorageError
from pretrainer.model.transformer import Transformer, init_weights
from pretrainer.train.checkpoints.checkpoint import (
    file_digest,
    load_full_state_dict,
    load_sharded,
    save_sharded,
    verify,
    verify_together,
)
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.scoring.evaluate import evaluate
from tests.train.ranks import run_ranks
from tests.train.samples import MODEL, TRAIN, VOCAB, build, full_weights, pieces, run_steps, whole

EXTRA = {"step": 2, "sources": [{"name": "a", "sequences": 32}], "order_digest": "ab"}
HELD_OUT = [piece for number in range(100, 103) for piece in pieces(number, 0, micro=2)]


def _moments(model, optimizer):
    return {n: whole(optimizer.state[p]["exp_avg_sq"]).clone().numpy() for n, p in model.named_parameters()}


def _save(rank, world, folder):
    """Two steps, a checkpoint, one folder per rank; then the run goes on for two more steps."""
    model, optimizer = build()
    save_sharded(model, optimizer, {"step": 0}, f"{folder}/start{rank}")
    run_steps(model, optimizer, rank, world, 0, 2)
    evaluate(model, HELD_OUT, 1, rank, world)  # leaves nothing gathered behind that would be saved whole
    save_sharded(model, optimizer, EXTRA, f"{folder}/rank{rank}")
    loss = evaluate(model, HELD_OUT, 1, rank, world).loss
    saved = full_weights(model), _moments(model, optimizer), loss
    return *saved, [r.loss for r in run_steps(model, optimizer, rank, world, 2, 4)]


def _resume(rank, world, folder):
    model, optimizer = build()
    init_weights(model, 99)
    extra = load_sharded(model, optimizer, folder)
    counts = {int(state["step"]) for state in optimizer.state.values()}
    state = full_weights(model), _moments(model, optimizer), evaluate(model, HELD_OUT, 1, rank, world).loss
    return *state, [r.loss for r in run_steps(model, optimizer, rank, world, 2, 4)], extra, counts


def merge(folders, target):
    """What the upload does: the union of the ranks' folders."""
    target.mkdir()
    for folder in folders:
        for file in folder.iterdir():
            assert not (target / file.name).exists()
            shutil.copy(file, target / file.name)
    return target


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    results = run_ranks(2, _save, str(folder))
    merge([folder / "start0", folder / "start1"], folder / "start")
    return results[0], merge([folder / "rank0", folder / "rank1"], folder / "merged")


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "checkpoint")


@pytest.mark.parametrize("world", [1, 3])
def test_a_checkpoint_continues_at_another_world_size(saved, world):
    (weights, moments, loss, losses), folder = saved
    for result in run_ranks(world, _resume, str(folder)):
        for name in weights:
            assert np.array_equal(result[0][name], weights[name]), name
            assert np.array_equal(result[1][name], moments[name]), name
        assert result[2] == pytest.approx(loss, abs=1e-5)
        assert result[3] == pytest.approx(losses, abs=1e-5)
        assert (result[4], result[5]) == (EXTRA, {2})


def _from_start(rank, world, folder):
    model, optimizer = build()
    init_weights(model, 99)
    extra = load_sharded(model, optimizer, folder)
    return extra, [r.loss for r in run_steps(model, optimizer, rank, world, 0, 2)]


def _fresh(rank, world):
    model, optimizer = build()
    return [r.loss for r in run_steps(model, optimizer, rank, world, 0, 2)]


def test_step_zero_is_a_checkpoint_and_saving_it_changes_nothing(saved):
    extra, losses = run_ranks(1, _from_start, str(saved[1].parent / "start"))[0]
    assert extra == {"step": 0}
    assert losses == pytest.approx(run_ranks(1, _fresh)[0], abs=1e-7)


def test_the_full_state_dict_needs_no_process_group_and_fills_a_plain_model(saved):
    (weights, _, loss, _), folder = saved
    assert not dist.is_initialized()
    state = load_full_state_dict(folder)
    assert {name: tensor.shape for name, tensor in state.items()} == {n: w.shape for n, w in weights.items()}
    assert all(np.array_equal(state[name].numpy(), weights[name]) for name in weights)
    model = Transformer(MODEL, VOCAB)
    model.load_state_dict(state)
    assert math.isclose(evaluate(model, HELD_OUT, 1).loss, loss, abs_tol=1e-5)


def test_each_rank_wrote_files_of_its_own(saved):
    names = {path.name for path in saved[1].iterdir()}
    assert {".metadata", "state.json", "digests.rank0.json", "digests.rank1.json"} <= names
    assert {name.split("_")[2] for name in names if name.endswith(".distcp")} == {"0", "1"}
    verify(saved[1])


FILES = [".metadata", "state.json", "__0_0.distcp", "__1_0.distcp"]


@pytest.fixture
def no_unpickling(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled before it was verified")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("torch.load", refuse)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_refused_before_anything_is_unpickled(copy, name, no_unpickling):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(StorageError, match=f"{name} differs"):
        load_full_state_dict(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused(copy, name):
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(StorageError, match=f"{name} differs"):
        verify(copy)


@pytest.mark.parametrize("name", [*FILES, "digests.rank0.json", "digests.rank1.json"])
def test_a_missing_file_is_refused(copy, name, no_unpickling):
    (copy / name).unlink()
    with pytest.raises(StorageError, match=name):
        load_full_state_dict(copy)


@pytest.mark.parametrize("name", ["__2_0.distcp", "digests.rank2.json", "sub/file", ".hidden"])
def test_an_extra_file_is_refused(copy, name, no_unpickling):
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"x")
    with pytest.raises(StorageError, match=f"unknown file {name}"):
        load_full_state_dict(copy)


def test_a_damaged_digest_file_is_refused(copy):
    (copy / "digests.rank1.json").write_text("{")
    with pytest.raises(StorageError, match="rank1.json is missing or damaged"):
        verify(copy)
    record = json.loads((copy / "digests.rank0.json").read_text())
    (copy / "digests.rank0.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(StorageError, match="format 99"):
        verify(copy)


def _verify_own_copy(rank, world, folders):
    try:
        verify_together(folders[rank])
    except DamagedError as error:
        return str(error)
    return None


def test_damage_that_one_rank_sees_is_raised_on_all(copy, tmp_path):
    whole = shutil.copytree(copy, tmp_path / "whole")
    (copy / "__1_0.distcp").write_bytes(b"x")
    told = run_ranks(2, _verify_own_copy, [str(whole), str(copy)])
    assert told[0] == told[1] and "__1_0.distcp differs" in told[0]
    assert run_ranks(2, _verify_own_copy, [str(whole)] * 2) == [None, None]


def test_a_file_that_may_not_be_read_is_no_damage(copy, monkeypatch):
    """An older checkpoint would have the same trouble, and good ones would be passed over."""

    def refuse(*_args, **_kwargs):
        raise PermissionError("denied")

    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(PermissionError):
        verify(copy)


def test_one_process_without_a_group_saves_and_loads(tmp_path):
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Transformer(MODEL, VOCAB)
        models.append((model, build_optimizer(model, TRAIN)))
    run_steps(*models[0], 0, 1, 0, 1)
    save_sharded(*models[0], {"step": 1}, tmp_path / "a")
    assert load_sharded(*models[1], tmp_path / "a") == {"step": 1}
    first, second = (run_steps(*pair, 0, 1, 1, 2)[0].loss for pair in models)
    assert first == second


def test_a_folder_that_is_not_empty_is_not_saved_into(tmp_path):
    (tmp_path / "old").write_text("x")
    model = torch.nn.Linear(1, 1)
    with pytest.raises(AssertionError, match="not empty"):
        save_sharded(model, build_optimizer(model, TRAIN), {}, tmp_path)


def digests_that_match(folder):
    """What somebody who can write all files would write beside them."""
    for record_path in folder.glob("digests.rank*.json"):
        record = json.loads(record_path.read_text())
        record["files"] = {name: file_digest(folder / name) for name in record["files"]}
        record_path.write_text(json.dumps(record))


def test_swapped_files_are_refused(copy, no_unpickling):
    first, second = copy / "__0_0.distcp", copy / "__1_0.distcp"
    first_bytes = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(first_bytes)
    with pytest.raises(StorageError, match="__0_0.distcp differs"):
        load_full_state_dict(copy)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("match_digests", [False, True])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(copy, tmp_path, match_digests):
    pickled = pickle.dumps(Attack(tmp_path / "executed"))
    pickle.loads(pickled)
    assert (tmp_path / "executed").exists()  # it would
    (tmp_path / "executed").unlink()
    (copy / ".metadata").write_bytes(pickled)
    if match_digests:
        digests_that_match(copy)
    with pytest.raises(DamagedError, match=r"\.metadata is not what torch writes" if match_digests else "differs"):
        load_full_state_dict(copy)
    assert not (tmp_path / "executed").exists()


def test_a_tensor_file_that_calls_something_is_refused_and_calls_nothing(copy, tmp_path):
    """torch.load(weights_only=True), by DCP itself."""
    buffer = io.BytesIO()
    torch.save(Attack(tmp_path / "executed"), buffer)
    for path in copy.glob("*.distcp"):
        path.write_bytes(buffer.getvalue().ljust(path.stat().st_size, b"\0"))
    digests_that_match(copy)
    with pytest.raises(DamagedError, match="cannot be read"):
        load_full_state_dict(copy)
    assert not (tmp_path / "executed").exists()
