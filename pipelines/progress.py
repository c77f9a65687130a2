"""What a person sees while a run goes on: the plan, the data, a line per interval, samples."""

from __future__ import annotations

import math
import time
from typing import Any

from pipelines.cli import Cluster
from pretrainer.config import Config
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import Frozen
from pretrainer.storage import Store


class Console:
    """Prints what happens; knows the run's config and data once they are frozen."""

    def __init__(self, started_s: float, config: Config) -> None:
        self.started_s = started_s
        self.config = config
        self.frozen: Frozen | None = None

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def plan(self, run: Store, there: Cluster, lines: list[str]) -> None:
        self.say(f"run {self.config.run.name} in {run.uri}")
        self.say("\n".join(lines))
        if there.dashboard:
            self.say(f"  {'Ray dashboard':<22}{there.dashboard}")

    def data(self, data: Frozen) -> None:
        self.frozen = data
        self.say(
            f"\ndata frozen after {time.time() - self.started_s:.0f} s: stream {data.fingerprint}, "
            f"vocabulary {data.vocab_size:,}"
        )
        for name, held in data.held_out.items():
            self.say(
                f"  held out of {name}: {held.documents:,} documents, {held.bytes:,} bytes; bits per byte of gzip -9 "
                f"{held.gzip_bits_per_byte:.3f}, of unigram tokens {held.unigram_bits_per_byte:.3f}"
            )
        shares = ", ".join(
            f"{s.name} {n}/{data.mixture.cycle}"
            for s, n in zip(self.config.data.sources, data.mixture.shares, strict=True)
        )
        self.say(f"  mixture: {shares} of the slot blocks")
        for name in data.changes:
            self.say(f"  changed since the last start, so a new ledger is begun: {name}")

    def event(self, event: dict[str, Any]) -> None:
        """A line or a few for an event of the recorder, where it deserves one."""
        printer = getattr(self, f"_{event['kind']}", None)
        if printer is not None and self.frozen is not None:
            printer(event, self.frozen)

    def _start(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"\n{self._clock()} {event['world_size']} workers begin at step {event['step']:,}")

    def _steps(self, event: dict[str, Any], data: Frozen) -> None:
        if not event["steps"]:
            return
        last, config = event["steps"][-1], self.config
        left = (config.total_steps - last["step"]) * config.train.global_batch_tokens / max(1.0, event["tokens_per_s"])
        mfu = "" if event["mfu"] is None else f"  MFU {event['mfu']:.1%}"
        self.say(
            f"{self._clock()} step {last['step']:>6,}/{config.total_steps:,}  loss {last['loss']:7.4f}"
            f"  grad {last['grad_norm']:6.2f}  lr {last['learning_rate']:.2e}"
            f"  {event['tokens_per_s']:>9,.0f} tokens/s{mfu}"
            f"  data wait {event['data_wait_fraction']:5.1%}  ETA {_duration(left)}"
        )

    def _validation(self, event: dict[str, Any], data: Frozen) -> None:
        for name, values in event["sources"].items():
            self.say(
                f"{self._clock()} held out {name}: loss {values['loss']:.4f}, perplexity {values['perplexity']:,.1f} "
                f"(uniform guess {data.vocab_size:,}), bits per byte {values['bits_per_byte']:.3f} "
                f"(gzip -9 {data.held_out[name].gzip_bits_per_byte:.3f}, "
                f"unigram {data.held_out[name].unigram_bits_per_byte:.3f})"
            )
        if event["step"] == 0:
            first = next(iter(event["sources"].values()))["loss"]
            self.say(
                f"{self._clock()} before training the loss is {first:.3f}; "
                f"ln(vocabulary) is {math.log(data.vocab_size):.3f}"
            )

    def _sample(self, event: dict[str, Any], data: Frozen) -> None:
        text = decode(data, event["ids"])
        self.say(f"{self._clock()} sample at step {event['step']:,} (a held-out document's beginning, continued):")
        self.say("\n".join("    | " + line for line in text.splitlines()[:12]))

    def _checkpoint(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} checkpoint of step {event['step']:,}, order digest {event['order_digest'][:16]}")

    def _clock(self) -> str:
        return f"[{_duration(time.time() - self.started_s)}]"


def decode(data: Frozen, ids: list[int]) -> str:
    """Text of token ids in the run's tokenizer."""
    return load_tokenizer(data.plans[0].data_uri).decode(ids)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(max(0.0, seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"
