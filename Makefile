# Most targets first create .venv if it is missing or out of date. They install packages only there.
PYTHON ?= python3
BIN := .venv/bin
# Extra options for pip. The torch on PyPI has CUDA packages of several gigabytes, so torch comes from an index of its CPU
# builds, unless pip is configured with any index of yours. PIP_ARGS= takes the one on PyPI.
CPU_BUILDS := --extra-index-url https://download.pytorch.org/whl/cpu
PIP_ARGS ?= $(shell $(PYTHON) -m pip config list | grep -q index-url || echo "$(CPU_BUILDS)")
# The number of tests that run at the same time. Most tests wait for processes.
JOBS ?= 4
# The number of minutes that `make soak` takes, and the number of simulated runs of `make hunt`
MINUTES ?= 30
SEEDS ?= 100000
PYTEST := $(BIN)/python -m pytest --dist loadgroup
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
.DEFAULT_GOAL := help
# Python writes compiled modules even if the caller's environment forbids it: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup train check test test-hosts test-all hunt soak coverage lint docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## create .venv with all packages for training and tests

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zmqrl needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

train: setup ## train Breakout on this machine until Ctrl-C; or set ARGS="pong --minutes 10"
	$(BIN)/zmqrl train $(or $(ARGS),breakout)

check: lint ## lint, types and the tests that start no processes (under a minute)
	$(PYTEST) -n 2 -m "not processes and not lab and not slurm and not slow and not soak" --hypothesis-profile=quick

test: lint ## lint, types and all tests except slow ones; with HOSTS=1 also those on several hosts
	$(PYTEST) -n $(JOBS) $(if $(HOSTS),--no-loadscope-reorder -m "not slow and not soak")

test-hosts: setup ## the tests on several hosts: network lab and Slurm (root, Debian packages)
	$(PYTEST) -n $(JOBS) -m "(lab or slurm) and not slow"

test-all: lint ## all tests, including slow ones, with more random examples
	$(PYTEST) -n $(JOBS) -m "not soak" --hypothesis-profile=thorough --timeout 1800

hunt: setup ## simulate many runs under random faults; SEEDS=100000
	PYTHONPATH=tests $(BIN)/python -m support.hunt --seeds $(SEEDS)

soak: setup ## attack real runs with random faults for a long time; MINUTES=30
	MINUTES=$(MINUTES) $(PYTEST) -m soak -s --timeout 0

coverage: setup ## the tests of `make test`, with a report of the lines they run
	$(PYTEST) -n $(JOBS) --cov --cov-report=term-missing:skip-covered

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/docs-ready: .venv/ready
	$(PIP) -e '.[docs]'
	@touch $@

docs: .venv/docs-ready ## build the documentation site in site/
	$(BIN)/mkdocs build --strict

clean: ## remove .venv, caches and the built site, but keep runs/
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* site
	find zmqrl tests docs launch benchmarks -name __pycache__ -prune -exec rm -rf {} +
