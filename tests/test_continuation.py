"""What a run takes from the model that it begins with, and what is refused; no cluster, no weights.

    python -m pytest -q tests/test_continuation.py
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.driver.cli import config_parser
from pipelines.driver.continuation import changes_from, continued, read_resolved, rows_of
from pipelines.driver.parent import RECORD, Parent, adopt, find_parent, origin, parent_of
from pipelines.driver.replay_mixture import mix_in_replay
from pipelines.pretrain import main
from pretrainer.config import InitConfig, ModelConfig
from pretrainer.config_load import given_fields, load_config, parse_config, to_yaml
from pretrainer.data.curriculum import make_segments
from pretrainer.data.readers.source import Manifest
from pretrainer.data.tokenizer.extend import extend
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.errors import ConfigError, UserError
from pretrainer.storage import Store
from tests.continuations import IDS, MODEL, ROOT, child, commit, flat, folder, parent, parent_config, source
from tests.data.harness import small_tokenizer

__all__ = ["folder", "parent"]  # fixtures


# ------------------------------------------------------------------------------------------------------- what is given


def test_given_fields_are_those_of_the_file_and_of_arguments(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("train: {steps: 5}\nmodel: {rope_scaling: {factor: 2.0}}\ndata: {sources: [{name: a, uris: b}]}\n")
    given = given_fields(str(path), ["train.learning_rate=3e-4", "data.sources.0.weight=2"])
    assert given == {"train.steps", "train.learning_rate", "model.rope_scaling.factor", "data.sources"}
    assert given_fields(None, ["train.steps=3"]) == {"train.steps"}  # the shipped quickstart is a default


# ----------------------------------------------------------------------------------------------------------- the parent


def test_which_checkpoint(parent: Parent, tmp_path: Path) -> None:
    assert (parent.step, parent.folder) == (10, "checkpoints/step-000000010-a000001")
    assert find_parent(InitConfig(uri=parent.uri, checkpoint="5"), "/nowhere").step == 5
    for asked, part in (("7", "has the steps 5, 10"), ("best", "train.keep_best")):
        with pytest.raises(ConfigError, match=part):
            find_parent(InitConfig(uri=parent.uri, checkpoint=asked), "/nowhere")
    best = Store(parent.uri).child("best")
    best.write("step-000000005-a000001.json", json.dumps({"step": 5, "folder": "step-000000005-a000001"}).encode())
    assert find_parent(InitConfig(uri=parent.uri, checkpoint="best"), "/nowhere").step == 5


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    place = Store(str(tmp_path)).child("hf")
    for name, content, part in (
        ("readme.md", b"", "neither a run's config.yaml nor a config.json"),
        ("config.json", b'{"model_type": "llama"}', "no .safetensors"),
        ("model.safetensors", b"", "no tokenizer.json"),
    ):
        place.write(name, content)
        with pytest.raises(ConfigError, match=part):
            find_parent(InitConfig(uri=place.uri), str(tmp_path))


def test_the_first_peak_of_a_line_of_runs_is_remembered(parent: Parent) -> None:
    first = child(parent)
    assert first.train.learning_rate == pytest.approx(0.002) and first.init.original_learning_rate == 0.01
    second = replace(parent, content=to_yaml(first), shares=(0.5, 0.375, 0.125))
    data = {"sources": [source("newest")], "seq_len": 64}
    assert child(second, data=data).train.learning_rate == pytest.approx(0.002)  # not a fifth of a fifth


# ------------------------------------------------------------------------------------------------------------- model


def test_the_model_is_the_parents(parent: Parent, folder: Parent) -> None:
    assert child(parent).model == ModelConfig(**MODEL)  # type: ignore[arg-type]
    loaded = child(folder, train={"learning_rate": 1e-4}).model
    assert (loaded.layers, loaded.hidden, loaded.rope_theta, loaded.tie_embeddings) == (2, 32, 5e4, False)
    assert loaded.vocab_size == IDS + 8


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layers": 12}, "model.layers=12"),  # the default of a config, but given
        ({"hidden": 64}, "model.hidden=64"),
        ({"kv_heads": 4}, "model.kv_heads=4"),
        ({"head_width": 16}, "model.head_width=16"),
        ({"tie_embeddings": False}, "model.tie_embeddings=False"),
        ({"moe": {"experts": 4}}, "model.moe.experts=4"),
        ({"preset": "tiny"}, "model.hidden=64"),
        ({"vocab_size": 300}, "model.vocab_size=300"),
    ],
)
def test_a_field_that_goes_against_the_parent_is_named(parent: Parent, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        child(parent, model=changes)
    assert named in str(raised.value)


def test_what_agrees_or_changes_no_weight_is_taken(parent: Parent) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_context": 64}
    model = {"layers": 2, "kv_heads": 2, "head_width": 8, "rope_theta": 1e6, "rope_scaling": scaling, "dropout": 0.1}
    config = child(parent, model=model)
    assert (config.model.rope_theta, config.model.rope_scaling.factor, config.model.dropout) == (1e6, 4.0, 0.1)
    assert (config.model.ffn_hidden, config.model.kv_heads) == (48, 2)
    told = "\n".join(changes_from(config, parent))
    assert "model.rope_theta is 1000000.0, the loaded model has 50000.0" in told and "'factor': 4.0" in told
    assert "layers" not in told and "warning" not in told


def test_a_table_of_positions_keeps_its_rows(parent: Parent, tmp_path: Path) -> None:
    learned = {"layers": 2, "hidden": 32, "heads": 4, "positions": "learned", "context": 64}
    raw = {**parent_config(tmp_path), "model": learned}
    other = replace(parent, content=to_yaml(parse_config(yaml.safe_dump(raw))))
    assert child(other).model.context == child(other, model={"context": 64}).model.context == 64
    with pytest.raises(ConfigError, match="model.context=128"):
        child(other, model={"context": 128})


def test_longer_sequences_without_scaling_are_a_warning(parent: Parent) -> None:
    long = {"sources": [source("new")], "seq_len": 256, "slot_sequences": 4}
    (told,) = changes_from(child(parent, data=long), parent)
    assert "sequences of 256 tokens are longer than the 64" in told and "model.rope_scaling" in told
    assert changes_from(child(parent), parent) == []


def test_widths_are_checked_against_the_loaded_model(parent: Parent) -> None:
    """12 heads of the default would be divided by 3, the 4 of the loaded model are not."""
    with pytest.raises(ConfigError, match="model.heads=4"):
        child(parent, train={"tensor_parallel": 3, "num_workers": 3})
    assert child(parent, train={"tensor_parallel": 2, "num_workers": 2}).train.tensor_parallel == 2


# --------------------------------------------------------------------------------------------------------- tokenizer


def test_the_tokenizer_is_the_parents(parent: Parent, folder: Parent) -> None:
    config = child(parent)
    assert config.tokenizer.uri == f"{parent.uri}/data/tokenizer.model"
    assert parent.tokenizer_sha256 == Tokenizer.from_bytes(small_tokenizer()).digest and parent.known == IDS
    for changes in ({"uri": "/other.json"}, {"vocab_size": 4096}):
        with pytest.raises(ConfigError, match=f"tokenizer.{next(iter(changes))}"):
            child(parent, tokenizer=changes)
    assert child(parent, tokenizer={"train_bytes": 20_000}).tokenizer.uri == config.tokenizer.uri


def test_rows_for_added_tokens_and_padding(parent: Parent, folder: Parent) -> None:
    added = {"uri": parent.uri, "add_tokens": ["<|call|>", "<|answer|>"]}
    assert child(parent, init=added).model.rows(IDS + 2) == IDS + 2
    in_padding = child(folder, init={**added, "uri": folder.uri}, train={"learning_rate": 1e-4})
    assert in_padding.model.rows(IDS + 2) == IDS + 8
    assert child(parent, model={"vocab_size": 512}).model.rows(IDS) == 512
    with pytest.raises(ConfigError, match="model.vocab_size=441"):
        child(parent, init=added, model={"vocab_size": IDS + 1})


# ----------------------------------------------------------------------------------------------------- learning rate


def test_the_learning_rate_is_a_share_of_the_peak_unless_it_is_given(parent: Parent, folder: Parent) -> None:
    assert child(parent, init={"learning_rate_ratio": 0.1}).train.learning_rate == pytest.approx(0.001)
    assert child(parent, train={"learning_rate": 3e-4}).train.learning_rate == 3e-4  # the default, but given
    with pytest.raises(ConfigError, match=r"10 to 30 % of that peak.*of which 20 % are 1.2e-04"):
        child(folder)
    known = child(folder, init={"uri": folder.uri, "original_learning_rate": 0.004})
    assert known.train.learning_rate == pytest.approx(0.0008)
    rows = dict(rows_of(known))
    assert "peak 0.0008, 0.2 of the 0.004 that the model had; warm-up again over 100 steps" in rows["learning rate"]


def test_a_peak_of_another_optimizer_says_nothing(parent: Parent) -> None:
    with pytest.raises(ConfigError, match="train.optimizer='muon'"):
        child(parent, train={"optimizer": "muon"})
    assert child(parent, train={"optimizer": "muon", "learning_rate": 0.02}).train.learning_rate == 0.02


# ---------------------------------------------------------------------------------------------------- again and again


@pytest.mark.parametrize("share", [0, 0.5])
def test_resolving_a_resolved_config_changes_nothing(parent: Parent, share: float) -> None:
    """It is what stands in the run folder, and what a card's reader runs again."""
    config = child(parent, init={"uri": parent.uri, "replay_share": share, "add_tokens": ["<|call|>"]})
    raw = yaml.safe_load(to_yaml(config))
    given = {f"{s}.{name}" for s, fields in raw.items() for name in flat(fields)}
    assert continued(parse_config(to_yaml(config)), given, parent) == config
    assert mix_in_replay(config, given, parent)[0] == config.data


