"""Config files, overrides, their error messages, and what an installation holds.

    python -m pytest -q tests/test_config.py
"""

import dataclasses
import inspect
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer import config as config_module
from pretrainer.config import Config, DataConfig, RunConfig, SourceConfig, TrainConfig
from pretrainer.config_load import (
    describe_fields,
    format_help,
    load_config,
    parse_config,
    shipped_configs,
    to_delta_yaml,
    to_yaml,
)
from pretrainer.errors import ConfigError
from pretrainer.model.presets import resolve

ROOT = Path(__file__).parent.parent
AWKWARD = ["1e5", "on", "1:30", "0x1", "null", "", "\x85", "\u2028", "\ufeff", "a: b", "#", "é😀", "\x00", " a\n\n b\t"]
TINY = """
data:
  sources: [{name: a, uris: [/x]}, {name: b, uris: [/y], preset: code}]
train:
  steps: 5
"""


def tiny(*overrides: str) -> Config:
    return parse_config(TINY, overrides)


def message(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- loading


def test_file_is_a_delta_over_the_defaults() -> None:
    sources = (SourceConfig(name="a", uris=("/x",)), SourceConfig(name="b", uris=("/y",), preset="code"))
    assert tiny() == Config(data=DataConfig(sources=sources), train=TrainConfig(steps=5))


def test_no_path_is_the_shipped_quickstart() -> None:
    assert load_config(None, []) == load_config(str(ROOT / "configs" / "quickstart.yaml"), [])
    assert load_config(None, ["train.steps=7"]).train.steps == 7


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_config_is_possible_and_says_what_it_is(path: Path) -> None:
    config = load_config(str(path), [])
    assert resolve(config.model).layers >= 1
    assert config.slot_blocks_per_step % config.train.worker_range[1] == 0
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()) <= 60
    assert text.isascii() and max(map(len, text.splitlines())) <= 120


def test_batches_and_rates_of_the_gpu_configs() -> None:
    small, large = (load_config(str(ROOT / "configs" / name), []).train for name in ("125m.yaml", "1b.yaml"))
    assert (small.global_batch_tokens, small.learning_rate) == (2**19, 6e-4)
    assert (large.global_batch_tokens, large.learning_rate) == (2**21, 3e-4)


def test_empty_sections_are_defaults() -> None:
    assert parse_config(TINY + "model:\nrun: {}\n") == tiny()


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.learning_rate=3e-4", "train.learning_rate", 3e-4),
        ("train.learning_rate=.5", "train.learning_rate", 0.5),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.warmup_steps=2e3", "train.warmup_steps", 2000),
        ("data.order_seed=1_000", "data.order_seed", 1000),
        ("train.num_workers=[1,4]", "train.num_workers", (1, 4)),
        ("train.num_workers=2", "train.num_workers", 2),
        ("data.dedup.near=false", "data.dedup.near", False),
        ("model.kv_heads=null", "model.kv_heads", None),
        ("tracking.uri=null", "tracking.uri", None),
        ("tracking.uri=", "tracking.uri", None),
        ("tracking.uri=http://h:5000/?a=b", "tracking.uri", "http://h:5000/?a=b"),
        ("run.name=007", "run.name", "007"),
        ("run.name=1e5", "run.name", "1e5"),
        ("run.name=2026-01-01", "run.name", "2026-01-01"),
        ("run.name='quoted'", "run.name", "quoted"),
        ("run.name=null", "run.name", "null"),
        ("data.sources.1.weight=2", "data.sources.1.weight", 2.0),
        ("data.sources.0.uris=/z", "data.sources.0.uris", ("/z",)),
        ("data.sources.0.uris=[/z, /w]", "data.sources.0.uris", ("/z", "/w")),
        ("data.sources.0.uris.0=/z", "data.sources.0.uris", ("/z",)),
        ("data.sources=[{name: c, uris: /z}]", "data.sources", (SourceConfig(name="c", uris=("/z",)),)),
        ("run={name: other}", "run", RunConfig(name="other")),
    ],
)
def test_override(override: str, field: str, value: object) -> None:
    found: object = tiny(override)
    for part in field.split("."):
        found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
    assert found == value and type(found) is type(value)


def test_override_changes_only_its_field() -> None:
    before = tiny()
    assert tiny("run.seed=3") == dataclasses.replace(before, run=dataclasses.replace(before.run, seed=3))
    aliased = "data: {sources: [{name: a, uris: &u [/x]}, {name: b, uris: *u}]}\ntrain: {steps: 1}"
    sources = parse_config(aliased, ["data.sources.0.uris.0=/z"]).data.sources
    assert [source.uris for source in sources] == [("/z",), ("/x",)]


