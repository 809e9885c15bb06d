# Two commands on a fresh machine with python3, venv and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint all-tests clean

demo: $(READY)
	$(BIN)/zo-objectives demo --output zo-demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

all-tests: $(READY)
	$(BIN)/python -m pytest -m "not gpu"

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		pytest hypothesis ruff mypy pandas-stubs types-PyYAML types-tqdm hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--no-build-isolation --editable ".[peft]"
	touch $@

clean:
	rm -rf $(VENV) zo-demo
