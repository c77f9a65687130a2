"""What a person sees while a run goes on: the plan, the data, a line per interval, samples."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from pipelines.driver.cli import Cluster
from pipelines.driver.forgetting import words
from pretrainer.config import Config
from pretrainer.data.curriculum import Segment, epochs_needed
from pretrainer.data.plan import load_tokenizer
from pretrainer.data.prologue import Frozen
from pretrainer.storage import Store

LOOKS_TO_TELL = 5
MOST_CULPRITS = 8
REPETITION_PAYS = 4
"""Epochs up to which repeated tokens are nearly as good as new ones: Muennighoff et al. 2023, arXiv:2305.16264."""


class Console:
    """Prints what happens; knows the run's config and data once they are frozen."""

    def __init__(self, started_s: float, config: Config) -> None:
        self.started_s = started_s
        self.config = config
        self.frozen: Frozen | None = None
        self.starts_told = 0

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
        self._epochs(data)
        for segment in data.segments:
            self.say(f"  {self._segment(segment)}")
        for name in data.changes:
            self.say(f"  changed since the last start, so a new ledger is begun: {name}")

    def _epochs(self, data: Frozen) -> None:
        """How often the run passes through each source; more than 4 times is known to pay less and less."""
        ratios = [held.tokens / held.bytes for held in data.held_out.values()]
        tokens = [size * ratio for size, ratio in zip(data.sizes, ratios, strict=True)]
        needed = epochs_needed(data.segments, self.config.train.global_batch_tokens, tokens)
        for source, has, epochs in zip(self.config.data.sources, tokens, needed, strict=True):
            warning = ""
            if epochs > source.max_epochs:
                warning = f"; more than max_epochs={source.max_epochs}: the run may end early"
            elif epochs > REPETITION_PAYS:
                warning = f"; past {REPETITION_PAYS} epochs repeated data is worth little (arXiv:2305.16264)"
            self.say(f"  source {source.name}: about {has:,.0f} tokens an epoch, the run takes {epochs:.2f}{warning}")

    def _segment(self, segment: Segment) -> str:
        order, names = segment.order, [source.name for source in self.config.data.sources]
        shares = ", ".join(
            f"{name} {n}/{order.mixture.cycle} (asked {asked:.4f})"
            for name, n, asked in zip(names, order.shares, segment.asked, strict=True)
            if n
        )
        return (
            f"steps {segment.first_step:,} to {segment.end_step:,}: slot blocks of {segment.slot_sequences} x "
            f"{segment.seq_len} tokens, {shares}"
        )

    def event(self, event: dict[str, Any], starts: Sequence[dict[str, Any]] = ()) -> None:
        """A line or a few for an event of the recorder, where it deserves one; `starts` as in starts.json."""
        if event["kind"] == "steps" and starts and starts[-1].get("seconds") and len(starts) != self.starts_told:
            self.starts_told = len(starts)
            self.say(f"{self._clock()} {start_line(starts[-1]['seconds'])}")
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
        if event["step"] == 0 and self.config.init.uri is None:
            first = next(iter(event["sources"].values()))["loss"]
            self.say(
                f"{self._clock()} before training the loss is {first:.3f}; "
                f"ln(vocabulary) is {math.log(data.vocab_size):.3f}"
            )

    def _evaluation(self, event: dict[str, Any], data: Frozen) -> None:
        waited = f"training waited {event['seconds']:.1f} s" if event["by"] == "workers" else "beside the training"
        self.say(f"{self._clock()} evaluation of step {event['step']:,} ({event['cadence']}; {waited}):")
        for name, task in event["tasks"].items():
            self.say(f"    {name:<28}{shown_metrics(task)}")

    def _evaluation_failed(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} warning: {event['message']}")

    def _forgetting(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} forgetting at step {event['step']:,}: {words(event)}")

    def _sample(self, event: dict[str, Any], data: Frozen) -> None:
        text = decode(data, event["ids"])
        self.say(f"{self._clock()} sample at step {event['step']:,} (a held-out document's beginning, continued):")
        self.say("\n".join("    | " + line for line in text.splitlines()[:12]))

    def _checkpoint(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(
            f"{self._clock()} checkpoint of step {event['step']:,}, order digest {event['order_digest'][:16]}; "
            f"training waited {event['blocking_s']:.2f} s of {event['total_s']:.2f} s"
        )

    def _copy(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(
            f"{self._clock()} checkpoint of step {event['step']:,} copied to {event['to']}, "
            f"{event['bytes'] / 1e6:,.1f} MB in {event['seconds']:.1f} s"
        )

    def _copy_failed(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} warning: step {event['step']:,} was not copied to {event['to']}: {event['message']}")

    def _preempted(self, event: dict[str, Any], data: Frozen) -> None:
        left = "" if event["seconds_left"] is None else f" in {event['seconds_left']:.0f} s"
        self.say(f"{self._clock()} a node is taken away{left}: step {event['step']:,} is saved, the workers move")

    def _failure(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} the workers ended ({event['reason'] or 'failure'}): {event['message']}")

    def _stall(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} stalled: {event['message']}; the workers restart from the last checkpoint")

    def _look(self, event: dict[str, Any], data: Frozen) -> None:
        noise, batch = event["noise_scale_tokens"], event["batch_tokens"]
        if noise is not None and event["looks"] >= LOOKS_TO_TELL:
            self.say(
                f"{self._clock()} gradient noise scale {noise:,.0f} tokens (average of {event['looks']} looks), "
                f"the batch has {batch:,}: {batch_advice(batch / noise)}"
            )

    def _profile(self, event: dict[str, Any], data: Frozen) -> None:
        whole, exposed = event["communication_share"], event["exposed_communication_share"]
        self.say(
            f"{self._clock()} {whole:.1%} of step {event['step']:,} was communication between {event['world_size']} "
            f"workers, {exposed:.1%} while nothing was computed"
        )

    def _healing(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} warning: {event['message']}; {event['action']}")

    def _culprits(self, event: dict[str, Any], data: Frozen) -> None:
        """Only a few of them: a step may hold thousands."""
        first, last = event["first_step"], event["end_step"] - 1
        self.say(f"{self._clock()} steps {first} to {last} hold {event['count']:,} documents:")
        for one in event["documents"][:MOST_CULPRITS]:
            place = f"{one['source']}  {one['shard']}  row {one['row']}"
            self.say(f"    {place}  {one['document']}  {one['tokens']:,} tokens")
        if event["count"] > MOST_CULPRITS:
            self.say(f"    … all of them are in {event['where']}")

    def _waiting(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} {event['message']}")

    def _warning(self, event: dict[str, Any], data: Frozen) -> None:
        self.say(f"{self._clock()} warning: {event['message']}")

    def _clock(self) -> str:
        return f"[{_duration(time.time() - self.started_s)}]"


def shown_metrics(task: dict[str, Any]) -> str:
    """A task's metrics as evaluation.json has them, those that a line has room for."""
    guess = "" if task["guess"] is None else f" (a blind guess {task['guess']:.3f})"
    values = [f"{name} {one['value']:.4g}{_error(one)}" for name, one in task["metrics"].items() if "word" not in name]
    return ", ".join(values) + guess


def _error(metric: dict[str, Any]) -> str:
    return "" if metric["stderr"] is None else f" ± {metric['stderr']:.2g}"


def batch_advice(ratio: float) -> str:
    """What a batch of so many times the noise scale means (McCandlish et al. 2018, arXiv:1812.06162, 2.2)."""
    if ratio < 0.5:
        return "a larger one would take fewer steps at hardly more tokens"
    return "a good trade of steps for tokens" if ratio <= 2 else "a smaller one would reach the same with fewer tokens"


def start_line(seconds: dict[str, float]) -> str:
    """What the time from the driver's start, or from the failure, to the first step went to."""
    parts = ", ".join(f"{name.replace('_', ' ')} {s:.1f}" for name, s in seconds.items() if name != "total")
    return f"first step of this start after {seconds['total']:.1f} s ({parts})"


def goodput_lines(goodput: dict[str, Any]) -> list[str]:
    """One line per category, adding up to 100 % of the workers' time."""
    return [f"  {name.replace('_', ' '):<16}{share:7.1%}" for name, share in goodput["share"].items()]


def decode(data: Frozen, ids: list[int]) -> str:
    """Text of token ids in the run's tokenizer."""
    return load_tokenizer(data.plans[0].data_uri).decode(ids)


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(max(0.0, seconds)), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:02d}:{rest % 60:02d}"
