"""The config of a run that begins with another model (`init.uri`): what is left out is taken from that parent.

Architecture and tokenizer are the parent's, and a field that says otherwise is an error. The learning rate is warmed up
and decayed again from a share of the parent's peak, and half of the tokens replay what it was trained on: the three
measures that keep what a model knows while it learns something new (Ibrahim et al. 2024, arXiv:2403.08763; departure:
they replay 5 % for a weak shift and 25 to 50 % for another language, here it is half unless init.replay_share is set).
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

from pipelines.driver.cli import read_config
from pipelines.driver.parent import Parent, parent_of
from pipelines.driver.replay_mixture import mix_in_replay
from pretrainer.config import Config, InitConfig, ModelConfig, TrainConfig
from pretrainer.config_load import given_fields
from pretrainer.errors import ConfigError, require
from pretrainer.model.presets import PRESETS, parameter_count, resolve, resolve_model_of
from pretrainer.plan.batch import gpt3
from pretrainer.storage import Store, redact, resolve_run

CAN_CHANGE = (
    "rope_theta", "rope_scaling", "sliding_window", "global_attention_every", "dropout", "document_mask", "context",
    "moe.balance", "moe.balance_weight", "moe.z_loss_weight", "moe.bias_rate",
)  # fmt: skip
"""Fields of `model` that may differ from the parent's: they change no weight, though what is computed with them."""
LEAST_VOCAB_SIZE = 512


def read_resolved(options: argparse.Namespace) -> tuple[Config, Parent | None]:
    """The config of a pipeline's arguments, its preset and its parent filled in; and the parent."""
    config = read_config(options)
    run = resolve_run(config.run.name, config.run.storage)
    parent = parent_of(config, run)
    if parent is None:
        return resolve_model_of(config), None
    return continued(config, given_fields(options.config, options.overrides), parent), parent


def continued(config: Config, given: Collection[str], parent: Parent) -> Config:
    """The config with what its parent decides; `given` are the fields that the person gave. Done twice, it is the same.

    Raises ConfigError for a field that goes against the parent.
    """
    model = _model(config, given, parent)
    data, replay, share = mix_in_replay(config, given, parent)
    init = replace(
        config.init,
        uri=parent.uri,
        checkpoint="newest" if parent.step is None else str(parent.step),
        original_learning_rate=config.init.original_learning_rate or parent.learning_rate,
        replay=replay,
        replay_share=share,
    )
    train = _train(config, given, init, parent, model)
    ids = parent.known + len(init.add_tokens)
    _check_tokenizer(config, given, parent, ids)
    # A size below the least that can be trained is said as that: it only counts where model.vocab_size says nothing.
    tokenizer = replace(config.tokenizer, uri=parent.tokenizer_uri, vocab_size=max(LEAST_VOCAB_SIZE, ids))
    result = replace(config, model=model, data=data, init=init, train=train, tokenizer=tokenizer)
    result.check_widths()
    return result


# ------------------------------------------------------------------------------------------------------------- model


def _model(config: Config, given: Collection[str], parent: Parent) -> ModelConfig:
    """The parent's, with the fields that can change as they are given."""
    wanted, loaded = resolve(config.model), parent.model
    names = sorted({name.removeprefix("model.") for name in given if name.startswith("model.")} | _of_preset(config))
    changes: dict[str, Any] = {}
    for name in names:
        value, section = _value(wanted, name), name.split(".")[0]
        if name in ("preset", "vocab_size"):
            continue
        if (name in CAN_CHANGE or section in CAN_CHANGE) and not (name == "context" and loaded.positions == "learned"):
            changes[section] = _value(wanted, section)
        elif value is not None:
            theirs = _effective(loaded, name)
            why = f"the model of {redact(parent.uri)} has {theirs!r}: leave it out"
            require(value == theirs, f"model.{name}", value, why)
    if "moe" in changes:
        own = {name.removeprefix("moe."): _value(wanted, name) for name in names if name in CAN_CHANGE and "." in name}
        changes["moe"] = replace(loaded.moe, **own)
    model = replace(loaded, preset=None, **changes)
    return replace(model, vocab_size=_rows(config, parent))


def _of_preset(config: Config) -> set[str]:
    """Fields that model.preset gives."""
    preset = PRESETS.get(config.model.preset or "", {})
    return {
        f"{name}.{inner}" if inner else name
        for name, value in preset.items()
        for inner in (value if isinstance(value, dict) else [""])
    }


def _value(model: ModelConfig, name: str) -> Any:
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _effective(model: ModelConfig, name: str) -> Any:
    """What a field comes to where it is left to others."""
    derived = {"kv_heads": "num_kv_heads", "head_width": "width_per_head", "ffn_hidden": "ffn_width"}
    return _value(model, derived.get(name, name))


def _rows(config: Config, parent: Parent) -> int | None:
    """Rows of the embedding; None where the tokenizer has as many ids."""
    ids, asked = parent.known + len(config.init.add_tokens), config.model.vocab_size
    least = max(parent.rows, ids)
    require(asked is None or asked >= least, "model.vocab_size", asked, f"the loaded model needs {least} rows or more")
    rows = asked or least
    return None if rows == ids else rows


