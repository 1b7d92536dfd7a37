# Two commands do everything on a fresh machine: `make reproduce` and `make test`.
PROFILE ?= nano
SEED ?= 0
VENV ?= .venv
PY = $(firstword $(wildcard $(VENV)/Scripts/python.exe) $(VENV)/bin/python)
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test bench build doctor lock clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## create .venv and install the locked packages (PYTHON=..., EXTRAS=gpu,small)
	@bash scripts/setup.sh

reproduce: setup  ## run the notebook series, print the claims, write the gallery (PROFILE=nano SEED=0)
	@$(PY) -m workbench reproduce --profile $(PROFILE) --seed $(SEED)

test: setup  ## lint, notebooks up to date, every test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m workbench build --check
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses logical --dist loadfile

bench: setup  ## measure speed and quality against their goals (BENCH=name for one)
	@$(PY) -m workbench bench $(BENCH)

build: setup  ## make the notebooks from notebooks/src
	@$(PY) -m workbench build

doctor: setup  ## say what this machine can do
	@$(PY) -m workbench doctor

lock:  ## choose the versions in requirements.lock anew
	@bash scripts/lock.sh --upgrade

clean:  ## remove caches; finished runs and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
