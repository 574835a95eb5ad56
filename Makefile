# Every command of this project. A fresh machine needs Python 3.11 or newer with its venv module, a C compiler
# (as `cc`) and make; everything else is installed into .venv by the first command that needs it.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
SCENARIO ?= examples/curtailment.yaml
SEEDS ?= 200
FUZZ_S ?= 60
FUZZ_COUNT ?=

BIN := .venv/bin
READY := .venv/ready
PURE_TESTS := tests/core tests/world tests/fuzz

.PHONY: help demo test lint check bench soak fuzz clean

help:
	@echo 'make demo [SCENARIO=examples/x.yaml]  play a scenario: rig, controller and agents; report in demo-report/'
	@echo 'make test                             all tests'
	@echo 'make lint                             format, lint, types, import contracts'
	@echo 'make check                            lint and test: what CI runs'
	@echo 'make bench                            figures of speed and memory, as JSON'
	@echo 'make soak [SEEDS=n]                   n histories of the deterministic world'
	@echo 'make fuzz [FUZZ_S=n | FUZZ_COUNT=n]   n seconds, or n broken messages against every reader of foreign bytes'
	@echo 'make clean                            remove all that these commands have made'

demo: $(READY)
	$(BIN)/powerblock-rig run $(SCENARIO)

# What only computes takes both cores; what keeps real time on real sockets runs alone. Both run, whatever happens.
test: $(READY)
	@failed=0; \
	$(BIN)/python -m pytest -n 2 $(PURE_TESTS) || failed=1; \
	$(BIN)/python -m pytest $(PURE_TESTS:%=--ignore=%) || failed=1; \
	exit $$failed

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: $(READY)
	$(BIN)/python -m benchmarks

soak: $(READY)
	$(BIN)/python -m tests.world.soak --seeds $(SEEDS)

# With atheris in .venv, coverage guides it; it has wheels for few versions of Python, so it is nobody's duty.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz $(if $(FUZZ_COUNT),--count $(FUZZ_COUNT),--seconds $(FUZZ_S))

clean:
	rm -rf .venv build demo-report *.egg-info benchmarks/out tests/node/node_modules
	rm -rf .mypy_cache .ruff_cache .import_linter_cache .hypothesis .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The whole set-up, made anew when the dependencies change. The stamp comes last: half a set-up is none.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null \
	  || { echo 'No $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$$($(PYTHON) --version) is too old: 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo '$(PYTHON) has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)'; exit 1; }
	@command -v cc >/dev/null \
	  || { echo 'No C compiler: install one as cc (Debian, Ubuntu: apt-get install gcc libc6-dev)'; exit 1; }
	@echo 'Setting up .venv, once; this takes about half a minute.'
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[rig,dev]'
	@touch $@
