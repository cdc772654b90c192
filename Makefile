# make demo, readme, docs, test and lint set up what they need by themselves: Python >= 3.10 and make are all that must be there.
#
#   make demo                          the built-in photograph
#   make demo IMAGE="my photo.jpg"     another one
#   make readme                        the examples of README.md, with NumPy alone
#   make docs                          the pages, in docs/_build/html; a warning is an error
#   make test ARGS="-k padding -x"     arguments for pytest; WORKERS=1 for one process, as a debugger needs
#   make test-gpu ARGS="-x"            the tests that need a GPU, with the libraries' builds for it; fails where there is none,
#                                      and with PORTCONV_EXPECT_GPU=torch,jax where one of these finds none
#   make array-api ARGS="-k linalg"    the public suite of the array API standard on the namespace for MLX, at a pinned commit
#   make fuzz SECONDS=600 BACKEND=numpy TIER=plain SEED=1     random problems; also THREADS=1 or 2, DEVICE=, JSON=file, GUARD=1,
#                                      and OPERATION=conv3d for those of one function
#   make defects ARGS="--seed 1 short-halo"     whether these problems, and `portconv check`, find errors put into the code
#   make mutants SAMPLE=200 SEED=1     how many of so many small errors in the code the tests notice; in an hour or two
#   make test PYTHON=python3.12        the Python that makes .venv (after `make clean`, if there is one already)

VENV := .venv
# The demo and the examples of the README must work without what only the tests install.
VENV_DEMO := .venv-demo
VENV_README := .venv-readme
VENV_DOCS := .venv-docs
VENV_MUTANTS := .venv-mutants
VENV_ARRAY_API := .venv-array-api
# PyTorch, JAX, CuPy and MLX for CUDA: gigabytes, and MLX's build for CPUs does not go beside that for CUDA.
VENV_GPU := .venv-gpu
VENVS := $(VENV) $(VENV_DEMO) $(VENV_README) $(VENV_DOCS) $(VENV_MUTANTS) $(VENV_GPU) $(VENV_ARRAY_API)
BIN := $(VENV)/bin
# The commit of the suite of the array API standard, and where it is checked out.
SUITE_COMMIT := 55fcc60179efa2680ddd6cd926ddf17b83530e2b
SUITE := $(VENV_ARRAY_API)/suite-$(SUITE_COMMIT)
# Within the rule of a file in a virtual environment: that environment's pip.
PIP = $(@D)/bin/python -m pip --disable-pip-version-check

# The tests fail when one of these cannot be used here, where they would otherwise skip what they cannot run.
PORTCONV_EXPECT_BACKENDS ?= numpy,mlx,torch,jax,dask,array_api_strict
export PORTCONV_EXPECT_BACKENDS
# They fail without Numba, too, where they would otherwise skip those of the compiled tier.
PORTCONV_EXPECT_JIT ?= 1
export PORTCONV_EXPECT_JIT

# Processes that `make test` runs. A test may need 3 GiB of memory.
WORKERS ?= 2
# Their threads sleep while they wait: by spinning they would take the cores from each other for a third of the time.
test mutants: export OMP_WAIT_POLICY = passive
test mutants: export OPENBLAS_THREAD_TIMEOUT = 4

# Of `make fuzz` and `make mutants`.
SECONDS ?= 60
BACKEND ?= numpy
TIER ?= compiled
OPERATION ?= all
SAMPLE ?= 200
SEED ?= 1

# Through the environment, so that the shell sees the path as one word, spaces and quotes included.
export IMAGE

# An installation that was interrupted must not count as done.
.DELETE_ON_ERROR:
# Two pips at work in one environment would spoil it.
.NOTPARALLEL:
.PHONY: help demo readme docs test test-gpu array-api fuzz defects lint mutants clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

demo: $(VENV_DEMO)/.demo
	$(VENV_DEMO)/bin/python examples/demo.py $${IMAGE:+"$$IMAGE"}

readme: $(VENV_README)/.readme
	$(VENV_README)/bin/python tests/readme.py README.md

# Links within the pages are checked; no other page is fetched.
docs: $(VENV_DOCS)/.docs
	$(VENV_DOCS)/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html

test: $(VENV)/.test
	$(BIN)/python -m pytest $(if $(filter-out 0 1,$(WORKERS)),--numprocesses $(WORKERS) --dist worksteal) $(ARGS)

