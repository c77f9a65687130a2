# make pretrain [ARGS="train.steps=20"]    train the quickstart on this machine
# make test                                lint, types and tests, in less than 15 minutes on 2 cores
# make test-all [KUBERAY_CRDS=folder]      the same with the long tests, which need the programs prometheus and redis-server
#                                          (Debian: apt-get install), and KubeRay's own CRDs if they are there
# make chaos [KILLS=100]                   random kills over one training, and the proof that nothing changed
# make demo-crash                          a worker is killed before your eyes, in two minutes
# make cluster-demo                        Ray's autoscaler grows a training from no node; nodes are lost and come back
# make lock                                requirements.lock anew, after a change of pyproject.toml or constraints.txt
# make audit                               known vulnerabilities of what it names, asked of PyPI
#
# Each does its own set-up in .venv; choose another Python with PYTHON=/path/to/python3.12.

.DEFAULT_GOAL := help
.PHONY: help setup pretrain test test-all chaos demo-crash cluster-demo lint lock audit clean

ARGS ?=
KILLS ?= 100
CONFIG ?= configs/quickstart.yaml
VENV := .venv
# Tests that use Ray one after the other in one process (tests/conftest.py), all others in a second one.
SIDE_BY_SIDE := -n 2
RUN := $(VENV)/bin/python
CPU_TORCH := https://download.pytorch.org/whl/cpu

# The first interpreter that starts, is 3.11 or 3.12, and can make virtual environments.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { echo $$p; break; }; done)

# A local cluster belongs to one person; PYTHONHASHSEED makes every process iterate sets of strings alike.
export RAY_AUTH_MODE := disabled
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONHASHSEED := 0

help:
	@sed -n '/^# /s/^# //p; /^.DEFAULT/q' Makefile

# Ends with 0 when the index answers within 5 s; the thread also ends a name look-up that hangs.
PROBE := import os, threading, urllib.request; \
	timer = threading.Timer(5, os._exit, [1]); timer.daemon = True; timer.start(); \
	urllib.request.urlopen("$(CPU_TORCH)/torch/")

# $(call install,what): without an NVIDIA GPU, torch comes from its CPU index where that can be reached, because the
# build on PyPI brings gigabytes of CUDA libraries.
define install
@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 with venv is needed: install it, or give PYTHON=/its/path" >&2; exit 1; }
@test -x $(RUN) || $(PYTHON) -m venv --clear $(VENV)
@extra=""; if ! nvidia-smi >/dev/null 2>&1; then \
	if $(RUN) -c '$(PROBE)' >/dev/null 2>&1; then extra="--extra-index-url $(CPU_TORCH)"; \
	else echo "$(CPU_TORCH) cannot be reached: torch comes from where pip finds it"; fi; fi; \
	echo "installing into $(VENV)"; $(RUN) -m pip install -q $$extra -c constraints.txt -e "$(1)"
endef

$(VENV)/.pretrain: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.pretrain $@

$(VENV)/.lock: pyproject.toml
	$(call install,.[lock])
	@touch $@

setup: $(VENV)/.test

pretrain: $(VENV)/.pretrain
	@$(RUN) -m pipelines.pretrain --config $(CONFIG) $(ARGS)

lint: $(VENV)/.test
	$(RUN) -m ruff check .
	$(RUN) -m mypy pretrainer pipelines

test: lint
	$(RUN) -m pytest -q $(SIDE_BY_SIDE) $(ARGS)

test-all: lint
	$(RUN) -m pytest -q $(SIDE_BY_SIDE) --cov --cov-report=term -m "" $(ARGS)

chaos: $(VENV)/.test
	$(RUN) -m tests.faults.chaos --kills $(KILLS)

demo-crash: $(VENV)/.test
	$(RUN) -m tests.faults.demo_crash

cluster-demo: $(VENV)/.test
	$(RUN) -m tests.faults.cluster_demo

# What the image of a cluster installs (cluster/Dockerfile).
lock: $(VENV)/.lock
	$(VENV)/bin/uv pip compile pyproject.toml -c constraints.txt --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --default-index https://pypi.org/simple --no-config \
		-q -o requirements.lock

audit: $(VENV)/.lock
	$(VENV)/bin/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find pretrainer pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +
