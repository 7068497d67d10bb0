# Two commands do all the set-up, without root:
#   make demo     environment in .venv from PyPI (MPI included) + measure, plan and train on 4 ranks
#   make test     the same environment + every test that needs neither root nor special hardware
# Variables: PYTHON (the interpreter that makes .venv); RANKS STEPS OUT PROFILE_SECONDS DEMO_ARGS for
# the demo; TESTS WORKERS PYTEST_ARGS for the tests.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Full paths: without an activated environment `python` and `mpiexec` are the system's.
ENV := .venv/.installed
PY := .venv/bin/python
MPIEXEC := .venv/bin/mpiexec

RANKS ?= 4
STEPS ?=
OUT ?= demo
PROFILE_SECONDS ?= 40
DEMO_ARGS ?=
TESTS ?= tests
WORKERS ?= 2
PYTEST_ARGS ?=

SHELL_FILES := $(wildcard .ci/* jobscripts/*.s* jobscripts/*.pbs jobscripts/sites/*.sh tests/slurm/*.sh)

.PHONY: help env demo test test-all test-slurm test-cuda test-lowest lint lint-python lint-types \
    lint-imports lint-links lint-shell format clean distclean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(ENV)  ## make .venv

$(ENV): pyproject.toml constraints.txt .ci/environment
	.ci/environment .venv mpich,plot,test
	touch $@

# The extra cuda12 without CuPy's CUDA libraries (2.5 GB), which nothing calls where there is no GPU.
.venv-cuda/.installed: pyproject.toml constraints.txt .ci/environment
	.ci/environment .venv-cuda mpich,plot,test 'numba-cuda[cu12]' cupy-cuda12x nvidia-nccl-cu12
	touch $@

demo: $(ENV)  ## measure this machine, plan, and train a GPT on real text; results in demo/
	mkdir -p $(OUT)
	$(MPIEXEC) -n $(RANKS) $(PY) -m hpc_alpa.profiler --out $(OUT)/costs.h5 \
	    --seconds $(PROFILE_SECONDS) --dtype float32
	$(MPIEXEC) -n $(RANKS) $(PY) examples/train_gpt.py --costs $(OUT)/costs.h5 --out $(OUT) \
	    --json $(OUT)/train.json $(if $(STEPS),--steps $(STEPS)) $(DEMO_ARGS)

# Two at a time, then one by one what needs the cores for itself. 5: nothing of what was asked for.
test: $(ENV)  ## every test that needs neither root nor a GPU; names what it skips
	$(PY) -m pytest $(TESTS) -m 'not alone' -n $(WORKERS) --dist worksteal --durations=10 \
	    $(PYTEST_ARGS) || [ $$? = 5 ]
	$(PY) -m pytest $(TESTS) -m alone --durations=10 $(PYTEST_ARGS) || [ $$? = 5 ]

test-all: PYTEST_ARGS += --slow  ## the same and the tests that take minutes
test-all: test

test-slurm: $(ENV)  ## the job scripts on a private Slurm (root; Debian: slurm-wlm munge)
	$(PY) -m pytest tests/slurm --slurm --fail-skipped slurm $(PYTEST_ARGS)

test-cuda: .venv-cuda/.installed  ## CUDA kernels compiled and assembled without a GPU (2 GB)
	.venv-cuda/bin/python -m pytest $(TESTS) -m 'cuda_compile or gpu' \
	    --fail-skipped cuda_compile $(PYTEST_ARGS)

test-lowest:  ## smoke test with the lowest versions that pyproject.toml allows (Python 3.11)
	.ci/lowest

lint: lint-python lint-types lint-imports lint-links lint-shell  ## all linters

lint-python: $(ENV)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

lint-types: $(ENV)
	.venv/bin/mypy hpc_alpa tests

lint-imports: $(ENV)
	.venv/bin/lint-imports --no-logo

lint-links:
	for name in kernels profiler; do \
	    [ "$$(readlink hpc_alpa/$$name)" = "../$$name" ] || \
	        { echo "error: hpc_alpa/$$name must be a symbolic link to ../$$name"; exit 1; }; done

lint-shell: $(ENV)
	.venv/bin/shellcheck --external-sources $(SHELL_FILES)

format: $(ENV)  ## let ruff write its fixes
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:  ## remove what runs and builds wrote
	rm -rf build dist demo out *.egg-info .mypy_cache .ruff_cache .pytest_cache \
	    .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean  ## clean, and remove the environments
	rm -rf .venv .venv-cuda .venv-lowest
