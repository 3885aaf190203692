# Two commands for newcomers, on a bare Debian 12 as root: `make demo` and `make test`.
# Each installs what is missing and then runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2> /dev/null)
ARGS ?=

# requirements/*.txt are installed by hash, those that build first and without isolation:
# nothing that runs here was fetched without a hash.
LOCKED := requirements/build.txt requirements/dev.txt

.PHONY: help test demo bench bpf lint format lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [ARGS=...]  show sessions that survive the death of a provider"
	@echo "make test             check style, types and behaviour (root: all of it)"
	@echo "make bench            run every script in benchmarks/"
	@echo "make bpf              compile the eBPF programs, where their source has changed"
	@echo "make format           lay out the code"
	@echo "make lock             compile requirements/*.txt again (needs uv)"
	@echo "make clean            remove what these commands made here"

test: $(VENV)/.ready
	$(MAKE) --no-print-directory lint
	$(BIN)/pytest $(ARGS)

demo: bpf
	$(BIN)/m6proxy demo $(ARGS)

bench: bpf
	set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

bpf: $(VENV)/.ready
	$(BIN)/python hatch_build.py

lint: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/.debian: requirements/debian.txt requirements/debian.sh
	bash requirements/debian.sh
	mkdir -p $(VENV)
	touch $@

$(VENV)/.locked: $(LOCKED) | $(VENV)/.debian
ifdef UV
	test -x $(BIN)/python || uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	VIRTUAL_ENV=$(VENV) uv pip install --quiet --require-hashes -r requirements/build.txt
	VIRTUAL_ENV=$(VENV) uv pip install --quiet --require-hashes --no-build-isolation \
		-r requirements/dev.txt
else
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/build.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-build-isolation \
		-r requirements/dev.txt
endif
	touch $@

$(VENV)/.ready: $(VENV)/.locked pyproject.toml | $(VENV)/.debian
ifdef UV
	VIRTUAL_ENV=$(VENV) uv pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endif
	touch $@

# No file that this writes names a package index, nor how it was reached.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links

lock:
	$(LOCK) --output-file requirements/run.txt pyproject.toml
	$(LOCK) --output-file requirements/dev.txt --group dev \
		--constraint requirements/run.txt pyproject.toml
	$(LOCK) --output-file requirements/build.txt \
		--constraint requirements/dev.txt requirements/build.in

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	rm -f m6proxy/dataplane/bpf/*.bpf.o
	find m6proxy tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
