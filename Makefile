# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
# One exact version: a bare `torch` may pull a CUDA build of several gigabytes. Override to suit your machine, e.g.
# make run TORCH="torch --index-url <the CPU index from the 'Get started' page of pytorch.org>"
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: run test lint types clean

run: $(VENV)/.runtime
	$(BIN)/cohom run

test: $(VENV)/.dev
	$(BIN)/cohom run --samples 100 --quiet --output-dir $(VENV)/smoke
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

$(VENV)/.runtime: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
