"""Everything that can be known to go wrong, checked before a GPU is asked for; and the derived plan, printed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.driver.cli import Cluster, cluster, running_cluster
from pipelines.driver.continuation import rows_of
from pipelines.driver.evaluating import check_evaluation, evaluation_rows
from pretrainer.config import Config, DataConfig
from pretrainer.data.curation import check_curation
from pretrainer.data.curriculum import epochs_needed, make_segments
from pretrainer.data.dedup.memory import bytes_per_document, refuse_if_too_large
from pretrainer.data.dedup.sealed import survey
from pretrainer.data.mixture import mixing_weights
from pretrainer.data.pipeline import data_cpus
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import UnitPlan
from pretrainer.errors import ConfigError
from pretrainer.model.flops import check_exact_memory, flops_per_token
from pretrainer.model.hf import why_no_export
from pretrainer.model.memory_plan import check_memory, device_bytes, memory_plan, plan_table
from pretrainer.model.presets import parameter_count
from pretrainer.storage import Store, redact
from pretrainer.subcluster import LABEL
from pretrainer.train.elasticity.resize import sizes_of
from pretrainer.train.optim.optimizer import check_optimizer
from pretrainer.train.optim.schedule import check_schedule

BLOCKS_PER_S_OF_A_SPLIT = 100  # measured: one split deals about 220 blocks/s on 2 cores
GIB = 2**30


@contextmanager
def local_cluster(config: Config) -> Iterator[Cluster]:
    """The running cluster, or what one started on this machine would have: a dry run starts none."""
    if running_cluster(config) is not None:
        with cluster(config) as there:
            yield there
    else:
        yield Cluster(float(os.cpu_count() or 1), 0.0, 1, None, True)


def uses_gpu(config: Config, cluster: Cluster) -> bool:
    wanted = config.train.worker_range[0] * config.train.gpus_per_worker
    if config.train.device == "cuda" and cluster.gpus < wanted and not config.cluster.autoscaling:
        raise ConfigError(
            f"train.device='cuda' needs {wanted:g} GPUs and the cluster has {cluster.gpus:g}: "
            "add GPU nodes, lower train.num_workers, or set train.device=cpu"
        )
    return config.train.device == "cuda" or (
        config.train.device == "auto" and cluster.gpus >= wanted
    )


def check(config: Config, run: Store, cluster: Cluster, training: bool = True) -> Manifest:
    """Raise a UserError for whatever can be seen to fail; returns the live manifest. `training`: it needs trainers."""
    run.check_writable()
    if config.run.copy_to is not None and training:
        Store(config.run.copy_to).check_writable()
    check_schedule(config.train, config.total_steps)
    check_optimizer(config.train)
    check_curation(config.data)
    manifest = Manifest.build(config.data.sources)
    if run.is_local and cluster.nodes > 1 and not config.cluster.shared_storage:
        raise ConfigError(
            f"run.storage={config.run.storage!r} is a folder of one machine and the cluster has {cluster.nodes} nodes: "
            "use an object store (s3://…, gs://…), or set cluster.shared_storage=true if all nodes mount this folder"
        )
    _check_sealed(config, cluster)
    _check_data_nodes(config, cluster)
    if training:
        _check_cpus(config, cluster)
        _check_exact(config, cluster)
        _check_memory(config, cluster)
        _check_length(config, manifest)
        check_evaluation(config, cluster, uses_gpu(config, cluster))
    return manifest


def _check_data_nodes(config: Config, cluster: Cluster) -> None:
    """Data with nodes of its own must fit into them, whether or not anything is trained."""
    name, needs = config.cluster.data_subcluster, data_cpus(config.data)
    if name is None or config.cluster.autoscaling or cluster.has_for_data(needs):
        return
    raise ConfigError(
        f"cluster.data_subcluster={name!r}: the data stages need {needs:g} CPUs for {len(config.data.sources)} "
        f"sources, and the nodes with the label {LABEL}={name} have {cluster.data_cpus or 0:g}: start nodes with "
        f"`ray start --labels {LABEL}={name}`, leave the field out so that data runs beside the trainers, or set "
        "cluster.autoscaling=true if the cluster can grow"
    )


def _check_cpus(config: Config, cluster: Cluster) -> None:
    if config.cluster.autoscaling:
        return
    workers, each = config.train.worker_range[0], config.train.cpus_per_worker
    needs = data_cpus(config.data)
    left = cluster.left_by_data(needs)
    if workers * each > left + 1e-6:
        fit = int(left / each + 1e-9)
        remedy = f"use at most {fit} workers" if fit > 0 else "use a smaller data.read_cpus or fewer sources"
        asks = f"train.num_workers={config.train.num_workers} x train.cpus_per_worker={each:g}"
        data = f"the data stages ({needs:g} CPUs for {len(config.data.sources)} sources)"
        conflict = f"{asks} and {data} do not fit into the cluster's {cluster.cpus:g} CPUs"
        if cluster.data_cpus is not None:
            conflict = f"{asks} do not fit into the {left:g} CPUs of the nodes that are not for data alone"
        raise ConfigError(
            f"{conflict}, so the run would wait for ever: {remedy}, lower train.cpus_per_worker, or set "
            "cluster.autoscaling=true if the cluster can grow"
        )


def check_concurrency(config: Config, cluster: Cluster) -> None:
    """Trials that run at the same time must all have their CPUs, or they wait for each other."""
    if config.cluster.autoscaling:
        return
    wanted = [int(v) for d in config.sweep.space if d.field == "train.num_workers" for v in d.values]
    workers, trials = max([config.train.worker_range[0], *wanted]), config.sweep.max_concurrent_trials
    trainers, data = workers * config.train.cpus_per_worker, data_cpus(config.data)

    def fits(n: int) -> bool:
        return n * trainers <= cluster.left_by_data(n * data) + 1e-6 and cluster.has_for_data(n * data)

    if not fits(trials):
        needs, fit = trainers + data, max((n for n in range(trials) if fits(n)), default=0)
        raise ConfigError(
            f"sweep.max_concurrent_trials={trials} is not possible: a trial needs {needs:g} CPUs ({workers} workers x "
            f"train.cpus_per_worker={config.train.cpus_per_worker:g}, and its data), and the cluster has "
            f"{cluster.cpus:g}: use at most {fit}, or a smaller train.cpus_per_worker or data.read_cpus"
        )
    gpus = workers * config.train.gpus_per_worker
    if uses_gpu(config, cluster) and trials * gpus > cluster.gpus + 1e-6:
        raise ConfigError(
            f"sweep.max_concurrent_trials={trials} is not possible: a trial needs {gpus:g} GPUs and the cluster has "
            f"{cluster.gpus:g}: use at most {int(cluster.gpus / gpus + 1e-9)}, or with one worker a part of a GPU for "
            "each (train.gpus_per_worker)"
        )


def _check_sealed(config: Config, cluster: Cluster) -> None:
    """Sealed indexes must compare with the config and fit into a node, with every source's own copy of them."""
    dedup = config.data.dedup
    documents = sum(sealed.documents for sealed in survey(dedup))
    if documents and not config.cluster.autoscaling:
        refuse_if_too_large(dedup, documents * len(config.data.sources), cluster.node_memory_bytes)


