# make demo    digits, from images to a distilled graph student, in under 3 minutes
# make test    the tests; make test-slow: also those that take minutes; make coverage: the lines that they run
# make lint    format, rules, types
# make docs    the tables and figures from results/, and the documentation site in site/
# make docs-serve  shows the site at http://127.0.0.1:8000, and rebuilds it when a page changes
# make install only the environment, in $(VENV)

VENV ?= .venv
# The newest of the Pythons at hand that is 3.11 or later; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The extras of pyproject.toml that fit the machine; EXTRAS=... chooses others.
EXTRAS ?= $(shell if nvidia-smi -L 2>/dev/null | grep -q GPU; then echo cuda12,dev; \
	elif [ -e /dev/accel0 ] || [ -n "$$TPU_NAME" ]; then echo tpu,dev; \
	else echo dev; fi)

# Tests that run side by side, each with up to 3 GB.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check
STAMP := $(VENV)/.installed-$(EXTRAS)
STAMP_DOCS := $(VENV)/.installed-docs

.PHONY: demo test test-slow coverage lint format docs docs-serve install
demo: install
	$(BIN)/python -m cnn2gnn_jax.main --config=configs/digits.py

test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

test-slow: install
	$(BIN)/python -m pytest

coverage: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --cov=cnn2gnn_jax --cov-report=term

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install $(STAMP_DOCS)
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_full_size.py
	$(BIN)/mkdocs build --strict

docs-serve: install $(STAMP_DOCS)
	$(BIN)/mkdocs serve

install: $(STAMP)

$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "No Python of 3.11 or later found: install one, or give PYTHON=..." >&2; exit 1; fi
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) and the extras $(EXTRAS)"
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) -e '.[$(EXTRAS)]'
	@touch $@

$(STAMP_DOCS): $(STAMP)
	$(PIP_INSTALL) -e '.[$(EXTRAS),docs]'
	@touch $@
