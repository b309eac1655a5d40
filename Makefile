# Two commands on a fresh machine do everything: `make demo` and `make test`.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
PYTEST_WORKERS ?= 2

.PHONY: help setup demo test browser lint types layers format docs clean

help:
	@echo "make demo     install, generate Burgers data, train, compare with FNO and solver, write a report (about 6 minutes)"
	@echo "make test     install and run all tests"
	@echo "make setup    install into $(VENV); does nothing when that is up to date"
	@echo "make lint | types | layers    the other checks of CI"
	@echo "make docs     write docs/settings.md from the schema"
	@echo "make clean    remove the installation and caches; runs/ and data/ stay"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found; install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/ups run configs/demo.yaml

test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal

# The report is tested in a real browser. Where there is none and it may be installed, it is; elsewhere that test is skipped.
browser:
ifeq ($(CHROMIUM),)
	@if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
		(apt-get update && apt-get install -y --no-install-recommends chromium) >/dev/null 2>&1 \
			|| echo "chromium could not be installed: the browser test will be skipped"; \
	else echo "no chromium here: the browser test will be skipped"; fi
endif

lint: setup
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

docs: setup
	$(BIN)/python -m ups.config.document docs/settings.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks src/*.egg-info
