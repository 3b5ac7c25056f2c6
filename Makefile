# Two commands that matter: `make demo` and `make test`. Each sets up all it needs below .venv.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types unit engine e2e soak bench clean

demo: $(VENV)/.installed
	$(BIN)/rwkvflow run recipes/demo.yaml

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --durations=25 tests/unit
	$(BIN)/pytest -n 2 --durations=25 --dist loadfile tests/engine tests/e2e

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit engine e2e: $(VENV)/.dev
	$(BIN)/pytest tests/$@

# Long runs that CI does not wait for: fuzzing and memory at real sizes.
soak: $(VENV)/.dev
	RWKVFLOW_SOAK=1 $(BIN)/pytest -m soak --override-ini 'addopts=-ra'

bench: $(VENV)/.dev
	$(BIN)/python scripts/bench_start.py
	engine=$$($(BIN)/rwkvflow engine build recipes/demo.yaml --sandbox host --print-path) && \
	$(BIN)/python scripts/bench_convert.py --engine "$$engine" && \
	$(BIN)/python scripts/bench_tokenizer.py --library "$$engine/lib/librwkv.so" && \
	$(BIN)/python scripts/bench_engine.py --folder build/bench --engine "$$engine"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out build
