# Everything starts here: `make` lists the targets. Python and make are all that a fresh clone needs; the first
# target that wants the environment makes it, in .venv.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
export PYTHON

BIN := .venv/bin

# Any Python from 3.6 on can start deploy/environment.py, which then looks for one that suits.
STARTER = $(shell for python in "$(PYTHON)" python3 python3.11 python3.12 python3.13 python; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1 \
	&& { echo "$$python"; break; }; done)
NO_PYTHON = CPython 3.11 to 3.13, 64 bit, is needed (none is on PATH): install one, or name it: PYTHON=/path/to/python.
ENVIRONMENT = $(if $(STARTER),"$(STARTER)" deploy/environment.py,echo "$(NO_PYTHON)" >&2; exit 2 \#)

.PHONY: help setup bigquery demo test check lint format-check types imports project bench model soak format clean distclean

help: ## list the targets
	@echo "usage: make TARGET [ARGS='...'] [PYTHON=/path/to/python3.11]"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  \1: \2/p' Makefile \
		| while IFS=: read -r name text; do printf '  %-12s%s\n' $$name "$$text"; done

setup: ## make the environment in .venv (4 GB of disk, 2 to 5 minutes, once)
	@$(ENVIRONMENT) --project --size-gb 5 .venv requirements.lock

bigquery: ## make the BigQuery emulator's environment in .venv-bigquery (0.6 GB), for tests
	@$(ENVIRONMENT) --size-gb 0.8 .venv-bigquery tests/requirements-bqemulator.lock

demo: setup ## real flights, predicted live, then verified bit for bit (ARGS=--quick for the short one)
	@$(BIN)/sameriver demo $(ARGS)

# Three at a time: most of what a test does is wait for a process that it started. A file's tests stay together.
test: setup bigquery ## run the tests (ARGS='-k windows' for some of them)
	@$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder $(ARGS)

check: lint format-check types imports project ## style, types, import rules, documents, security

lint: setup
	@echo "ruff: style, likely bugs, security" && $(BIN)/ruff check .

format-check: setup
	@echo "ruff: format" && $(BIN)/ruff format --check .

types: setup
	@echo "mypy: types" && $(BIN)/mypy

imports: setup
	@echo "import-linter: which package may import which" && $(BIN)/lint-imports --no-logo

project: setup
	@echo "documents, versions, packaging, security" && $(BIN)/python -m pytest -q tests/test_project.py tests/test_code_rules.py

bench: setup ## measure every figure that the README quotes (ARGS=--write puts them into it)
	@$(BIN)/python benchmarks/figures.py $(ARGS)

model: setup ## train on a sample of the flights and tell its figures (ARGS='--out head.json --against base.json')
	@$(BIN)/python -m benchmarks.model_check $(ARGS)

soak: setup bigquery ## run the long tests, and those of drawn examples on new ones
	@SAMERIVER_DRAWS_OF_TESTS=new $(BIN)/python -m pytest -m "soak or hypothesis" --timeout=0 $(ARGS)

format: setup ## format the code and mend what can be mended
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove caches and build results
	@rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	@rm -rf .venv .venv-bigquery
