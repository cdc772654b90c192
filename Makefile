# make demo, make test and make lint set up .venv by themselves: Python >= 3.10 and make are all they need.
#
#   make demo                          the built-in photograph
#   make demo IMAGE="my photo.jpg"     another one
#   make test ARGS="-k padding -x"     arguments for pytest
#   make test PYTHON=python3.12        the Python that makes .venv (after `make clean`, if there is one already)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The tests fail when one of these cannot be used here, where they would otherwise skip what they cannot run.
PORTCONV_EXPECT_BACKENDS ?= numpy,mlx,torch,jax,dask,array_api_strict
export PORTCONV_EXPECT_BACKENDS
# They fail without Numba, too, where they would otherwise skip those of the compiled tier.
PORTCONV_EXPECT_JIT ?= 1
export PORTCONV_EXPECT_JIT

# Through the environment, so that the shell sees the path as one word, spaces and quotes included.
export IMAGE

# An installation that was interrupted must not count as done.
.DELETE_ON_ERROR:
# Two pips at work in one environment would spoil it.
.NOTPARALLEL:
.PHONY: help demo test lint clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py $${IMAGE:+"$$IMAGE"}

test: $(VENV)/.test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis portconv-demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files .venv/.* are stamps: each says that an installation succeeded; a newer pyproject.toml repeats it.

$(VENV)/.demo: $(VENV)/.pip pyproject.toml
	$(PIP) install --editable '.[mlx,demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.pip pyproject.toml
	$(PIP) install --editable . --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.pip pyproject.toml
	$(PIP) install --editable . --group lint
	@touch $@

# pip knows --group from 25.1 on. A .venv that another tool made may have no pip.
$(VENV)/.pip: $(BIN)/python
	@$(PIP) --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(PIP) install 'pip>=25.1'
	@touch $@

# The first Python that is recent enough and can make a virtual environment (Debian packs that separately).
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10 python); do \
	    if "$$python" -c 'import sys; assert sys.version_info >= (3, 10); import ensurepip, venv' 2>/dev/null; then \
	        echo "$$python -m venv $(VENV)"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "make: portconv needs Python 3.10 or newer with the venv module (Debian, Ubuntu: package python3-venv)." >&2; \
	echo "make: $(or $(PYTHON),python3) is not that; name another one: make PYTHON=/path/to/python3" >&2; \
	exit 1
