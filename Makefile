# Everything runs from the repository root inside VENV. `make` alone lists the targets.
SHELL := bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
SCENES := data/scenes/rationales_all/README.md

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup scenes quickstart eval tensorboard pretrain test test-slow lint type check bench clean clean-all

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make the virtual environment and install tracelib with its dev tools (PYTHON=python3)

$(STAMP): pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "Installing tracelib into $(VENV): minutes the first time"
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

scenes: $(SCENES) ## Write the Scenes benchmark to data/scenes

$(SCENES): | $(STAMP)
	$(BIN)/python -m tracelib scenes --root data/scenes --seed 0

quickstart: $(STAMP) $(SCENES) ## Train the direct and the TRACE recipe on Scenes and print their table
	$(BIN)/python -m tracelib fit --config configs/direct_scenes.yaml
	$(BIN)/python -m tracelib fit --config configs/trace_scenes.yaml
	$(BIN)/python -m tracelib evaluate
	@echo "Curves and pictures of both runs: make tensorboard"

eval: $(STAMP) ## Evaluate a run (RUN=runs/..., by default the newest that thinks) beside another
	$(BIN)/python -m tracelib evaluate $(if $(RUN),--run $(RUN))

tensorboard: $(STAMP) ## Open TensorBoard on runs/
	$(BIN)/tensorboard --logdir runs

pretrain: $(STAMP) ## Make the embedded backbone again from nothing
	$(BIN)/python -m tracelib pretrain --config configs/pretrain_scenes.yaml

test test-slow: export HF_HUB_OFFLINE := 1

test: $(STAMP) ## Run the tests and doctests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(STAMP) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: $(STAMP) ## Check types
	$(BIN)/mypy tracelib

check: lint type test ## Everything a change must pass

bench: $(STAMP) $(SCENES) ## Measure reading, search, engine, router, training and construction against their limits (minutes, 8 GB of disk; RUN=runs/...)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python experiments/bench/reader.py
	$(BIN)/python experiments/bench/search.py
	$(BIN)/python experiments/bench/engine.py $(if $(RUN),--run $(RUN))
	$(BIN)/python experiments/bench/engine.py --dtype float32 $(if $(RUN),--run $(RUN))
	$(BIN)/python experiments/bench/router.py $(if $(RUN),--run $(RUN))
	$(BIN)/python experiments/bench/gradcache.py
	$(BIN)/python experiments/bench/direct.py
	$(BIN)/python experiments/bench/rge.py
	$(BIN)/python experiments/bench/step_profile.py
	$(BIN)/python experiments/bench/cot.py

clean: ## Remove caches and build outputs
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find tracelib tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean ## Also remove runs/ and data/scenes
	rm -rf runs data/scenes
