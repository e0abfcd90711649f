# Everything runs in .venv, made on the first call from the pinned versions in requirements.txt.
# Choose an interpreter with `make PYTHON=python3.12 test`.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# -qq: errors only; a plain -q also prints one warning per package where a configured wheel folder is empty.
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

.DEFAULT_GOAL := help
.PHONY: help demo test faults lint format clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing the pinned packages into $(VENV) (once, about 2 minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install -r requirements.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)  ## render a small archive, index it, ask it, check the answers
	@$(BIN)/python -m jobs.demo

lint: $(STAMP)  ## formatting, lint, types, and the import rule between packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy echoprune pipelines jobs
	$(BIN)/lint-imports

test: lint  ## lint, then all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

faults: $(STAMP)  ## the long tests, then runs killed at every commit step and at random moments, by seed; again: the seeds left
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m tests.faults $(FAULTS)

format: $(STAMP)  ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove the environment, caches, builds and what the demo wrote
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf demo-archive demo-store demo-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