def _check_tokenizer(config: Config, given: Collection[str], parent: Parent, ids: int) -> None:
    where, size = config.tokenizer.uri, config.tokenizer.vocab_size
    same = where in (None, parent.tokenizer_uri) or Store(str(where)).uri == Store(parent.tokenizer_uri).uri
    why = f"the tokenizer comes with the model, from {parent.tokenizer_uri}: leave it out"
    require(same, "tokenizer.uri", where, why)
    known = {parent.known, ids, max(LEAST_VOCAB_SIZE, ids)}
    why = f"the tokenizer comes with the model and has {parent.known:,} ids: leave it out, or use init.add_tokens"
    require("tokenizer.vocab_size" not in given or size in known, "tokenizer.vocab_size", size, why)


# ----------------------------------------------------------------------------------------------------- learning rate


def _train(
    config: Config, given: Collection[str], init: InitConfig, parent: Parent, model: ModelConfig
) -> TrainConfig:
    """With a share of the original peak, unless the person gave one."""
    if "train.learning_rate" in given:
        return config.train
    peak, before = init.original_learning_rate, parent.config
    if peak is None:
        size = parameter_count(model, parent.rows)
        usual = gpt3(size, 0).learning_rate or 0.0
        raise ConfigError(
            f"train.learning_rate is missing: {redact(parent.uri)} does not say with which peak the model was trained. "
            "Give 10 to 30 % of that peak, or the peak itself as init.original_learning_rate. Of a model of "
            f"{size:,} parameters it was often near {usual:.1e} (GPT-3's table), of which 20 % are {usual / 5:.1e}"
        )
    same = before is None or before.train.optimizer == config.train.optimizer
    require(same, "train.optimizer", config.train.optimizer, "the model was trained with another one, whose peak says "
            "nothing about this one: give train.learning_rate as well")  # fmt: skip
    return replace(config.train, learning_rate=init.learning_rate_ratio * peak)


# ------------------------------------------------------------------------------------------------------ what is told


def rows_of(config: Config) -> list[tuple[str, str]]:
    """Of the plan that is printed: what was derived from the parent."""
    init, train = config.init, config.train
    if init.uri is None:
        return []
    step = "" if init.checkpoint == "newest" else f", checkpoint of step {int(init.checkpoint):,}"
    rows = [("begins with", f"{redact(init.uri)}{step}; the optimizer starts fresh")]
    warmup = f"warm-up again over {train.warmup(config.total_steps):,} steps"
    if init.original_learning_rate is not None:
        ratio = train.learning_rate / init.original_learning_rate
        peak = f"{ratio:.3g} of the {init.original_learning_rate:g} that the model had"
        rows.append(("learning rate", f"peak {train.learning_rate:g}, {peak}; {warmup}"))
    else:
        rows.append(("learning rate", f"peak {train.learning_rate:g}; {warmup}"))
    rows.append(("replay", f"{', '.join(init.replay) or 'none'}: {_replay_words(config)}"))
    if init.add_tokens:
        rows.append(("added tokens", f"{len(init.add_tokens):,}: {' '.join(init.add_tokens[:8])}"))
    return rows


def _replay_words(config: Config) -> str:
    names = {source.name for source in config.data.sources}
    if not config.init.replay:
        return "what the model knew is neither kept nor measured; init.replay names sources that stand for it"
    if names <= set(config.init.replay):
        return "there is no new source, so all of the training tokens"
    if config.init.replay_share == 0:
        return "none of the training tokens; their held-out loss says what is forgotten"
    return f"{config.init.replay_share:.1%} of the training tokens, against forgetting"


def changes_from(config: Config, parent: Parent) -> list[str]:
    """What of the parent's model is not kept, so that the run does not begin at its loss; and what may be forgotten."""
    before, now = parent.model, config.model
    lines = [
        f"model.{field.name} is {_short(getattr(now, field.name))}, the loaded model has "
        f"{_short(getattr(before, field.name))}"
        for field in fields(ModelConfig)
        if field.name not in ("preset", "vocab_size") and getattr(now, field.name) != getattr(before, field.name)
    ]
    data = config.data
    longest = max([data.seq_len] + [segment.seq_len or data.seq_len for segment in data.curriculum])
    scaled = (now.rope_theta, now.rope_scaling) != (before.rope_theta, before.rope_scaling)
    if parent.context is not None and longest > parent.context and now.positions == "rope" and not scaled:
        lines.append(
            f"warning: sequences of {longest:,} tokens are longer than the {parent.context:,} that the model knows: "
            "set model.rope_scaling or a larger model.rope_theta"
        )
    return lines


def _short(value: Any) -> str:
    """A section by the fields that differ from their defaults."""
    if not hasattr(value, "__dataclass_fields__"):
        return repr(value)
    default = {field.name: field.default for field in fields(value) if field.default is not MISSING}
    return str({name: own for name, own in asdict(value).items() if own != default.get(name)})