def _check_exact(config: Config, cluster: Cluster) -> None:
    """Replicas on CPU must fit into a node's memory; those on a GPU are checked by the worker, who can see it."""
    if not config.train.exact or config.cluster.autoscaling or uses_gpu(config, cluster):
        return
    together = -(-config.train.worker_range[0] // cluster.nodes)  # workers of the node that has most
    where = f"the cluster's largest node, for each of {together} workers on it,"
    half = config.train.precision == "bfloat16"
    check_exact_memory(config.model, config.vocab_size, half, cluster.node_memory_bytes / together, where)


def _check_memory(config: Config, cluster: Cluster) -> None:
    """A step must fit at the smallest number of workers, which shards least: on the largest kind of GPU, or a node."""
    workers, on_gpu, vocab_size = config.train.worker_range[0], uses_gpu(config, cluster), config.vocab_size
    if on_gpu:
        known = [device_bytes(name) for name in cluster.accelerators]
        if known and None not in known:
            name, there = max(zip(cluster.accelerators, known, strict=True), key=lambda kind: kind[1] or 0.0)
            part = config.train.gpus_per_worker
            where = f"an {name} GPU" if part == 1 else f"the part of {part:g} of an {name} GPU"
            check_memory(config, vocab_size, workers, on_gpu, part * (there or 0.0), where)
    elif not config.train.exact and not config.cluster.autoscaling:
        together = -(-workers // cluster.nodes)
        where = f"the cluster's largest node, for each of {together} workers on it,"
        check_memory(config, vocab_size, workers, on_gpu, cluster.node_memory_bytes / together, where)


def _check_length(config: Config, manifest: Manifest) -> None:
    """Refuse now, not after a week, a source that cannot reach the asked tokens even if every byte became a token."""
    sizes = manifest.source_bytes()
    segments = make_segments(config, mixing_weights(config.data.sources, sizes))
    epochs = epochs_needed(segments, config.train.global_batch_tokens, sizes)
    for i, (source, size) in enumerate(zip(config.data.sources, sizes, strict=True)):
        wanted = epochs[i] * max(1.0, size)
        compressed = any(
            shard.path.endswith((".gz", ".zst", ".lz4", ".bz2", ".xz", ".parquet")) for shard in manifest.shards(i)
        )
        if not compressed and wanted > size * source.max_epochs:
            raise ConfigError(
                f"source {source.name} has {size:,} bytes and max_epochs={source.max_epochs}, which cannot give the "
                f"{wanted:,.0f} tokens that {config.total_steps:,} steps ask of it: lower train.steps, raise its "
                "max_epochs, or lower its weight or share"
            )

BYTES_OF_A_TOKEN = 4  # in a slot block in memory

Row = tuple[str, str]
"""(name of a number of the plan, the number in words)."""


def plan_lines(config: Config, manifest: Manifest, cluster: Cluster, vocab_size: int) -> list[str]:
    """The derived plan, one aligned line per number."""
    rows = [
        *_model_rows(config, vocab_size),
        *rows_of(config),
        *_training_rows(config, cluster, vocab_size),
        *_cluster_rows(config, cluster),
        *evaluation_rows(config, cluster, uses_gpu(config, cluster)),
        *_index_rows(config.data),
        *_source_rows(config, manifest),
    ]
    return [f"  {name:<22}{text}" for name, text in rows]


def _model_rows(config: Config, vocab_size: int) -> list[Row]:
    model, train = config.model, config.train
    parameters, per_token = parameter_count(model, vocab_size), flops_per_token(model, vocab_size, config.data.seq_len)
    active = parameter_count(model, vocab_size, active=True)
    tokens = config.total_steps * train.global_batch_tokens
    no_export = why_no_export(model)
    return [
        (
            "model",
            f"{parameters:,} parameters{'' if active == parameters else f', {active:,} active per token'} "
            f"({model.layers} layers, width {model.hidden}, vocabulary {vocab_size:,})",
        ),
        ("compute", f"{per_token:,} FLOPs per token, {per_token * tokens:.3g} FLOPs in all"),
        (
            "length",
            f"{config.total_steps:,} steps x {train.global_batch_tokens:,} tokens = {tokens:,} tokens"
            f" ({tokens / parameters:.1f} per parameter)",
        ),
        *([("export", f"none: {no_export}")] if no_export else []),
    ]


def _training_rows(config: Config, cluster: Cluster, vocab_size: int) -> list[Row]:
    data, (lo, hi), blocks = config.data, config.train.worker_range, config.slot_blocks_per_step
    device = "GPU" if uses_gpu(config, cluster) else "CPU"
    fixed = f"{hi} on {device}, {config.train.cpus_per_worker:g} CPU each"
    plan = memory_plan(config, vocab_size, lo, device == "GPU")
    return [
        ("batch", f"{blocks} slot blocks of {data.slot_sequences} x {data.seq_len} tokens"),
        ("workers", f"{lo} to {hi}, useful sizes {sizes_of(config)}" if lo != hi else fixed),
        ("memory", f"about {plan.total / GIB:.2f} GiB per worker of {lo} at the peak of a step, the {plan.moment}"),
        *plan_table(plan),
        ("spikes", _spikes(config, lo)),
    ]


def _spikes(config: Config, world: int) -> str:
    """What is done about them, and what going back takes on the host."""
    stability, train = config.stability, config.train
    told = f"{stability.on_spike}, not finite: {stability.on_nonfinite}"
    if not stability.rolls_back:
        return told
    streams = world // train.workers_per_stream
    kept = train.checkpoint_every_steps * train.global_batch_tokens * BYTES_OF_A_TOKEN / streams
    return f"{told}; {kept / GIB:.2f} GiB of blocks behind the last checkpoint on the host of each of {world} workers"


def _cluster_rows(config: Config, cluster: Cluster) -> list[Row]:
    slot_tokens, needs = config.data.seq_len * config.data.slot_sequences, data_cpus(config.data)
    return [
        (
            "cluster",
            f"{cluster.nodes} nodes, {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs; data needs {needs:g} CPUs"
            + ("" if cluster.data_cpus is None else f" of the {cluster.data_cpus:g} of its own nodes"),
        ),
        (
            "split",
            f"carries {BLOCKS_PER_S_OF_A_SPLIT} blocks/s = {BLOCKS_PER_S_OF_A_SPLIT * slot_tokens:,} tokens/s; "
            "raise data.slot_sequences if the trainers are faster",
        ),
    ]


def _index_rows(data: DataConfig) -> list[Row]:
    each = bytes_per_document(data.dedup)
    own = ("dedup index", f"about {each:,.0f} bytes for each document kept, in one process for each source")
    sealed_rows = [
        ("sealed index", f"{sealed.documents:,} documents of {redact(sealed.uri)}, seen before those of every source")
        for sealed in survey(data.dedup)
    ]
    return [own, *sealed_rows] if data.dedup.near or data.dedup.exact else sealed_rows


def _source_rows(config: Config, manifest: Manifest) -> list[Row]:
    """With the shares of the first segment."""
    data, sizes = config.data, manifest.source_bytes()
    mixture = make_segments(config, mixing_weights(data.sources, sizes))[0].order.mixture
    return [
        (
            f"source {source.name}",
            f"{sizes[i]:,} bytes in {manifest.tables[i].num_rows:,} shards, "
            f"{len(UnitPlan(manifest, i, data.chunk_bytes)):,} units, "
            f"{mixture.shares[i]} of {mixture.cycle} slot blocks, {source.max_epochs} epochs at most",
        )
        for i, source in enumerate(data.sources)
    ]
