PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BOUNDS ?= .venv-bounds
# Every test takes one thread. A file stays with one worker: its fixtures are made once.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Where the environment says to keep no compiled modules, every process of the tests would compile them anew.
test test-fast: export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-bounds test-gpu test-slurm check refresh bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

$(BIN)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "udpbench needs Python 3.11 to 3.13; say make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (about two minutes and 6 GB, most of it PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(BIN)/.installed ## Does EUDP protect a subject from DreamBooth, and does IMPRESS undo it? (embedded model, a few minutes)
	$(BIN)/python -m udpbench protect=eudp attack=impress task=dreambooth

test: $(BIN)/.installed ## Run all tests
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(BIN)/.installed ## Run the quick tests
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

$(BOUNDS)/.installed: pyproject.toml
	@test -x $(BOUNDS)/bin/python || $(PYTHON) -m venv $(BOUNDS)
	@grep -oE '"[A-Za-z0-9-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' | sort -u > $(BOUNDS)/bounds.txt
	@echo "installing the lower bounds of pyproject.toml (about three minutes and 8 GB, most of it PyTorch) ..."
	@$(BOUNDS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(BOUNDS)/bounds.txt --editable '.[dev]'
	@touch $@

test-bounds: $(BOUNDS)/.installed ## Run the quick tests and a small cell with the oldest versions that pyproject.toml allows
	$(BOUNDS)/bin/python -m pytest $(PARALLEL) -m "not slow"
	$(BOUNDS)/bin/python -m udpbench protect=eudp protect.rounds=1 task.steps=5 task.pictures=50 data.reference=50 \
		data.validation=50 data.heldout=50 'arms=[clean,protected]' track=none runtime.out=$(BOUNDS)/out

test-gpu: $(BIN)/.installed ## Run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

test-slurm: $(BIN)/.installed ## Run grids on Slurm, on this machine alone, and on Ray (installs both; skipped, with the reason, where that cannot be)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[slurm,ray]'
	tests/slurm/run.sh $(BIN)/python -m pytest tests/slurm
	$(BIN)/python -m pytest tests/test_ray.py

check: $(BIN)/.installed ## Lint, format, types and docs
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build

refresh: $(BIN)/.installed ## After adding a method, NAME=stripes: its golden numbers (without NAME those of all), and the tables of the docs
	UDPBENCH_REFRESH_GOLDEN=1 $(BIN)/python -m pytest tests/test_golden.py $(if $(NAME),-k $(NAME))
	$(BIN)/python -m udpbench list --fill docs/methods.md

bench: $(BIN)/.installed ## Time the hot loops beside plain ones
	$(BIN)/python -m udpbench bench

clean: ## Remove everything that was computed (outputs, caches); the environment stays
	rm -rf outputs multirun .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find udpbench tests -name __pycache__ -type d -exec rm -rf {} +
