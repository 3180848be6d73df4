# Each target sets up what it needs in .venv; a second time the set-up is skipped.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.ready-core
DEV    := $(VENV)/.ready-dev
# The versions to install; .ci/oldest.txt has the oldest PyTorch that is supported.
CONSTRAINTS ?= constraints.txt
INSTALL := -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
PIP    := $(BIN)/python $(INSTALL)
# Test processes: one a core. JOBS=0 runs the tests in one process.
JOBS   ?= auto
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: setup demo test coverage test-quick report lint types docs dist wheel check clean

setup: $(DEV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "anynest needs Python 3.11 or later, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "Installing anynest, PyTorch, ONNX Runtime and the server into $(VENV) (once, about a minute)"
	@$(PIP) -e '.[serve]'
	@touch $@

$(DEV): $(CORE)
	@echo "Installing what the tests and linters need into $(VENV) (once, about a minute)"
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(CORE)
	$(BIN)/anynest demo

test: $(DEV)
	$(PYTEST)

coverage: $(DEV) # the tests with line coverage: half as fast, but with Python 3.12 and later
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	  $(PYTEST) --cov=anynest --cov-report=xml
	@echo "line coverage: $$($(BIN)/coverage report --format=total) %"

test-quick: $(DEV) # without the tests marked slow
	$(PYTEST) -m 'not slow'

report: $(CORE) # results/*.jsonl -> results/report.md, report.html and docs/evidence.md
	$(BIN)/anynest report results --out results
	$(BIN)/python benchmarks/evidence.py results --into docs/evidence.md

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

docs: $(DEV) # build/docs; a warning, such as a broken link or a name without documentation, is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs
	@echo "the site: build/docs/index.html"

dist: $(DEV) # dist/: the source archive, and the wheel that is built from it
	rm -rf dist
	$(BIN)/python -m build --outdir dist

wheel: dist # the wheel in an environment of its own, where the README's examples must run
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	env -u PYTHONPATH build/wheel/bin/python $(INSTALL) dist/*.whl
	env -u PYTHONPATH build/wheel/bin/python .ci/readme.py README.md
	env -u PYTHONPATH build/wheel/bin/anynest --version

check: lint types docs test

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .coverage coverage.xml
