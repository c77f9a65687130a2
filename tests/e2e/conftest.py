"""One undisturbed run for all tests of the session that compare with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.head import Head, Result, job, tiny_config, two_sources


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    return tiny_config(folder, two_sources(folder / "corpus"))


@pytest.fixture(scope="session")
def reference(head: Head, config: Path) -> Result:
    """One undisturbed run with two workers, as a job; what every other run is compared with."""
    result = job(head, "pretrain", "--config", str(config), "run.name=reference", cwd=config.parent)
    assert result.code == 0, result.out + result.err
    return result
