"""Parents and children of continued runs, for tests: no cluster, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.driver.continuation import continued
from pipelines.driver.parent import Parent, find_parent
from pretrainer.config import Config, InitConfig, ModelConfig
from pretrainer.config_load import parse_config, to_yaml
from pretrainer.model.hf_families import FAMILIES
from pretrainer.schema import DOCUMENTS, to_ipc
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import SNAPSHOT
from tests.data.harness import small_tokenizer

ROOT = Path(__file__).parent.parent
MODEL = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn_hidden": 48, "rope_theta": 5e4}
IDS = 440


def source(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "uris": [f"/texts/{name}"], **more}


def parent_config(folder: Path, **train: Any) -> dict[str, Any]:
    return {
        "run": {"name": "parent", "storage": str(folder)},
        "data": {"sources": [source("web", share=0.75), source("code", share=0.25)], "seq_len": 64},
        "model": MODEL,
        "train": {"steps": 10, "learning_rate": 0.01, "global_batch_tokens": 1024, **train},
    }


def commit(run: Store, *steps: int) -> None:
    """A list of checkpoints as Ray Train keeps it."""
    results = [{"checkpoint_dir_name": f"step-{s:09d}-a000001", "metrics": {"step": s}} for s in steps]
    run.write(SNAPSHOT, json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[-1]}).encode())


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    """A finished run, as far as anything is looked at."""
    run = Store(str(tmp_path)).child("parent")
    run.write("config.yaml", to_yaml(parse_config(yaml.safe_dump(parent_config(tmp_path)))).encode())
    run.write("data/tokenizer.model", small_tokenizer())
    run.write("data/sizes.json", b"[3000, 1000]")
    for name in ("web", "code"):
        run.write(f"data/held_out/{name}.documents.arrow", to_ipc(DOCUMENTS.empty_table()))
    commit(run, 5, 10)
    return find_parent(InitConfig(uri="parent"), str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Parent:
    """A Hugging Face folder, with 8 rows of padding in its table."""
    place = Store(str(tmp_path)).child("hf")
    config = ModelConfig(**{**MODEL, "tie_embeddings": False})  # type: ignore[arg-type]
    raw = {"model_type": "llama", "vocab_size": IDS + 8, **FAMILIES["llama"].write(config, 64)}
    place.write("config.json", json.dumps(raw).encode())
    place.write("model.safetensors", b"not opened here")
    place.write("tokenizer.model", small_tokenizer())
    return find_parent(InitConfig(uri=place.uri), str(tmp_path))


def child(parent: Parent, **sections: Any) -> Config:
    """The resolved config of one new source, with these changes."""
    values = {
        "run": {"name": "child", "storage": str(Path(parent.uri).parent)},
        "data": {"sources": [source("new")], "seq_len": 64},
        "init": {"uri": parent.uri},
        "train": {"steps": 20, "global_batch_tokens": 1024},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    given = {f"{section}.{name}" for section, fields in values.items() for name in flat(fields)}
    return continued(parse_config(yaml.safe_dump(values)), given, parent)


def flat(fields: dict[str, Any]) -> list[str]:
    return [
        f"{name}.{inner}" if inner else name
        for name, value in fields.items()
        for inner in (value if isinstance(value, dict) else [""])
    ]


def shares(config: Config) -> dict[str, float | None]:
    return {one.name: one.share for one in config.data.sources}
