# `make` lists the targets. Each that needs the environment creates .venv first, once.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo ui shots test test-slow lint speed clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## run the main experiment on tiny-llava, print its table, write a report folder
	$(BIN)/vlmsteer demo

ui: $(STAMP)  ## open the workbench on 127.0.0.1
	$(BIN)/vlmsteer ui

shots: $(STAMP)  ## take the workbench's pictures for the README (needs Chromium: ./install-system-packages)
	$(BIN)/python docs/shots.py

test: export OMP_NUM_THREADS = 1
test: $(STAMP)  ## run the test suite
	$(BIN)/python -m pytest

test-slow: export OMP_NUM_THREADS = 1
test-slow: $(STAMP)  ## run the tests that need minutes
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

speed: $(STAMP)  ## run every speed measurement in turn
	@set -e; for file in $(filter-out tests/speed/results.py tests/speed/models.py tests/speed/device.py tests/speed/soak.py,$(sort $(wildcard tests/speed/*.py))); do echo "== $$file"; $(BIN)/python $$file; done

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find vlmsteer counterfacts robotics ui tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last: after an interrupted or failed install the next make runs it again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "vlmsteer needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@
