"""The fingerprint follows code that can change a token, and nothing else."""

import sys
from pathlib import Path

import pytest

from pretrainer.data import compiled, fingerprint
from pretrainer.data.identity import CURATION_MODULES, NOT_IN_FINGERPRINT, PACKING_MODULES


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "fakepackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "stage.py").write_text(
        "from fakepackage.helper import f\nfrom fakepackage import other\n\ndef run():\n    return f()\n"
    )
    (folder / "helper.py").write_text("def f():\n    '''Says one.'''\n    return 1\n")
    (folder / "other.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [n for n in sys.modules if n.startswith("fakepackage")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def version(without: tuple[str, ...] = ()) -> str:
    return fingerprint.code_version(["fakepackage.stage"], without)


def test_docstrings_comments_and_layout_do_not_count(package: Path) -> None:
    before = version()
    (package / "helper.py").write_text("# new\ndef f():\n    '''Says\n    uno.'''\n\n    return (1)\n")
    assert version() == before


@pytest.mark.parametrize(("module", "text"), [("helper.py", "def f():\n    return 2\n"), ("other.py", "X = 2\n")])
def test_code_of_imported_modules_counts(package: Path, module: str, text: str) -> None:
    before, left_out = version(), version((f"fakepackage.{module[:-3]}",))
    (package / module).write_text(text)
    assert version() != before
    assert version((f"fakepackage.{module[:-3]}",)) == left_out


def test_changes_are_named() -> None:
    assert fingerprint.changed({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b", "c"]


def modules_in(version_of: tuple[str, ...], without: tuple[str, ...]) -> set[str]:
    """Names of the modules whose code enters a version."""
    seen: set[str] = set()
    original = fingerprint._parse
    try:
        fingerprint._parse = lambda name: (seen.add(name), original(name))[1]
        fingerprint.code_version(version_of, without)
    finally:
        fingerprint._parse = original
    return seen


def test_curation_covers_filters_and_kernels() -> None:
    seen = modules_in(CURATION_MODULES, NOT_IN_FINGERPRINT)
    for name in (
        "filters.code",
        "filters.gopher",
            "filters.rules",
            "filters.c4",
        "filters.normalise",
        "dedup.lsh",
        "hashing",
        "readers.units",
        "readers.decompress",
        "tokenizer.text",
    ):
        assert f"pretrainer.data.{name}" in seen
    assert not seen & set(NOT_IN_FINGERPRINT)


def test_packing_covers_what_places_documents_and_what_windows_record() -> None:
    seen = modules_in(PACKING_MODULES, (*NOT_IN_FINGERPRINT, "pretrainer.data.stages"))
    assert {f"pretrainer.data.{name}" for name in ("packing.placement", "compiled", "packing.shuffle_quality")} <= seen


def test_every_file_with_kernels_names_the_folder_of_compiled_ones() -> None:
    folder = Path(compiled.__file__).parent
    files = [path for path in folder.rglob("*.py") if "compiled import kernel" in path.read_text()]
    uses = {str(path.relative_to(folder)) for path in files}
    assert {*uses, "compiled.py"} == set(compiled.KERNEL_FILES)