def test_the_parent_is_recorded_once_and_then_trusted(parent: Parent, tmp_path: Path) -> None:
    config, run = child(parent), Store(str(tmp_path)).child("child")
    assert set(adopt(config, run)) == {"web", "code"}
    assert json.loads(run.read(RECORD))["step"] == 10
    known = origin(config, run)
    assert known is not None and known.uri.endswith("parent/checkpoints/step-000000010-a000001") and known.is_checkpoint
    commit(Store(parent.uri), 5, 10, 15)  # the parent trains on
    assert find_parent(config.init, "").step == 10 and parent_of(config, run) == parent
    for checkpoint in ("newest", "10"):
        assert parent_of(replace(config, init=replace(config.init, checkpoint=checkpoint)), run) == parent
    for changed in ({"checkpoint": "15"}, {"uri": str(tmp_path / "other")}, {"uri": None, "replay": ()}):
        with pytest.raises(ConfigError, match="began with"):
            parent_of(replace(config, init=replace(config.init, **changed)), run)


def test_a_source_that_only_has_the_name_holds_out_its_own(parent: Parent, tmp_path: Path) -> None:
    both = {"sources": [source("new"), {"name": "web", "uris": ["/elsewhere"]}], "seq_len": 64}
    named = child(parent, data=both, init={"uri": parent.uri, "replay": ["web", "code"]})
    assert named.data.sources[1].uris == ("/elsewhere",)
    assert set(adopt(named, Store(str(tmp_path)).child("child"))) == {"code"}


