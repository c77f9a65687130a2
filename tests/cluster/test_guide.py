"""cluster/: four places to change, and a README whose commands, files and messages exist.

python -m pytest -q tests/cluster/test_guide.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pretrainer.config_load import load_config
from pretrainer.errors import PretrainerError
from tests.cluster.manifests import CLUSTER, MARK, ROOT, every, kuberay, ray_up, text_files
from tests.test_readme import commands, missing_paths, wrong_words

README = (CLUSTER / "README.md").read_text(encoding="utf-8")
TARGETS = ("aws", "gcp", "kuberay", "slurm")
PLACEHOLDER = re.compile(r"REGISTRY/|YOUR-[A-Z-]+")


def runbook() -> str:
    return README[README.index("## Runbook") :]


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_has_four_marked_places(target: str) -> None:
    """The fourth is the run, in cluster/run.yaml, which the folder's files name."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((CLUSTER / target).rglob("*")) if path.is_file())
    text += (CLUSTER / "run.yaml").read_text(encoding="utf-8")
    assert set(MARK.findall(text)) == set("1234")
    assert "run.yaml" in text


def unmarked(name: str, lines: list[str]) -> Iterator[str]:
    """Lines with a placeholder and no mark on them or just above."""
    for number, line in enumerate(lines):
        if PLACEHOLDER.search(line) and not any(MARK.search(near) for near in lines[max(0, number - 4) : number + 1]):
            yield f"{name}:{number + 1}: {line.strip()}"


def test_whatever_must_be_changed_is_marked() -> None:
    found = [
        problem
        for path in text_files()
        if path.suffix in (".yaml", ".sbatch")
        for problem in unmarked(path.name, path.read_text(encoding="utf-8").splitlines())
    ]
    assert found == []


def test_all_targets_run_one_image() -> None:
    images = {ray_up(target)["docker"]["image"] for target in ("aws", "gcp")}
    images |= set(every(kuberay("RayCluster"), "image")) | set(every(kuberay("RayJob"), "image"))
    assert images == {"REGISTRY/pretrainer:TAG"} and f"-t {images.pop()} ." in README


def test_the_run_is_a_config_that_grows_with_its_cluster() -> None:
    config = load_config(str(CLUSTER / "run.yaml"), [])
    lo, hi = config.train.worker_range
    assert lo < hi and config.cluster.autoscaling and config.train.device == "cuda"
    assert "://" in config.run.storage and config.stability.on_spike == "rollback"


@pytest.mark.parametrize("path", text_files(), ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_a_cluster(path: object) -> None:
    text = path.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{12,}|-----BEGIN|hf_[A-Za-z0-9]{20,}", text)
    assert not re.search(r"RAY_AUTH_MODE[=: ,]+(value: )?\"?disabled", text)
    assert not re.search(r"RAY_AUTH_TOKEN[=:]", text) and "privileged: true" not in text


def test_paths_of_its_tables_exist() -> None:
    assert missing_paths(README, ROOT) == []


@pytest.mark.parametrize("command", commands(README))
def test_its_commands_name_what_exists(command: str) -> None:
    assert wrong_words(command, ROOT) == []


def test_files_that_it_names_are_there() -> None:
    named = set(re.findall(r"(?<![/\w])(?:cluster|pretrainer|pipelines|tests)/[\w./-]+\.\w+", README))
    assert len(named) > 10 and [name for name in named if not (ROOT / name).is_file()] == []
    beside = set(re.findall(r"-f ([\w.-]+\.yaml)", README))
    assert beside and all((CLUSTER / "kuberay" / name).is_file() for name in beside)


def test_the_runbook_has_ten_things_and_every_exit_code() -> None:
    headings = re.findall(r"^### (\d+) .+$", runbook(), re.MULTILINE)
    assert headings == [str(number) for number in range(1, 11)]
    rows = {int(code) for code in re.findall(r"^\| (\d) \|", runbook(), re.MULTILINE)}
    kinds = [PretrainerError, *PretrainerError.__subclasses__()]
    assert rows == {0, *(kind.exit_code for kind in kinds)}


def test_messages_of_the_runbook_are_those_of_the_code() -> None:
    """What a tired person searches for stands in the source, but for the values in it."""
    files = [path for folder in ("pipelines", "pretrainer") for path in (ROOT / folder).rglob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    plain = re.sub(r"\"\s*\n?\s*f?\"", "", code)  # strings that go on in the next line
    quoted = [part for text in re.findall(r"\"([^\"]+)\"", re.sub(r"\s+", " ", runbook())) for part in pieces(text)]
    assert len(quoted) >= 12
    assert [part for part in quoted if part not in plain] == []


def pieces(text: str) -> list[str]:
    """A message without its values: … and words in capitals."""
    parts = re.split(r"…|\bN\b|\bS\b|\bP\b|\bH\b", text)
    return [part.strip(" ;:()") for part in parts if len(part.strip(" ;:()")) > 3]


def test_costs_are_those_of_the_log() -> None:
    log = (ROOT / "tests" / "benchmarks" / "LOG.md").read_text(encoding="utf-8")
    costs = README[README.index("## What a change of the cluster costs") : README.index("## Runbook")]
    numbers = re.findall(r"\d+\.\d", costs)
    assert len(numbers) >= 6 and [number for number in numbers if number not in log] == []
    assert "33 s after the node came (20 s of them" in log
