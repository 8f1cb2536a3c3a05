# Self-explaining targets: `make` alone lists them. Everything is set up inside .venv/.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests run in two processes of one thread each: most of them wait for a training process of their own.
SPREAD := -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup test-system train test soak check bench learn peers clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(VENV)/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/ready  ## create .venv with everything that is pinned in constraints.txt

# Installs as root on Debian; elsewhere it tells what is missing, and `make test` goes on without.
test-system:  ## install what the tests start (PostgreSQL, Slurm, Chromium), where it is missing (Debian, as root)
	@tests/servers/install.sh $(if $(filter $@,$(MAKECMDGOALS)),--strict)

data/msft.h5: data/sample/MSFT_5min.csv | $(VENV)/ready
	$(BIN)/hpcrl stage files --path data/sample/MSFT_5min.csv --price-adjustment splits --out $@

train: $(VENV)/ready data/msft.h5  ## stage the real sample, train on the CPU, evaluate on held-out bars
	$(BIN)/hpcrl train --config yaml/local.yaml
	$(BIN)/hpcrl evaluate "$$(ls -d checkpoints/dist_run_* | tail -n 1)" --split test

test: $(VENV)/ready test-system  ## all tests: one case of every fault class, under 25 minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" $(SPREAD)

soak: $(VENV)/ready test-system  ## the full counts that the issues name; results in docs/soak.md
	SOAK_REPORT=docs/soak.md OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m soak --timeout 7200 $(SPREAD)

check: $(VENV)/ready test-system  ## format, lint, types and the fast tests: about a minute
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not soak" $(SPREAD)

bench: $(VENV)/ready data/msft.h5  ## env steps per second of training, and where the time goes
	$(BIN)/hpcrl bench train --config yaml/local.yaml

learn: $(VENV)/ready  ## what the agent learns of what can be learnt: docs/learnability.md, 40 minutes
	OMP_NUM_THREADS=1 $(BIN)/hpcrl bench learn --task all --seeds 3 --jobs 2 --report docs/learnability.md

.venv-peers/ready: tools/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r tools/peers.txt
	touch $@

peers: .venv-peers/ready  ## an environment of their own for the packages we are compared with (bench env)

clean:  ## remove the environments, staged data and caches; run folders stay
	rm -rf $(VENV) .venv-peers build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis data/*.h5 data/*.report.json data/*.coverage.png data/.*.parts
