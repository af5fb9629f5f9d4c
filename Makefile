# Everything runs in .venv, built from constraints.txt. `make` alone prints the targets.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export MPLBACKEND := Agg
# Notebooks and test workers run side by side, one thread each; two pools on two cores fight.
test book: export OMP_NUM_THREADS := 1

.PHONY: help book pdf test export check lint serve bench clean
.DEFAULT_GOAL := help

help:  ## print the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

export: .venv/installed  ## notebooks to package, notebooks cleaned
	@python scripts/export.py

check: lint  ## linters; package in sync with the notebooks, notebooks clean
	@python tests/check_sync.py

lint: .venv/installed  ## ruff on all code, notebooks too; pyright on the package
	ruff check
	pyright

test: check  ## linters, export and cleanliness check, notebooks, pytest, import contracts
	python book/build.py --execute
	pytest --numprocesses auto
	lint-imports

book: export  ## sdist and wheel; every notebook executed, unless `make test` has; the book rendered
	@rm -rf dist && python -m build --outdir dist . > /dev/null && ls dist
	python book/build.py

pdf: .venv/installed  ## the built book as one PDF, printed by Chromium
	python book/pdf.py

serve: .venv/installed  ## the built book on http://localhost:8000
	python -m http.server --directory book/_build/html 8000

bench: .venv/installed  ## timings against peers and against the hardware floor, in one run
	@pip install --quiet --disable-pip-version-check --editable '.[bench]'
	python benchmarks/speed.py
	python benchmarks/diffusion.py

clean:  ## remove the environment and everything built
	rm -rf .venv dist build _proc book/_build rbmdiff.egg-info .pytest_cache .hypothesis .import_linter_cache
