# The README's two commands are `make serve` and `make test`. Each makes .venv first if it is missing, or if
# pyproject.toml or constraints.txt have changed since it was made.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help serve test build verify lint bench clean

help:  ## Show this list.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10
	@echo
	@echo "Variables: PORT=8000 for serve, PYTHON=python3 to make .venv with."

serve: $(STAMP)  ## Build the site, serve it at 127.0.0.1:8000 (PORT=) and rebuild on every edit.
	@$(BIN)/attn serve --port $(PORT)

test: $(STAMP)  ## Pass the tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

build: $(STAMP)  ## Build the site into build/site.
	@$(BIN)/attn build

verify: $(STAMP)  ## Run the proofs and write the records that the pages show.
	$(BIN)/attn verify

lint: $(STAMP)  ## Check style and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

bench: $(STAMP)  ## Measure speed beside the peers; results go to benchmarks/results/.
	$(BIN)/attn bench --all

clean:  ## Remove what was built (.venv and work/ stay).
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
