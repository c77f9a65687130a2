"""What a run's weights begin with, when they are not drawn: continued pre-training."""

from __future__ import annotations

from dataclasses import dataclass

from pretrainer.errors import require


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    uri: str | None = None
    """Begin with the weights of this run (its name under run.storage, path or URI) or of this Hugging Face folder;
    model and tokenizer are its own, the optimizer starts fresh. By default weights are drawn."""
    checkpoint: str = "newest"
    """Which checkpoint of a run: newest, best, or a step."""
    learning_rate_ratio: float = 0.2
    """Peak learning rate as a share of original_learning_rate, where train.learning_rate is not given; 0.1 to 0.3 is
    usual."""
    original_learning_rate: float | None = None
    """Peak learning rate that the model was first trained with; a run says it, a Hugging Face folder does not."""
    replay: tuple[str, ...] = ()
    """Names of the data.sources that stand for what the model was trained on; by default the sources of the run, which
    are added to data.sources. Their held-out loss before and after is reported as forgetting."""
    replay_share: float = 0.5
    """Share of the training tokens that comes from the replay sources; 0 only measures forgetting on them."""
    add_tokens: tuple[str, ...] = ()
    """Texts that become tokens of their own, behind the ids of the loaded tokenizer."""

    def __post_init__(self) -> None:
        steps = self.checkpoint.isdecimal() or self.checkpoint in ("newest", "best")
        require(steps, "init.checkpoint", self.checkpoint, "use newest, best, or the step of a checkpoint")
        ratio, original = self.learning_rate_ratio, self.original_learning_rate
        require(ratio > 0, "init.learning_rate_ratio", ratio, "use a positive number, 0.1 to 0.3 as a rule")
        require(original is None or original > 0, "init.original_learning_rate", original, "use a positive number")
        require(0 <= self.replay_share < 1, "init.replay_share", self.replay_share, "use a number from 0 to below 1")
        tokens = list(self.add_tokens)
        require(all(tokens) and len(set(tokens)) == len(tokens), "init.add_tokens", tokens, "give different texts")
        if self.uri is None:
            alone = {"add_tokens": self.add_tokens, "replay": self.replay}
            for name, value in alone.items():
                require(not value, f"init.{name}", list(value), "is about a loaded model: set init.uri as well")
