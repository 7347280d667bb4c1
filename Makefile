# make train [CONFIG=configs/mat.yaml] [ARGS="--set n_epochs=2"], make test, make lint, make check (lint and test), make setup (.venv). The
# others make .venv first if it is missing. make results [DATA=tiny-imagenet-200.zip] [ONLY="mat_0 standard_0"] repeats the runs of docs/results.md.
# PYTHON=python3.12 picks another interpreter for it.

CONFIG ?= configs/demo.yaml
ARGS ?=
DATA ?=
ONLY ?=
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
INSTALLED = .venv/installed

.PHONY: train test lint check setup results

train: $(INSTALLED)
	@.venv/bin/python mat/train.py $(CONFIG) $(ARGS)

test: $(INSTALLED)
	.venv/bin/python -m pytest -n 2

lint: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

check: lint test

results: $(INSTALLED)
	@.venv/bin/python -m mat.tools.results $(if $(DATA),--data "$(DATA)") $(if $(ONLY),--only $(ONLY))

setup: $(INSTALLED)

$(INSTALLED): requirements.txt pyproject.toml
	@$(or $(PYTHON),python3) -c '$(SUPPORTED)' || { echo "Python 3.10 to 3.13 is needed. Received: $$($(or $(PYTHON),python3) --version 2>&1). Set PYTHON=..." >&2; exit 2; }
	@echo "Setting up .venv with $$($(PYTHON) --version); this takes a minute or two"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
