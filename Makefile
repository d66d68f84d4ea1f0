# Every target works on a fresh clone: the first one that needs Python makes .venv and builds the extension.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A real Kafka for the demo and the tests, where one lies beside the checkout (docs/streaming.md).
ifneq ($(wildcard ../shared/kafka/libs),)
export VITRINE_KAFKA_HOME ?= $(abspath ../shared/kafka)
endif

NATIVE_SOURCES := CMakeLists.txt $(shell find native -type f 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: demo test test-long lint protos bench screenshots clean help setup

demo: setup ## Run the whole system and walk through it; ARGS="--data ../shared/data --json" are passed on
	@$(BIN)/vitrine demo $(ARGS)

test: setup ## Unit, contract, end-to-end and fault tests, on real servers; ARGS go to pytest
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-long: setup ## All tests, those that take minutes too
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff, mypy, import-linter, buf lint, buf breaking
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf breaking --against protos/last-release.binpb

protos: setup ## Regenerate the gRPC stubs in vitrine/api
	@$(BIN)/python tools/protos.py

bench: setup ## Every benchmark, one JSON object a line at the end of each
	@for b in $(notdir $(basename $(shell grep -l __main__ benchmarks/*.py))); do \
	  echo "== $$b"; $(BIN)/python -m benchmarks.$$b --json || exit 1; done

setup: .venv/installed .venv/built

.venv/installed: pyproject.toml constraints.txt
	@tools/check-build-tools $(PYTHON)
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@echo "vitrine: installing into .venv, 1 of 3: torch"
	@$(BIN)/pip install -qq -c constraints.txt torch
	@echo "vitrine: installing into .venv, 2 of 3: clients, servers and tools"
	@$(BIN)/pip install -qq -r constraints.txt
	@echo "vitrine: installing into .venv, 3 of 3: the package and its C++ extension"
	@$(BIN)/pip install -qq -c constraints.txt --no-build-isolation -e '.[serve,train,load,dev]'
	@touch $@ .venv/built

.venv/built: $(NATIVE_SOURCES) .venv/installed
	@tools/check-build-tools $(PYTHON)
	@echo "vitrine: rebuilding the C++ extension"
	@$(BIN)/pip install -qq --no-build-isolation --no-deps -e .
	@touch $@

screenshots: setup ## The console's pages as docs/console/*.png; ARGS="--data ../shared/data" takes real photos
	@$(BIN)/python -m tools.screenshots $(ARGS)

clean: ## Remove what was built, run and installed
	rm -rf .venv build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
