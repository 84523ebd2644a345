# `make bench` and `make test` do everything: environment, installation, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help bench test test-all explore coverage lint types docs install release clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

bench: install  ## run the packaged model cards
	$(BIN)/python -m pytest --sdbench --benchmark-quiet --sdbench-report .sdbench/report.html

test: install  ## run the project's own tests, without the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: install  ## run all of the project's own tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

explore: install  ## try the property tests on thousands of new examples; what fails becomes an @example
	HYPOTHESIS_PROFILE=explore $(BIN)/python -m pytest -n 2 --dist worksteal -m hypothesis

coverage: install  ## run all of the project's own tests and hold their branch coverage
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "" --cov --cov-report=term

lint: install  ## check style, format and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: install  ## check types
	$(BIN)/mypy

docs: install  ## build the documentation into site/, without a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed  ## make the environment in .venv

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -e ".[dev]" -c constraints.txt
	touch $@

release: install  ## check, build and tag a version, and upload nothing: make release VERSION=x.y.z
	PYTHON=$(BIN)/python .ci/release $(VERSION)

clean:  ## remove everything that was made here
	rm -rf $(VENV) .sdbench build dist site *.egg-info
