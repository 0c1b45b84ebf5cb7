# Two commands do everything: `make demo` and `make test`. Both create the environment they need.
# Another Python or folder:   make test PYTHON=python3.12 VENV=.venv-312
# A chosen torch build:       make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu   (or .../whl/cu130)

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
CONSTRAINTS ?= constraints.txt
JOBS ?= 2
DEMO_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: demo test test-long test-gpu lint format clean help

help:
	@echo "make demo       train, sample and score SiT, SiT+REPA and DDT on real digits; writes report.html"
	@echo "make test       the test suite (minutes on 2 cores)"
	@echo "make test-long  the slow tests        make test-gpu  the tests that need a CUDA device"
	@echo "make lint       ruff and mypy         make clean     remove the environment and caches"

$(CORE): pyproject.toml $(CONSTRAINTS)
	@echo "installing into $(VENV) (torch first, then the rest; a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' $(CONSTRAINTS))"
	$(PIP) -c $(CONSTRAINTS) -e .
	@touch $@

$(DEV): $(CORE)
	$(PIP) -c $(CONSTRAINTS) -e '.[hf,data,track,dev]'
	@touch $@

demo: $(CORE)
	$(BIN)/python -m ditkit demo $(DEMO_ARGS)

test: $(DEV)
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not long and not gpu"

test-long: $(DEV)
	$(PYTEST) -m "long and not gpu"

test-gpu: $(DEV)
	$(PYTEST) -m gpu

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
