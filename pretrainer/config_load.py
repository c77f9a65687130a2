"""Reads a config: a short YAML file, then `section.field=value` arguments, over the defaults of `pretrainer.config`.

    load_config(None, ["train.steps=20", "data.sources.0.weight=2"])     the quickstart that the package ships
    load_config("configs/125m.yaml", ["train.num_workers=[4, 8]"])

Whatever is wrong with either ends in one ConfigError. The type hints, defaults and sentences of the dataclasses are
the only description of a field: checking, `--help` and this module's messages are derived from them.

Scalars follow the YAML 1.2 core schema, not PyYAML's 1.1: 3e-4 is a number and 2e9 a whole one, `on` and 2026-01-01
are text. A key that stands twice in a mapping is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pretrainer import config as config_module
from pretrainer.config import Config, EvaluationConfig
from pretrainer.config_fields import describe_fields, format_help, hints, locate, show, type_words
from pretrainer.errors import ConfigError

__all__ = [
    "describe_fields", "format_help", "given_fields", "load_config", "parse_config", "parse_evaluation",
    "shipped_configs", "to_delta_yaml", "to_yaml",
]  # fmt: skip

# An override of the key drops a value of the other one that the file gave.
REPLACES = {
    "train.steps": "tokens",
    "train.tokens": "steps",
    "train.warmup_steps": "warmup_ratio",
    "train.warmup_ratio": "warmup_steps",
}


# ---------------------------------------------------------------------------------------------- public functions


def load_config(path: str | None, overrides: Sequence[str]) -> Config:
    """The config of a YAML file with overrides applied; path None is the shipped quickstart.

    Raises ConfigError with every problem that was found, each with field, value and what is expected.
    """
    where = str(shipped_configs() / "quickstart.yaml") if path is None else os.path.expanduser(path)
    try:
        text = Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"config file {where!r} cannot be read ({reason}): give --config the path of a YAML file, "
            "or leave it out for the built-in quickstart"
        ) from error
    return parse_config(text, overrides, where)


def parse_config(text: str, overrides: Sequence[str] = (), where: str = "config") -> Config:
    """As `load_config`, for YAML that was read from elsewhere; `where` names it in messages."""
    raw = _parse_yaml(text, where)
    if not isinstance(raw, dict | None):
        raise ConfigError(f"{where} holds {show(raw)}: write sections, for example\ntrain:\n  steps: 20")
    return _with_overrides(raw or {}, overrides)


def parse_evaluation(text: str, overrides: Sequence[str] = (), where: str = "config") -> EvaluationConfig:
    """The section `evaluation` of YAML whose other sections are not looked at, with overrides of it alone applied."""
    strange = [override for override in overrides if not override.startswith("evaluation.")]
    if strange:
        raise ConfigError(f"argument {strange[0]!r} is not possible here: write evaluation.field=value")
    given = _parse_yaml(text, where)
    raw = json.loads(json.dumps(dataclasses.asdict(load_config(None, []))))
    raw["train"] |= {"checkpoint_every_steps": 1, "validate_every_steps": 1}  # cadences are no business of this one's
    raw["evaluation"] = given.get("evaluation") if isinstance(given, dict) else None
    return _with_overrides(raw, overrides).evaluation


def _with_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> Config:
    given: set[str] = set()
    for override in overrides:
        _apply_override(raw, override, given)
        given.add(override.partition("=")[0])
    return _validate(_normalise(raw, Config))


def given_fields(path: str | None, overrides: Sequence[str]) -> frozenset[str]:
    """Dotted names of the fields that a YAML file and overrides give, an element of a list as its list.

    What the shipped quickstart (path None) says is a default, not given.
    """
    raw: Any = {} if path is None else _parse_yaml(Path(os.path.expanduser(path)).read_text("utf-8"), path) or {}
    for override in overrides:
        raw = _set(raw, override.partition("=")[0].split("."))
    return frozenset(_leaves(raw, Config, ""))


def _set(raw: Any, path: Sequence[str]) -> Any:
    """The mapping with something at a dotted name; what is not a mapping stays as it is."""
    if not path or not isinstance(raw, dict | None):
        return raw
    return {**(raw or {}), path[0]: _set((raw or {}).get(path[0]), path[1:])}


def _leaves(raw: Any, hint: Any, prefix: str) -> Iterator[str]:
    for name, value in raw.items():
        inner = hints(hint).get(name)
        if dataclasses.is_dataclass(inner):
            yield from _leaves(value or {}, inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def to_yaml(config: Config) -> str:
    """Every field with its value; `parse_config` of it gives an equal config. ASCII: raw U+0085 is read as a space."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=120)


def to_delta_yaml(config: Config) -> str:
    """The fields that differ from their defaults; `parse_config` of it gives an equal config."""
    plain = json.loads(json.dumps(_delta(config)))
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, width=120)


