# Two commands that matter: `make demo` and `make test`. Each sets up all it needs below .venv.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
export NO_MKDOCS_2_WARNING = 1

.PHONY: demo test tests help lint types docs unit engine e2e soak image bench hooks check lock locked clean

demo: $(VENV)/.installed ## Convert tiny models into eight formats each, test them, publish to out/demo
	$(BIN)/rwkvflow run recipes/demo.yaml

# The checks take a minute of one core, beside the tests, which often wait for a container or a download. What they say
# is kept until the tests are over: it stands whole at the end, where nobody overlooks it.
test: $(VENV)/.dev ## Everything that is tested; what fails does not keep the rest from being told
	@mkdir -p build; failed=0; \
	$(MAKE) --keep-going --no-print-directory lint types docs >build/checks.log 2>&1 & checks=$$!; \
	trap 'kill $$checks; exit 130' INT TERM; \
	$(MAKE) --no-print-directory tests || failed=1; \
	wait $$checks || failed=1; \
	echo; echo 'lint, types, docs:'; cat build/checks.log; \
	exit $$failed

# A file of tests goes to one process whole, as much of what it needs is made once a file; see tests/spent.py. Each of them
# has a core to itself, where threads of numpy and PyTorch would only wait for one another.
tests: $(VENV)/.dev ## All tests but the long ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25

help: ## List these targets
	@grep -hE '^[a-z0-9 ]+:.*## ' $(MAKEFILE_LIST) | while IFS= read -r line; do \
		printf '%-16s %s\n' "$${line%%:*}" "$${line#*## }"; \
	done

lint: $(VENV)/.dev ## Check style, formatting, spelling and shell scripts
	@failed=0; for tool in 'ruff check .' 'ruff format --check .' codespell 'shellcheck .ci/run'; do \
		echo "$$tool"; $(BIN)/$$tool || failed=1; \
	done; exit $$failed

types: $(VENV)/.dev ## Check types with mypy
	$(BIN)/mypy

docs: $(VENV)/.dev ## Build the documentation into build/site; a broken link or anchor is an error
	$(BIN)/python scripts/docs_tables.py
	$(BIN)/mkdocs build --strict --quiet

unit engine e2e: $(VENV)/.dev ## Run one part of the tests
	$(BIN)/pytest tests/$@

soak: $(VENV)/.dev ## Run the long tests that CI does not wait for: fuzzing, and memory at real sizes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,soak]'
	RWKVFLOW_SOAK=1 $(BIN)/pytest -m soak --override-ini 'addopts=-ra'

image: $(VENV)/.dev ## Build the container image of rwkvflow itself, rwkvflow:VERSION
	$(BIN)/python scripts/build_image.py

bench: $(VENV)/.dev ## Measure start-up, conversion, tokenizers and the engine
	$(BIN)/python scripts/bench_start.py
	engine=$$($(BIN)/rwkvflow engine build recipes/demo.yaml --sandbox host --print-path) && \
	$(BIN)/python scripts/bench_convert.py --engine "$$engine" && \
	$(BIN)/python scripts/bench_tokenizer.py --library "$$engine/lib/librwkv.so" && \
	$(BIN)/python scripts/bench_engine.py --folder build/bench --engine "$$engine"

hooks: $(VENV)/.dev ## Install the pre-commit hooks
	$(BIN)/pre-commit install

check: $(VENV)/.dev ## Run the pre-commit hooks on all files
	$(BIN)/pre-commit run --all-files

lock: $(VENV)/.dev ## Pin the development environment, by hash, in requirements-dev.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command 'make lock' --quiet --output-file requirements-dev.txt

# Not what `make test` installs: of PyTorch this is PyPI's wheel, with gigabytes of CUDA, where an index of CPU wheels has a
# smaller one with other hashes; and a mirror may lack a version that is pinned here.
locked: $(VENV)/bin/python ## Install exactly the pinned development environment
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $(VENV)/.installed $(VENV)/.dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.made-by-make

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python scripts/install.py .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python scripts/install.py '.[dev]'
	touch $(VENV)/.installed $@

clean: ## Remove .venv, out and build
	rm -rf $(VENV) out build