def test_the_last_of_two_overrides_wins() -> None:
    assert tiny("run.seed=1", "run.seed=2").run.seed == 2


def test_length_in_tokens_replaces_steps_and_the_other_way_round() -> None:
    assert (tiny("train.tokens=1e6").train.tokens, tiny("train.tokens=1e6").train.steps) == (1_000_000, None)
    tokens = TINY.replace("steps: 5", "tokens: 9")
    assert parse_config(tokens, ["train.steps=3"]).train == TrainConfig(steps=3)
    for both in (["train.steps=3", "train.tokens=9"], ["train.tokens=9", "train.steps=3"]):
        assert "exactly one" in message(TINY, *both)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.stepz=3", ["train.stepz=3", "did you mean train.steps?"]),
        ("data.sources.1.wieght=2", ["data.sources.1.wieght=2", "did you mean data.sources.1.weight?"]),
        ("data.dedup.treshold=1", ["did you mean data.dedup.threshold?"]),
        ("train.seq_len=3", ["train.seq_len=3", "did you mean data.seq_len?"]),
        ("modle.layers=2", ["modle", "did you mean model?"]),
        ("zzz=1", ["zzz=1", "run, data, tokenizer, model, init, train"]),
        ("train.steps=true", ["train.steps=true", "a whole number"]),
        ("train.steps=1.5", ["train.steps=1.5", "a whole number"]),
        ("train.steps=0", ["train.steps=0", "1 or more"]),
        ("train.clip_norm=.inf", ["train.clip_norm=Infinity", "a finite number"]),
        ("train.num_workers=x", ['train.num_workers="x"', "a whole number or [a whole number, a whole number]"]),
        ("train.num_workers=[1,2,3]", ["train.num_workers=[1, 2, 3]"]),
        ("train.device=tpu", ['train.device="tpu"', "one of auto, cpu, cuda"]),
        ("data.dedup.near=on", ['data.dedup.near="on"', "true or false"]),
        ("data.sources.0.uris=3", ["data.sources.0.uris=3", "a list, each text"]),
        ("data.sources=[{uris: /x}]", ["data.sources.0.name is missing"]),
        ("data.sources=[]", ["data.sources=[]", "at least one source"]),
        ("data.sources=3", ["data.sources=3", "a list, each a section"]),
        ("data.sources.2.weight=2", ["data.sources.2", "2 elements"]),
        ("data.sources.first.weight=2", ["data.sources.first", "2 elements"]),
        ("run.name.x=1", ["run.name=", "give text"]),
        ("data.sources.0.name.x=1", ["data.sources.0.name.x", "no fields"]),
        ("run=3", ["run=3", "a section"]),
        ("train.steps", ["'train.steps'", "section.field=value"]),
        ("=3", ["'=3'", "section.field=value"]),
        ("run..name=3", ["section.field=value"]),
        ("train.steps=[", ["train.steps=[", "not valid YAML"]),
        ("train.steps=&a [*a]", ["not valid YAML", "Circular"]),
    ],
)
def test_wrong_override_is_one_message_with_field_value_and_remedy(override: str, parts: list[str]) -> None:
    said = message(TINY, override)
    assert "\n" not in said
    for part in parts:
        assert part in said


def test_every_problem_of_a_file_is_listed_once() -> None:
    names = ("train.steps", "train.num_workers", "model.layrs")
    said = message(TINY.replace("steps: 5", "steps: x\n  num_workers: y\nmodel: {layrs: 3}")).splitlines()
    assert sorted(line.partition("=")[0] for line in said) == sorted(names)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: [", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("- 1", "write sections"),
        ("just text", "write sections"),
        (TINY + "train: {steps: 6}\n", "'train' is given twice"),
        ("train: !!python/object:os.system {}", "not valid YAML"),
        ("", "at least one source"),
        ("data: {sources: [{name: a, uris: [/x]}]}", "train.steps"),
    ],
)
def test_broken_file(text: str, part: str) -> None:
    assert part in message(text)


def test_unreadable_file_names_the_path_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.yaml", "binary.yaml", "."):
        with pytest.raises(ConfigError, match="cannot be read .*--config") as caught:
            load_config(str(tmp_path / name), [])
        assert str(tmp_path / name) in str(caught.value)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_argument_gives_a_config_or_a_config_error(name: str, value: str) -> None:
    for override in (name, f"{name}={value}", f"train.{name}={value}", f"data.sources.{name}={value}"):
        try:
            assert isinstance(tiny(override), Config)
        except ConfigError as error:
            assert str(error)


# ---------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_resolved_dump_loads_back_equal(path: Path) -> None:
    config = load_config(str(path), [])
    assert parse_config(to_yaml(config)) == config
    assert parse_config(to_delta_yaml(config)) == config


