# `make train` and `make test` set everything up by themselves; everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Extra options for pip, such as PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Tests that run at a time: most of them wait for processes
JOBS ?= 3
PYTEST := $(BIN)/python -m pytest --dist loadfile
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
.DEFAULT_GOAL := help

.PHONY: help setup train test test-hosts test-all lint clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## make .venv with everything that training and tests need

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zmqrl needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

train: setup ## train Breakout on this machine (Ctrl-C: checkpoint and end); ARGS="pong --minutes 10" for another run
	$(BIN)/zmqrl train $(or $(ARGS),breakout)

test: lint ## the linters and the tests, but for the slow ones and those that need root
	$(PYTEST) -n $(JOBS)

test-hosts: setup ## the tests on several hosts, which need root and Debian packages: network lab and Slurm
	$(PYTEST) -n $(JOBS) -m "(lab or slurm) and not slow"

test-all: lint ## all tests: the slow ones too, and random ones with many more examples
	$(PYTEST) -n $(JOBS) -m "slow or not slow" --hypothesis-profile=thorough --timeout 1800

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
