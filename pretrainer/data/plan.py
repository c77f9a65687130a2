"""What a data worker needs to know about one source of a run: small, picklable; the rest is in the run folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pretrainer import subcluster
from pretrainer.config import DataConfig, SourceConfig
from pretrainer.data.ledger.ledger import Ledger, open_ledger
from pretrainer.data.ledger.windows import WindowLog
from pretrainer.data.readers.source import Manifest
from pretrainer.data.readers.units import Permutation, UnitPlan, order_key, permute
from pretrainer.data.resources import read_resource
from pretrainer.data.tokenizer.tokenizer import Tokenizer
from pretrainer.schema import Specials
from pretrainer.storage import Store


@dataclass(frozen=True)
class SourcePlan:
    """One source of one run. `data_uri` is the run's data folder; the fingerprints name the folders inside it."""

    index: int
    data_uri: str
    config: DataConfig
    curation: str
    packing: str
    units: int
    specials: Specials = Specials()
    begin: tuple[int, int] = (0, 0)  # (stream position, chunk) of the first chunk that is packed
    subcluster: str | None = None  # cluster.data_subcluster

    @property
    def source(self) -> SourceConfig:
        return self.config.sources[self.index]

    @property
    def labels(self) -> dict[str, str]:
        """Of the nodes that its tasks may run on; any node if empty."""
        return subcluster.selector(self.subcluster)

    @property
    def positions(self) -> int:
        """Length of the stream in units, over all epochs."""
        return self.units * self.source.max_epochs

    @property
    def ledger(self) -> Ledger:
        return open_ledger(Store(self.data_uri).child(f"ledger/{self.source.name}-{self.curation}").uri)

    @property
    def windows(self) -> WindowLog:
        return WindowLog(Store(self.data_uri).child(f"packing/{self.source.name}-{self.packing}"))

    @property
    def unit_plan(self) -> UnitPlan:
        return _unit_plan(self.data_uri, self.index, self.config.chunk_bytes)

    def resource(self, uri: str) -> bytes:
        """The frozen copy of a file that the config names."""
        return read_resource(self.data_uri, uri)

    @property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.data_uri)

    def place(self, position: int) -> Place:
        """Which unit stands at a stream position, and where curation (epoch 0) has it."""
        epoch, at = divmod(position, self.units)
        unit = self._order(epoch)(at)
        return Place(epoch, unit, at if epoch == 0 else self._order(0).inverse(unit))

    def position(self, curated_at: int, epoch: int) -> int:
        """The stream position at which an epoch reads the unit that was curated at this place; inverse of `place`."""
        return epoch * self.units + self._order(epoch).inverse(self._order(0)(curated_at))

    def _order(self, epoch: int) -> Permutation:
        return permute(self.units, order_key(self.config.order_seed, self.source.name, epoch))


@dataclass(frozen=True)
class Place:
    epoch: int
    unit: int  # number of the unit in the manifest
    curated_at: int  # its position in epoch 0, which is its name in the ledger


def draft_plans(
    config: DataConfig, manifest: Manifest, data: Store, subcluster: str | None = None
) -> list[SourcePlan]:
    """A plan by source, its fingerprints still unknown: enough to read and to filter."""
    units = [len(UnitPlan(manifest, i, config.chunk_bytes)) for i in range(len(config.sources))]
    return [SourcePlan(i, data.uri, config, "", "", count, subcluster=subcluster) for i, count in enumerate(units)]


@lru_cache(maxsize=8)
def load_manifest(data_uri: str) -> Manifest:
    """The frozen manifest of a run, kept in the process."""
    return Manifest.from_bytes(Store(data_uri).read("manifest.arrow"))


@lru_cache(maxsize=32)
def _unit_plan(data_uri: str, index: int, chunk_bytes: int) -> UnitPlan:
    return UnitPlan(load_manifest(data_uri), index, chunk_bytes)


@lru_cache(maxsize=4)
def load_tokenizer(data_uri: str) -> Tokenizer:
    """The frozen tokenizer of a run, kept in the process."""
    store = Store(data_uri)
    name = "tokenizer.model" if store.exists("tokenizer.model") else "tokenizer.json"
    return Tokenizer.from_bytes(store.read(name))