def test_a_run_that_has_begun_without_a_parent_gets_none(parent: Parent, tmp_path: Path) -> None:
    run = Store(str(tmp_path)).child("child")
    commit(run, 0)
    with pytest.raises(ConfigError, match="has begun without it"):
        adopt(child(parent), run)


def test_pieces_are_told_until_the_weights_are_loaded(parent: Parent, tmp_path: Path) -> None:
    config = child(parent, init={"uri": parent.uri, "add_tokens": ["the of"]})
    run = Store(str(tmp_path)).child("child")
    adopt(config, run)
    before = Tokenizer.from_bytes(small_tokenizer())
    found = origin(config, run)
    assert found is not None and found.pieces == (tuple(before.encode("the of").tolist()),) and found.known == IDS
    Store(parent.uri).write("data/tokenizer.model", extend(before, ["<|other|>"]).data)
    with pytest.raises(UserError, match="has changed since this run began"):
        origin(config, run)
    commit(run, 0)
    found = origin(config, run)
    assert found is not None and found.pieces == ()


def test_the_long_context_config_is_staged_and_stretched_for_its_last_stage() -> None:
    config = load_config(str(ROOT / "configs" / "long_context.yaml"), [])
    segments = make_segments(config, [0.5, 0.5])
    assert [(s.seq_len, s.slot_sequences) for s in segments] == [(4096, 32), (32_768, 4), (131_072, 1)]
    assert all(s.of(config).slot_blocks_per_step == config.slot_blocks_per_step for s in segments)
    scaling = config.model.rope_scaling
    assert scaling.factor * (scaling.original_context or 0) == segments[-1].seq_len == config.model.context
    parent = load_config(str(ROOT / "configs" / "1b.yaml"), [])
    assert parent.run.name == config.init.uri and parent.data.seq_len == scaling.original_context