def test_a_delta_has_what_differs_from_the_defaults_and_no_more() -> None:
    config = tiny("train.learning_rate=1e-5", "model.moe.experts=4", "data.sources.1.weight=2")
    assert yaml.safe_load(to_delta_yaml(config)) == {
        "data": {
            "sources": [
                {"name": "a", "uris": ["/x"]},
                {"name": "b", "uris": ["/y"], "weight": 2.0, "preset": "code"},
            ]
        },
        "model": {"moe": {"experts": 4}},
        "train": {"steps": 5, "learning_rate": 1e-5},
    }


@settings(deadline=None, max_examples=50)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(AWKWARD),
    st.floats(min_value=1e-300, allow_infinity=False),
    st.integers(min_value=-(2**63), max_value=2**63),
    st.sampled_from([1, (1, 2)]),
)
def test_any_config_loads_back_equal(text: str, number: float, seed: int, workers: int | tuple[int, int]) -> None:
    source = SourceConfig(name="a", uris=(text, "/x"), id_column=text, weight=number)
    config = Config(
        run=RunConfig(storage=text, seed=seed),
        data=DataConfig(sources=(source,)),
        train=TrainConfig(tokens=3, num_workers=workers, clip_norm=number),
    )
    assert parse_config(to_yaml(config)) == config == parse_config(to_delta_yaml(config))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_loads_back_equal(text: str) -> None:
    config = dataclasses.replace(tiny(), run=RunConfig(storage=text))
    assert parse_config(to_yaml(config)) == config and to_yaml(config).isascii()


def test_dump_means_the_same_to_other_yaml_readers() -> None:
    config = tiny("run.name=1e5", "tracking.experiment=on", "train.learning_rate=1e-5")
    plain = yaml.safe_load(to_yaml(config))
    assert (plain["run"]["name"], plain["tracking"]["experiment"]) == ("1e5", "on")
    assert plain["train"]["learning_rate"] == 1e-5 and plain["train"]["steps"] == 5


# ---------------------------------------------------------------------------------------------------------- help


def test_every_field_has_a_sentence() -> None:
    bare = [row.name for row in describe_fields() if not row.sentence.endswith(".")]
    assert bare == []


def test_every_dataclass_field_is_described_once() -> None:
    classes = [value for value in vars(config_module).values() if inspect.isclass(value)]
    count = sum(len(dataclasses.fields(cls)) for cls in classes if dataclasses.is_dataclass(cls))
    names = [row.name for row in describe_fields()]
    assert len(set(names)) == len(names) == count
    assert {"train.steps", "data.sources.N.uris", "data.dedup.near", "run"} <= set(names)


def test_help_shows_each_field_with_sentence_and_default_in_aligned_columns() -> None:
    lines = format_help(100).splitlines()
    assert max(map(len, lines)) <= 100
    joined = " ".join(" ".join(lines).split())
    first = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in first}) == 1
    for row in describe_fields():
        about = {"section": ""}.get(row.type, "required]" if row.default == "required" else f"default {row.default}]")
        assert row.name in joined and row.sentence[:20] in joined and about in joined
    assert "Peak learning rate. [a finite number; default 0.0003]" in joined


# -------------------------------------------------------------------------------------------------- installation


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain installation (not editable, without dependencies) of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("install")
    project, site = folder / "project", folder / "site"
    project.mkdir()
    for name in ("pretrainer", "pipelines", "configs"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, project)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(project)], check=True, cwd=folder)
    return site


def test_installation_holds_every_module_and_config(installed: Path) -> None:
    for package in ("pretrainer", "pipelines"):
        here = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        there = {path.relative_to(installed) for path in (installed / package).rglob("*.py")}
        assert here == there
    for path in (ROOT / "configs").glob("*.yaml"):
        assert (installed / "pretrainer" / "configs" / path.name).read_bytes() == path.read_bytes()


def test_installed_package_finds_its_quickstart_from_any_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pretrainer.config_load import load_config, shipped_configs, to_yaml, format_help\n"
        "print(shipped_configs(), file=sys.stderr)\nassert format_help()\nprint(to_yaml(load_config(None, [])), end='')"
    )
    environment = {"PYTHONPATH": str(installed), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == str(installed / "pretrainer" / "configs")
    assert done.stdout == to_yaml(load_config(None, []))


def test_constraints_pin_every_dependency_to_one_plain_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all(version.replace(".", "").replace("post", "").replace("b", "").isdigit() for version in pins.values())
    names = {name.lower().replace("_", "-") for name in pins}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        name = requirement.split(";")[0].split("==")[0].split(">")[0].split("[")[0].strip().lower()
        assert name in names
    assert shipped_configs() == ROOT / "configs"
