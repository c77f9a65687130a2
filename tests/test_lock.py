"""What the image of a cluster installs: complete, hashed, and the versions that the tests ran with."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements.lock"


def entries(text: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Name -> (its line, its hashes)."""
    found = {}
    for entry in re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        line, *hashes = entry.strip().split(" \\\n")
        found[canonicalize_name(Requirement(line).name)] = (Requirement(line), [h.strip() for h in hashes])
    return found


@pytest.fixture(scope="module")
def locked() -> dict[str, tuple[Requirement, list[str]]]:
    return entries(LOCK.read_text())


def needs(requirement: Requirement) -> list[Requirement]:
    """What this platform installs for a requirement, by the metadata of what is installed."""
    extras = requirement.extras or {""}
    wanted = [Requirement(line) for line in distribution(requirement.name).requires or []]
    return [r for r in wanted if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]


def test_every_file_is_known_by_its_hash(locked: dict[str, tuple[Requirement, list[str]]]) -> None:
    assert len(locked) > 150
    for name, (requirement, hashes) in locked.items():
        assert [s.operator for s in requirement.specifier] == ["=="], name
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), name


def test_versions_are_those_that_the_tests_run_with(locked: dict[str, tuple[Requirement, list[str]]]) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    differing = {n: r for n, (r, _) in locked.items() if n in pinned and str(r.specifier) != f"=={pinned[n]}"}
    assert not differing and len(locked.keys() & pinned.keys()) > 150


def test_nothing_that_is_needed_is_missing(locked: dict[str, tuple[Requirement, list[str]]]) -> None:
    """From pyproject's dependencies through those of what is installed here, with their extras and markers."""
    todo = [Requirement(d) for d in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        key = f"{canonicalize_name(requirement.name)}{sorted(requirement.extras)}"
        if key in seen:
            continue
        seen.add(key)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name}: `make lock` makes requirements.lock anew"
        version = str(locked[name][0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is locked at {version}"
        todo += needs(requirement)
    assert len(seen) > 100


def test_the_image_without_cuda_leaves_out_torch_and_what_only_its_gpu_build_needs(
    locked: dict[str, tuple[Requirement, list[str]]],
) -> None:
    """The Dockerfile's own awk program, run on the lock."""
    (program,) = re.findall(r"awk ('.+') requirements\.lock", (ROOT / "cluster" / "Dockerfile").read_text())
    rest = subprocess.run(f"awk {program} {LOCK}", shell=True, capture_output=True, text=True, check=True).stdout
    left = entries(rest)
    gone = {name for name in locked if re.match(r"(torch$|triton$|nvidia-|cuda-)", name)}
    assert left.keys() == locked.keys() - gone and "torch" in gone and len(gone) > 10
    assert all(left[name] == locked[name] for name in left)
