"""Imports flow one way: pipelines → data, train, tuning, report → plan, evaluation → model → config, schema → errors.

    python -m pytest -q tests/test_architecture.py

Every import statement of every module is read with `ast`, those inside functions and under TYPE_CHECKING included, so
that nothing has to be installed or imported for the check, and a lazy import is no way around it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Which groups a group may import from, besides itself. "shared" is every other module directly in pretrainer/.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "schema": {"errors"},
    "shared": {"errors", "config", "schema"},
    "model": {"errors", "config", "schema"},
    "data": {"errors", "config", "schema", "shared"},
    "train": {"errors", "config", "schema", "shared", "model"},
    "plan": {"errors", "config", "schema", "shared", "model"},
    "tuning": {"errors", "config", "schema", "shared", "model", "plan"},
    "evaluation": {"errors", "config", "schema", "shared", "model"},
    "report": {"errors", "config", "schema", "shared", "model", "plan", "evaluation"},
    "pipelines": {
        "errors", "config", "schema", "shared", "model", "data", "train", "plan", "tuning", "evaluation", "report",
    },
}

# Foreign systems with one border each: the modules that may import them.
ONLY_IN = {
    "ray": (
        "pipelines",
        "pretrainer.data.pipeline",
        "pretrainer.data.held_out",
        "pretrainer.data.tokenizer.freeze",
        "pretrainer.data.draining",
        "pretrainer.data.lookahead",
        "pretrainer.data.pace",
        "pretrainer.data.reservation",
        "pretrainer.data.meters",
        "pretrainer.train.worker",
        "pretrainer.train.checkpoints.upload",
        "pretrainer.train.blocks",
        "pretrainer.train.reporter",
        "pretrainer.train.controller",
        "pretrainer.train.ordered",
        "pretrainer.train.elasticity.elastic",
        "pretrainer.train.elasticity.preemption",
    ),
    "mlflow": ("pretrainer.tracking",),
    "pydantic": ("pretrainer.config_load",),
    "optuna": ("pretrainer.tuning.optuna_search",),
}

# What a module may import from outside, the standard library aside.
OUTSIDE: dict[str, set[str]] = {
    "pretrainer.errors": set(),
    "pretrainer.config": set(),
    "pretrainer.schema": {"numpy", "pyarrow"},
    "pretrainer.model": {"torch", "numpy", "safetensors"},
    "pretrainer.plan": {"yaml"},
    "pretrainer.tuning": {"numpy", "optuna", "scipy"},
    "pretrainer.train.step": {"torch", "numpy"},
    "pretrainer.train.exact": {"torch", "numpy"},
    "pretrainer.train.checkpoints.staging": {"torch"},
    "pretrainer.evaluation": {"torch", "numpy", "pyarrow"},
    "pretrainer.report": {"yaml"},
}

# What a module must not reach, by whatever chain of imports inside the package.
NEVER_REACHES = {
    "pretrainer.data": {"torch", "mlflow"},
    "pretrainer.model": {"ray", "mlflow", "pydantic"},
    "pretrainer.plan": {"ray", "mlflow"},
    "pretrainer.tuning": {"ray", "mlflow"},
    "pretrainer.train.step": {"ray", "mlflow", "pydantic"},
    "pretrainer.train.exact": {"ray", "mlflow", "pydantic"},
    "pretrainer.train.checkpoints.saving": {"ray", "mlflow", "pydantic"},
    "pretrainer.evaluation": {"ray", "mlflow", "pydantic"},
    "pretrainer.report": {"ray", "mlflow", "pydantic"},
    "pretrainer.config": {"ray", "mlflow", "pydantic", "torch", "pyarrow", "numpy"},
}

Imports = dict[str, set[str]]  # module -> dotted names that it imports; own modules in full, others by first word


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of both packages."""
    found = {}
    for package in ("pipelines", "pretrainer"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names in import statements and in import_module("…") calls; package resolves the relative ones."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def read_imports(root: Path) -> Imports:
    known = modules(root)
    found: Imports = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        names = imported_names(ast.parse(path.read_text(encoding="utf-8")), package)
        found[name] = {resolve(each, known) for each in names} - {name}
    return found


def resolve(name: str, known: dict[str, Path]) -> str:
    """The longest beginning of name that is a module of ours, else its first word."""
    parts = name.split(".")
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((beginning for beginning in beginnings if beginning in known), parts[0])


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def group(module: str) -> str | None:
    """Key of MAY_IMPORT; None for a package's own `pretrainer/__init__.py` and for foreign modules."""
    first, *rest = module.split(".")
    if first == "pipelines":
        return "pipelines"
    if first != "pretrainer" or not rest:
        return None
    return rest[0] if rest[0] in MAY_IMPORT else "shared"


def reached(imports: Imports, module: str) -> set[str]:
    """Everything that importing module imports in the end; importing a.b.c runs a and a.b as well."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        here = waiting.pop()
        if here not in seen:
            seen.add(here)
            waiting += imports.get(here, ())
            waiting += [here.rpartition(".")[0]] if "." in here else []
    return seen


def wrong_directions(imports: Imports) -> list[str]:
    found = []
    for module, others in imports.items():
        allowed = {None, group(module), *MAY_IMPORT.get(group(module) or "", ())}
        found += [f"{module} imports {other}" for other in sorted(others) if group(other) not in allowed]
    return found


def wrong_foreigners(imports: Imports) -> list[str]:
    found = []
    for module, others in imports.items():
        for foreign, places in ONLY_IN.items():
            if foreign in others and not any(is_within(module, place) for place in places):
                found.append(f"{module} imports {foreign}")
        for prefix, allowed in OUTSIDE.items():
            outside = {other for other in others if other.split(".")[0] not in ("pretrainer", "pipelines")}
            if is_within(module, prefix) and (extra := outside - allowed - sys.stdlib_module_names):
                found.append(f"{module} imports {', '.join(sorted(extra))}")
    return found


def wrong_reaches(imports: Imports) -> list[str]:
    return [
        f"{module} reaches {foreign}"
        for module in imports
        for prefix, forbidden in NEVER_REACHES.items()
        if is_within(module, prefix)
        for foreign in sorted(forbidden & reached(imports, module))
    ]


def cycles(imports: Imports) -> list[str]:
    """Modules that import themselves through others, by statements alone (a package is no importer of its parts)."""

    def comes_back(start: str) -> bool:
        seen: set[str] = set()
        waiting = list(imports[start])
        while waiting:
            here = waiting.pop()
            if here not in seen:
                seen.add(here)
                waiting += imports.get(here, ())
        return start in seen

    return [module for module in imports if comes_back(module)]


def problems(root: Path) -> list[str]:
    imports = read_imports(root)
    loops = [f"{module} is in a cycle" for module in cycles(imports)]
    return wrong_directions(imports) + wrong_foreigners(imports) + wrong_reaches(imports) + loops


# --------------------------------------------------------------------------------------------------------- tests


def test_this_checkout_has_no_problem() -> None:
    assert problems(ROOT) == []


def test_every_module_is_read() -> None:
    imports = read_imports(ROOT)
    files = [path for package in ("pretrainer", "pipelines") for path in (ROOT / package).rglob("*.py")]
    assert len(imports) == len(files)
    assert {"pretrainer.config", "pretrainer.data", "pretrainer.train", "pretrainer.model", "pipelines"} <= set(imports)
    assert "pretrainer.errors" in imports["pretrainer.config"] and "pyarrow" in imports["pretrainer.schema"]


SOUND = {
    "pretrainer/__init__.py": "",
    "pretrainer/errors.py": "class Wrong(Exception): pass",
    "pretrainer/config.py": "from pretrainer.errors import Wrong",
    "pretrainer/schema.py": "import numpy, pyarrow",
    "pretrainer/storage.py": "import boto3\nfrom pretrainer import errors",
    "pretrainer/tracking.py": "import mlflow",
    "pretrainer/model/__init__.py": "",
    "pretrainer/model/layer.py": "import torch\nfrom pretrainer.config import X",
    "pretrainer/data/__init__.py": "",
    "pretrainer/data/pipeline.py": "import ray.data\nfrom pretrainer.data import packing",
    "pretrainer/data/packing.py": "from pretrainer.schema import X",
    "pretrainer/train/__init__.py": "",
    "pretrainer/train/step.py": "import torch\nfrom pretrainer.model.layer import X",
    "pretrainer/train/worker.py": "import ray\nfrom .step import X",
    "pipelines/__init__.py": "",
    "pipelines/pretrain.py": "import ray\nfrom pretrainer.data import pipeline\nfrom pretrainer import train, tracking",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_sound_tree_has_no_problem(tmp_path: Path) -> None:
    assert problems(write_tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("pretrainer/data/a.py", "from pretrainer.train import step", "data.a imports pretrainer.train.step"),
        ("pretrainer/train/a.py", "import pretrainer.data.packing", "train.a imports pretrainer.data.packing"),
        ("pretrainer/train/a.py", "from ..data import packing", "train.a imports pretrainer.data.packing"),
        ("pretrainer/train/a.py", "def f():\n  from pretrainer import data", "train.a imports pretrainer.data"),
        ("pretrainer/tuning/a.py", "import pretrainer.data", "tuning.a imports pretrainer.data"),
        ("pretrainer/plan/a.py", "import pretrainer.data", "plan.a imports pretrainer.data"),
        ("pretrainer/plan/a.py", "import pretrainer.tracking", "plan.a reaches mlflow"),
        ("pretrainer/plan/a.py", "import matplotlib", "plan.a imports matplotlib"),
        ("pretrainer/model/a.py", "import pretrainer.train.step", "model.a imports pretrainer.train.step"),
        ("pretrainer/model/a.py", "import pretrainer.storage", "model.a imports pretrainer.storage"),
        ("pretrainer/storage.py", "import pretrainer.model.layer", "storage imports pretrainer.model.layer"),
        ("pretrainer/errors.py", "import pretrainer.schema", "errors imports pretrainer.schema"),
        ("pretrainer/data/a.py", "import pipelines.pretrain", "data.a imports pipelines.pretrain"),
        ("pretrainer/data/a.py", "import importlib\nimportlib.import_module('pipelines')", "data.a imports pipelines"),
        ("pretrainer/data/packing.py", "def f():\n  import ray", "data.packing imports ray"),
        ("pretrainer/storage.py", "import ray.data", "storage imports ray"),
        ("pretrainer/train/worker.py", "import mlflow", "train.worker imports mlflow"),
        ("pipelines/pretrain.py", "from mlflow.tracking import X", "pretrain imports mlflow"),
        ("pretrainer/config.py", "import pydantic", "config imports pydantic"),
        ("pretrainer/config.py", "import numpy", "config imports numpy"),
        ("pretrainer/model/a.py", "import einops", "model.a imports einops"),
        ("pretrainer/train/step.py", "import pandas", "train.step imports pandas"),
        ("pretrainer/data/packing.py", "from torch import nn", "data.pipeline reaches torch"),
        ("pretrainer/storage.py", "import torch", "data.a reaches torch"),
        ("pretrainer/data/__init__.py", "import torch", "data.packing reaches torch"),
        ("pretrainer/train/__init__.py", "from pretrainer.train import worker", "train.step reaches ray"),
        ("pretrainer/data/packing.py", "import pretrainer.data.pipeline", "data.packing is in a cycle"),
        ("pretrainer/schema.py", "if TYPE_CHECKING:\n  from pretrainer.storage import X", "schema imports"),
    ],
)
def test_forbidden_import_is_found(tmp_path: Path, file: str, text: str, problem: str) -> None:
    uses_storage = {"pretrainer/data/a.py": "from pretrainer.storage import X"}
    found = problems(write_tree(tmp_path, {**SOUND, **uses_storage, file: text}))
    assert any(problem in line for line in found), found
