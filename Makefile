# `make demo` and `make test` need nothing before them: they build .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.docs-installed # what builds the site; the build itself needs no network
TWO := -n 2 --dist worksteal # tests at a time: their networks are small, and most wait for processes

.PHONY: setup demo demo-text test test-all lint bench docs

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,repa,parquet]"
	touch $(STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $(DOCS_STAMP)

demo: setup
	$(BIN)/sra2 demo

demo-text: setup
	$(BIN)/sra2 demo --text

test: setup
	$(BIN)/python -m pytest $(TWO) -m "not slow"

test-all: setup
	$(BIN)/python -m pytest $(TWO)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/digits.py

docs: $(DOCS_STAMP)
	$(BIN)/mkdocs build --strict
