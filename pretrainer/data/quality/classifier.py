"""Quality score of a document: a linear classifier over hashed n-grams, calibrated; and the stage that drops by it.

GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix A) and DCLM (Li et al. 2024, arXiv:2406.11794, section 4.4) train
on good documents against a sample of the crawl, and DCLM keeps the best 10 %. A score means something for one model
alone, so other people's thresholds (DCLM's is 0.018112) say nothing here: choose by `keep_share`.

Score: 1 / (1 + exp(-(slope m + offset))), m the features times the weights. It is the probability that a document is
a positive one where both sets are equally common (Platt 1999), whatever the sizes of the training sets were. A text
without a single feature has score 0. Scores are rounded to 1e-9, so that exp's last bit decides nothing on other CPUs.

Keep-rate curve: quantiles of the scores of negatives (and of positives, for the report) that the weights were not
fitted to. The negatives are what `keep_share` is measured on: give a plain sample of what will be filtered, and where
the source's preset edits texts (c4, refinedweb, web) texts that went through it, because the stage sees those.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from pretrainer.config.curation import QualityConfig
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.data.quality.features import FeatureScheme, margins
from pretrainer.data.quality.model_file import Header, pack, unpack
from pretrainer.data.resources import Read
from pretrainer.errors import ConfigError, UserError

KIND, VERSION = "quality classifier", 1
FIELD = "data.quality.model"
QUANTILES = 1001
"""Points of the keep-rate curve: the quantiles 0, 0.001, … 1."""


@dataclass(frozen=True)
class Classifier:
    """A trained model."""

    scheme: FeatureScheme
    weights: np.ndarray  # [B] float32
    slope: float
    offset: float
    negative_quantiles: np.ndarray  # [QUANTILES] float64, ascending scores
    positive_quantiles: np.ndarray
    report: Header  # how it was trained and how good it is, plain JSON values

    def score(self, texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """[N] float64 in [0, 1]; of each document whatever the others are."""
        return calibrated(margins(texts, self.scheme, self.weights), self.slope, self.offset)

    def threshold(self, keep_share: float) -> float:
        """The score that a share of the held-back negatives reaches; 0 for all of them."""
        if keep_share == 1:
            return 0.0
        return float(np.quantile(self.negative_quantiles, 1 - keep_share))

    def to_bytes(self) -> bytes:
        header = {
            "scheme": self.scheme.id,
            "features": asdict(self.scheme),
            "slope": self.slope,
            "offset": self.offset,
            "report": self.report,
        }
        arrays = {
            "weights": self.weights,
            "negative_quantiles": self.negative_quantiles,
            "positive_quantiles": self.positive_quantiles,
        }
        return pack(KIND, VERSION, header, arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> Classifier:
        """Inverse of `to_bytes`; UserError if the bytes are no such model or one of another feature scheme."""
        header, arrays = unpack(data, KIND, VERSION, FIELD)
        scheme = _scheme(header)
        if arrays["weights"].shape != (scheme.buckets,):
            size = len(arrays["weights"])
            raise UserError(f"{FIELD}: {size} weights do not fit the scheme {scheme.id}: train it again")
        return cls(scheme, slope=header["slope"], offset=header["offset"], report=header["report"], **arrays)


def _scheme(header: Header) -> FeatureScheme:
    try:
        scheme = FeatureScheme(**header["features"])
    except (TypeError, ConfigError):
        scheme = FeatureScheme()
    if header["scheme"] != scheme.id:
        raise UserError(
            f"{FIELD}: the model was trained on features of the scheme {header['scheme']!r}, which this code does not "
            f"make (it makes {scheme.id!r} and the like): use the code that trained it, or train it again"
        )
    return scheme


def calibrated(margin: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """Margins [N] as scores; NaN, a document without features, as 0."""
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-(slope * margin + offset)))
    return np.where(np.isnan(margin), 0.0, np.round(scores, 9))


def quantiles(scores: np.ndarray) -> np.ndarray:
    """[QUANTILES] points of the keep-rate curve."""
    return np.quantile(scores, np.linspace(0, 1, QUANTILES))


def quality_stage(config: QualityConfig, read: Read) -> Stage:
    """Measure `quality_score`, drop what is below `min_score` or behind `keep_share` (low_quality)."""
    assert config.model is not None
    model = Classifier.from_bytes(read(config.model))
    least = config.min_score if config.keep_share is None else model.threshold(config.keep_share)
    assert least is not None

    def measure(docs: pa.Table) -> Measured:
        return {"quality_score": model.score(docs.column("text"))}, docs

    return Stage("quality", measure, (Rule("low_quality", "quality_score", least=least),))
