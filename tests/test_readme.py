"""README.md is true: the paths in its tables exist; its commands name modules, targets, files and fields that exist.

    python -m pytest -q tests/test_readme.py

A path is anything in backticks in a table row that has a slash or one of FILE_ENDINGS; it may be a glob, and stands
below the checkout or below pretrainer/. What has <angle brackets>, {braces}, a space or a URI scheme is none.
"""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from pretrainer.config_load import describe_fields

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FILE_ENDINGS = (".py", ".yaml", ".toml", ".md", ".txt", ".sh", "Makefile")


def table_rows(text: str) -> list[str]:
    """Rows below the |---| line of each table."""
    lines = text.splitlines()
    rules = [number for number, line in enumerate(lines) if re.fullmatch(r"\s*\|(\s*:?-+:?\s*\|)+\s*", line)]
    rows = []
    for start in rules:
        end = next((n for n in range(start + 1, len(lines)) if not lines[n].lstrip().startswith("|")), len(lines))
        rows += lines[start + 1 : end]
    return rows


def table_paths(text: str) -> list[str]:
    words = [word for row in table_rows(text) for word in re.findall(r"`([^`]+)`", row)]
    plain = [word for word in words if re.fullmatch(r"[\w./*-]+", word)]
    return [word for word in plain if "/" in word or word.endswith(FILE_ENDINGS)]


def commands(text: str) -> list[str]:
    """Lines of fenced shell blocks (continued lines joined, comments and prompts dropped) and inline `make …`."""
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`((?:make|python -m|ray) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [re.sub(r"\s+#.*", "", line) for line in [*lines, *inline] if line and not line.startswith("#")]


def missing_paths(text: str, root: Path) -> list[str]:
    return [path for path in table_paths(text) if not any(any(base.glob(path)) for base in (root, root / "pretrainer"))]


def make_targets(root: Path) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (root / "Makefile").read_text(), re.MULTILINE))


def module_exists(module: str, root: Path) -> bool:
    if module.split(".")[0] not in ("pipelines", "pretrainer", "tests"):
        return find_spec(module.split(".")[0]) is not None
    path = root.joinpath(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def field_exists(name: str) -> bool:
    return re.sub(r"\.\d+(?=\.|$)", ".N", name) in {row.name for row in describe_fields()}


def wrong_words(command: str, root: Path) -> list[str]:
    """What a command line names that does not exist."""
    wrong = [module for module in re.findall(r"python3? -m (\S+)", command) if not module_exists(module, root)]
    paths = re.findall(r"(?:^|\s)((?:configs|tests|cluster)/[\w./*-]+)", command)
    wrong += [path for path in paths if not any(root.glob(path))]
    wrong += [name for name in re.findall(r"(?:^|[\s\"'])([a-z]+(?:\.\w+)+)=", command) if not field_exists(name)]
    if made := re.match(r"(?:\w+=\S* )*make\s+(.*)", command):
        without_variables = re.sub(r"\w+=(\"[^\"]*\"|'[^']*'|\S*)", "", made.group(1))
        wrong += [target for target in without_variables.split() if target not in make_targets(root)]
    return wrong


# --------------------------------------------------------------------------------------------------------- tests


def test_paths_in_tables_exist() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(table_paths(text)) >= 7, "README.md needs its table of what to open to change what"
    assert missing_paths(text, ROOT) == []


def test_commands_name_what_exists() -> None:
    lines = commands(README.read_text(encoding="utf-8"))
    assert {"make pretrain", "make test"} <= {" ".join(line.split()[:2]) for line in lines}
    assert [(line, wrong) for line in lines if (wrong := wrong_words(line, ROOT))] == []


SMALL = """
| to change | open |
|---|---|
| a filter | `pretrainer/schema.py`, then `FILTERS` |
| a config | `configs/*.yaml`, `errors.py`, `<run>/summary.json`, `s3://bucket/x.py` |

`not/in/a/table.py` and `make clean`

```bash
# a comment
make pretrain ARGS="train.steps=20 data.sources.0.weight=2"   # another
$ python -m pipelines.pretrain \\
    --config configs/quickstart.yaml
ray job submit -- python -m pytest
```
"""


def test_small_readme_is_read() -> None:
    assert table_paths(SMALL) == ["pretrainer/schema.py", "configs/*.yaml", "errors.py"]
    assert missing_paths(SMALL, ROOT) == []
    assert commands(SMALL) == [
        'make pretrain ARGS="train.steps=20 data.sources.0.weight=2"',
        "python -m pipelines.pretrain      --config configs/quickstart.yaml",
        "ray job submit -- python -m pytest",
        "make clean",
    ]


def test_missing_path_is_found() -> None:
    assert missing_paths(SMALL.replace("schema.py", "schemas.py"), ROOT) == ["pretrainer/schemas.py"]
    assert missing_paths(SMALL.replace("*.yaml", "*.json"), ROOT) == ["configs/*.json"]
    assert table_paths("no table, only `pretrainer/schema.py`") == []


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make pretrain test ARGS='train.steps=2'", []),
        ("PYTHON=python3.12 make absent test", ["absent"]),
        ("python -m pipelines.absent RUN", ["pipelines.absent"]),
        ("ray job submit --working-dir . -- python -m pipelines.absent", ["pipelines.absent"]),
        ("python -m absentpackage", ["absentpackage"]),
        ("python -m pytest tests/absent.py", ["tests/absent.py"]),
        ("x --config configs/absent.yaml", ["configs/absent.yaml"]),
        ("x train.stepz=3 data.sources.0.weight=2", ["train.stepz"]),
        ('make pretrain ARGS="run.nam=a"', ["run.nam"]),
    ],
)
def test_command_that_names_what_does_not_exist_is_found(command: str, wrong: list[str]) -> None:
    assert wrong_words(command, ROOT) == wrong
