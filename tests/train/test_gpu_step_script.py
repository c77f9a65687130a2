"""Benchmark and checks for a bare GPU machine, run at toy size on the CPU: with torch alone, without Ray.

    python -m pytest -q tests/train/test_gpu_step_script.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_step.py"
CHECKS = SCRIPT.with_name("gpu_checks.py")
ONLY_TORCH = """
import runpy, sys
for absent in ("ray", "mlflow", "pydantic", "pyarrow", "tokenizers", "sentencepiece"):
    sys.modules[absent] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_every_row_of_the_script_is_measured_with_torch_alone(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, "-c", ONLY_TORCH, str(SCRIPT), "--tiny", "--steps", "2", "--out", str(out)]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    named = re.findall(r'^    Row\("([^"]+)"', SCRIPT.read_text(), re.MULTILINE)
    results = json.loads(out.read_text())
    assert list(results) == named and len(named) >= 10
    for name, found in results.items():
        assert found.get("not_there") == "train.float8" or found["tokens_per_s"] > 0, (name, found)
        assert name in ran.stdout
    plans = {name: found["plan_gib"] for name, found in results.items() if "plan_gib" in found}
    assert plans["8b-full"] < plans["8b-selective"] < plans["8b-compiled"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["attention: c", "loss", "step: float32", "step: exp", "exact", "waits", "copy"])
def test_the_checks_hold_where_there_is_nothing_to_check(words: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONLY_TORCH, str(CHECKS), "--device", "cpu", "--only", words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stdout.startswith("ok  "), ran.stdout + ran.stderr


@pytest.mark.slow
def test_a_check_that_is_off_is_told(tmp_path: Path) -> None:
    spoil = "import pretrainer.model.masks as m; import torch; m_attend = m.attend\n"
    spoil += "m.attend = lambda *a: m_attend(*a) * (1.1 if a[0].dtype == torch.bfloat16 else 1)\n"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(CHECKS.parents[2])!r})\n{spoil}{ONLY_TORCH}"]
    command += [str(CHECKS), "--device", "cpu", "--only", "attention: c"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and ran.stdout.count("OFF") >= 2, ran.stdout + ran.stderr