def _delta(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_delta(item) for item in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {}
    for field in dataclasses.fields(value):
        own, default = getattr(value, field.name), field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or own != default:
            changed[field.name] = _delta(own)
    return changed


def shipped_configs() -> Path:
    """Folder of the YAML files: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "configs"


# ----------------------------------------------------------------------------------------------------------- YAML

_INT = r"[-+]?(0|[1-9][0-9_]*)$"
_FLOAT = r"[-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?)$"
_SCALARS = (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)$", list("-+.")),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or this module's loader would not read back as text."""


def _construct_number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = node.value.replace("_", "").lower()
    if "e" in text and (value := float(text)).is_integer():
        return int(value)
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_number)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        # By way of JSON, so that no two places share one mapping (YAML aliases) and none contains itself.
        return json.loads(json.dumps(yaml.load(text, Loader=_Loader), default=str))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).replace(' in "<unicode string>"', " at").split())[:300]
        raise ConfigError(f"{where} is not valid YAML: {reason}. Mend that place, or quote the value") from error


# ------------------------------------------------------------------------------------------------------ overrides


def _apply_override(raw: dict[str, Any], override: str, given: set[str]) -> None:
    """Set one `section.field=value` in raw; `given` are the names that earlier arguments set."""
    name, equals, text = override.partition("=")
    path = name.split(".")
    if not equals or not all(path):
        raise ConfigError(f"argument {override!r} is not possible: write section.field=value, as in train.steps=20")
    node: Any = raw
    for depth, part in enumerate(path[:-1], start=1):
        key = _key(node, part, path[: depth - 1])
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[_key(node, path[-1], path[:-1])] = _override_value(text, name)
    if name in REPLACES and f"train.{REPLACES[name]}" not in given:
        node.pop(REPLACES[name], None)


def _key(node: Any, part: str, path: list[str]) -> str | int:
    if isinstance(node, dict) and not (part.isdecimal() and get_origin(locate(path)[1]) is tuple):
        return part
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return int(part)
    length = len(node) if isinstance(node, list) else 0
    has = f"it has {length} elements, counted from 0" if get_origin(locate(path)[1]) is tuple else "it has no fields"
    raise ConfigError(f"{'.'.join([*path, part])} cannot be set: there is no {part!r} in {'.'.join(path)}, {has}")


def _override_value(text: str, name: str) -> Any:
    """Text fields take the argument as it stands, so that run.name=007 needs no quotes inside quotes."""
    path = name.split(".")
    found, hint = locate(path)
    if found == path and text[:1] not in ("'", '"'):
        if hint is str or (hint == str | None and text not in ("", "~", "null")):
            return text
    return _parse_yaml(text, f"the value of {name}={text[:80]}")


# ----------------------------------------------------------------------------------------------------- validation


@cache
def _adapter() -> TypeAdapter[Config]:
    """Pydantic reads the stdlib dataclasses as they are; the setting on each class makes unknown keys errors."""
    for value in list(vars(config_module).values()):
        if inspect.isclass(value) and dataclasses.is_dataclass(value):
            with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(value)
    return TypeAdapter(Config)


def _validate(raw: Any) -> Config:
    """Strict JSON mode: lists become tuples, but true is no number and "3" no integer."""
    try:
        return _adapter().validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(detail["type"], detail["loc"], detail["input"]) for detail in error.errors())
        raise ConfigError("\n".join(problems)) from error


def _explain(kind: str, loc: Sequence[str | int], value: Any) -> str:
    path = [str(part) for part in loc]
    found, hint = locate(path)
    if kind == "unexpected_keyword_argument":
        return f"{'.'.join(path)}={show(value)} is not a field of the config: {_suggestion(path)}"
    name = ".".join(found) or "config"
    if kind == "missing":
        return f"{name} is missing: give it {type_words(hint)}"
    return f"{name}={show(value)} is not possible: give {type_words(hint)}"


def _suggestion(path: list[str]) -> str:
    """The nearest field of the same section, else the field of that name in another section, else all of them."""
    siblings = list(hints(locate(path[:-1])[1]))
    if near := difflib.get_close_matches(path[-1], siblings, n=1):
        return f"did you mean {'.'.join([*path[:-1], near[0]])}?"
    elsewhere = {row.name.rpartition(".")[2]: row.name for row in reversed(describe_fields())}
    if near := difflib.get_close_matches(path[-1], list(elsewhere), n=1, cutoff=0.8):
        return f"did you mean {elsewhere[near[0]]}?"
    return f"{'.'.join(path[:-1]) or 'the config'} has {', '.join(siblings)}"


def _normalise(value: Any, hint: Any) -> Any:
    """Empty sections become defaults, and text where a list of texts belongs becomes a list of one."""
    if dataclasses.is_dataclass(hint) and isinstance(value, dict | None):
        value = value or {}
        sections = {name: None for name, inner in hints(hint).items() if dataclasses.is_dataclass(inner)}
        return {key: _normalise(item, hints(hint).get(str(key))) for key, item in (sections | value).items()}
    if get_origin(hint) is tuple and isinstance(value, list):
        return [_normalise(item, get_args(hint)[0]) for item in value]
    return [value] if hint == tuple[str, ...] and isinstance(value, str) else value
