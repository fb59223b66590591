# Everything starts here: `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export UV_LINK_MODE ?= hardlink
# The certificates that this machine trusts, as pip does: uv's own list knows no company's.
export UV_SYSTEM_CERTS ?= 1
# Stages are processes of their own: without compiled bytecode each would spend a quarter of a minute importing.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint format constraints generate clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

# The stamp is made anew whenever what it depends on changes, so that every target can simply ask for it.
$(VENV)/.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[operator,trainer,dev]'
	touch $@

setup: $(VENV)/.stamp ## Make the virtual environment with pinned dependencies

demo: setup ## Distil the digits teacher into a one-step generator on this machine
	$(BIN)/dmdctl run examples/distill-digits.yaml

test: setup ## Run all tests
	$(BIN)/pytest -n 3 --dist worksteal $(ARGS)

bench: setup ## Run benchmarks/ and write benchmarks/results.json
	$(BIN)/python -m benchmarks $(ARGS)

lint: setup ## ruff, mypy, the import contracts, and whether generated files are current
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m dmd_api.generate --check

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: setup ## Write the generated files (CRD, manifest reference) anew
	$(BIN)/python -m dmd_api.generate

constraints: setup ## Resolve all dependencies anew into constraints.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --no-header --no-annotate --no-emit-index-url --all-extras --python-version 3.11 pyproject.toml --output-file constraints.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
