"""Evaluation while training, as far as it is settled before torch is there: checks, place, a line of the plan."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from pipelines.driver.cli import Cluster
from pretrainer.config import Config, TaskConfig
from pretrainer.data.pipeline import data_cpus
from pretrainer.errors import ConfigError
from pretrainer.evaluation.tasks import read_task


def check_evaluation(config: Config, cluster: Cluster, on_gpu: bool) -> None:
    """Raise UserError for task files that cannot be used and for a place that the cluster has not."""
    if not config.evaluation.is_periodic:
        return
    for task in config.evaluation.tasks:
        read_task(task)
    if config.evaluation.where == "beside" and not config.cluster.autoscaling and not _fits(config, cluster, on_gpu):
        raise ConfigError(
            f"evaluation.where=beside needs {config.evaluation.cpus:g} CPUs and {evaluation_gpus(config, on_gpu):g} "
            f"GPUs beside {config.train.worker_range[1]} trainers and the data stages, and the cluster has "
            f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs: use evaluation.where=workers, fewer workers, or "
            "cluster.autoscaling=true if the cluster can grow"
        )


def evaluates_beside(config: Config, cluster: Cluster, on_gpu: bool) -> bool:
    """Whether a task of its own evaluates, while the trainers go on."""
    where = config.evaluation.where
    return where == "beside" or (where == "auto" and _fits(config, cluster, on_gpu))


def evaluation_gpus(config: Config, on_gpu: bool) -> float:
    return float(on_gpu) if config.evaluation.gpus is None else config.evaluation.gpus


def _fits(config: Config, cluster: Cluster, on_gpu: bool) -> bool:
    """Whether the cluster has it to spare, beside as many trainers as there may be and the stream."""
    trainers = config.train.worker_range[1]
    cpus = cluster.left_by_data(data_cpus(config.data)) - trainers * config.train.cpus_per_worker
    gpus = cluster.gpus - trainers * on_gpu
    return cpus >= config.evaluation.cpus - 1e-6 and gpus >= evaluation_gpus(config, on_gpu)


def evaluation_rows(config: Config, cluster: Cluster, on_gpu: bool) -> list[tuple[str, str]]:
    """Of the plan."""
    evaluation = config.evaluation
    if not evaluation.is_periodic:
        return []
    cadences = {"choices and cloze": evaluation.medium_every_steps, "everything": evaluation.full_every_steps}
    when = ", ".join(f"{what} every {steps:,} steps" for what, steps in cadences.items() if steps is not None)
    place = f"a task beside the training, {evaluation.cpus:g} CPUs and {evaluation_gpus(config, on_gpu):g} GPUs"
    by = place if evaluates_beside(config, cluster, on_gpu) else "the trainers, which wait"
    rows = [("evaluation", f"{len(evaluation.tasks)} task files; {when}, and at the end; by {by}")]
    open_files = ", ".join(unprotected(config, evaluation.tasks))
    return [*rows, *([("", open_warning(open_files))] if open_files else [])]


def open_warning(names: str) -> str:
    return f"warning: {names} were not kept out of the training text (data.decontamination.benchmarks)"


def unprotected(config: Config, tasks: Sequence[TaskConfig]) -> list[str]:
    """Names of tasks whose file is in no entry of the run's data.decontamination.benchmarks."""

    def covers(entry: str, uri: str) -> bool:
        return fnmatch(uri, entry) or uri.startswith(entry.rstrip("/") + "/")

    entries = config.data.decontamination.benchmarks
    return [task.name for task in tasks if not any(covers(entry, task.uri) for entry in entries)]
