"""GPUs: their peak, memory and price, and FLOPs as hours, days and dollars."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pretrainer.errors import ConfigError, require
from pretrainer.model.flops import GIB, peak_flops
from pretrainer.model.memory_plan import device_bytes

FIELDS = ("dollars_per_hour", "memory_gib", "gpus_per_node", "mfu", "peak_tflops")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU, and what a run gets out of it."""

    name: str
    peak_flops: float
    """Dense bfloat16 FLOP/s."""
    memory_gib: float
    """What torch says of it."""
    dollars_per_hour: float
    """Of one GPU."""
    gpus_per_node: int = 8
    """GPUs that a fast link joins; tensor parallelism stays inside."""
    mfu: float = 0.4
    """Share of the peak that a run reaches."""

    def __post_init__(self) -> None:
        where = f"gpus.{self.name}"
        for name in ("peak_flops", "memory_gib", "dollars_per_hour"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{where}.{name}", value, "use a positive number")
        require(0 < self.mfu <= 1, f"{where}.mfu", self.mfu, "use a number above 0, to 1")
        require(self.gpus_per_node >= 1, f"{where}.gpus_per_node", self.gpus_per_node, "use 1 or more")

    @property
    def flops_per_s(self) -> float:
        """What a run reaches on one of them."""
        return self.mfu * self.peak_flops


@dataclass(frozen=True)
class Prices:
    """The price table."""

    date: str
    source: str
    gpus: Mapping[str, Gpu]

    def find(self, name: str) -> Gpu | None:
        """The GPU of that name, whatever its case; None for an unknown one."""
        return next((gpu for known, gpu in self.gpus.items() if known.lower() == name.lower()), None)

    def nearest(self, name: str) -> Gpu:
        """The GPU whose name is most like this one; the one with the cheapest FLOPs where none is like it."""
        like = {known.lower(): gpu for known, gpu in self.gpus.items()}
        near = difflib.get_close_matches(name.lower(), like, n=1, cutoff=0.5)
        return like[near[0]] if near else min(like.values(), key=lambda gpu: gpu.dollars_per_hour / gpu.flops_per_s)


def load_prices(path: str | None = None) -> Prices:
    """The table of this package, with the lines of a file of the same form over it. Raises ConfigError."""
    shipped = _read(files("pretrainer.plan").joinpath("prices.yaml").read_text(encoding="utf-8"), "prices.yaml")
    own: dict[str, Any] = {}
    if path is not None:
        try:
            own = _read(Path(path).expanduser().read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--prices={path!r} cannot be read ({error}): name a YAML file") from error
    rows = {name: dict(row) for name, row in shipped["gpus"].items()}
    for name, row in (own.get("gpus") or {}).items():
        require(isinstance(row, dict), f"gpus.{name}", row, f"give it some of {', '.join(FIELDS)}")
        rows[str(name)] = rows.get(str(name), {}) | row
    head = shipped | {key: value for key, value in own.items() if key != "gpus"}
    return Prices(str(head["date"]), str(head["source"]), {name: _gpu(name, row) for name, row in rows.items()})


def _read(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    ok = isinstance(content, dict) and isinstance(content.get("gpus") or {}, dict)
    require(ok, where, content, "write date, source and gpus, as pretrainer/plan/prices.yaml does")
    unknown = sorted(set(content) - {"date", "source", "gpus"})
    require(not unknown, where, unknown, "only date, source and gpus are read")
    return dict(content)


def _gpu(name: str, row: Mapping[str, Any]) -> Gpu:
    unknown = sorted(set(row) - set(FIELDS))
    require(not unknown, f"gpus.{name}", unknown, f"use some of {', '.join(FIELDS)}")
    for field in FIELDS:
        value = row.get(field, 1)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        require(plain, f"gpus.{name}.{field}", value, "give a plain number")
    peak = row["peak_tflops"] * 1e12 if "peak_tflops" in row else peak_flops(name)
    require(peak is not None, f"gpus.{name}.peak_tflops", None, "give its dense bfloat16 TFLOP/s")
    there = row.get("memory_gib", (device_bytes(name) or 0) / GIB)
    require(there > 0, f"gpus.{name}.memory_gib", None, "give its memory in GiB")
    require("dollars_per_hour" in row, f"gpus.{name}.dollars_per_hour", None, "give the price of an hour")
    given = {field: row[field] for field in ("dollars_per_hour", "mfu", "gpus_per_node") if field in row}
    return Gpu(name=name, peak_flops=float(peak or 0), memory_gib=there, **given)


class Cost(NamedTuple):
    gpu_hours: float
    days: float  # of the whole cluster
    dollars: float


def cost(flops: float, gpu: Gpu, gpus: int) -> Cost:
    """What so many FLOPs take on so many GPUs; without restarts, evaluation and what data and storage cost."""
    hours = flops / gpu.flops_per_s / 3600
    return Cost(hours, hours / gpus / 24, hours * gpu.dollars_per_hour)


def flops_of_hours(gpu_hours: float, gpu: Gpu) -> float:
    return gpu_hours * 3600 * gpu.flops_per_s


def flops_of_dollars(dollars: float, gpu: Gpu) -> float:
    return flops_of_hours(dollars / gpu.dollars_per_hour, gpu)
