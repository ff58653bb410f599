# make serve   set everything up and talk to Omni at http://127.0.0.1:8000
# make test    set everything up and run every check and test that fits in ten minutes
# The rest: setup, fetch, check, test-slow, bench.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
BASE   := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SOURCES := $(wildcard kernels/omni_kernels/*.cpp kernels/omni_kernels/*.h \
             kernels/omni_kernels/*/*.cpp kernels/omni_kernels/*/*.h)

.PHONY: help setup setup-dev serve fetch test test-slow check bench system-packages clean
help:
	@sed -n 's/^# //p' Makefile | head -3

setup: $(BASE)
setup-dev: $(DEV)

$(BASE): pyproject.toml setup.py $(SOURCES)
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "[2/3] packages (PyTorch is large: some minutes and 6 GB the first time) and kernels"
	@$(BIN)/pip install --quiet torch torchaudio
	@$(BIN)/pip install --quiet -e .
	@touch $@

$(DEV): $(BASE)
	@echo "[2/3] packages for tests and benchmarks"
	@$(BIN)/pip install --quiet -e '.[dev,bench]'
	@touch $@

fetch: setup
	@echo "[3/3] weights (skipped when they are in the model store)"
	@$(BIN)/omni fetch

serve: fetch
	@$(BIN)/omni serve

system-packages:
	@sh docker/test-packages.sh

check: setup-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -m "not slow"

test: system-packages setup-dev fetch
	@$(BIN)/omni fetch smollm2-135m
	@$(MAKE) --no-print-directory check
	@echo "Left out (make test-slow runs them):"
	@$(BIN)/pytest -q --collect-only -m slow 2>/dev/null | sed -n 's/^tests/  tests/p'

test-slow: system-packages setup-dev fetch
	@$(BIN)/omni fetch smollm2-135m kokoro-82m
	@$(BIN)/pytest -m slow

bench: system-packages setup-dev fetch
	@$(BIN)/omni bench

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