def readme_commands() -> list[list[str]]:
    """Arguments of `pipelines.pretrain` in README's section on this, as a shell would split them."""
    text = (ROOT / "README.md").read_text().split("## Continue from a model")[1].split("\n## ")[0]
    lines = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[3:] for line in lines if line.startswith("python -m pipelines.pretrain")]


def large_parent(folder: Path) -> list[str]:
    """A run of configs/1b.yaml, as far as anything is looked at; arguments that put sparse files for its sources."""
    arguments = [f"run.storage={folder}", f"data.sources.0.uris={folder}/large", f"data.sources.1.uris={folder}/large"]
    run = Store(str(folder)).child("web-code-1b")
    run.write("config.yaml", to_yaml(load_config(str(ROOT / "configs" / "1b.yaml"), arguments)).encode())
    run.write("data/tokenizer.model", small_tokenizer())
    run.write("data/sizes.json", b"[1, 1]")
    commit(run, 10)
    with (folder / "large").open("wb") as file:
        file.truncate(60 * 10**9)
    return [*arguments[1:], "cluster.autoscaling=true", "train.device=cuda"]


def test_readme_commands_are_possible(
    parent: Parent, folder: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --dry-run: every check, and the plan with what was derived."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.driver.preflight.running_cluster", lambda _config: None)
    shutil.move(tmp_path / "hf", tmp_path / "llama")
    for name in ("texts/a.txt", "general/a.jsonl", "web", "code"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("some text\n" * 200_000)
    run = yaml.safe_load((tmp_path / "parent" / "config.yaml").read_text())
    for one in run["data"]["sources"]:
        one["uris"] = [str(tmp_path / one["name"])]
    (tmp_path / "first").mkdir()
    shutil.copytree(tmp_path / "parent", tmp_path / "first", dirs_exist_ok=True)
    (tmp_path / "first" / "config.yaml").write_text(yaml.safe_dump(run))
    big = large_parent(tmp_path)
    commands = readme_commands()
    assert len(commands) >= 3
    for arguments in commands:
        more = [f"run.storage={tmp_path}", *(big if "configs/long_context.yaml" in arguments else [])]
        plain = [one.replace("configs/", f"{ROOT}/configs/") for one in arguments if one != "--dry-run"]
        assert main([*plain, *more, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "begins with" in told and "against forgetting" in told and "warm-up again" in told


def test_arguments_to_a_resolved_config(parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the built-in quickstart, whose fields count as defaults."""
    monkeypatch.setattr(Manifest, "build", lambda *_: pytest.fail("nothing is read of the sources here"))
    arguments = ["init.uri=parent", "run.name=more", f"run.storage={tmp_path}"]
    config, found = read_resolved(config_parser("pretrain", "").parse_args(arguments))
    assert found == parent and config.model.hidden == 32 and config.train.learning_rate == pytest.approx(0.002)
    assert [one.name for one in config.data.sources] == ["stdlib-code", "stdlib-prose", "web", "code"]
