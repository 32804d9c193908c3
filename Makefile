# Each target makes .venv first, if it is missing or out of date. Everything that is installed is in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Extra options for pip, such as PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Tests that run at the same time: most of them wait for processes
JOBS ?= 3
PYTEST := $(BIN)/python -m pytest --dist loadfile
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
.DEFAULT_GOAL := help

.PHONY: help setup train check test test-hosts test-all coverage lint docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/ready ## make .venv with what training and tests need

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zmqrl needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[dev]'
	@touch $@

train: setup ## train Breakout here, Ctrl-C ends it; another run: ARGS="pong --minutes 10"
	$(BIN)/zmqrl train $(or $(ARGS),breakout)

check: lint ## lint, types and the tests that start no process: under a minute
	$(PYTEST) -n 2 -m "not processes and not lab and not slurm and not slow" --hypothesis-profile=quick

test: lint ## lint, types and all tests except slow ones and those on several hosts
	$(PYTEST) -n $(JOBS)

test-hosts: setup ## the tests on several hosts: network lab and Slurm (root, Debian packages)
	$(PYTEST) -n $(JOBS) -m "(lab or slurm) and not slow"

test-all: lint ## all tests, the slow ones too, with more random examples
	$(PYTEST) -n $(JOBS) -m "slow or not slow" --hypothesis-profile=thorough --timeout 1800

coverage: setup ## the tests of `make test`, and which lines of zmqrl they run
	$(PYTEST) -n $(JOBS) --cov --cov-report=term-missing:skip-covered

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/docs-ready: .venv/ready
	$(PIP) -e '.[docs]'
	@touch $@

docs: .venv/docs-ready ## build the pages of docs/ into site/
	$(BIN)/mkdocs build --strict

clean: ## remove .venv, caches and built pages (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage site
