# Everything a new machine needs: Python 3.11 or newer, pip, gcc, make.
#   make demo    environment, install, an answer of tiny, and a drafted one of a 0.5B model (500 MB are downloaded once)
#   make test    environment, install, and the tests

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-weights lint types layers check clean

help:
	@sed -n '2,3p' Makefile | sed 's/^#   //'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; run: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/unmask generate -m tiny --trajectory demo.jsonl \
		"Write a Python function \`solve(xs: list[int]) -> int\`. Keep the even numbers and return the sum of the numbers."
	$(BIN)/unmask generate "Write a function to find the shared elements from the given two lists." --max-new-tokens 160
	@echo "replay the first one with: $(BIN)/unmask replay demo.jsonl" >&2

test: install-dev
	$(BIN)/python -m pytest

test-weights: install-dev
	$(BIN)/python -m pytest -m "weights or slow" --timeout 1800

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

layers: install-dev
	$(BIN)/lint-imports

check: lint types layers test

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis demo.jsonl
