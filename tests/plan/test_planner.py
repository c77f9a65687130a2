"""Plans: known runs, budgets that are kept, impossible asks, and the config that is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import DataConfig, ModelConfig, MoeConfig, SegmentConfig, TrainConfig
from pretrainer.config_load import load_config, parse_config
from pretrainer.errors import ConfigError
from pretrainer.model.flops import GIB
from pretrainer.model.memory_plan import USABLE
from pretrainer.model.presets import resolve
from pretrainer.plan.budget import Ask, resolve_ask
from pretrainer.plan.config_file import config_of, config_text
from pretrainer.plan.laws import FRONTIERS, REFIT, Split
from pretrainer.plan.repeats import effective, effective_parameters
from pretrainer.plan.request import Available, Base, mixture_shares
from tests.plan.plans import example, plan, prices, request

H100 = prices().gpus["H100"]
OWN = load_config("configs/125m.yaml", ["model.qk_norm=true"])


def own(**changes: Any) -> Base:
    return Base(**{"config": OWN, **changes})


# ----------------------------------------------------------------------------------------------------------------- asks


@given(st.floats(15, 26).map(lambda power: 10.0**power), st.sampled_from(list(FRONTIERS)))
def test_flops_to_sizes_and_back(flops: float, law: str) -> None:
    found = resolve_ask(Ask(flops=flops, law=law), H100)
    assert found.flops == pytest.approx(flops)
    for name in ("parameters", "tokens"):
        back = resolve_ask(Ask(**{name: getattr(found, name), "law": law}), H100)
        assert back.flops == pytest.approx(flops, rel=1e-6)
        fixed = resolve_ask(Ask(flops=flops, **{name: getattr(found, name)}), H100)
        assert fixed == pytest.approx(found)
    hours = flops / H100.flops_per_s / 3600
    assert resolve_ask(Ask(gpu_hours=hours, law=law), H100) == pytest.approx(found)
    assert resolve_ask(Ask(dollars=hours * H100.dollars_per_hour, law=law), H100) == pytest.approx(found)


@given(st.floats(1, 5000))
def test_a_ratio_takes_the_place_of_the_law(ratio: float) -> None:
    for given_one in ({"flops": 1e20}, {"parameters": 1e9}, {"tokens": 1e11}):
        assert resolve_ask(Ask(**given_one, ratio=ratio), H100).ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    "given_ones",
    [
        {},
        {"ratio": 20},
        {"flops": 1, "dollars": 1},
        {"flops": 1, "tokens": 1, "parameters": 1},
        {"tokens": 1, "parameters": 1, "ratio": 20},
        {"preset": "1b", "parameters": 1},
    ],
)
def test_too_little_and_too_much_are_refused(given_ones: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be planned for: give one of --flops"):
        Ask(**given_ones)


@pytest.mark.parametrize(
    ("given_ones", "words"),
    [
        ({"tokens": -1}, "--tokens=-1"),
        ({"gpu_hours": 0}, "--gpu-hours=0"),
        ({"flops": 1, "ratio": 0}, "--tokens-per-parameter=0"),
        ({"flops": float("inf")}, "--flops=inf"),
        ({"flops": 1, "law": "approach4"}, "--law='approach4'.*approach1, approach2"),
    ],
)
def test_wrong_numbers_are_refused(given_ones: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Ask(**given_ones)


# ---------------------------------------------------------------------------------------------------------------- plans


def test_chinchilla() -> None:
    found = plan(flops=5.76e23)
    assert found.flops == pytest.approx(5.76e23, rel=0.01)  # with attention, which leaves less for 6 N D
    assert found.wanted.ratio == pytest.approx(20.9, rel=0.01)
    assert found.split.flops == pytest.approx(found.wanted.flops, rel=0.01)


def test_70b_on_2t_on_1024_a100() -> None:
    found = plan(parameters=70e9, tokens=2e12, gpu="A100", gpus=1024, tflops=150)
    assert found.model.preset == "llama2-70b" and found.parameters == pytest.approx(70e9, rel=0.05)
    assert found.split.flops == pytest.approx(8.4e23, rel=0.05)
    attention = found.flops / found.split.flops
    assert found.cost.days / attention == pytest.approx(63, rel=0.05)
    assert found.run.gpus == 1024 and found.memory.total < 79 * GIB


def test_smolgpt() -> None:
    found = plan(preset="smolgpt", tokens=4e9, gpu="L4", tflops=11.4)
    assert found.parameters == pytest.approx(27.5e6, rel=0.05) and found.run.seq_len == 512
    assert found.cost.gpu_hours == pytest.approx(18.5, rel=0.05)
    assert found.cost.dollars == pytest.approx(13, rel=0.05)


BUDGETS = st.one_of(
    st.floats(14, 24).map(lambda power: {"flops": 10.0**power}),
    st.floats(-1, 6).map(lambda power: {"dollars": 10.0**power}),
    st.floats(-1, 6).map(lambda power: {"gpu_hours": 10.0**power}),
)
SIZES = st.one_of(
    st.floats(5.5, 11).map(lambda power: {"parameters": 10.0**power}),
    st.floats(7, 12.5).map(lambda power: {"tokens": 10.0**power}),
)
GPUS = st.sampled_from(["H100", "H200", "A100", "L40S"])


@settings(max_examples=40)
@given(BUDGETS, GPUS, st.sampled_from([None, 100.0]))
@hypothesis.example({"dollars": 8.97}, "A100", 100.0)  # 57M parameters have sequences of 512 tokens, and 63M of 2,048
def test_a_budget_is_kept_and_used(budget: dict[str, float], gpu: str, ratio: float | None) -> None:
    found = plan(**budget, gpu=gpu, ratio=ratio)
    card = prices().gpus[gpu]
    spent = {
        "flops": found.flops,
        "dollars": found.cost.dollars,
        "gpu_hours": found.cost.gpu_hours,
    }
    ((name, value),) = budget.items()
    assert 0.9 * value < spent[name] <= value * (1 + 1e-9) or found.steps < 20
    assert found.cost.gpu_hours == pytest.approx(found.flops / card.flops_per_s / 3600)
    if ratio is not None and found.parameters > 5e6:
        assert ratio / 1.3 < found.split.ratio < ratio * 1.3  # sizes have steps, and so have lengths


@settings(max_examples=40)
@given(BUDGETS | SIZES, GPUS)
def test_every_plan_is_possible_and_its_config_loads_back(wanted: dict[str, float], gpu: str) -> None:
    found = plan(**wanted, gpu=gpu)
    run = found.run
    assert found.memory.total <= USABLE * prices().gpus[gpu].memory_gib * GIB
    config = parse_config(config_text(found, "plan.yaml"))
    assert config == config_of(found)
    assert config.slot_blocks_per_step == run.slot_blocks and run.slot_blocks % run.streams == 0
    assert (config.total_steps, config.train.tokens) == (found.steps, found.tokens)
    assert config.train.worker_range == (run.gpus, run.gpus)
    assert resolve(config.model) == found.resolved and config.tokenizer.vocab_size == found.vocab_size
    assert config.train.learning_rate == found.learning_rate and config.train.warmup(found.steps) == found.warmup_steps
    assert config.train.tensor_parallel == run.tensor_parallel
    assert config.train.activation_checkpointing == run.checkpointing


@settings(max_examples=20)
@given(st.floats(16, 23), st.floats(1.5, 10))
def test_a_larger_budget_buys_a_lower_loss(power: float, factor: float) -> None:
    less, more = plan(flops=10.0**power), plan(flops=factor * 10.0**power)
    assert more.loss < less.loss and more.tokens * more.parameters > less.tokens * less.parameters


def test_what_is_asked_for_is_what_is_planned() -> None:
    found = plan(preset="1b", tokens=1e11)
    assert found.model == ModelConfig(preset="1b") and found.tokens == pytest.approx(1e11, rel=1e-3)
    assert found.tokens >= 1e11
    found = plan(preset="1b", dollars=1000.0, ratio=None)
    assert found.model.preset == "1b" and found.cost.dollars == pytest.approx(1000, rel=0.01)
    found = plan(dollars=1000.0, tokens=2e10)
    assert found.tokens == pytest.approx(2e10, rel=0.01) and found.cost.dollars == pytest.approx(1000, rel=0.05)


def test_rows_are_no_longer_than_a_table_of_positions() -> None:
    found = plan(preset="gpt2", tokens=1e10)
    assert found.run.seq_len == 1024 < plan(preset="125m", tokens=1e10).run.seq_len
    assert parse_config(config_text(found, "plan.yaml")).data.seq_len == 1024


# ------------------------------------------------------------------------------------------------------ a config's plan


def test_a_config_keeps_its_data_and_architecture() -> None:
    found = plan(flops=1e20, base=own())
    config = parse_config(config_text(found, "plan.yaml"))
    assert config.data == replace(
        OWN.data, slot_sequences=config.data.slot_sequences, pack_window_tokens=config.data.pack_window_tokens
    )
    assert config.run == OWN.run and config.tokenizer == OWN.tokenizer and config.model.qk_norm
    assert config.train == replace(
        OWN.train,
        num_workers=config.train.num_workers,
        tokens=found.tokens,
        global_batch_tokens=found.run.batch_tokens,
        learning_rate=found.learning_rate,
        warmup_steps=found.warmup_steps,
    )
    assert "example" not in config_text(found, "plan.yaml")


def test_an_example_outgrows_the_settings_of_the_quickstart() -> None:
    small, large = (config_of(plan(parameters=1e6, tokens=tokens)) for tokens in (2e6, 1e9))
    assert small.data.chunk_bytes == example().config.data.chunk_bytes
    assert large.data.chunk_bytes == DataConfig(sources=large.data.sources).chunk_bytes
    for config in (small, large):
        assert [source.name for source in config.data.sources] == ["stdlib-code", "stdlib-prose"]
        assert config.run.name.startswith("plan-") and config.train.learning_rate < 0.02
    assert small.train.checkpoint_every_steps <= max(1, small.total_steps // 10)
    text = config_text(plan(parameters=1e6, tokens=2e6), "out/plan.yaml")
    assert "pretrain --config out/plan.yaml" in text and "example" in text and text.isascii()
    assert all(len(line) <= 120 for line in text.splitlines())


def test_rates_and_lengths_of_the_file_replace_those_of_the_config() -> None:
    base = own(config=replace(OWN, train=TrainConfig(steps=7, warmup_ratio=0.5, global_batch_tokens=16_384)))
    config = parse_config(config_text(plan(flops=1e20, base=base), "plan.yaml"))
    assert config.train.steps is None and config.train.warmup_ratio is None


def test_a_window_holds_enough_of_the_plans_rows() -> None:
    config = config_of(plan(parameters=20e9, tokens=1e9))
    assert config.data.seq_len == 8192 and config.data.pack_window_tokens == 2**22 >= 64 * 8193
    small, large = (replace(OWN, data=replace(OWN.data, pack_window_tokens=tokens)) for tokens in (2**18, 2**24))
    windows = [config_of(plan(flops=1e20, base=own(config=one))).data.pack_window_tokens for one in (small, large)]
    assert windows == [2**18, 2**24]  # one of a config is kept


def test_a_mixture_of_experts_is_refused() -> None:
    base = own(config=replace(OWN, model=ModelConfig(hidden=64, heads=4, moe=MoeConfig(experts=4))))
    with pytest.raises(ConfigError, match="model.moe.experts=4 cannot be planned for"):
        plan(flops=1e20, base=base)


# ----------------------------------------------------------------------------------------------------------------- data

LEDGER = (Available("web", 1e9, 0.875), Available("code", 1e8, 0.125, 0.5))


def test_a_ledger_is_counted_source_by_source() -> None:
    found = plan(parameters=300e6, tokens=4e9, base=own(available=LEDGER, vocab_size=20_000))
    assert found.vocab_size == 20_000
    assert found.passes == pytest.approx({"web": 3.5, "code": 5.0}, rel=0.01)
    assert found.effective_tokens == pytest.approx(
        effective(0.875 * found.tokens, 1e9) + effective(0.125 * found.tokens, 1e8)
    )
    enough = effective_parameters(REFIT, found.parameters, 1.1e9)
    assert enough < found.parameters  # too large for what they learn from
    assert found.loss == pytest.approx(REFIT.loss(enough, found.effective_tokens))
    config = parse_config(config_text(found, "plan.yaml"))
    assert [source.max_epochs for source in config.data.sources] == [4, 6]
    assert config.tokenizer == OWN.tokenizer  # that of the run, whatever its size


def test_enough_data_is_not_repeated() -> None:
    found = plan(parameters=300e6, tokens=1e8, base=own(available=LEDGER))
    assert found.effective_tokens == pytest.approx(found.tokens)
    assert found.loss == pytest.approx(REFIT.loss(*found.split))
    assert [source.max_epochs for source in config_of(found).data.sources] == [1, 1]


def test_shares_are_those_of_the_curriculum() -> None:
    segments = (SegmentConfig(until=0.8, shares=(0.9, 0.1)), SegmentConfig(until=1.0))
    config = replace(OWN, data=replace(OWN.data, curriculum=segments))
    assert mixture_shares(config, [0.875, 0.125]) == pytest.approx([0.8 * 0.9 + 0.2 * 0.875, 0.8 * 0.1 + 0.2 * 0.125])
    assert mixture_shares(OWN, [0.875, 0.125]) == [0.875, 0.125]


# ------------------------------------------------------------------------------------------------------ impossible asks


@pytest.mark.parametrize(
    ("given_ones", "words"),
    [
        ({"flops": 1e9}, r"smallest preset, tiny, has 238K .*Nearest possible plan: 238K parameters on 4\.\d+M tokens"),
        ({"dollars": 1e-6}, r"smallest preset, tiny.*Nearest possible plan: 238K parameters"),
        ({"parameters": 1000.0}, r"1K parameters, and the smallest preset.*Nearest possible plan: 238K"),
        ({"tokens": 2e6}, r"smallest preset, tiny.*Nearest possible plan: 238K parameters on 2(\.\d+)?M tokens"),
        ({"tokens": 1e9, "gpu": "H100X"}, r"--gpu='H100X' .*A100.*--prices\. Nearest .* 1 H100"),
        ({"tokens": 1e9, "gpu": "tpu"}, r"--gpu='tpu' is not in the price table of \d{4}-\d\d.*Nearest possible plan"),
        ({"tokens": 1e9, "tflops": 1e4}, r"--tflops=10000 .* peak of H100 is 989 .*Nearest possible plan"),
        ({"parameters": 70e9, "gpu": "L4", "gpus": 8}, r"do not fit into 8 L4: .* GiB on each.*Nearest .* 70.6B"),
        ({"parameters": 3e12}, r"do not fit into 8 H100.*Nearest possible plan: \d+B parameters"),
        ({"parameters": 7e9, "tokens": 1e9, "gpu": "L4", "gpus": 1}, r"do not fit into 1 L4.*Nearest possible plan: 6"),
        ({"preset": "1b", "tokens": 1e9, "gpus": 8192}, r"--gpus=8192 .* rows of 4,096.*Nearest possible plan"),
        ({"tokens": 1e10, "days": 1e-4}, r"--days=0.0001 .*Nearest possible plan: \d+M parameters on 10B tokens"),
    ],
)
def test_an_impossible_ask_gets_the_nearest_plan(given_ones: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as told:
        plan(**given_ones)
    assert "\n" not in str(told.value) and told.value.exit_code == 2


@pytest.mark.parametrize(
    ("given_ones", "words"),
    [({"gpus": 0}, "--gpus=0"), ({"days": -1.0}, "--days=-1.0"), ({"tflops": 0.0}, "--tflops=0.0")],
)
def test_a_wrong_cluster_is_refused(given_ones: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        request(tokens=1e9, **given_ones)


def test_the_nearest_plan_is_one() -> None:
    """What the message offers can be asked for."""
    with pytest.raises(ConfigError) as told:
        plan(parameters=70e9, gpu="A100", gpus=8)
    words = str(told.value).rpartition("Nearest possible plan: ")[2]
    gpus = int(words.split(" tokens, ")[1].split()[0].replace(",", ""))
    assert gpus > 8
    assert words.startswith(plan(parameters=70e9, gpu="A100", gpus=gpus).summary)


def test_a_split_is_what_it_says() -> None:
    assert Split(2.0, 6.0).ratio == 3 and Split(2.0, 6.0).flops == 72
