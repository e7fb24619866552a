# Every target works in ./.venv, which `make install` creates; nothing outside it is used.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two stages: what the service needs, then what tests, load tests and benchmarks need in addition.
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
CONFIG ?= laptop
export RAY_USAGE_STATS_ENABLED = 0
# Ray's usage statistics need the internet, and transformers' advice is noise on a laptop.
export TRANSFORMERS_VERBOSITY = error
# Request limits in Serve's proxy, where requests arrive: raycache/front/__init__.py.
export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH = raycache.front:middlewares

.PHONY: install serve test check lint format docs loadtest bench bench-service bench-gpu clean

install: $(STAMP)

# torch first and alone: with torch==2.13.0 satisfied, nothing below installs a different build of it.
$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v=sys.version_info[:2]; sys.exit(0 if (3,11) <= v < (3,13) else "raycache needs Python 3.11 or 3.12, %s is %d.%d: make PYTHON=python3.11 ..." % (sys.executable, *v))'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(RUNTIME)

$(STAMP): $(RUNTIME)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,loadtest,bench]'
	touch $(STAMP)

# Installs only what the service needs, so that the first image comes sooner.
serve: $(RUNTIME)
	$(BIN)/raycache serve $(CONFIG)

# Ranks and services need the machine to themselves; unit tests share it. `python -m pytest` runs all in one process.
# Hundreds of processes import this project: without bytecode each compiles it first.
test check: export PYTHONDONTWRITEBYTECODE =
test: install
	status=0; \
	$(BIN)/python -m pytest tests/unit --numprocesses logical --maxprocesses 4 --dist worksteal $(PYTEST_ARGS) || status=$$?; \
	$(BIN)/python -m pytest tests/distributed tests/serving tests/gpu $(PYTEST_ARGS) || status=$$?; \
	exit $$status

# Before each commit: without Ray and slow tests. `make test` runs everything.
check: lint
	$(BIN)/python -m pytest tests/unit -m "not slow" --numprocesses logical --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/typos
	$(BIN)/mypy

# Builds the site in ./site from the pages in docs/; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install
	$(BIN)/ruff check --no-cache --fix .
	$(BIN)/ruff format --no-cache .

loadtest: install
	$(BIN)/python -m loadtests.run

# The measurements of docs/performance.md and docs/capacity.md; half an hour on two idle cores.
bench: install
	$(BIN)/python -m benchmarks.first_image
	$(BIN)/python -m benchmarks.cache_overhead
	$(BIN)/python -m benchmarks.ulysses
	$(BIN)/python -m benchmarks.capacity

# The measurements of docs/reliability.md (faults, 500 jobs under faults) and docs/scheduling.md (many jobs); takes longer.
bench-service: install
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.rebuild
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks.many_jobs
	$(BIN)/python -m benchmarks.waits

# Needs at least one GPU; docs/gpu/README.md.
bench-gpu: install
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
