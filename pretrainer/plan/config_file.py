"""The plan as a config: a short YAML delta that `pretrain` loads unchanged."""

from __future__ import annotations

import math
from dataclasses import replace

from pretrainer.config import Config, DataConfig, TokenizerConfig, TrainConfig
from pretrainer.config_load import to_delta_yaml
from pretrainer.plan.planner import Plan
from pretrainer.plan.units import short

EXAMPLE_TOKENS = 1e8
"""A longer run has outgrown the quickstart's few megabytes, and settings that are made for them."""


def config_of(plan: Plan) -> Config:
    """The base config with the plan's model, batch, length and cluster; the rest is as it was."""
    base, run = plan.request.base, plan.run
    config = base.config
    return replace(
        config,
        run=replace(config.run, name=f"plan-{short(plan.parameters).lower()}") if base.is_example else config.run,
        data=_data(plan),
        tokenizer=_tokenizer(plan),
        model=plan.model,
        train=replace(
            _cadence(plan) if base.is_example else config.train,
            num_workers=run.gpus,
            shard_workers=run.shard_gpus,
            tensor_parallel=run.tensor_parallel,
            context_parallel=1,
            activation_checkpointing=run.checkpointing,
            steps=None,
            tokens=plan.tokens,
            global_batch_tokens=run.batch_tokens,
            micro_batch_sequences=None if run.micro_sequences == run.slot_sequences else run.micro_sequences,
            learning_rate=plan.learning_rate,
            warmup_steps=plan.warmup_steps,
            warmup_ratio=None,
        ),
    )


def _is_large_example(plan: Plan) -> bool:
    return plan.request.base.is_example and plan.tokens > EXAMPLE_TOKENS


def _tokenizer(plan: Plan) -> TokenizerConfig:
    if _is_large_example(plan):
        return TokenizerConfig(vocab_size=plan.vocab_size)
    config = plan.request.base.config.tokenizer
    return config if plan.request.base.vocab_size else replace(config, vocab_size=plan.vocab_size)


def _data(plan: Plan) -> DataConfig:
    """Rows and windows of the plan; sources that it repeats may be passed through as often."""
    data, run, passes = plan.request.base.config.data, plan.run, plan.passes
    if _is_large_example(plan):
        data = DataConfig(sources=data.sources, max_dead_letter_share=data.max_dead_letter_share)
    sources = tuple(
        replace(source, max_epochs=max(source.max_epochs, math.ceil(passes.get(source.name, 0.0) + 0.01)))
        for source in data.sources
    )
    window = max(data.pack_window_tokens, 1 << (64 * (run.seq_len + 1) - 1).bit_length())
    return replace(
        data, sources=sources, seq_len=run.seq_len, slot_sequences=run.slot_sequences, pack_window_tokens=window
    )


def _cadence(plan: Plan) -> TrainConfig:
    """Ten checkpoints, validations and samples in a run, or more."""
    every = max(1, min(500, plan.steps // 10))
    return TrainConfig(
        steps=1,
        checkpoint_every_steps=every,
        validate_every_steps=every,
        sample_every_steps=every,
        log_every_steps=max(1, min(10, every)),
    )


def config_text(plan: Plan, path: str) -> str:
    """The file's content; `path` is how its comment calls it."""
    loss = f", predicted loss {plan.loss:.3f}" if plan.has_meaningful_loss else ""
    lines = [
        f"# {plan.summary}.",
        f"# {plan.split.ratio:.1f} tokens per parameter, {plan.split.flops:.3g} FLOPs (6 N D){loss}.",
        f"# Written by `python -m pipelines.plan`. To use it: python -m pipelines.pretrain --config {path}",
    ]
    if plan.request.base.is_example:
        lines.append("# The sources are those of the quickstart, an example of a few megabytes: put your own in place.")
    return "\n".join(lines) + "\n" + to_delta_yaml(config_of(plan))
