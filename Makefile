# `make` lists the tasks. Everything runs in the virtual environment $(VENV), which is made on first use.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= inspectad-demo
JOBS ?= 2
COUNT ?= 100000
SEED ?= 0
BIN = $(VENV)/bin

.PHONY: help setup demo test kills check format fuzz audit clean

help:
	@echo "make demo    set everything up and run the whole job on rendered parts"
	@echo "make test    set everything up and pass all tests, JOBS=$(JOBS) at a time"
	@echo "make kills   kill 200 scans at random moments, and compare what becomes of them (some minutes)"
	@echo "make check   linters and types"
	@echo "make format  format the code"
	@echo "make fuzz    feed damaged input to all that reads some: COUNT=$(COUNT) SEED=$(SEED)"
	@echo "make audit   look the dependencies up in public lists of vulnerabilities"
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

# Threads of one test must not wait busily on the cores that the other one needs; a file's tests share what it set up.
test: setup
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

kills: setup
	$(BIN)/python tests/kills.py --kills 200

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fuzz: setup
	$(BIN)/python -m fuzz --count $(COUNT) --seed $(SEED)

# In an environment of its own, so that what is tested stays as it is; where it cannot be installed, audit.py says so.
audit: setup
	$(PYTHON) -m venv $(VENV)/audit
	-$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/python .ci/audit.py $(BIN)/python

clean:
	rm -rf $(VENV) fuzz-findings .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
