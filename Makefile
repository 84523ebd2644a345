# `make bench` and `make test` do everything: environment, installation, run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: bench test lint types install clean

bench: install  ## run the packaged model cards
	$(BIN)/python -m pytest --sdbench

test: install  ## run the project's own tests
	$(BIN)/python -m pytest -n 2

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -e ".[dev]" -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .sdbench build dist *.egg-info
