# `make` lists the tasks. Everything runs in the virtual environment $(VENV), which is made on first use.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= inspectad-demo
BIN = $(VENV)/bin

.PHONY: help setup demo test kills check format clean

help:
	@echo "make demo    set everything up and run the whole job on rendered parts"
	@echo "make test    set everything up and pass all tests"
	@echo "make kills   kill 200 scans at random moments, and compare what becomes of them (some minutes)"
	@echo "make check   linters and types"
	@echo "make format  format the code"
	@echo "make clean   remove the virtual environment and what the tools left"

setup: $(VENV)/ready

# The stamp is newer than pyproject.toml only when the installation finished.
$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "inspectad needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[train,test]"
	@touch $@

demo: setup
	$(BIN)/inspectad demo -o $(DEMO)

test: setup
	$(BIN)/python -m pytest

kills: setup
	$(BIN)/python tests/kills.py --kills 200

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
