"""What is refused before a GPU is asked for, with the numbers in the message; no cluster is started.

    python -m pytest -q tests/test_preflight.py
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.cli import Cluster, settled
from pipelines.driver.preflight import (
    _check_cpus,
    _check_data_nodes,
    _check_exact,
    _check_length,
    _check_memory,
    _check_sealed,
    check,
    plan_lines,
    uses_gpu,
)
from pretrainer.config import (
    ClusterConfig,
    Config,
    DataConfig,
    DedupConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from pretrainer.data.readers.source import Manifest
from pretrainer.errors import ConfigError, SourceError
from pretrainer.model.flops import exact_memory_estimate_bytes
from pretrainer.model.memory_plan import USABLE, memory_plan
from pretrainer.model.presets import resolve
from pretrainer.storage import Store
from tests.data.test_sealed import seal

CORPUS_BYTES = 6400


def there(cpus: float = 16, gpus: float = 0, nodes: int = 1) -> Cluster:
    return Cluster(cpus, gpus, nodes, None, False)


def config(*uris: Path, cluster: dict[str, Any] | None = None, run: str = "/nowhere", **train: Any) -> Config:
    """One source per URI, 8 slot blocks of 2 x 8 tokens a step; needs 3 x 0.08 CPUs per source and 2 x 0.25."""
    sources = tuple(SourceConfig(name=f"s{i}", uris=(str(uri),)) for i, uri in enumerate(uris or (Path("/nowhere"),)))
    return Config(
        run=RunConfig(storage=run),
        data=DataConfig(sources=sources, seq_len=8, slot_sequences=2, mix_cycle=4),
        train=TrainConfig(**{"steps": 5, "global_batch_tokens": 128, **train}),
        cluster=ClusterConfig(**(cluster or {})),
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "corpus" / name).write_bytes(b"x" * (CORPUS_BYTES // 2))
    return tmp_path / "corpus"


def refusal(config: Config, cluster: Cluster) -> str:
    with pytest.raises(ConfigError) as caught:
        _check_cpus(config, cluster)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------------ dedup


def test_the_plan_says_what_the_index_takes_and_what_is_sealed(corpus: Path, tmp_path: Path) -> None:
    uri = seal(tmp_path / "old", [f"{name} " * 40 for name in ("one", "two", "three")])
    asked = config(corpus)
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, dedup=DedupConfig(sealed=(uri,))))
    lines = "\n".join(plan_lines(asked, Manifest.build(asked.data.sources), there(), 600))
    assert re.search(r"dedup index +about \d+ bytes for each document kept", lines)
    assert f"3 documents of {uri}" in lines
    _check_sealed(asked, there())
    with pytest.raises(ConfigError, match="index of 3 documents needs about .* and there are 100"):
        _check_sealed(asked, dataclasses.replace(there(), node_memory_bytes=100.0))


# ------------------------------------------------------------------------------------------------------------- CPUs


def test_message_has_both_demands_the_cluster_and_the_remedy() -> None:
    text = refusal(config(num_workers=3, cpus_per_worker=0.5), there(cpus=2))
    for part in (
        "train.num_workers=3 x train.cpus_per_worker=0.5",
        "0.74 CPUs for 1 sources",
        "the cluster's 2 CPUs",
        "at most 2 workers",
        "cluster.autoscaling=true",
    ):
        assert part in text


@pytest.mark.parametrize("sources", [1, 3])
@pytest.mark.parametrize("each", [0.1, 0.25, 0.3, 1.0])
@pytest.mark.parametrize("cpus", [3.5, 3.74, 5.22])
def test_number_in_the_message_is_the_largest_that_fits(cpus: float, each: float, sources: int) -> None:
    def sized(workers: int) -> Config:
        uris = [Path(f"/nowhere/{i}") for i in range(sources)]
        return config(*uris, num_workers=workers, cpus_per_worker=each, global_batch_tokens=128 * 16)

    found = re.search(r"at most (\d+) workers", refusal(sized(64), there(cpus)))
    assert found is not None and (most := int(found[1])) > 0
    _check_cpus(sized(most), there(cpus))
    assert f"at most {most} workers" in refusal(sized(most + 1), there(cpus))


def test_data_with_nodes_of_its_own_must_fit_into_them_and_trainers_into_the_others() -> None:
    cluster = dataclasses.replace(there(cpus=4), data_cpus=1.0)
    asked = config(cluster={"data_subcluster": "data"}, num_workers=3)
    _check_cpus(asked, cluster)
    several = config(cluster={"data_subcluster": "data"}, num_workers=7, cpus_per_worker=0.45)
    text = refusal(several, cluster)
    assert "the 3 CPUs of the nodes that are not for data alone" in text and "at most 6 workers" in text
    few = dataclasses.replace(cluster, data_cpus=0.5)
    _check_data_nodes(asked, cluster)
    with pytest.raises(ConfigError) as caught:
        _check_data_nodes(asked, few)
    text = str(caught.value)
    for part in ("cluster.data_subcluster='data'", "0.74 CPUs for 1 sources", "ray-subcluster=data have 0.5"):
        assert part in text
    _check_data_nodes(config(cluster={"data_subcluster": "data", "autoscaling": True}), few)


def test_nodes_of_data_are_checked_where_nothing_is_trained(corpus: Path, tmp_path: Path) -> None:
    asked = config(corpus, cluster={"data_subcluster": "data"})
    few = dataclasses.replace(there(), data_cpus=0.0)
    with pytest.raises(ConfigError, match=r"cluster\.data_subcluster='data'.* have 0:"):
        check(asked, Store(str(tmp_path / "run")), few, training=False)


def test_on_a_machine_of_its_own_a_run_has_no_nodes_for_data_alone() -> None:
    """So the config of a cluster runs on a laptop, too."""
    asked = config(cluster={"data_subcluster": "data", "shared_storage": True})
    alone = settled(asked, dataclasses.replace(there(), started_here=True)).cluster
    assert alone.data_subcluster is None and alone.shared_storage
    assert settled(asked, there()) == asked


def test_cluster_too_small_for_the_data_stages_names_another_remedy() -> None:
    uris = [Path(f"/nowhere/{i}") for i in range(3)]
    text = refusal(config(*uris, num_workers=1, cpus_per_worker=0.5), there(cpus=1.5))
    assert "data.read_cpus" in text and "at most" not in text


def test_elastic_run_needs_room_for_its_smallest_size() -> None:
    _check_cpus(config(num_workers=(2, 8), cpus_per_worker=1.0), there(cpus=3))
    assert "num_workers=(3, 8)" in refusal(config(num_workers=(3, 8), cpus_per_worker=1.0), there(cpus=3))


def test_cluster_that_can_grow_is_not_judged_by_what_it_has() -> None:
    _check_cpus(config(num_workers=8, cpus_per_worker=4.0, cluster={"autoscaling": True}), there(cpus=1))


# ------------------------------------------------------------------------------------------------ memory in exact mode


def with_memory(config: Config, replicas: float, **cluster: Any) -> Cluster:
    """A cluster whose largest node has memory for so many replicas."""
    needs = exact_memory_estimate_bytes(config.model, config.tokenizer.vocab_size, "float32")
    return dataclasses.replace(there(**cluster), node_memory_bytes=needs * replicas)


def test_replicas_must_fit_into_the_node_that_has_most_of_them() -> None:
    three = config(exact=True, num_workers=(3, 8))
    _check_exact(three, with_memory(three, replicas=3))
    _check_exact(three, with_memory(three, replicas=2, nodes=2))  # two workers on one of the nodes
    for cluster in (with_memory(three, replicas=2.9), with_memory(three, replicas=1.9, nodes=2)):
        with pytest.raises(ConfigError, match=r"whole model on every worker: about 2\.\d\d GiB .* train\.exact=false"):
            _check_exact(three, cluster)


def test_memory_is_judged_only_where_it_decides() -> None:
    _check_exact(config(num_workers=3), with_memory(config(), replicas=0.1))  # sharded, not replicated
    _check_exact(config(exact=True), there())  # nobody knows the memory
    _check_exact(config(exact=True), with_memory(config(), replicas=0.1, gpus=1))  # the worker sees its GPU
    growing = config(exact=True, cluster={"autoscaling": True})
    _check_exact(growing, with_memory(growing, replicas=0.1))


def test_plan_names_the_memory_of_a_step_and_its_parts(corpus: Path) -> None:
    for exact in (False, True):
        several = config(corpus, exact=exact, num_workers=(2, 4), precision="float32")
        lines = plan_lines(several, Manifest.build(several.data.sources), there(), vocab_size=32_768)
        plan = memory_plan(several, 32_768, 2, False)
        (at,) = (i for i, line in enumerate(lines) if line.startswith("  memory"))
        words = f"about {plan.total / 2**30:.2f} GiB per worker of 2 at the peak of a step, the {plan.moment}"
        assert words in lines[at]
        assert lines[at + 1].split() == ["-", "parameters", f"{plan.parameters / 2**30:.3f}", "GiB"]


# ------------------------------------------------------------------------------------------------- memory of a step


def on_gpus(gpus: int, *kinds: str) -> Cluster:
    return dataclasses.replace(there(gpus=gpus), accelerators=kinds)


def large(**train: Any) -> Config:
    """8 B parameters, of which the state alone takes 128 GB."""
    train = {"num_workers": (1, 8), "global_batch_tokens": 128 * 8} | train
    return dataclasses.replace(config(**train), model=resolve(ModelConfig(preset="llama3-8b")))


def test_a_step_that_fits_into_no_kind_of_gpu_is_refused_with_remedies() -> None:
    with pytest.raises(ConfigError, match=r"each of 1 workers, and an H100 GPU has 79\.00 GiB.*num_workers=2 \("):
        _check_memory(large(), on_gpus(8, "A10G", "H100"))
    _check_memory(large(num_workers=8), on_gpus(8, "H100"))
    _check_memory(large(), on_gpus(8, "H100", "B300"))  # nobody knows what a B300 has
    _check_memory(large(), on_gpus(8))


def test_workers_on_cpu_share_the_memory_of_their_node() -> None:
    four = config(num_workers=4)
    needs = memory_plan(four, four.tokenizer.vocab_size, 4, False).total / USABLE
    _check_memory(four, dataclasses.replace(there(nodes=2), node_memory_bytes=2 * needs + 8))
    _check_memory(four, dataclasses.replace(there(), node_memory_bytes=4 * needs + 8))
    with pytest.raises(ConfigError, match=r"the cluster's largest node, for each of 4 workers on it, has"):
        _check_memory(four, dataclasses.replace(there(), node_memory_bytes=4 * needs - 8))
    growing = dataclasses.replace(four, cluster=ClusterConfig(autoscaling=True))
    _check_memory(growing, dataclasses.replace(there(), node_memory_bytes=1.0))


@pytest.mark.parametrize(("model", "words"), [({}, None), ({"ffn": "gelu"}, "model.ffn='gelu'")])
def test_plan_says_before_training_that_a_model_will_not_be_exported(
    corpus: Path, model: dict[str, Any], words: str | None
) -> None:
    asked = config(corpus)
    asked = dataclasses.replace(asked, model=dataclasses.replace(asked.model, **model))
    lines = plan_lines(asked, Manifest.build(asked.data.sources), there(), vocab_size=32_768)
    told = [line for line in lines if line.startswith("  export")]
    assert [bool(words) and str(words) in line for line in told] == ([True] if words else [])


def test_check_looks_at_memory(corpus: Path, tmp_path: Path) -> None:
    run = Store(str(tmp_path / "runs"))
    small = config(corpus, exact=True, run=str(tmp_path / "runs"))
    check(small, run, with_memory(small, replicas=1))
    with pytest.raises(ConfigError, match="train.exact"):
        check(small, run, with_memory(small, replicas=0.9))
    with pytest.raises(ConfigError, match="a step needs about"):
        check(config(corpus, run=str(tmp_path / "runs")), run, with_memory(small, replicas=0.5))


# ----------------------------------------------------------------------------------------------------------- length


def length(config: Config) -> None:
    _check_length(config, Manifest.build(config.data.sources))


def test_source_with_a_byte_per_token_is_just_enough(corpus: Path) -> None:
    steps = CORPUS_BYTES // 128
    length(config(corpus, steps=steps))
    with pytest.raises(ConfigError, match=rf"s0 has 6,400 bytes and max_epochs=1, .* 6,528 tokens that {steps + 1} st"):
        length(config(corpus, steps=steps + 1))


def test_epochs_multiply_what_a_source_has(corpus: Path) -> None:
    long = config(corpus, steps=3 * CORPUS_BYTES // 128)
    source = dataclasses.replace(long.data.sources[0], max_epochs=3)
    length(dataclasses.replace(long, data=dataclasses.replace(long.data, sources=(source,))))
    source = dataclasses.replace(source, max_epochs=2)
    with pytest.raises(ConfigError, match="max_epochs=2"):
        length(dataclasses.replace(long, data=dataclasses.replace(long.data, sources=(source,))))


def test_source_is_asked_for_its_share_alone(corpus: Path) -> None:
    """b.txt is a half of the bytes but gives a quarter of the blocks: it lasts for twice as many steps."""
    both = config(corpus / "a.txt", corpus / "b.txt", steps=100)
    shares = (0.75, 0.25)
    sources = tuple(dataclasses.replace(s, share=p) for s, p in zip(both.data.sources, shares, strict=True))
    shared = dataclasses.replace(both, data=dataclasses.replace(both.data, sources=sources))
    with pytest.raises(ConfigError, match="source s0 .* 9,600 tokens"):
        length(shared)
    first = dataclasses.replace(sources[0], max_epochs=3)
    length(dataclasses.replace(shared, data=dataclasses.replace(shared.data, sources=(first, sources[1]))))


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_compressed_source_is_not_judged_by_its_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    length(config(tmp_path / name, steps=1000))


# ------------------------------------------------------------------------------------------------- storage and GPUs


def test_folder_of_one_machine_is_refused_on_two_nodes(corpus: Path, tmp_path: Path) -> None:
    storage, run = str(tmp_path / "runs"), Store(str(tmp_path / "runs" / "quickstart"))
    with pytest.raises(ConfigError, match=rf"{storage}.* 2 nodes: use an object store .*shared_storage=true"):
        check(config(corpus, run=storage), run, there(nodes=2))
    check(config(corpus, run=storage), run, there(nodes=1))
    check(config(corpus, run=storage, cluster={"shared_storage": True}), run, there(nodes=2))


def test_check_returns_the_live_manifest_and_leaves_nothing_behind(corpus: Path, tmp_path: Path) -> None:
    run = Store(str(tmp_path / "runs" / "quickstart"))
    manifest = check(config(corpus), run, there())
    assert [shard.path for shard in manifest.shards(0)] == ["a.txt", "b.txt"] and run.list() == []


def test_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="s0"):
        check(config(tmp_path / "absent"), Store(str(tmp_path / "run")), there())


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "answer"),
    [
        ("auto", 2, 2, True),
        ("auto", 1, 2, False),
        ("auto", 0, 1, False),
        ("auto", 1, (1, 4), True),
        ("cpu", 8, 2, False),
        ("cuda", 2, 2, True),
        ("cuda", 2, (2, 8), True),
    ],
)
def test_gpus_are_used_when_every_worker_gets_one(device: str, gpus: int, workers: Any, answer: bool) -> None:
    assert uses_gpu(config(device=device, num_workers=workers), there(gpus=gpus)) is answer


def test_asking_for_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs 4 GPUs and the cluster has 2"):
        uses_gpu(config(device="cuda", num_workers=4), there(gpus=2))
    assert uses_gpu(config(device="cuda", num_workers=4, cluster={"autoscaling": True}), there(gpus=2)) is True


# --------------------------------------------------------------------------------------------------------- the plan


def test_plan_has_one_line_per_number_and_source(corpus: Path) -> None:
    two = config(corpus / "a.txt", corpus / "b.txt", num_workers=(1, 8))
    lines = plan_lines(two, Manifest.build(two.data.sources), there(cpus=4), vocab_size=600)
    plan = {line[:24].strip(): line[24:] for line in lines}
    assert plan["workers"] == "1 to 8, useful sizes [1, 2, 3, 4, 8]"
    assert plan["length"].startswith("5 steps x 128 tokens = 640 tokens")
    assert plan["batch"] == "8 slot blocks of 2 x 8 tokens"
    assert plan["source s0"].startswith("3,200 bytes in 1 shards") and "2 of 4 slot blocks" in plan["source s1"]
    assert plan["cluster"] == "1 nodes, 4 CPUs, 0 GPUs; data needs 1.48 CPUs"


def test_a_rule_that_the_preset_has_not_is_refused_with_the_source_and_the_rules_there_are(tmp_path: Path) -> None:
    good = config(tmp_path, run=str(tmp_path / "runs"))
    source = dataclasses.replace(good.data.sources[0], rules=("c4_curly_bracket=off",))
    wrong = dataclasses.replace(good, data=dataclasses.replace(good.data, sources=(source,)))
    with pytest.raises(ConfigError, match=r"data.sources\[s0\].rules=c4_curly_bracket .* gopher_too_few_words"):
        check(wrong, Store(str(tmp_path / "run")), there())
