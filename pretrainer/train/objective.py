"""What a slot block teaches: which positions carry loss, and what stands at the inputs. numpy alone, before a device.

An objective is a function of (batch, its global slot block, how) and is listed in OBJECTIVES. Its draws are keyed by
(run.seed, slot block, position), so they are the same at every world size and micro-batch size and after every resume,
and another epoch of the same text, whose slot blocks have other numbers, gets other masks (dynamic masking, RoBERTa,
arXiv:1907.11692).

Shapes: K sequences of S + 1 ids in a slot block, of which S are inputs; V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pretrainer.config import Config, TrainConfig
from pretrainer.schema import Batch, MaskVocabulary

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays (BERT, Devlin et al. 2019, arXiv:1810.04805)
DRAWS = 3  # per position: is it chosen, what becomes of it, which random id


@dataclass(frozen=True)
class How:
    """All that an objective needs beside the batch."""

    name: str = "clm"  # in OBJECTIVES
    seed: int = 0
    mask_rate: float = 0.15
    whole_word: bool = False
    vocabulary: MaskVocabulary | None = None  # None for clm


@dataclass(frozen=True)
class Lesson:
    """One slot block as it is learned."""

    has_target: np.ndarray  # [K, S] bool
    shift: int  # the target of position i is the id at i + shift
    replaced: np.ndarray | None = None  # [K, S] int64 ids that stand at the inputs, -1 where the input stays

    @property
    def targets(self) -> int:
        """Positions that carry loss."""
        return int(np.count_nonzero(self.has_target))


def causal_lm(batch: Batch, slot_block: int, how: How) -> Lesson:
    """The next id of the same document at every position."""
    return Lesson(batch.has_target(), 1)


def masked_lm(batch: Batch, slot_block: int, how: How) -> Lesson:
    """BERT's objective: tokens are chosen at `mask_rate`; of them 80 % become the mask, 10 % a random id, 10 % stay.

    Each token, or with whole_word each word, is chosen by itself, as in RoBERTa; BERT chose a fixed number per row.
    Special tokens and padding are never chosen and never a random id. Departure: the last id of a row, which causal
    training has as a target alone, is not read.
    """
    assert how.vocabulary is not None, "masked_lm needs the vocabulary's table"
    words = how.vocabulary
    ids = batch.tokens[:, :-1].astype(np.int64)
    chance = uniforms(how.seed, slot_block, ids.shape)
    choice = chance[..., 0]
    if how.whole_word:
        choice = choice.ravel()[word_starts(batch, words)]
    inside = np.arange(ids.shape[1]) < batch.lengths[:, None]
    chosen = (choice < how.mask_rate) & inside & words.ordinary[ids]
    fate, candidates = chance[..., 1], np.flatnonzero(words.ordinary)
    random_ids = candidates[(chance[..., 2] * len(candidates)).astype(np.int64)]
    becomes = np.where(fate < MASKED, words.mask_id, np.where(fate < MASKED + RANDOM, random_ids, -1))
    return Lesson(chosen, 0, np.where(chosen, becomes, -1))


Objective = Callable[[Batch, int, How], Lesson]
OBJECTIVES: dict[str, Objective] = {"clm": causal_lm, "mlm": masked_lm}


def lesson(batch: Batch, slot_block: int, how: How) -> Lesson:
    """The slot block of this global number, as the objective has it learned."""
    return OBJECTIVES[how.name](batch, slot_block, how)


def how_of(config: Config, vocabulary: MaskVocabulary | None) -> How:
    """The config's objective; vocabulary is that of the run's tokenizer, and only mlm looks at it."""
    train = config.train
    return How(train.objective, config.run.seed, train.mlm_mask_rate, train.mlm_whole_word, vocabulary)


def target_bytes(config: TrainConfig, text_bytes: int) -> int:
    """UTF-8 bytes behind the targets of a text: all of it, or the share that is masked, as it is expected."""
    return round(text_bytes * config.mlm_mask_rate) if config.objective == "mlm" else text_bytes


def uniforms(seed: int, slot_block: int, shape: tuple[int, ...]) -> np.ndarray:
    """[K, S, DRAWS] float64 in [0, 1), a function of seed, slot block and position.

    Philox (Salmon et al. 2011) is a counter put through a keyed hash. Its raw words are used, not numpy's
    distributions, whose streams may change between versions.
    """
    digest = hashlib.sha256(f"{seed}/mlm/{slot_block}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(DRAWS * int(np.prod(shape)))
    return ((words >> np.uint64(11)) * 2.0**-53).reshape(*shape, DRAWS)


def word_starts(batch: Batch, words: MaskVocabulary) -> np.ndarray:
    """[K, S] int64: for every position the flat offset of the first token of its word; words end where documents do."""
    ids, width = batch.tokens[:, :-1], batch.tokens.shape[1] - 1
    begins = words.begins[ids] | ~words.ordinary[ids]
    begins[:, 1:] |= (words.ends | ~words.ordinary)[ids[:, :-1]]
    is_start = np.zeros(batch.tokens.shape, dtype=bool)
    is_start.ravel()[batch.starts] = True
    begins |= is_start[:, :-1]
    begins[:, 0] = True
    flat = np.arange(ids.size, dtype=np.int64).reshape(-1, width)
    return np.maximum.accumulate(np.where(begins, flat, 0), axis=1)