# In one process, since each would take memory of the GPU.
test-gpu: $(VENV_GPU)/.gpu
	$(VENV_GPU)/bin/python tests/gpus.py
	$(VENV_GPU)/bin/python -m pytest -m gpu $(ARGS) tests

# The same examples each time, and in the end which failures were expected and did not come.
array-api: $(VENV_ARRAY_API)/.suite $(SUITE)/.complete
	ARRAY_API_TESTS_DIR=$(SUITE) $(VENV_ARRAY_API)/bin/python tests/array_api.py --max-examples 100 --derandomize \
	    -rX $(ARGS)

fuzz: $(VENV)/.test
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS) --backend $(BACKEND) --tier $(TIER) --seed $(SEED) --operation $(OPERATION) \
	    $(if $(THREADS),--threads $(THREADS)) $(if $(DEVICE),--device $(DEVICE)) $(if $(JSON),--json $(JSON)) $(if $(GUARD),--guard)

defects: $(VENV)/.test
	$(BIN)/python tests/defects/run.py $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

mutants: $(VENV_MUTANTS)/.mutants
	$(VENV_MUTANTS)/bin/python tests/mutants.py --sample $(SAMPLE) --seed $(SEED)

clean:
	rm -rf $(VENVS) .mutants .defects build dist docs/_build docs/reference/generated .mypy_cache .pytest_cache .ruff_cache .hypothesis portconv-demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The files .venv*/.* are stamps: each says that an installation succeeded; a newer pyproject.toml repeats it.

$(VENV_DEMO)/.demo: $(VENV_DEMO)/.pip pyproject.toml
	$(PIP) install --editable '.[mlx,demo]'
	@touch $@

# As a user installs it: what a wheel leaves out is missing here, too.
$(VENV_README)/.readme: $(VENV_README)/.pip pyproject.toml README.md $(shell find portconv -name '*.py')
	$(PIP) install .
	@touch $@

$(VENV_DOCS)/.docs: $(VENV_DOCS)/.pip pyproject.toml
	$(PIP) install --editable . --group docs
	@touch $@

$(VENV)/.test: $(VENV)/.pip pyproject.toml
	$(PIP) install --editable . --group test
	@touch $@

$(VENV_GPU)/.gpu: $(VENV_GPU)/.pip pyproject.toml
	$(PIP) install --editable . --group test-gpu
	@touch $@

$(VENV_MUTANTS)/.mutants: $(VENV_MUTANTS)/.pip pyproject.toml
	$(PIP) install --editable . --group mutants
	@touch $@

$(VENV_ARRAY_API)/.suite: $(VENV_ARRAY_API)/.pip pyproject.toml
	$(PIP) install --editable . --group array-api
	@touch $@

$(SUITE)/.complete: $(VENV_ARRAY_API)/.pip
	rm -rf $(@D)
	git clone --no-checkout https://github.com/data-apis/array-api-tests $(@D)
	git -C $(@D) checkout --quiet $(SUITE_COMMIT)
	git -C $(@D) submodule update --init
	@touch $@

$(VENV)/.lint: $(VENV)/.pip pyproject.toml
	$(PIP) install --editable . --group lint
	@touch $@

# pip knows --group from 25.1 on. An environment that another tool made may have no pip.
$(VENVS:%=%/.pip): %/.pip: %/bin/python
	@$(PIP) --version >/dev/null 2>&1 || $(@D)/bin/python -m ensurepip
	$(PIP) install 'pip>=25.1'
	@touch $@

# The first Python that is recent enough and can make a virtual environment (Debian packs that separately).
$(VENVS:%=%/bin/python): %/bin/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python3.10 python); do \
	    if "$$python" -c 'import sys; assert sys.version_info >= (3, 10); import ensurepip, venv' 2>/dev/null; then \
	        echo "$$python -m venv $*"; \
	        exec "$$python" -m venv $*; \
	    fi; \
	done; \
	echo "make: portconv needs Python 3.10 or newer with the venv module (Debian, Ubuntu: package python3-venv)." >&2; \
	echo "make: $(or $(PYTHON),python3) is not that; name another one: make PYTHON=/path/to/python3" >&2; \
	exit 1
